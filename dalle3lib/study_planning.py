"""What the pilot is for: variances, the power of the study, and how often its statistics err.

Nothing here looks at whether an effect is there: the smallest effects of interest are the claims'.
"""

import numpy as np
import pandas as pd

from dalle3lib import UserError, claims, power, study_evidence
from dalle3lib.randomness import rng
from dalle3lib.study_evidence import PAIRS
from dalle3lib.study_results import Results, load, matrices

PLANNED = 10  # seeds of the main stage
HOLM = 0.05 / claims.FAMILY_SIZE  # what the smallest p value of a full family must reach
KINDS = ("original", "descriptive")  # of prompts, those of Figure 4


def variances(results: Results) -> dict[str, power.Components]:
    """Variance components of the CLIP score (points) and of pairs read right (% points), by kind of
    prompt, over all arms of a stage. UserError for fewer than two paired seeds or arms."""
    _, arrays = matrices(results, common=True)
    arms, found = sorted(results.tables), {}
    for measure, scale, name in (("score", 1, "CLIP score"), (PAIRS, 100, "pairs read right")):
        for kind in KINDS:
            scores = scale * np.stack([arrays[arm, kind, measure] for arm in arms])
            found[f"{name}, {kind}"] = power.components(scores)
    return found


def needs(results: Results, seeds: int = PLANNED) -> pd.DataFrame:
    """Per claim that the stage bears on: how large an effect the study can see.

    Columns: smallest (effect of interest), sd (of the seeds' differences), power (of ``seeds``
    seeds to find that effect at the level Holm asks of the smallest p of six) and seeds (needed
    for 80 %; None if 16 are not enough). An equality is left out.
    """
    known, rows = {claim.id: claim for claim in claims.load()}, {}
    for name, entry in study_evidence.evidence(results).items():
        claim, sd = known[name], float(np.std(entry["by_seed"], ddof=1))
        if claim.direction == "equal" or sd == 0:
            continue
        ratio, random = claim.smallest_effect / sd, rng(0, f"power/{name}")
        rows[name] = {
            "smallest": claim.smallest_effect,
            "sd": sd,
            "power": power.power(ratio, seeds, random, HOLM),
            "seeds": power.seeds_needed(claim.smallest_effect, sd, random, alpha=HOLM),
        }
    return pd.DataFrame(rows).T


def controls(results: Results, seeds: int = PLANNED, count: int = power.SIMULATED) -> pd.DataFrame:
    """How often the statistics err with these variances, in ``count`` simulated studies each.

    A row for each of ``variances``; columns as of ``power.error_rates``, shares 0 to 1.
    """
    prompts = int((results.prompts.kind == KINDS[0]).sum())
    return pd.DataFrame(
        {
            name: power.error_rates(found, seeds, prompts, rng(0, f"controls/{name}"), count)
            for name, found in variances(results).items()
        }
    ).T


def split_halves(results: Results) -> pd.DataFrame:
    """``power.split_halves`` of every arm's CLIP score with original prompts: a row each."""
    _, arrays = matrices(results, common=True)
    scores = {arm: arrays[arm, KINDS[0], "score"] for arm in results.tables}
    return pd.DataFrame(
        {arm: power.split_halves(s, rng(0, f"a-a/{arm}")) for arm, s in scores.items()}
    ).T


def report(stage: str, count: int = power.SIMULATED) -> str:
    """Variances, power and error rates (of ``count`` simulated studies) of a stage as plain text.

    UserError without results, or with one seed only.
    """
    results = load(stage)
    if min(map(len, results.tables.values())) < 2:
        raise UserError(f"Stage {stage} has arms with one seed only; two or more are needed.")
    by_name = {name: vars(found) for name, found in variances(results).items()}
    parts = {
        "Variance components (squared points or % points)": pd.DataFrame(by_name).T.round(3),
        f"Power of {PLANNED} seeds at level .05/6, and seeds needed for 80 %": needs(results),
        f"Error rates of the statistics in {count:,} simulated studies": controls(
            results, count=count
        ),
    }
    if min(map(len, results.tables.values())) >= PLANNED:
        parts["An arm against itself, half of its seeds against the others"] = split_halves(results)
    return "\n\n".join(f"{title}\n{table.to_string()}" for title, table in parts.items())
