"""Elo differences and win rates: two ways to say how often one thing is preferred to another.

GLIDE (Nichol et al. 2021, appendix A.1) fits ratings so that i beats j with probability
1 / (1 + 10^((rating j − rating i) / 400)). Printed there is the opposite sign, with which the
rating of a winner would fall. Only differences have a meaning: a constant added to all ratings
changes none of these probabilities.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from dalle3lib import UserError

SCALE = 400 / np.log(10)  # Elo points of one natural unit of log odds


def win_rate(difference: ArrayLike) -> float | np.ndarray:
    """How often the first is preferred, 0 to 1, if its Elo is ``difference`` points higher.

    Takes one number or an array. Equal ratings give 0.5; 400 points give 10 wins to 1 loss.
    """
    return expit(np.asarray(difference, np.float64) / SCALE)[()]


def elo_difference(rate: ArrayLike) -> float | np.ndarray:
    """By how many Elo points the first is ahead if it is preferred in ``rate`` (0 to 1) of cases.

    The inverse of ``win_rate``. UserError for 0, 1 and anything outside: who never loses has no
    finite Elo.
    """
    rate = np.asarray(rate, np.float64)
    if not ((rate > 0) & (rate < 1)).all():
        raise UserError(f"Only a win rate between 0 and 1 has an Elo difference, not {rate}.")
    return (SCALE * logit(rate))[()]
