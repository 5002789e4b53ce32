"""The small files that the study leaves: one for each run, committed, and the arrays made of them.

``data/study/<stage>/<kind>-<ratio>-<seed>.parquet`` holds what every prompt scored, and in the
file's own metadata (JSON) how the run was made; ``prompts.parquet`` beside them says what was
asked. A result carries ``METHOD_VERSION``: an edit of the code never invalidates it, a change of
the method does. ``tests/test_study.py`` compares a few steps with the losses of this version.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dalle3lib import UserError, files, pairs, paths, runs
from dalle3lib.config import Parameters
from dalle3lib.study_stages import STAGES

METHOD_VERSION = 1  # raise it when training, sampling or scoring changes, and run the study anew
FOLDER = paths.ROOT / "data" / "study"
PROMPTS = "prompts.parquet"
SHORT_FACTS = "short facts"  # the share of the short prompt's facts that the reader finds
FREE = ("kind", "ratio", "seed", "evaluations")  # parameters in which runs of a stage may differ
LATER = {"data_order": 0}  # parameters younger than results, and what the older ones did
ALIKE = ("method", "parameters", "captions", "foundations", "prompts")  # and what they must share
KEY = b"dalle3lib"


# ---- writing -------------------------------------------------------------------------------------


def path_of(stage: str, name: str) -> Path:
    """Where the result of a run ``kind-ratio-seed`` of a stage lies, or will lie."""
    return FOLDER / stage / f"{name}.parquet"


def collect(cfg: Parameters, run: Path, stage: str) -> Path:
    """Write the result file of a finished run of chapter 04a; return its path.

    Raises UserError if the run is not complete, or was asked other prompts than the stage's
    results so far.
    """
    records = pairs.held_out(cfg, cfg.prompts)
    table, asked = measured(run, records)
    about = told(run) | {"prompts": _share_prompts(stage, asked)}
    return write(stage, f"{cfg.kind}-{cfg.ratio}-{cfg.seed}", table.drop(columns="prompt"), about)


def measured(run: Path, records: list) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What a run of chapter 04a scored, with the short prompt's facts found in its last pictures,
    and ``describe`` of what it was asked. ``records`` are those that the prompts belong to."""
    scores = pd.read_parquet(run / "scores.parquet")
    final = scores.step == scores.step.max()
    short = np.full(len(scores), np.nan)
    if all(r.facts and r.short for r in records):
        kinds = scores[final].kind.unique()
        found = [_short_facts(np.load(run / f"pictures-{kind}.npy"), records) for kind in kinds]
        short[final] = np.concatenate(found)
    return scores.assign(**{SHORT_FACTS: short}), describe(scores[final], records)


def told(run: Path) -> dict[str, Any]:
    """How a finished run was made, as its result file tells it. UserError if it is not complete."""
    manifest, results = runs.load(run), runs.results(run)
    given = manifest["parameters"]
    return {
        "method": METHOD_VERSION,
        "arm": f"{given['kind']}-{given['ratio']}",
        "seed": given["seed"],
        "parameters": compared(given),
        "guidance": results["guidance"],
        "loss": results["loss"],
        "seconds": {"training": results["training_seconds"], "run": _seconds(manifest)},
        "captions": _captions(given.get("captions_from", pairs.WRITTEN)),
        "foundations": {
            name: _sha256(paths.foundation_dir() / name / "manifest.json")
            for name in ("vae", "t5", "clip", "upsampler")
        },
    } | {k: manifest[k] for k in ("commit", "dirty", "packages", "cpu", "threads", "finished")}


