"""Controls: what must come out whatever the arms do, if instruments and statistics work.

An arm trained once more with another order of data must not differ from itself (A/A). A picture
must lose if it is judged by another prompt's text, and the rendered scene must win. Simulated
studies must find what is not there no more often than the test says, and their intervals must hold
the truth as often as they say. A control that fails is shown as one: the verdicts beside it are
then worth less.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from dalle3lib import UserError, arm, config, files, fingerprint, paths, power, quality, stats
from dalle3lib import study_planning as planning
from dalle3lib import study_results as results
from dalle3lib.evals import clip_score
from dalle3lib.images import stack
from dalle3lib.randomness import rng
from dalle3lib.study_evidence import PAIRS
from dalle3lib.study_stages import FOUR, STAGES

LEAST = 6  # seeds: with fewer a two-sided sign-flip test cannot reach .05, so nothing can fail
COMMAND = "python -m dalle3lib study controls"
LEVEL = 0.95


@dataclass(frozen=True)
class Control:
    """One control: what is expected, what was found with its 95 % interval, and how it came out."""

    name: str
    expectation: str
    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    unit: str = ""
    outcome: str = "not run yet"  # or passed, failed, out of date
    source: str = ""


def controls() -> pd.DataFrame:
    """All controls, a row each: the fields of ``Control``. Takes seconds: it reads what is there.

    UserError if results of the study cannot be compared.
    """
    return pd.DataFrame([asdict(one) for one in (*a_a(), *kept())])


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """``controls`` for people: control, expected, found, outcome, source."""

    def found(row: pd.Series) -> str:
        if np.isnan(row.value):
            return "–"
        form = "{:.1f} [{:.1f}, {:.1f}] %" if row.unit == "%" else "{:+.2f} [{:+.2f}, {:+.2f}] {}"
        return form.format(row.value, row.low, row.high, row.unit)

    rows = [(r["name"], r.expectation, found(r), r.outcome, r.source) for _, r in table.iterrows()]
    return pd.DataFrame(rows, columns=["control", "expected", "found", "outcome", "source"])


# ---- an arm against itself -----------------------------------------------------------------------


def a_a() -> list[Control]:
    """Arms of the stage ``order`` minus the same arms and seeds of the main stage, in points.

    Passed if the exact two-sided sign-flip test does not reject at .05 (which it does of 1 in 20
    sound controls); intervals are over seeds.
    """
    found = []
    loaded = {stage: results.load(stage) for stage in ("main", "order") if results.names(stage)}
    for name in STAGES["order"].arms:
        seeds = _shared(loaded, name)
        for kind in planning.KINDS:
            title, expectation = f"A/A: {name} on {kind} prompts", "no difference"
            if len(seeds) < LEAST:
                outcome = f"not run yet ({len(seeds)} of {LEAST} seeds)"
                found.append(Control(title, expectation, outcome=outcome, source="stage order"))
                continue
            one, other = (_scores(loaded[s], name, seeds, kind) for s in ("order", "main"))
            entry = stats.effect(one - other, rng(0, f"a-a/{name}/{kind}"), "two-sided")
            outcome = "passed" if entry["p"] > 1 - LEVEL else "failed"
            source = f"stages order and main, {len(seeds)} seeds, p {entry['p']:.2f}"
            measured = (entry["effect"], *entry["interval"], "points")
            found.append(Control(title, expectation, *measured, outcome, source))
    return found


def _shared(loaded: dict[str, results.Results], name: str) -> list[int]:
    """The seeds that an arm has in both stages. UserError if more than the order differs."""
    if len(loaded) < 2 or not all(name in stage.about for stage in loaded.values()):
        return []
    told = []
    for stage, one in loaded.items():
        about = next(iter(one.about[name].values()))
        given = {k: v for k, v in about["parameters"].items() if k not in STAGES[stage].given}
        told.append({key: about[key] for key in results.ALIKE} | {"parameters": given})
    if odd := [key for key in results.ALIKE if told[0][key] != told[1][key]]:
        raise UserError(
            f"Stages main and order are no A/A control, because their {odd[0]} differ: delete "
            f"{results.FOLDER / 'order'} and run `make study STAGE=order` again."
        )
    return sorted(set(loaded["main"].tables[name]) & set(loaded["order"].tables[name]))


def _scores(of: results.Results, name: str, seeds: list[int], kind: str) -> np.ndarray:
    """CLIP scores of an arm with one kind of prompt: [seeds, prompts]."""
    tables = [of.tables[name][seed] for seed in seeds]
    return np.stack([t.score[t.kind == kind].to_numpy(np.float64) for t in tables])


# ---- what takes minutes, and is therefore kept ---------------------------------------------------


def path() -> Path:
    """Where the controls that take minutes are kept, committed beside the study's results."""
    return results.FOLDER / "controls.json"


def measure(prompts: int = 128, count: int = power.SIMULATED) -> Path:
    """Compute the controls of pictures and of simulated studies, and keep them; about 2 minutes.

    ``prompts`` of each kind, ``count`` simulated studies for each measure; what is kept already and
    not out of date is not computed again. UserError without two paired seeds of the pilot.
    """
    content = files.read_json(path()) if path().is_file() else {}
    for part, compute in {
        "pictures": lambda: of_pictures(prompts),
        "simulation": lambda: of_simulation(count),
    }.items():
        if part not in content or content[part]["inputs"] != inputs(part):
            found = [asdict(one) for one in compute()]
            content[part] = {"inputs": inputs(part), "controls": found}
            files.write_atomic(path(), files.to_json(content).encode())
    return path()


