"""Elo differences and win rates, by hand and there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle3lib import UserError, elo

points = st.floats(-2000, 2000)


@pytest.mark.parametrize(("difference", "rate"), [(0, 0.5), (400, 10 / 11), (-800, 1 / 101)])
def test_win_rates_by_hand(difference, rate):
    assert elo.win_rate(difference) == pytest.approx(rate)
    assert elo.elo_difference(rate) == pytest.approx(difference)


def test_the_scale_is_that_of_chess():
    """Nine wins of ten, the usual example: 400 log10(9) points, about 382."""
    assert elo.elo_difference(0.9) == pytest.approx(400 * np.log10(9))


@given(points, st.floats(0.01, 500))
def test_more_points_win_more_often_and_both_rates_make_one(difference, more):
    assert elo.win_rate(difference + more) > elo.win_rate(difference)
    assert elo.win_rate(difference) + elo.win_rate(-difference) == pytest.approx(1)


@given(points)
def test_there_and_back(difference):
    assert elo.elo_difference(elo.win_rate(difference)) == pytest.approx(difference, abs=1e-6)


def test_arrays_and_extremes():
    rates = elo.win_rate([[0, 400], [1e9, -1e9]])  # no overflow, and no warning
    assert rates.shape == (2, 2) and rates[1].tolist() == [1, 0]
    assert isinstance(elo.win_rate(0), float)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.2, np.nan, [0.5, 1]])
def test_who_never_loses_has_no_elo(rate):
    with pytest.raises(UserError, match="between 0 and 1"):
        elo.elo_difference(rate)
