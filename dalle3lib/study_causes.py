"""Why CLIP and the facts may disagree about short captions: one difference, taken apart.

Short captions name the main subject, never the background and seldom a printed word; alt-text
sometimes names both. A model that never read of a background cannot be asked for one, and CLIP
sees backgrounds well. The suspicion arose from the study's pilot, so these are looks after the
fact: they explain, and no verdict uses them.
"""

import numpy as np
import pandas as pd

from dalle3lib import stats
from dalle3lib.caption_facts import parse
from dalle3lib.mixing_ratio import facts_are_known
from dalle3lib.study_evidence import ORIGINAL, SSC, Scores, paired
from dalle3lib.study_results import Results


def parts(results: Results, arm: str = SSC) -> dict[str, dict]:
    """An arm minus original only in CLIP score, in all prompts and in parts of them, over seeds.

    Entries by what the part is: effect, interval, by_seed (points) and prompts, how many they are.
    Parts without prompts are left out; nothing is found without two paired seeds of both arms, nor
    in photographs, whose facts nobody knows.
    """
    if len(paired(results, (arm, ORIGINAL))) < 2 or not facts_are_known(results):
        return {}
    scores = Scores(results, (arm, ORIGINAL))
    gain = {
        kind: scores(arm, kind) - scores(ORIGINAL, kind) for kind in ("original", "descriptive")
    }
    names = names_more_than_objects(scores.asked("original").prompt)
    found = {
        "original prompts: all": gain["original"],
        "… that name a background or a word": gain["original"][:, names],
        "… that name neither": gain["original"][:, ~names],
        "descriptive prompts: all": gain["descriptive"],
    }
    entries = {n: _entry(stats.seed_means(d), d.shape[1]) for n, d in found.items() if d.size}
    with_equal = with_equal_backgrounds(scores, arm, "descriptive")
    prompts = gain["descriptive"].shape[1]
    return entries | {"… with backgrounds right as often": _entry(with_equal, prompts)}


def names_more_than_objects(prompts: pd.Series) -> np.ndarray:
    """Which prompts state a background or a printed word: bool [n]."""
    return np.array([bool(parse(prompt).scene) for prompt in prompts])


def with_equal_backgrounds(scores: Scores, arm: str, kind: str) -> np.ndarray:
    """An arm minus original only, as if it had the background right as often: points [seeds].

    Pictures with a right and with a wrong background are compared apart, and the two differences
    weighted by how many of each original only has (direct standardisation). A group that one of
    the two lacks is left out.
    """
    ours, theirs = (scores(name, kind) for name in (arm, ORIGINAL))
    right, base = (scores(name, kind, "background") > 0 for name in (arm, ORIGINAL))
    return np.array([_standardised(*seed) for seed in zip(ours, right, theirs, base, strict=True)])


def _standardised(
    ours: np.ndarray, right: np.ndarray, theirs: np.ndarray, base: np.ndarray
) -> float:
    """The mean difference of two score lists [n] within groups, weighted by the second's groups."""
    both = [g for g in (True, False) if (right == g).any() and (base == g).any()]
    differences = [ours[right == g].mean() - theirs[base == g].mean() for g in both]
    return float(np.average(differences, weights=[(base == g).sum() for g in both]))


def _entry(by_seed: np.ndarray, prompts: int) -> dict[str, object]:
    """The mean over seeds with Student's interval, as ``plots.differences`` draws it."""
    about = {"effect": float(by_seed.mean()), "interval": stats.seed_interval(by_seed)}
    return about | {"by_seed": by_seed.tolist(), "prompts": prompts}
