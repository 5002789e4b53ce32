"""How many prompts are needed: by hand, as properties, and against simulated judgements."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle3lib.evals import prompt_power

positive = st.floats(0.5, 40)


def test_the_usual_formula_by_hand():
    """(1.96 + 0.8416)² is 7.849: a standardised difference of 1 needs 8 pairs, one of 0.1 785."""
    parts = prompt_power.Spread(100.0, 0.0)
    assert prompt_power.prompts_needed(10, 4, parts) == pytest.approx(7.849, abs=0.001)
    assert prompt_power.prompts_needed([1], 4, parts) == pytest.approx([784.9], abs=0.1)
    # no difference is "found" in one case of twenty
    assert prompt_power.power(0, 200, 4, parts) == pytest.approx(0.05)


@given(positive, st.integers(1, 16), st.floats(0, 2000), st.floats(1, 3000))
def test_as_many_as_needed_find_it_as_often_as_asked(difference, images, between, within):
    parts = prompt_power.Spread(between, within)
    prompts = prompt_power.prompts_needed(difference, images, parts)
    assert prompt_power.power(difference, prompts, images, parts) == pytest.approx(0.8, abs=1e-3)
    assert prompt_power.prompts_needed(difference, 2 * images, parts) <= prompts
    assert prompt_power.prompts_needed(-difference, images, parts) == pytest.approx(prompts)


def test_spread_by_hand():
    """Two prompts of two images: 1 and 1 right against 0 and 0, then 2 and 0 against 0 and 0."""
    none = pd.Series([0, 0])
    mixed = prompt_power.spread(pd.Series([1, 1]), none, images=2)
    assert mixed == prompt_power.Spread(0, 5000)  # no prompt differs, an image is 0 or 100
    assert prompt_power.spread(pd.Series([2, 0]), none, images=2) == prompt_power.Spread(5000, 0)


def test_spread_and_power_agree_with_simulated_judgements():
    draw = np.random.default_rng(0)
    p = np.clip(draw.normal([0.6, 0.5], 0.2, size=(20_000, 2)), 0, 1)
    counts = draw.binomial(4, p)
    parts = prompt_power.spread(*counts.T, images=4)
    difference = 100 * (p[:, 0] - p[:, 1])
    assert parts.between == pytest.approx(difference.var(), rel=0.1)
    assert parts.within == pytest.approx((1e4 * p * (1 - p)).sum(axis=1).mean(), rel=0.05)
    d = 25.0 * (counts[:, 0] - counts[:, 1]).reshape(200, 100)  # 200 studies of 100 prompts
    z = d.mean(axis=1) / (d.std(axis=1, ddof=1) / 10)
    found = (np.abs(z) > prompt_power.TAIL).mean()
    expected = prompt_power.power(difference.mean(), 100, 4, parts)
    assert found == pytest.approx(expected, abs=0.08)
