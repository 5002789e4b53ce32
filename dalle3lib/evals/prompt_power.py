"""How many prompts it takes to tell two systems apart that were judged on the same prompts.

A prompt's difference varies for two reasons: the systems differ more on some prompts than on
others, and each image is a draw. More images a prompt reduce the second part only.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import norm

TAIL = norm.ppf(0.975)  # of a two-sided test at 5 %


class Spread(NamedTuple):
    """The variance of a prompt's difference, in % points²: between prompts, and of one image."""

    between: float
    within: float

    def of_a_prompt(self, images: int) -> float:
        """The variance of the difference at one prompt with ``images`` images a system."""
        return self.between + self.within / images


def spread(a: pd.Series, b: pd.Series, images: int) -> Spread:
    """Both parts of the variance, from counts of right images [prompts] of two systems.

    Every prompt has ``images`` (two or more) images a system. What one image adds is estimated
    without bias from the mixed prompts; the rest is between prompts, and at least 0.
    """
    shares = [100 * np.asarray(counts) / images for counts in (a, b)]
    one = sum((share * (100 - share)).mean() for share in shares) * images / (images - 1)
    total = np.var(shares[0] - shares[1], ddof=1)
    return Spread(max(0.0, float(total - one / images)), float(one))


def power(difference: ArrayLike, prompts: ArrayLike, images: int, parts: Spread) -> np.ndarray:
    """The chance (0 to 1) that a true difference (% points) is found at 5 %, two-sided.

    With the normal approximation: the mean of ``prompts`` differences is about normal.
    """
    error = np.sqrt(parts.of_a_prompt(images) / np.asarray(prompts, np.float64))
    shift = np.abs(difference) / error
    return norm.cdf(shift - TAIL) + norm.cdf(-shift - TAIL)


def prompts_needed(
    difference: ArrayLike, images: int, parts: Spread, chance: float = 0.8
) -> np.ndarray:
    """How many prompts find a true difference (% points, not 0) with a chance of ``chance``.

    The usual formula, ((z of .975 + z of the chance) / difference)² times a prompt's variance; a
    real number, to be rounded up.
    """
    reach = (TAIL + norm.ppf(chance)) / np.asarray(difference, np.float64)
    return reach**2 * parts.of_a_prompt(images)
