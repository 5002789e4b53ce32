"""Where the claims about caption kind hold: their effects in the study and where one thing differs.

A stage of sensitivity has few seeds, so it decides nothing; it shows whether an effect keeps its
sign and about its size when the alt-text, the captions, the training or the guidance is another.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student

from dalle3lib import claims, stats, study_results
from dalle3lib.study_evidence import CLAIMS, Scores
from dalle3lib.study_stages import SENSITIVITY, STAGES, worth

FAMILIES = ("caption-kind", "caption-kind-facts")
SHOWN = ("main", "pilot", *SENSITIVITY)
COLUMNS = ["stage", "setting", "worth", "claim", "effect", "low", "high", "unit", "smallest",
           "seeds", "by seed"]  # fmt: skip


def effects() -> pd.DataFrame:
    """The effect of every claim of ``FAMILIES`` in every stage that has two paired seeds for it.

    A row for each stage and claim (``COLUMNS``): "setting" says what differs from the main stage,
    "worth" what the stage is good for ("sensitivity, 3 seeds"), "effect" is the mean of "by seed",
    in the claim's unit; "smallest" is its smallest effect of interest. UserError if the results of
    a stage cannot be compared.
    """
    rows = []
    for stage in SHOWN:
        if not study_results.names(stage):
            continue
        results = study_results.load(stage)
        for claim in (c for c in claims.load() if c.family in FAMILIES):
            how = CLAIMS[claim.id]
            have = [set(results.tables.get(arm, ())) for arm in how.arms]
            if len(set.intersection(*have)) < 2:
                continue
            by_seed = stats.seed_means(how.differences(Scores(results, how.arms)))
            mean_and_ends = float(by_seed.mean()), *t_interval(by_seed)
            about = claim.unit, claim.smallest_effect, len(by_seed), by_seed.tolist()
            named = stage, label(stage), worth(stage, len(by_seed)), claim.id
            rows.append((*named, *mean_and_ends, *about))
    return pd.DataFrame(rows, columns=COLUMNS)


def label(stage: str) -> str:
    """What a stage is to readers: "alt-text noise .25", or "the study" and "its pilot"."""
    return {"main": "the study", "pilot": "its pilot"}.get(stage) or STAGES[stage].varies


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval (low, high) of the mean of two or more values, taken as normal.

    A bootstrap of three values can draw ten different samples: it would be far too narrow.
    """
    values = np.asarray(values, np.float64)
    half = student.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """``effects`` as text: a row for each claim, a column for each stage, effect and interval."""
    text = [f"{row.effect:+.2f} [{row.low:+.2f}, {row.high:+.2f}]" for row in table.itertuples()]
    heads = table.setting + " (" + table.worth + ")"
    wide = table.assign(text=text, head=heads).pivot(index="claim", columns="head", values="text")
    return wide.loc[table.claim.unique(), heads.unique()].fillna("–").rename_axis(None, axis=1)


def missing(table: pd.DataFrame) -> pd.DataFrame:
    """The stages of which ``effects`` has nothing yet, and the command that makes each."""
    found = set(table.stage)
    rows = {
        label(stage): (worth(stage), f"make study STAGE={stage}")
        for stage in ("main", *SENSITIVITY)
        if stage not in found
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["worth", "command"])
