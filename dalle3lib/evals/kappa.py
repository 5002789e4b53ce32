"""Cohen's kappa: how far two raters' yes and no agree beyond chance, with its interval."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dalle3lib import UserError, stats


def kappa(a: np.ndarray, b: np.ndarray) -> float:
    """Cohen's kappa of two raters' bool answers [n]: agreement beyond chance, in [-1, 1].

    kappa = (observed - expected) / (1 - expected), where "expected" is how often raters would
    agree who say yes as often as these, but at random (Cohen 1960). If both always give one and
    the same answer, nothing beyond chance can be shown: by convention that is 0. UserError unless
    both have the same length of at least one.
    """
    return float(_kappa(_cells(a, b).sum(0)))


def kappa_interval(
    a: np.ndarray, b: np.ndarray, pictures: Sequence[int], random: np.random.Generator
) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval (low, high) of ``kappa``, drawn over whole pictures.

    ``pictures`` [n] says which picture each answer is about; answers about one picture depend on
    each other and are drawn together.
    """
    counts = pd.DataFrame(_cells(a, b)).groupby(np.asarray(pictures)).sum().to_numpy()
    n = len(counts)
    draws = random.multinomial(n, np.full(n, 1 / n), size=stats.RESAMPLES)
    low, high = np.quantile(_kappa(draws @ counts), (0.025, 0.975))
    return float(low), float(high)


def _cells(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which cell of the two-by-two table (yy, yn, ny, nn) each answer falls in: [n, 4]."""
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if a.shape != b.shape or a.size == 0:
        raise UserError(f"Kappa needs as many answers of both, not {a.size} and {b.size}.")
    return np.stack([a & b, a & ~b, ~a & b, ~a & ~b], axis=1).astype(float)


def _kappa(counts: np.ndarray) -> np.ndarray:
    """Kappa of two-by-two tables [..., 4]."""
    both, first, second, none = np.moveaxis(counts / counts.sum(-1, keepdims=True), -1, 0)
    yes_a, yes_b = both + first, both + second
    expected = yes_a * yes_b + (1 - yes_a) * (1 - yes_b)
    chance = np.isclose(expected, 1)
    return np.where(chance, 0, (both + none - expected) / np.where(chance, 1, 1 - expected))
