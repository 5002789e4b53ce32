"""The study: how its runs (``study_stages``) are made, one after the other, until all are there.

A run is chapter 04a with preset ``study``, as anybody can start it by hand; what it leaves is one
small file (``study_results``). A run whose file is there is never repeated.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from tqdm.auto import tqdm

from dalle3lib import UserError, paths, runners, runs
from dalle3lib.graph import ONE_THREAD
from dalle3lib.pages import duration
from dalle3lib.study_stages import (
    STAGES,
    Job,
    again,
    job,
    jobs,
    parameters,
    run_directory,
    words,
    worth,
)

# ---- making the runs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of a run: the seconds it took and, if it failed, why."""

    name: str
    seconds: float
    problem: str = ""


def execute(one: Job) -> Outcome:
    """Make a run and write its result; whatever goes wrong is told and harms no other run.

    An interrupted run goes on from its last checkpoint. Its checkpoints go when the result is
    there; scores, pictures and weights stay in the run directory.
    """
    began, problem = time.time(), ""
    try:
        cfg = parameters(one, **{k: v for k, v in one.given.items() if k not in one.settings})
        train(one)
        from dalle3lib import study_pictures, study_results

        run = run_directory(cfg)
        study_results.collect(cfg, run, one.stage)
        if one.curve:
            study_pictures.keep(run, one.stage, one.name)
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
    except Exception as error:
        problem = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return Outcome(one.name, time.time() - began, problem)