def kept() -> list[Control]:
    """The kept controls; those made from other inputs than there are now are out of date."""
    there = files.read_json(path()) if path().is_file() else {}
    found = []
    for part, title in (("pictures", "shuffled and rendered"), ("simulation", "error rates")):
        if part not in there:
            found.append(Control(title, "–", source=f"`{COMMAND}`"))
            continue
        old = there[part]["inputs"] != inputs(part)
        for entry in there[part]["controls"]:
            stale = {"outcome": f"out of date (was {entry['outcome']}): `{COMMAND}`"}
            found.append(Control(**entry | (stale if old else {})))
    return found


def inputs(part: str) -> str:
    """A digest of what kept controls come from: foundations and arms, or pilot and statistics."""
    if part == "simulation":
        statistics = fingerprint.module_closure({"dalle3lib.power"})
        return files.digest(
            [statistics, [[p.name, files.sha256(p)] for p in results.names("pilot")]]
        )
    names = ("vae", "t5", "clip", *(f"unet-{name}" for name in FOUR))
    manifests = [paths.foundation_dir() / name / "manifest.json" for name in names]
    return files.digest([results.METHOD_VERSION, *(files.sha256(p) for p in manifests)])


def of_pictures(prompts: int) -> list[Control]:
    """Shuffled captions must lose and rendered scenes must win, in every shipped arm.

    The study's results hold no pictures, so the shipped arms (seed 0) are sampled with development
    prompts. Each control tells the arm that passes it least clearly; intervals are over prompts.
    Scenes are compared where the text is true of them: an original caption may tell what is not
    there, and a picture that follows it can beat the scene.
    """
    cfg = config.from_preset("04a_train_arm", preset="cpu", prompts=prompts, prompts_from="dev")
    on = arm.studio(arm.evaluation_records(cfg), cfg)
    scenes = stack(on.records)
    true = clip_score.clip_scores(*on.scorer, scenes, on.texts["descriptive"])
    read = 100 * quality.facts_read(scenes, on.records)[PAIRS].to_numpy()
    by_arm = {}
    for name in FOUR:
        model, guidance = arm.load(name)
        options = {"seed": cfg.seed, "steps": cfg.sampling_steps, "guidance": guidance}
        table, pictures = arm.score(model, on, **options)
        own = {kind: group.reset_index(drop=True) for kind, group in table.groupby("kind")}
        score, facts = own["descriptive"].score.to_numpy(), own["descriptive"][PAIRS].to_numpy()
        other = quality.facts_read(pictures["descriptive"], shifted(on.records))[PAIRS].to_numpy()
        by_arm[name] = {
            **{f"shuffled {k} prompts": _lost(on, pictures[k], own[k], k) for k in planning.KINDS},
            "shuffled scenes, pairs read": 100 * (facts - other),
            "rendered scenes, descriptive prompts": true - score,
            "rendered scenes, pairs read": read - 100 * facts,
        }
    return [_least(title, by_arm, prompts) for title in by_arm[FOUR[0]]]


def shifted(values: list) -> list:
    """Everything moved by one place, the last to the front: no prompt keeps its own."""
    return [*values[-1:], *values[:-1]]


def _lost(on: arm.Studio, pictures: np.ndarray, own: pd.DataFrame, kind: str) -> np.ndarray:
    """How much each picture scores less with another prompt's text of the same kind: points."""
    others = clip_score.clip_scores(*on.scorer, pictures, shifted(on.texts[kind]))
    return own.score.to_numpy() - others


def _least(title: str, by_arm: dict[str, dict[str, np.ndarray]], prompts: int) -> Control:
    """The control of the arm whose mean difference is the smallest: it must be above zero."""
    means = {name: float(np.nanmean(found[title])) for name, found in by_arm.items()}
    name = min(means, key=means.get)
    differences = by_arm[name][title]
    known = differences[~np.isnan(differences)]  # a scene may have no pair
    low, high = stats.mean_interval(known, rng(0, f"controls/{title}"))
    outcome = "passed" if low > 0 else "failed"
    unit = "% points" if title.endswith("read") else "points"
    expectation = "own text above another's" if "shuffled" in title else "scene above picture"
    source = f"least of {len(FOUR)} shipped arms ({name}, seed 0), {prompts} dev prompts"
    return Control(title, expectation, means[name], low, high, unit, outcome, source)


def of_simulation(count: int) -> list[Control]:
    """How often the statistics err in simulated studies with the pilot's variances, in %.

    All measures of ``study_planning.controls`` together; intervals are exact binomial ones. False
    positives pass unless they are surely above 5 %, coverage unless it is surely below 95 %.
    """
    pilot = results.load("pilot")
    rates = planning.controls(pilot, count=count)
    studies = count * len(rates)
    seeds = len(next(iter(pilot.tables.values())))
    source = f"{len(rates)} × {count:,} simulated studies of {planning.PLANNED} seeds, variances "
    source += f"of {seeds} pilot seeds"
    found = []
    for column in rates:
        share = float(rates[column].mean())
        ends = binomtest(round(share * studies), studies).proportion_ci(LEVEL)
        sound = ends.high >= LEVEL if "covers" in column else ends.low <= 1 - LEVEL
        expectation = "95 % or more" if "covers" in column else "5 % or less"
        percent = [100 * value for value in (share, ends.low, ends.high)]
        outcome = "passed" if sound else "failed"
        found.append(Control(f"simulated: {column}", expectation, *percent, "%", outcome, source))
    return found
