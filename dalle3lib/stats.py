"""Statistics of the book: intervals, exact tests and the correction for testing several claims.

Pure functions of arrays. The training seed is the unit of replication, so tests take one number
per seed; intervals over prompts describe one run and never replace seeds.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap
from scipy.stats import t as student

from dalle3lib import UserError

RESAMPLES = 9999
MOST_SEEDS = 24  # 2^24 sums are 128 MiB


def mean_interval(
    values: Sequence[float], rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of ``values`` [n].

    The values (one per prompt, say) are drawn again with replacement. ``rng`` makes the draws;
    ``level`` is the coverage, 0 to 1. UserError for fewer than two values or one not finite.
    """
    values = _checked(values, least=2)
    if np.ptp(values) == 0:  # no width, and no rounding
        return float(values[0]), float(values[0])
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",
        rng=rng,
        batch=max(1, 2**22 // values.size),  # 32 MiB of resamples at a time
    ).confidence_interval
    return float(interval.low), float(interval.high)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of mean(a) − mean(b), paired by position.

    ``a`` and ``b`` [n] are scores of the same prompts, so whole pairs are drawn again and what
    two arms share (an easy prompt) cancels. UserError if the lengths differ.
    """
    a, b = _checked(a, least=2), _checked(b, least=2)
    if a.shape != b.shape:
        raise UserError(f"Paired scores need equal lengths, not {a.size} and {b.size}.")
    return mean_interval(a - b, rng, level)


def paired_effect(
    a: Sequence[float], b: Sequence[float], rng: np.random.Generator
) -> dict[str, object]:
    """The ``effect``, mean(a − b), and its 95 % ``interval`` (``paired_bootstrap``)."""
    interval = paired_bootstrap(a, b, rng)
    return {"effect": float((np.asarray(a) - np.asarray(b)).mean()), "interval": interval}


def ratio_interval(
    parts: np.ndarray, wholes: np.ndarray, rng: np.random.Generator, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap intervals (low, high) of sum(parts) / sum(wholes), a ratio per column.

    ``parts`` and ``wholes`` are [n units, k ratios], such as each caption's right and stated facts
    of every attribute; whole units are drawn again. Arrays [k], NaN where all wholes are zero.
    UserError if the shapes differ, there are fewer than two units, or a number is not finite.
    """
    parts, wholes = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    if parts.shape != wholes.shape or parts.ndim != 2 or len(parts) < 2:
        raise UserError(f"Ratios need two equal tables of 2 or more rows, not {parts.shape}.")
    both = _checked(np.concatenate([parts, wholes], axis=1).ravel(), least=2)
    n, sums = len(parts), []
    for size in np.diff([*range(0, RESAMPLES, max(1, 2**22 // n)), RESAMPLES]):
        times = rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
        sums.append(times @ both.reshape(n, -1))
    part, whole = np.split(np.concatenate(sums), 2, axis=1)
    ratio = np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
    ratio[:, ~wholes.any(axis=0)] = -1.0  # so that percentiles find a number there too
    low, high = np.nanpercentile(ratio, [50 * (1 - level), 50 * (1 + level)], axis=0)
    return tuple(np.where(wholes.any(axis=0), end, np.nan) for end in (low, high))


def seed_interval(seed_means: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval (low, high) of the mean over seeds, one number per seed [n].

    Means over hundreds of prompts are close to normal. A BCa bootstrap was planned here; of ten
    values it held the truth in 90 % of simulated studies instead of 95 (see EXPERIMENTS.md).
    UserError for fewer than two.
    """
    values = _checked(seed_means, least=2)
    half = student.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)


def over_seeds(seed_means: Sequence[float]) -> tuple[float, float, float]:
    """Mean, low and high: the mean over seeds [n] with its ``seed_interval``, NaN for one seed."""
    values = np.asarray(seed_means, np.float64)
    return float(values.mean()), *(seed_interval(values) if len(values) > 1 else [np.nan] * 2)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact one-sided p value that the mean of paired differences [n seeds] is above zero.

    Without an effect each difference is as likely to carry the other sign. The p value is the
    share of all 2^n choices of signs whose sum is at least the observed one, in (0, 1]. The
    smallest possible is 2^-n: three seeds can never reach .05. For the other direction negate the
    differences. UserError for no difference, more than 24, or one not finite.
    """
    d = _checked(differences, least=1)
    if d.size > MOST_SEEDS:
        raise UserError(f"The exact sign-flip test takes up to {MOST_SEEDS} seeds, not {d.size}.")
    sums = np.zeros(1)
    for size in np.abs(d):
        sums = np.concatenate([sums + size, sums - size])
    rounding = 1e-9 * np.abs(d).sum()  # sums equal on paper must count as equal
    return float(np.mean(sums >= d.sum() - rounding))


def sign_flip_count_p(differences: Sequence[int]) -> float:
    """The p value of ``sign_flip_p`` for differences that are whole numbers [n], however many.

    Sums of whole numbers take few values, so their distribution is built up exactly, one
    difference after the other, where listing all 2^n choices of signs would never end. It serves
    where prompts, not training seeds, are the unit: counts of right images, say, one a prompt.
    UserError for no difference or one that is not whole.
    """
    d = _checked(differences, least=1)
    if (d != np.round(d)).any():
        raise UserError("This sign-flip test takes whole numbers, such as counts of right images.")
    chances = np.ones(1)  # of every second sum from -total to total
    for size in np.abs(d).astype(int):
        flip = np.zeros(size + 1)
        flip[0] += 0.5  # with a minus
        flip[-1] += 0.5  # with a plus, which is the same for a difference of zero
        chances = np.convolve(chances, flip)
    reached = int(np.abs(d).sum() + d.sum()) // 2
    return float(min(1, chances[reached:].sum()))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's (1979) adjusted p values of one family [m], in the order given.

    The smallest p is multiplied by m, the next by m − 1, and so on; none may fall below an
    earlier one or rise above 1. Rejecting adjusted values ≤ .05 keeps the chance of any false
    rejection in the family at 5 %. UserError for a value outside 0 to 1.
    """
    p = _checked(p_values, least=0)
    if np.any((p < 0) | (p > 1)):
        raise UserError("A p value lies between 0 and 1.")
    order = np.argsort(p, kind="stable")
    factors = np.arange(p.size, 0, -1)
    adjusted = np.empty(p.size)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted


# ---- matrices of seeds x prompts -----------------------------------------------------------------


def seed_means(matrix: np.ndarray) -> np.ndarray:
    """The mean over prompts of each seed, [seeds], of scores or differences [seeds, prompts].

    A prompt without the fact that is measured is NaN in every seed and does not count. UserError
    if it is NaN in some seeds only, or if no prompt is left.
    """
    return _measured(matrix).mean(axis=1)


def _measured(matrix: np.ndarray) -> np.ndarray:
    """The columns of a matrix [seeds, prompts] that are measured; UserError as ``seed_means``."""
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2:
        raise UserError(f"This needs a table of seeds x prompts, not an array {matrix.shape}.")
    missing = np.isnan(matrix)
    if (missing.any(axis=0) != missing.all(axis=0)).any():
        raise UserError("A prompt is scored for some seeds only; score it for all, or for none.")
    found = matrix[:, ~missing.any(axis=0)]
    if not found.size:
        raise UserError("No prompt is left to average: none has the fact that is measured.")
    return found


def two_level_interval(
    matrix: np.ndarray, rng: np.random.Generator, level: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile interval (low, high) of the mean of [seeds, prompts], both drawn again.

    Each resample draws seeds and, for all of them alike, prompts (they are crossed), so it covers
    the mean over other seeds *and other prompts*. UserError as ``seed_means``.
    """
    values = _measured(matrix)
    (seeds, prompts), means = values.shape, []
    for size in np.diff([*range(0, resamples, max(1, 2**22 // prompts)), resamples]):
        drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size) @ values
        times = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size)
        means.append((drawn * times).sum(axis=1) / (seeds * prompts))
    low, high = np.percentile(np.concatenate(means), [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def equivalence_p(differences: Sequence[float], margin: float) -> float:
    """The p value of "no difference as large as ``margin``" over seeds [n] (TOST, Schuirmann 1987).

    Two one-sided exact sign-flip tests, that the mean lies above -margin and below +margin; both
    must pass, so the larger p value counts. UserError for a margin that is not above zero.
    """
    if not margin > 0:
        raise UserError(f"A margin of equivalence must be above zero, not {margin}.")
    d = _checked(differences, least=1)
    return max(sign_flip_p(d + margin), sign_flip_p(margin - d))


def slopes(shares: Sequence[float], scores: np.ndarray) -> np.ndarray:
    """Least-squares slopes over the first axis: [k, ...] scores at k shares become [...].

    With the seeds' means [k, seeds] it is the trend of each seed, with scores [k, seeds, prompts]
    that of each seed and prompt; both have the same mean. In the scores' unit per unit of share.
    UserError unless there are two or more different shares, one for each row.
    """
    shares, scores = np.asarray(shares, np.float64), np.asarray(scores, np.float64)
    if shares.ndim != 1 or len(shares) != len(scores) or np.unique(shares).size < 2:
        raise UserError(f"A trend needs scores at two or more shares, not {shares.tolist()}.")
    away = shares - shares.mean()
    return np.tensordot(away, scores, axes=1) / (away**2).sum()


def effect(
    matrix: np.ndarray,
    rng: np.random.Generator,
    direction: str = "greater",
    margin: float = 0.0,
    resamples: int = RESAMPLES,
) -> dict[str, object]:
    """The evidence in paired differences [seeds, prompts] for a claim, as the ledger takes it.

    ``direction`` (greater, less, equal, two-sided) and the smallest effect of interest ``margin``
    are the claim's. Keys: effect, interval (over seeds), two_level (over seeds and prompts),
    by_seed, seeds, p (exact sign flips in the claimed direction; None for equal) and, with a
    margin, equivalence_p. UserError as ``seed_means``, and for a single seed.
    """
    d = seed_means(matrix)
    found = {
        "effect": float(d.mean()),
        "interval": seed_interval(d),
        "two_level": two_level_interval(matrix, rng, resamples=resamples),
        "by_seed": d.tolist(),
        "seeds": len(d),
        "p": directed_p(d, direction),
    }
    return found | ({"equivalence_p": equivalence_p(d, margin)} if margin > 0 else {})


def directed_p(differences: Sequence[float], direction: str) -> float | None:
    """``sign_flip_p`` in a claim's direction; two-sided twice the smaller; None for "equal"."""
    d = _checked(differences, least=1)
    up, down = sign_flip_p(d), sign_flip_p(-d)
    both = min(1.0, 2 * min(up, down))
    return {"greater": up, "less": down, "two-sided": both, "equal": None}[direction]


def _checked(values: Sequence[float], least: int) -> np.ndarray:
    """The values as float64 [n]; UserError if too few, not a flat list, or not all finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size < least:
        raise UserError(f"This needs a flat list of {least} or more numbers, not {array.shape}.")
    if not np.isfinite(array).all():
        raise UserError("A score is missing or infinite; take its prompt or seed out of all arms.")
    return array