def train(one: Job) -> None:
    """Run chapter 04a in a process of its own; UserError with its last words if it fails."""
    done = subprocess.run(
        [sys.executable, *words(one.given)],
        cwd=paths.ROOT,
        env=os.environ | {"PYTHONPATH": paths.python_path(), "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise UserError((said or [f"it ended with code {done.returncode}"])[-1])


def run(stage: str, processes: int) -> list[Outcome]:
    """Make all runs of a stage that have no result yet; the outcomes of those made now."""
    done = finished(stage)
    todo = [one for one in jobs(stage) if one.name not in done]
    outcomes = []
    if todo:
        from dalle3lib import latents, study_captions

        study_captions.require(stage)
        latents.build(parameters(todo[0]))  # once, before several processes ask for it
    with tqdm(total=len(todo) + len(done), initial=len(done), unit="run", desc=stage) as bar:
        for outcome in runners.run_local(execute, todo, min(processes, max(1, len(todo)))):
            outcomes.append(outcome)
            bar.update()
            what = f"failed: {outcome.problem}" if outcome.problem else "finished"
            bar.write(f"{outcome.name} {what} ({outcome.seconds / 60:.1f} min)")
            left = len(todo) - len(outcomes)
            each = statistics.mean(o.seconds for o in outcomes)
            bar.set_postfix_str(f"{duration(left * each / processes)} left")
    return outcomes


# ---- telling -------------------------------------------------------------------------------------


def finished(stage: str) -> dict[str, float]:
    """The seconds (wall) of each run of a stage whose result is there, by name."""
    from dalle3lib import study_results

    found = {one.name: study_results.current(stage, one.name) for one in jobs(stage)}
    return {name: about["seconds"]["run"]["wall"] for name, about in found.items() if about}


def plan(stage: str, processes: int) -> str:
    """What a stage consists of, what is done, how long the rest takes, how to make one run."""
    done, all_jobs = finished(stage), jobs(stage)
    arms, seeds, _, varies = STAGES[stage]
    lines = [
        f"Stage {stage}: {len(all_jobs)} runs, {len(done)} finished. Arms {', '.join(arms)}; "
        f"seeds {seeds[0]} to {seeds[-1]}."
    ]
    if varies:
        lines.append(f"It differs from the main stage in this: {varies}. {worth(stage)}.")
    for arm in arms:
        own = {seed: done.get(f"{arm}-{seed}") for seed in seeds}
        minutes = " ".join(f"{s / 60:6.1f}" if s else "     ·" for s in own.values())
        lines.append(f"  {arm:<12}{minutes}   minutes by seed")
    known = list(done.values()) or [s for other in STAGES for s in finished(other).values()]
    others = "" if done else " of other stages"
    if known:
        each, left = statistics.median(known), len(all_jobs) - len(done)
        rest = f"{duration(left * each / processes)} with {processes} at a time"
        rest = f"the {left} left take about {rest}" if left else "none is left"
        lines.append(
            f"A run takes {each / 60:.1f} minutes (median of {len(known)}{others}); {rest}."
        )
    else:
        lines.append("How long a run takes is known when the first has finished.")
    example = all_jobs[-1]
    from dalle3lib import study_captions  # here, as it loads what trains captioners

    lines += study_captions.told(stage)
    lines += ["Any single run, and whether it agrees with the committed ones:", *again(example)]
    return "\n".join(lines)


def check(name: str, stage: str | None = None) -> bool:
    """Print how a run made here compares with the committed seeds of its arm; whether it agrees.

    It agrees if for every kind of prompt its mean CLIP score lies in the 95 % prediction interval
    of the seeds. UserError if the run or the results are not there.
    """
    import pandas as pd

    from dalle3lib import agreement, study_results

    one = job(name, stage)
    results = study_results.load(one.stage)
    own = run_directory(parameters(one))
    if not (own / "manifest.json").is_file():
        raise UserError(f"There is no run {name} here; make it with `{again(one)[0].strip()}`.")
    runs.load(own)
    scores = pd.read_parquet(own / "scores.parquet")
    table = agreement.agreement(scores, one.arm, results)
    print(f"{name} against the {len(results.tables[one.arm])} committed seeds of {one.arm}:")
    print(table.round(2).to_string(index=False))
    agrees = bool(table.agrees.all())
    print(f"{name} {'agrees' if agrees else 'DOES NOT agree'} with the committed results.")
    return agrees


def report(stage: str) -> str:
    """The evidence of a stage as a table: claim, effect, interval, p value, seeds."""
    from dalle3lib import study_evidence, study_results

    rows = [f"{STAGES[stage].varies}: {worth(stage)}"] if STAGES[stage].varies else []
    for claim, e in study_evidence.evidence(study_results.load(stage)).items():
        low, high = e["interval"]
        p = "–" if e["p"] is None else f"{e['p']:.4f}"
        effect = f"{e['effect']:+.2f} [{low:+.2f}, {high:+.2f}] {e['unit']}"
        rows.append(f"{claim:<52}{effect:<44}p {p:<8}{e['seeds']} seeds")
    return "\n".join(rows) or "No claim has two paired seeds of its arms yet."


# ---- the command ---------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``study``."""
    parser.description = (
        "Make the runs of the study that are missing (the same command goes on after an "
        "interruption), print the plan alone, compare one run made here with the committed "
        "results, or print what the results say of the claims, and of the power of the study, or "
        "compute the controls that take minutes."
    )
    parser.add_argument(
        "action",
        nargs="?",
        default="run",
        choices=("run", "plan", "check", "evidence", "power", "controls"),
    )
    parser.add_argument("name", nargs="?", metavar="RUN", help="to check, such as dsc-95-100")
    parser.add_argument("--stage", choices=tuple(STAGES), help="main, if none is given")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, a thread each")


def command(options: argparse.Namespace) -> int:
    """Make the runs of the study, or say how far it is and whether a run agrees with it."""
    if options.action == "check":
        if not options.name:
            raise UserError("Which run? For example `python -m dalle3lib study check dsc-95-100`.")
        return 0 if check(options.name, options.stage) else 1
    stage = options.stage or "main"
    if options.action == "evidence":
        print(report(stage))
        return 0
    if options.action == "power":
        from dalle3lib import study_planning

        print(study_planning.report(stage))
        return 0
    if options.action == "controls":
        from dalle3lib import study_controls

        print(f"Written: {study_controls.measure()}")
        return 0
    if options.processes < 1:
        raise UserError(f"--processes must be at least 1, not {options.processes}.")
    print(plan(stage, options.processes), flush=True)
    if options.action == "plan":
        return 0
    os.environ |= ONE_THREAD
    failed = [o for o in run(stage, options.processes) if o.problem]
    for outcome in failed:
        print(f"failed: {outcome.name}: {outcome.problem}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} runs failed; the same command tries them again.", file=sys.stderr)
    return 1 if failed else 0
