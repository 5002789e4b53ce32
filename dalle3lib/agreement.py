"""Does a run agree with the study? It does if it lies where one more seed is expected to lie."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from dalle3lib import UserError, runs
from dalle3lib.study_results import FREE, LATER, Results, matrices

SCORED = ("preset", "prompts", "prompt_kinds")  # how much is asked may differ, training may not


def prediction_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Where one more value [n seeds] is expected with probability ``level``: (low, high).

    Student's t, values taken as normal. UserError for fewer than two.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        raise UserError(f"An interval for one more seed needs two or more, not {len(values)}.")
    half = student.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1)
    half *= np.sqrt(1 + 1 / len(values))
    return float(values.mean() - half), float(values.mean() + half)


def agreement(
    scores: pd.DataFrame, arm: str, results: Results, measures: Sequence[str] = ("score",)
) -> pd.DataFrame:
    """Whether a run of an arm lies where the study's seeds let one expect it.

    ``scores`` is the table a run of chapter 04a leaves; its last step counts. Where it was asked
    the first of the study's prompts only, those are compared. A row for each kind of prompt and
    measure: run, mean (of the seeds), low, high (95 % prediction interval), agrees.
    UserError if the prompts are others.
    """
    _, arrays = matrices(results, [arm])
    last, rows = scores[scores.step == scores.step.max()], []
    for kind, group in last.groupby("kind", sort=False):
        asked = results.prompts.prompt[results.prompts.kind == kind].tolist()[: len(group)]
        if group.prompt.tolist() != asked:
            raise UserError(
                f"The {kind} prompts of this run are not the study's: use preset study."
            )
        for measure in measures:
            seeds = np.nanmean(arrays[arm, kind, measure][:, : len(group)], axis=1)
            low, high = prediction_interval(seeds)
            own = float(group[measure].astype("float32").mean())
            rows.append((kind, measure, own, seeds.mean(), low, high, low <= own <= high))
    columns = ["kind", "measure", "run", "mean", "low", "high", "agrees"]
    return pd.DataFrame(rows, columns=columns)


def differing(run: Path, arm: str, results: Results) -> list[str]:
    """The parameters in which a run was made otherwise than the study's runs of its arm."""
    given = runs.load(run)["parameters"]
    study = LATER | next(iter(results.about[arm].values()))["parameters"]
    ignored = {*FREE, *SCORED}
    return sorted(k for k in given.keys() & study.keys() - ignored if given[k] != study[k])


def of_build(found: dict[str, Path | None], results: Results) -> pd.DataFrame:
    """Whether the arms that a build trained agree with the study: a row for each arm and kind.

    ``found`` maps arms (kind-ratio-seed) to their finished runs, None where the shipped weights
    stand in. Columns arm, kind, run, mean, low, high, agrees, remark; where an arm cannot be
    compared, one row says why.
    """
    rows = []
    for name, run in found.items():
        arm = name.rsplit("-", 1)[0]
        seeds = len(results.tables.get(arm, ()))
        if run is None or seeds < 2:
            why = (
                "not trained in this build"
                if run is None
                else f"the study has {seeds} seed{'s' * (seeds != 1)}"
            )
        elif odd := differing(run, arm, results):
            why = f"trained otherwise ({', '.join(odd[:3])}{', …' if odd[3:] else ''})"
        else:
            scores = pd.read_parquet(run / "scores.parquet")
            table = agreement(scores, arm, results).drop(columns="measure")
            rows.append(table.assign(arm=name, remark=f"{seeds} seeds"))
            continue
        rows.append(pd.DataFrame({"arm": [name], "remark": why}))
    order = ["arm", "kind", "run", "mean", "low", "high", "agrees", "remark"]
    return pd.concat(rows, ignore_index=True).reindex(columns=order)


def sentences(rows: list[dict]) -> list[str]:
    """A sentence for each arm in the rows of ``of_build`` that could be compared."""
    said = []
    for name in dict.fromkeys(row["arm"] for row in rows if row["agrees"] is not None):
        own = [row for row in rows if row["arm"] == name]
        odd = [row["kind"] for row in own if not row["agrees"]]
        verb = f"DOES NOT agree with {' and '.join(odd)} prompts" if odd else "agrees"
        said.append(f"Against the study ({own[0]['remark']}): {name} {verb}.")
    return said
