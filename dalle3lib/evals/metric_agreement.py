"""Which metric ranks rightly? CLIP score, judge and reader against the truth on known pictures.

The pictures are those of ``judge_calibration.cases``, right and wrong ones of every prompt, clean
and degraded. A metric of any scale is asked how well it tells right from wrong (``agreement``) and
whether it prefers a system that follows prompts more often to one that draws more cleanly
(``systems``).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from dalle3lib import UserError, stats
from dalle3lib.evals import clip_score, instruments
from dalle3lib.evals.judge import Judge
from dalle3lib.evals.judge_calibration import Case, asked
from dalle3lib.evals.kappa import kappa, kappa_interval
from dalle3lib.randomness import rng
from dalle3lib.world import reader
from dalle3lib.world.prompts import satisfied

METRICS = ("CLIP score", "judge", "reader")


def measure(
    found: Sequence[Case], autoencoder, judge: Judge, scorer, seed: int = 0
) -> pd.DataFrame:
    """Every metric on every case, clean and in each way of ``instruments.degraded``.

    ``scorer`` is (model, tokenizer) of ``clip_score.load``. Columns ``condition``, ``category``,
    ``prompt``, ``changed``, ``truth`` and ``METRICS``. Of a morph, which is half another scene,
    the truth is that both scenes satisfy the prompt.
    """
    scenes, prompts = [case.scene for case in found], [case.prompt for case in found]
    mixed = instruments.partners(scenes, seed)
    both = [
        case.truth and satisfied(case.ask, other.facts())
        for case, other in zip(found, mixed, strict=True)
    ]
    tables = []
    for condition, images in instruments.degraded(scenes, autoencoder, seed).items():
        facts = reader.read(images)
        scores = {
            "CLIP score": clip_score.clip_scores(*scorer, images, prompts),
            "judge": [verdict.score for verdict in asked(judge, found, images)],
            "reader": [float(satisfied(c.ask, f)) for c, f in zip(found, facts, strict=True)],
        }
        columns = {name: [getattr(c, name) for c in found] for name in Case._fields[:2]}
        columns |= {"changed": [case.changed for case in found]}
        truth = both if condition == "morphed" else [case.truth for case in found]
        tables.append(pd.DataFrame({"condition": condition, **columns, "truth": truth, **scores}))
    return pd.concat(tables, ignore_index=True)


def rank_share(scores: np.ndarray, truth: np.ndarray) -> float:
    """The share of pairs (a right and a wrong picture) in which the right one scores higher.

    Equal scores count half: this is the area under the ROC curve. NaN without a pair.
    """
    right, wrong = scores[truth][:, None], scores[~truth][None]
    if not (right.size and wrong.size):
        return np.nan
    return float(np.mean((right > wrong) + 0.5 * (right == wrong)))


def claimed(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Which pictures a metric calls right: bool [n].

    Scores of 0 and 1 say so themselves. Another scale has no threshold: the highest are taken, as
    many as are right, the first of equal ones.
    """
    if np.isin(scores, (0, 1)).all():
        return scores == 1
    said = np.zeros(len(scores), bool)
    said[np.argsort(-scores, kind="stable")[: truth.sum()]] = True
    return said


def agreement(
    scores: Mapping[str, Sequence[float]],
    truth: Sequence[bool],
    categories: Sequence[str],
    prompts: Sequence[str],
    seed: int = 0,
) -> pd.DataFrame:
    """How well each metric tells right pictures from wrong: rows (category, metric), and "all".

    ``scores`` [n] by metric, on any scale; ``truth`` bool [n]; ``categories`` and ``prompts`` [n].
    Columns: ``n`` pictures with a score, ``unparsed`` without; ``AUC`` (``rank_share`` over all
    pairs of the category); ``pairwise``, the same among pictures of one prompt, averaged over
    prompts, with its bootstrap 95 % interval over prompts; ``kappa`` of ``claimed`` with the truth,
    with its interval. NaN where there is no pair. UserError unless all are as long.
    """
    truth, (categories, prompts) = np.asarray(truth, bool), map(np.asarray, (categories, prompts))
    arrays = {name: np.asarray(values, np.float64) for name, values in scores.items()}
    if lengths := {len(a) for a in (categories, prompts, *arrays.values())} - {len(truth)}:
        raise UserError(f"{len(truth)} pictures need as many scores and names, not {lengths}.")
    rows = {}
    for category in [*dict.fromkeys(categories.tolist()), "all"]:
        here = (categories == category) | (category == "all")
        for name, values in arrays.items():
            known = here & ~np.isnan(values)
            stream = rng(seed, f"{category}/{name}")
            found = _agreement(values[known], truth[known], prompts[known], stream)
            rows[category, name] = {"n": known.sum(), "unparsed": (here & ~known).sum(), **found}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["category", "metric"])


