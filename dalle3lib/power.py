"""How many seeds are enough, and how often the statistics of the book err.

A pilot gives the variances of a score; from them follow the power of a study and, by simulation,
how often its test sees what is not there and how often its intervals hold the truth.
"""

from dataclasses import dataclass

import numpy as np

from dalle3lib import UserError, stats

SIMULATED = 1000  # matrices
MOST_SEEDS = 16  # of a power simulation: 2^16 sign patterns
FEW = 999  # resamples of an interval that is computed a thousand times


@dataclass(frozen=True)
class Components:
    """Variances of a score: by seed, prompt, their interactions with the arm and each other.

    Arms share seeds and prompts, so ``seed``, ``prompt`` and ``seed_prompt`` (a prompt's starting
    noise depends on the seed) cancel in a difference of two arms.
    """

    seed: float
    prompt: float
    seed_arm: float
    prompt_arm: float
    seed_prompt: float
    residual: float


def components(scores: np.ndarray) -> Components:
    """Variance components of scores [arms, seeds, prompts] by the method of moments.

    Each mean square of the analysis of variance (all three crossed, one score a cell, arms fixed)
    is set equal to its expectation; a negative estimate becomes 0. UserError for fewer than two
    arms, seeds or prompts, or a score that is not finite.
    """
    y = np.asarray(scores, np.float64)
    if y.ndim != 3 or min(y.shape) < 2 or not np.isfinite(y).all():
        raise UserError(f"This needs finite scores of 2+ arms x seeds x prompts, not {y.shape}.")
    a, s, p = y.shape
    y = y - y.mean(axis=(1, 2), keepdims=True)  # what an arm scores on average
    seed, prompt = y.mean(axis=(0, 2)), y.mean(axis=(0, 1))
    seed_arm = y.mean(axis=2) - seed
    prompt_arm = y.mean(axis=1) - prompt
    seed_prompt = y.mean(axis=0) - seed[:, None] - prompt
    rest = y - seed[:, None] - prompt - seed_arm[:, :, None] - prompt_arm[:, None] - seed_prompt
    error = (rest**2).sum() / ((a - 1) * (s - 1) * (p - 1))
    ms_seed_arm = p * (seed_arm**2).sum() / ((a - 1) * (s - 1))
    ms_prompt_arm = s * (prompt_arm**2).sum() / ((a - 1) * (p - 1))
    ms_seed_prompt = a * (seed_prompt**2).sum() / ((s - 1) * (p - 1))
    ms_seed = a * p * (seed**2).sum() / (s - 1)
    ms_prompt = a * s * (prompt**2).sum() / (p - 1)
    found = (
        (ms_seed - ms_seed_arm - ms_seed_prompt + error) / (a * p),
        (ms_prompt - ms_prompt_arm - ms_seed_prompt + error) / (a * s),
        (ms_seed_arm - error) / p,
        (ms_prompt_arm - error) / s,
        (ms_seed_prompt - error) / a,
        error,
    )
    return Components(*(max(0.0, float(value)) for value in found))


def simulate(
    variances: Components,
    seeds: int,
    prompts: int,
    rng: np.random.Generator,
    effect: float = 0.0,
    count: int = SIMULATED,
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` difference matrices of two arms, and the true effect on each one's prompts.

    Returns ([count, seeds, prompts], [count]). ``effect`` is the mean over all prompts there might
    be; the prompts of one matrix differ from it by chance (``prompt_arm``).
    """

    def normal(variance: float, *shape: int) -> np.ndarray:
        return rng.normal(0, np.sqrt(2 * variance), (count, *shape))

    by_prompt = effect + normal(variances.prompt_arm, 1, prompts)
    noise = normal(variances.seed_arm, seeds, 1) + normal(variances.residual, seeds, prompts)
    return by_prompt + noise, by_prompt.mean(axis=(1, 2))


def error_rates(
    variances: Components,
    seeds: int,
    prompts: int,
    rng: np.random.Generator,
    count: int = SIMULATED,
) -> dict[str, float]:
    """How often the statistics err on ``count`` simulated studies: shares, 0 to 1.

    "false positives": p ≤ .05 of the one-sided sign-flip test where two arms do not differ on the
    prompts they are asked with; "seed interval covers": Student's interval holds the true effect on
    those prompts; "two-level interval covers": it holds the true effect over all prompts.
    """
    drawn, true = simulate(variances, seeds, prompts, rng, count=count)
    tests, inside, inside_two = [], [], []
    for matrix, here in zip(drawn, true, strict=True):
        d = matrix.mean(axis=1)
        tests.append(stats.sign_flip_p(d - here) <= 0.05)
        low, high = stats.seed_interval(d)
        inside.append(low <= here <= high)
        low, high = stats.two_level_interval(matrix, rng, resamples=FEW)
        inside_two.append(low <= 0 <= high)
    return {
        "false positives": float(np.mean(tests)),
        "seed interval covers": float(np.mean(inside)),
        "two-level interval covers": float(np.mean(inside_two)),
    }


def split_halves(
    matrix: np.ndarray, rng: np.random.Generator, count: int = SIMULATED
) -> dict[str, float]:
    """How often an arm "beats" itself: scores [seeds, prompts] of one arm, paired at random.

    In each of ``count`` draws half of the seeds are set against the other half. Returns the share
    of p ≤ .05 as "false positives", and as "expected" what an exact test of so few pairs gives.
    UserError for fewer than four seeds.
    """
    means = stats.seed_means(matrix)
    pairs = len(means) // 2
    if pairs < 2:
        raise UserError(f"Halves that can be compared need four or more seeds, not {len(means)}.")
    orders = np.argsort(rng.random((count, len(means))), axis=1)
    d = means[orders[:, :pairs]] - means[orders[:, pairs : 2 * pairs]]
    return {
        "false positives": float(np.mean(sign_flip_ps(d) <= 0.05)),
        "expected": np.floor(0.05 * 2**pairs) / 2**pairs,
    }


def sign_flip_ps(differences: np.ndarray) -> np.ndarray:
    """``stats.sign_flip_p`` of each row of [count, n seeds], at once."""
    count, n = differences.shape
    signs = 1.0 - 2 * ((np.arange(2**n) >> np.arange(n)[:, None]) & 1)
    found = []
    for rows in np.array_split(differences, max(1, count * 2**n // 2**23)):
        least = rows.sum(axis=1) - 1e-9 * np.abs(rows).sum(axis=1)
        found.append((rows @ signs >= least[:, None]).mean(axis=1))
    return np.concatenate(found)


def power(
    ratio: float,
    seeds: int,
    rng: np.random.Generator,
    alpha: float = 0.05,
    count: int = SIMULATED,
) -> float:
    """The chance, 0 to 1, that the one-sided sign-flip test finds an effect at level ``alpha``.

    ``ratio`` is the effect divided by the standard deviation of the seeds' differences, which are
    taken as normal. UserError for more than 16 seeds.
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise UserError(f"Power is simulated for 1 to {MOST_SEEDS} seeds, not {seeds}.")
    return float(np.mean(sign_flip_ps(rng.normal(ratio, 1, (count, seeds))) <= alpha))


def seeds_needed(
    effect: float,
    sd: float,
    rng: np.random.Generator,
    wanted: float = 0.8,
    alpha: float = 0.05,
) -> int | None:
    """The fewest seeds with ``wanted`` power, found by bisection; None if 16 are not enough."""
    low, high = 1, MOST_SEEDS  # too few, enough
    if power(effect / sd, high, rng, alpha) < wanted:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = power(effect / sd, middle, rng, alpha) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return high
