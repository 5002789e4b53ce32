"""What the study says of each claim: from paired scores to effects, intervals and p values.

Every claim is one matrix of differences [seeds, prompts]; ``stats.effect`` turns it into an entry
of the ledger, ``ledger`` turns that into a verdict.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dalle3lib import claims, ledger, stats
from dalle3lib.randomness import rng
from dalle3lib.study_results import SHORT_FACTS, Results, load, matrices, names
from dalle3lib.study_stages import FIGURE_4

PAIRS = "colour-shape"  # the primary reading: pairs that both kinds of caption can state
PLACED = "colour-shape-place"  # such a pair at its place
ORIGINAL, SSC, DSC = FIGURE_4
TREND = {0: ORIGINAL, 50: "dsc-50", 65: "dsc-65", 80: "dsc-80", 90: "dsc-90", 95: DSC}


class Scores:
    """Paired scores of some arms: ``scores(arm, kind, measure)`` is [seeds, prompts].

    The CLIP score is in points, a share of facts in %. The seeds are those that all arms have.
    """

    def __init__(self, results: Results, arms: tuple[str, ...]) -> None:
        _, self._arrays = matrices(results, arms, common=True)
        self.prompts = results.prompts

    def __call__(self, arm: str, kind: str, measure: str = "score") -> np.ndarray:
        scale = 1 if measure == "score" else 100
        return scale * self._arrays[arm, kind, measure]

    def asked(self, kind: str) -> pd.DataFrame:
        """What was asked with one kind of prompt: a row each. KeyError if nothing was."""
        if not (here := self.prompts.kind == kind).any():
            raise KeyError(kind)
        return self.prompts[here].reset_index(drop=True)


@dataclass(frozen=True)
class Evidence:
    """How a claim is computed: the arms it needs, its differences, a note for the reader."""

    arms: tuple[str, ...]
    differences: Callable[[Scores], np.ndarray]
    note: str = ""


def between(plus: str, minus: str, kind: str, measure: str = "score") -> Evidence:
    """One arm minus another, with the same prompts."""
    return Evidence((plus, minus), lambda s: s(plus, kind, measure) - s(minus, kind, measure))


def where_stated(s: Scores) -> np.ndarray:
    """DSC 95 minus original only, with the original captions that state at least one fact."""
    return (s(DSC, "original") - s(ORIGINAL, "original"))[
        :, (s.asked("original").facts > 0).to_numpy()
    ]


def rise(s: Scores, arm: str) -> np.ndarray:
    """Descriptive minus original prompts for one arm."""
    return s(arm, "descriptive") - s(arm, "original")


def smallest_rise(s: Scores) -> np.ndarray:
    """Descriptive minus original prompts for the arm of Figure 4 that gains least."""
    return min((rise(s, arm) for arm in FIGURE_4), key=np.mean)


def gain_by_prompt(s: Scores) -> np.ndarray:
    """How much DSC 95 gains over original only with short prompts beyond what it does with
    original ones."""
    short, original = (s(DSC, kind) - s(ORIGINAL, kind) for kind in ("short", "original"))
    return short - original


def trend(kind: str) -> Evidence:
    """The slope over the shares of Figure 5, in points per 10 % points."""

    def differences(s: Scores) -> np.ndarray:
        return 10 * stats.slopes(list(TREND), np.stack([s(arm, kind) for arm in TREND.values()]))

    return Evidence(tuple(TREND.values()), differences)


def comparable(s: Scores) -> np.ndarray:
    """Which scenes are as hard with every kind of prompt: the short prompt names every object, and
    the upsampled one as many (see ``upsample_scores``). Bool [prompts]."""
    short, longer = s.asked("short"), s.asked("upsampled")
    return (short.named & (short.objects == longer.objects)).to_numpy()


def over_short(kind: str) -> Evidence:
    """Facts of the short prompt in pictures of DSC 95: another kind of prompt minus short ones."""
    return Evidence((DSC,), lambda s: _gain(s, DSC, kind), SCENES)


def _gain(s: Scores, arm: str, kind: str) -> np.ndarray:
    return (s(arm, kind, SHORT_FACTS) - s(arm, "short", SHORT_FACTS))[:, comparable(s)]


def below_pairs(measure: str) -> Evidence:
    """Pairs minus another fact, in the same pictures of DSC 95 that state both."""
    return Evidence((DSC,), lambda s: s(DSC, "descriptive", PAIRS) - s(DSC, "descriptive", measure))


def misplaced(s: Scores) -> np.ndarray:
    """Prompts of DSC 95 for two objects: pairs found minus the share of these at their place.

    That share is one ratio for all prompts of a seed: a prompt without any pair has none of its
    own. Each prompt brings its part of it, so that a seed's mean is the difference exactly.
    """
    two = (s.asked("descriptive").objects == 2).to_numpy()
    pairs, placed = (s(DSC, "descriptive", measure)[:, two] for measure in (PAIRS, PLACED))
    return pairs - 100 * placed / pairs.mean(axis=1, keepdims=True)


SCENES = "scenes whose short and upsampled prompts name every object, and no more"
ON_ORIGINAL, ON_DESCRIPTIVE = "on-original-prompts", "on-descriptive-prompts"
CLAIMS = {
    f"ssc-over-original-{ON_ORIGINAL}": between(SSC, ORIGINAL, "original"),
    f"dsc-over-original-{ON_ORIGINAL}": between(DSC, ORIGINAL, "original"),
    f"ssc-over-original-{ON_DESCRIPTIVE}": between(SSC, ORIGINAL, "descriptive"),
    f"dsc-over-original-{ON_DESCRIPTIVE}": between(DSC, ORIGINAL, "descriptive"),
    f"dsc-over-ssc-{ON_DESCRIPTIVE}": between(DSC, SSC, "descriptive"),
    "descriptive-prompts-score-higher": Evidence(
        (ORIGINAL, SSC, DSC), smallest_rise, "the arm that gains least"
    ),
    "short-prompts-score-like-original-prompts": Evidence((DSC, ORIGINAL), gain_by_prompt),
    f"ssc-over-original-facts-{ON_ORIGINAL}": between(SSC, ORIGINAL, "original", PAIRS),
    f"dsc-over-original-facts-{ON_ORIGINAL}": between(DSC, ORIGINAL, "original", PAIRS),
    f"ssc-over-original-facts-{ON_DESCRIPTIVE}": between(SSC, ORIGINAL, "descriptive", PAIRS),
    f"dsc-over-original-facts-{ON_DESCRIPTIVE}": between(DSC, ORIGINAL, "descriptive", PAIRS),
    f"dsc-over-ssc-facts-{ON_DESCRIPTIVE}": between(DSC, SSC, "descriptive", PAIRS),
    "gain-holds-where-originals-state-a-fact": Evidence((DSC, ORIGINAL), where_stated),
    f"dsc95-over-dsc80-{ON_ORIGINAL}": between(DSC, "dsc-80", "original"),
    f"dsc95-over-dsc90-{ON_ORIGINAL}": between(DSC, "dsc-90", "original"),
    f"dsc90-over-dsc80-{ON_ORIGINAL}": between("dsc-90", "dsc-80", "original"),
    f"dsc80-over-dsc65-{ON_ORIGINAL}": between("dsc-80", "dsc-65", "original"),
    f"dsc80-over-dsc65-{ON_DESCRIPTIVE}": between("dsc-80", "dsc-65", "descriptive"),
    "some-originals-regularise": between(DSC, "dsc-100", "original"),
    f"dsc95-over-dsc80-{ON_DESCRIPTIVE}": between(DSC, "dsc-80", "descriptive"),
    f"dsc50-over-original-{ON_ORIGINAL}": between("dsc-50", ORIGINAL, "original"),
    f"ratio-trend-{ON_ORIGINAL}": trend("original"),
    f"ratio-trend-{ON_DESCRIPTIVE}": trend("descriptive"),
    "dsc100-falls-on-short-prompts": between(DSC, "dsc-100", "short", PAIRS),
    "short-prompts-off-distribution": over_short("descriptive"),
    "upsampling-helps-on-short-prompts": over_short("upsampled"),
    "upsampling-helps-dsc-more-than-original": Evidence(
        (DSC, ORIGINAL),
        lambda s: _gain(s, DSC, "upsampled") - _gain(s, ORIGINAL, "upsampled"),
        SCENES,
    ),
    "spatial-below-attributes": Evidence((DSC,), misplaced, "prompts for two objects"),
    "printed-text-poor": below_pairs("word"),
    "counting-below-attributes": below_pairs("count"),
}


def paired(results: Results, arms: Iterable[str]) -> set[int]:
    """The seeds that all of the arms have."""
    return set.intersection(*(set(results.tables.get(arm, ())) for arm in arms))


def differences(results: Results, name: str) -> np.ndarray | None:
    """What a claim of ``CLAIMS`` is about, [seeds, prompts], with the seeds that all its arms have.

    None where fewer than two seeds are paired, or no prompt has what the claim is about.
    """
    how = CLAIMS[name]
    if len(paired(results, how.arms)) < 2:
        return None
    try:
        found = how.differences(Scores(results, how.arms))
    except KeyError:  # a build's own runs ask fewer kinds of prompt, photographs have no facts
        return None
    return None if np.isnan(found).any(axis=0).all() else found


def evidence(results: Results, of: Iterable[str] = CLAIMS) -> dict[str, dict]:
    """An entry for the ledger of every claim (among ``of``) that results bear on, by claim id.

    Beside what ``stats.effect`` gives: unit, note and pilot (True for the pilot's seeds). A claim
    without ``differences`` is left out. ``descriptive-prompts-score-higher`` is said of every arm,
    so its p is the largest of theirs. UserError for results that cannot be paired.
    """
    known, found = {claim.id: claim for claim in claims.load()}, {}
    for name in of:
        if (values := differences(results, name)) is None:
            continue
        claim, how = known[name], CLAIMS[name]
        random, margin = rng(0, f"study/{name}"), claim.smallest_effect
        entry = stats.effect(values, random, claim.direction, margin)
        if name == "descriptive-prompts-score-higher":
            s = Scores(results, how.arms)
            entry["p"] = max(stats.sign_flip_p(stats.seed_means(rise(s, arm))) for arm in how.arms)
        about = {"unit": claim.unit, "note": how.note, "pilot": results.stage == "pilot"}
        found[name] = entry | about
    return found


def everything(own: Results | None = None) -> dict[str, dict]:
    """``evidence`` of a build's ``own`` runs, or else of the committed study: its main stage, and
    the pilot where the main stage has fewer paired seeds still. Takes seconds, so a chapter calls
    it once."""
    if own is not None:
        return evidence(own)
    found = evidence(load("main")) if names("main") else {}
    if names("pilot"):
        pilot = load("pilot")
        few = [n for n in CLAIMS if n not in found or found[n]["seeds"] < pilot.most_seeds]
        found |= evidence(pilot, few)
    return {name: found[name] for name in CLAIMS if name in found}


def of_chapter(found: dict[str, dict], chapter: str) -> dict[str, dict]:
    """The entries of ``everything`` that bear on the claims of one chapter."""
    here = {claim.id for claim in claims.load() if claim.chapter == chapter}
    return {name: entry for name, entry in found.items() if name in here}


def table(found: dict[str, dict], chapter: str) -> pd.DataFrame:
    """A chapter's claims with what was measured and the verdict: a row for each with evidence.

    ``found`` is ``everything``, because the verdict corrects p for all claims of a family,
    whichever chapter they stand in. Columns effect, interval (over seeds), two-level (over seeds
    and prompts), p, seeds, verdict.
    """
    rows = {}
    for row in ledger.judged(found):
        if row["chapter"] == chapter and row["id"] in found:
            entry = found[row["id"]]
            ends = (entry["interval"], entry["two_level"])
            interval, two_level = (f"[{low:+.2f}, {high:+.2f}]" for low, high in ends)
            p = entry["equivalence_p"] if entry["p"] is None else entry["p"]
            effect = f"{entry['effect']:+.2f} {row['unit']}"
            rows[row["id"]] = effect, interval, two_level, f"{p:.4f}", row["seeds"], row["verdict"]
    columns = ["effect", "interval", "two-level", "p", "seeds", "verdict"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
