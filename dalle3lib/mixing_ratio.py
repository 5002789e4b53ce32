"""What the share of synthetic captions does (paper §3.4, Figure 5): scores by share, over seeds.

Everything is read from results that are there already, the committed study's or a build's own.
"""

from collections.abc import Sequence

import pandas as pd

from dalle3lib import paths, stats, study_results
from dalle3lib.study_evidence import ORIGINAL, PAIRS
from dalle3lib.study_results import Results


def shares(results: Results) -> dict[int, str]:
    """The arms of Figure 5 and beyond with results, by share in per cent; 0 is original only."""
    found = {0: ORIGINAL} if ORIGINAL in results.tables else {}
    for arm in results.tables:
        kind, share = arm.rsplit("-", 1)
        if kind == "dsc":
            found[int(share)] = arm
    return dict(sorted(found.items()))


def facts_are_known(results: Results) -> bool:
    """Whether the reader could look for facts: those of photographs nobody knows."""
    return all(PAIRS in table for by_seed in results.tables.values() for table in by_seed.values())


def means(results: Results, kinds: Sequence[str], measure: str = "score") -> pd.DataFrame:
    """The mean over prompts of every seed: a row for each share, kind of prompt and seed.

    Columns share, kind, seed, value: points of the CLIP score, or % where ``measure`` is a share
    of facts.
    """
    scale, rows = 1 if measure == "score" else 100, []
    for share, arm in shares(results).items():
        for seed, table in results.tables[arm].items():
            by_kind = table.groupby("kind", observed=True)[measure].mean()
            rows += [(share, kind, seed, scale * by_kind[kind]) for kind in kinds]
    return pd.DataFrame(rows, columns=["share", "kind", "seed", "value"])


def over_original(values: pd.DataFrame) -> pd.DataFrame:
    """``means`` less those of original only with the same seed; seeds without that are left out."""
    base = values[values.share == 0].rename(columns={"value": "base"})[["kind", "seed", "base"]]
    both = values.merge(base, on=["kind", "seed"])
    return both.assign(value=both.value - both.base).drop(columns="base")


def over_seeds(values: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds with its 95 % interval: a row for each share and kind of prompt.

    Columns share, kind, mean, low, high, seeds; low and high are NaN for a single seed.
    """
    rows = []
    for (share, kind), group in values.groupby(["share", "kind"], sort=False):
        rows.append((share, kind, *stats.over_seeds(group.value), len(group)))
    return pd.DataFrame(rows, columns=["share", "kind", "mean", "low", "high", "seeds"])


def curves(stage: str, arms: Sequence[str], seed: int) -> dict[str, pd.DataFrame]:
    """The scores of one seed during training, by arm, of those arms whose results have them.

    Each table is as of ``arm.score_snapshots`` (kind, step, score), for ``arm.summarise``.
    """
    found = {}
    for arm in arms:
        path = study_results.path_of(stage, f"{arm}-{seed}")
        table = study_results.read(path)[0] if path.is_file() else pd.DataFrame({"step": []})
        if table.step.nunique() > 1:
            kinds = table[table.step < table.step.max()].kind.unique()
            found[arm] = table[table.kind.isin(kinds)].astype({"kind": str})
    return found


def axes(curve: pd.DataFrame) -> pd.DataFrame:
    """The axes of Figure 5 beside the range of our curves with original prompts (mean, step)."""
    paper = pd.read_csv(paths.ROOT / "data" / "paper.csv", index_col="id").value
    said = paper[["fig5-axis-low", "fig5-axis-high", "fig5-steps-start", "fig5-steps-end"]]
    ours = [curve["mean"].min(), curve["mean"].max(), curve.step.min(), curve.step.max()]
    rows = ["score, low end", "score, high end", "first step", "last step"]
    return pd.DataFrame({"paper, Fig. 5": said.to_numpy(), "here": ours}, index=rows)
