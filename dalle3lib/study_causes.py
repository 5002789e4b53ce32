"""Why some claims do not come out as the paper says: their differences, taken apart.

Short captions (``parts``): they name the main subject, never the background and seldom a printed
word; alt-text sometimes names both. A model that never read of a background cannot be asked for
one, and CLIP sees backgrounds well. Descriptive prompts (``rises``): whom they help. The mixing
ratio (``by_facts_stated``): where on original prompts the shares differ at all, and what 100 % has
over 95 % there (``lead_of_all``). All are looks after the fact, chosen when results were known:
they explain, and no verdict uses them.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from dalle3lib import stats
from dalle3lib.arm import label
from dalle3lib.caption_facts import parse
from dalle3lib.mixing_ratio import facts_are_known, means
from dalle3lib.study_evidence import ORIGINAL, SSC, Scores, differences, paired, rise
from dalle3lib.study_results import Results
from dalle3lib.study_stages import FIGURE_4

STATED = {  # original prompts, by the most facts that they state
    "that state no fact": 0,
    "that state one or two": 2,
    "that state more": np.inf,
}


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


def rises(results: Results) -> dict[str, dict]:
    """How much higher each arm of Figure 4 scores with descriptive prompts than with original ones.

    Entries as of ``parts``, by the arm's label; arms with fewer than two seeds are left out.
    """
    found = {}
    for name in FIGURE_4:
        if len(paired(results, (name,))) > 1:
            higher = rise(Scores(results, (name,)), name)
            found[label(f"{name}-0")] = _entry(stats.seed_means(higher), higher.shape[1])
    return found


def by_facts_stated(results: Results) -> pd.DataFrame:
    """The CLIP score with original prompts, apart by how many facts a prompt states.

    Rows and columns as of ``mixing_ratio.means``; kind tells the group and how many prompts it has.
    Without rows for photographs, whose facts nobody knows.
    """
    if not facts_are_known(results):
        return means(results, [])
    stated = results.prompts.facts.where(results.prompts.kind == "original")  # elsewhere NaN
    groups = facts_stated(stated)
    sizes = groups.value_counts(sort=False)
    sized = {group: f"{group} ({n})" for group, n in sizes.items() if n}
    kinds = groups.map(sized).array
    apart = {
        name: {seed: table.assign(kind=kinds) for seed, table in by_seed.items()}
        for name, by_seed in results.tables.items()
    }
    return means(replace(results, tables=apart), list(sized.values()))


def facts_stated(facts: pd.Series) -> pd.Series:
    """The group of ``STATED`` that each number of facts belongs to; NaN belongs to none."""
    return pd.cut(facts, [-1, *STATED.values()], labels=list(STATED))


def lead_of_all(results: Results) -> dict[str, dict]:
    """DSC 100 less DSC 95 in CLIP score with original prompts, apart by facts stated, over seeds.

    Entries as of ``parts``, by group; a group without prompts is left out. Nothing is found without
    two paired seeds of both arms, nor in photographs.
    """
    behind = differences(results, "some-originals-regularise")
    if behind is None or not facts_are_known(results):
        return {}
    groups = facts_stated(results.prompts.facts[results.prompts.kind == "original"])
    parted = {group: -behind[:, (groups == group).to_numpy()] for group in STATED}
    return {g: _entry(stats.seed_means(d), d.shape[1]) for g, d in parted.items() if d.size}


def _entry(by_seed: np.ndarray, prompts: int) -> dict[str, object]:
    """The mean over seeds with Student's interval, as ``plots.differences`` draws it."""
    about = {"effect": float(by_seed.mean()), "interval": stats.seed_interval(by_seed)}
    return about | {"by_seed": by_seed.tolist(), "prompts": prompts}