def by_condition(measured: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """``agreement`` of all metrics on each kind of picture of ``measure``.

    Rows (pictures, category, metric).
    """
    found = {}
    for condition, part in measured.groupby("condition", sort=False):
        scores = {name: part[name] for name in METRICS}
        found[condition] = agreement(scores, part.truth, part.category, part.prompt, seed)
    return pd.concat(found, names=["pictures"])


def pairwise(agreed: pd.DataFrame, condition: str = "clean") -> dict[str, pd.DataFrame]:
    """Of ``by_condition``, how often the right picture scores higher: a table for each metric.

    Rows are categories; columns value, low and high, as ``verdict_plots.dots`` takes them.
    """
    here = agreed.loc[condition].drop(index="all").reset_index("metric")
    names = {"pairwise": "value", "pairwise low": "low", "pairwise high": "high"}
    return {m: here[here.metric == m].rename(columns=names) for m in METRICS}


def _agreement(scores, truth, prompts, random: np.random.Generator) -> dict[str, float]:
    shares = [rank_share(scores[prompts == p], truth[prompts == p]) for p in dict.fromkeys(prompts)]
    shares = [share for share in shares if not np.isnan(share)]
    low, high = stats.mean_interval(shares, random) if len(shares) > 1 else (np.nan, np.nan)
    found = {"AUC": rank_share(scores, truth), "pairwise": np.mean(shares) if shares else np.nan}
    found |= {"pairwise low": low, "pairwise high": high}
    said = claimed(scores, truth)
    kappas = (np.nan,) * 3
    if len(truth):
        ends = kappa_interval(said, truth, prompts, random)
        kappas = kappa(said, truth), *ends
    return found | dict(zip(("kappa", "kappa low", "kappa high"), kappas, strict=True))


def systems(
    table: pd.DataFrame,
    better: float = 0.6,
    worse: float = 0.5,
    metrics: Sequence[str] = METRICS,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether a metric prefers the system that is right more often, when the other draws cleanly.

    Of ``measure``'s pictures two systems are mixed: one is right for the share ``better`` of its
    pictures, which are degraded; the other for the share ``worse``, and its pictures are clean.
    Rows (metric, condition); columns ``n`` prompts, ``difference`` of the mean scores (first less
    second, expected over the mixing), its bootstrap 95 % interval over prompts, and ``wrongly``:
    the whole interval is below zero, so that the metric prefers the worse system. Prompts whose
    right picture a morph made wrong, and those with a score missing, are left out.
    """
    keys = ["condition", "prompt", table.changed != ""]
    flat = table.set_index(keys).rename_axis(["condition", "prompt", "wrong"])
    rows = {}
    for metric in metrics:
        scores = flat[metric].unstack("wrong")
        intact = flat.truth.unstack("wrong")[False]
        clean = scores.loc["clean"]
        for condition in dict.fromkeys(table.condition):
            here = scores.loc[condition]
            first = better * here[False] + (1 - better) * here[True]
            second = worse * clean[False] + (1 - worse) * clean[True]
            gap = (first - second)[intact.loc[condition]].dropna()
            ends = (np.nan, np.nan)
            if len(gap) > 1:
                ends = stats.mean_interval(gap.to_numpy(), rng(seed, f"{metric}/{condition}"))
            rows[metric, condition] = {
                "n": len(gap),
                "difference": gap.mean(),
                "low": ends[0],
                "high": ends[1],
                "wrongly": ends[1] < 0,
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["metric", "condition"])