def compared(given: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a run that all runs of its stage must share, as result files tell them.

    Those of ``LATER`` are left out where they change nothing, so that old files stay comparable.
    """
    return {
        name: value
        for name, value in given.items()
        if name not in FREE and not (name in LATER and value == LATER[name])
    }


def _captions(where: str) -> str | None:
    """What tells the captions of one run from those of another: their manifest, or "truth"."""
    own = paths.ROOT / "data" / "captions" if where == pairs.WRITTEN else paths.folder(where)
    return where if where == pairs.TRUTH else _sha256(own / "manifest.json")


def write(stage: str, name: str, table: pd.DataFrame, about: dict[str, Any]) -> Path:
    """Write one result file, whole or not at all; return its path."""
    path = path_of(stage, name)
    numbers = {c: "float32" for c in table if c not in ("kind", "step")}
    table = table.astype({"kind": "category", "step": "int32", **numbers})
    _write(path, table, {KEY: files.to_json(about).encode()})
    return path


def _write(path: Path, table: pd.DataFrame, metadata: dict[bytes, bytes]) -> None:
    with files.guard(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    content = pa.Table.from_pandas(table.reset_index(drop=True), preserve_index=False)
    sink = pa.BufferOutputStream()
    pq.write_table(content.replace_schema_metadata(metadata), sink, compression="zstd")
    files.write_atomic(path, sink.getvalue().to_pybytes())


def _short_facts(pictures: np.ndarray, records: list) -> np.ndarray:
    """The share of each record's short prompt's facts that its picture shows: [N]."""
    from dalle3lib import upsample_scores
    from dalle3lib.world import reader

    return upsample_scores.kept([r.short for r in records], reader.read(pictures))


def _seconds(manifest: dict[str, Any]) -> dict[str, float]:
    return {"wall": manifest["wall_seconds"], "processor": manifest["cpu_seconds"]}


def _sha256(path: Path) -> str | None:
    return files.sha256(path) if path.is_file() else None


def describe(last: pd.DataFrame, records: list) -> pd.DataFrame:
    """What was asked: a row for each kind and prompt with the record's key.

    "facts" is how many facts the prompt states, "objects" how many objects it names; "named" says
    whether the record's short prompt names every object of the scene.
    """
    from dalle3lib.caption_facts import parse
    from dalle3lib.upsample_scores import names_all

    said = [parse(text) for text in last.prompt]
    times = len(last) // len(records)
    table = last[["kind", "prompt"]].reset_index(drop=True)
    table["key"] = [r.key for r in records] * times
    table["facts"] = [sum(map(len, [one.scene, *one.objects])) for one in said]
    table["objects"] = [len(one.objects) for one in said]
    named = [bool(r.short and r.facts) and names_all(r) for r in records]
    return table.assign(named=named * times)


def _share_prompts(stage: str, asked: pd.DataFrame) -> str:
    """Keep what was asked beside the stage's results; its digest. UserError if it is not theirs."""
    path = FOLDER / stage / PROMPTS
    known = pd.read_parquet(path) if path.is_file() else None
    if known is None or not known.equals(asked):
        if known is not None and any(current(stage, p.stem) for p in names(stage)):
            raise UserError(
                f"This run was asked other prompts than {path} says: restore the data and code "
                "that made it, or raise METHOD_VERSION and run the study anew."
            )
        _write(path, asked, {})
    return files.digest(asked.to_dict("list"))


# ---- reading -------------------------------------------------------------------------------------


def names(stage: str) -> list[Path]:
    """The result files of a stage."""
    return sorted(p for p in (FOLDER / stage).glob("*.parquet") if p.name != PROMPTS)


def read(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A result file: its table and how it was made. UserError if it cannot be read."""
    try:
        table = pq.read_table(path)
        return table.to_pandas(), json.loads(table.schema.metadata[KEY])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The study's result {path} cannot be read ({error}): restore it with git, or delete "
            "it and run `make study` again."
        ) from None


def current(stage: str, name: str) -> dict[str, Any] | None:
    """How a run's result was made, or None if there is none of this method version."""
    path = path_of(stage, name)
    about = read(path)[1] if path.is_file() else None
    return about if about and about["method"] == METHOD_VERSION else None


@dataclass(frozen=True)
class Results:
    """A stage's results: last scores and how they were made, both by arm and seed; the prompts.

    ``tables[arm][seed]`` has a row for each kind and prompt, in the order of ``prompts``.
    """

    stage: str
    tables: dict[str, dict[int, pd.DataFrame]]
    about: dict[str, dict[int, dict]]
    prompts: pd.DataFrame

    @property
    def most_seeds(self) -> int:
        """How many seeds the arm with most of them has."""
        return max(map(len, self.tables.values()))


def load(stage: str) -> Results:
    """All results of a stage, checked to be comparable.

    UserError if there are none, or one was made by another method version, from other captions,
    foundations or parameters, or asked other prompts than the rest.
    """
    found = {path: read(path) for path in names(stage)}
    if not found:
        raise UserError(
            f"There are no results in {FOLDER / stage}: `make study STAGE={stage}` makes them."
        )
    first_path, (_, first) = next(iter(found.items()))
    for path, (_, about) in found.items():
        if about["method"] != METHOD_VERSION:
            raise UserError(
                f"{path} was made by method {about['method']}, and this is {METHOD_VERSION}: run "
                "`make study` again, or check out the code that belongs to the results."
            )
        if odd := [name for name in ALIKE if about[name] != first[name]]:
            raise UserError(
                f"{path} cannot be paired with {first_path.name}, because its {odd[0]} differ: "
                "delete it and run `make study` again."
            )
    asked = FOLDER / stage / PROMPTS
    prompts = pd.read_parquet(asked) if asked.is_file() else pd.DataFrame()
    if files.digest(prompts.to_dict("list")) != first["prompts"]:
        raise UserError(f"{asked} is missing or not what was asked: restore it with git.")
    results = Results(stage, {}, {}, prompts)
    for path, (table, about) in found.items():
        last = table[table.step == table.step.max()].reset_index(drop=True)
        if last.kind.tolist() != prompts.kind.tolist():
            raise UserError(f"{path} lacks scores: delete it and run `make study` again.")
        results.tables.setdefault(about["arm"], {})[about["seed"]] = last
        results.about.setdefault(about["arm"], {})[about["seed"]] = about
    return results


def committed() -> Results:
    """The results of the main stage, or of the pilot until all arms of the main stage have as many
    seeds as the pilot (fewer would say less about the next seed). As ``load``."""
    found = {stage: load(stage) for stage in ("main", "pilot") if names(stage)}
    main, pilot, arms = found.get("main"), found.get("pilot"), STAGES["main"].arms
    least = max(2, pilot.most_seeds if pilot else 0)
    whole = main and all(len(main.tables.get(arm, ())) >= least for arm in arms)
    return main if whole else pilot or main or load("main")


def from_runs(cfg: Parameters, names: Sequence[str]) -> Results:
    """The results of finished runs of chapter 04a (each kind-ratio-seed) of a chapter's own build.

    UserError for a run that is missing, and for runs that were not asked the same.
    """
    records, tables, about, asked = pairs.held_out(cfg, cfg.prompts), {}, {}, None
    for name in names:
        run = runs.find(cfg, "04a_train_arm", *name.rsplit("-", 2))
        table, own = measured(run, records)
        asked = own if asked is None else asked
        if own.prompt.tolist() != asked.prompt.tolist():
            raise UserError(f"{run} was asked other prompts than {names[0]}: make both again.")
        arm, seed = name.rsplit("-", 1)
        last = table[table.step == table.step.max()].drop(columns="prompt")
        tables.setdefault(arm, {})[int(seed)] = last.reset_index(drop=True)
        about.setdefault(arm, {})[int(seed)] = told(run)
    return Results("runs", tables, about, asked)


def matrices(
    results: Results, arms: Sequence[str] | None = None, common: bool = False
) -> tuple[list[int], dict[tuple[str, str, str], np.ndarray]]:
    """The paired seeds, and by (arm, kind of prompt, measure) an array [seeds, prompts].

    ``arms`` (all by default) must have the same seeds; with ``common``, those that all have are
    taken. Scores are in points, shares of facts 0 to 1, NaN where a scene has no such fact.
    UserError for an arm without results or for seeds that differ.
    """
    arms = list(results.tables) if arms is None else list(arms)
    if lacking := [arm for arm in arms if arm not in results.tables]:
        raise UserError(f"Stage {results.stage} has no result of {lacking[0]}: run it first.")
    sets = {arm: set(results.tables[arm]) for arm in arms}
    seeds = sorted(set.intersection(*sets.values()))
    uneven = [arm for arm in arms if len(sets[arm]) != len(seeds)]
    if not seeds or (uneven and not common):
        told = "; ".join(f"{arm} {', '.join(map(str, sorted(sets[arm])))}" for arm in arms)
        raise UserError(
            f"These arms are not paired, their seeds differ ({told}): finish the study."
        )
    arrays = {}
    for arm in arms:
        stacked = pd.concat([results.tables[arm][seed] for seed in seeds])
        for kind, group in stacked.groupby("kind", sort=False, observed=True):
            for measure in group.columns.drop(["kind", "step"]):
                values = group[measure].to_numpy(np.float64)
                arrays[arm, kind, measure] = values.reshape(len(seeds), -1)
    return seeds, arrays
