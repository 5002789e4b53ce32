"""Variance components by hand and from simulated pilots; error rates, power, seeds needed."""

import numpy as np
import pytest

from dalle3lib import UserError, power, stats
from dalle3lib.power import Components

PILOT = Components(0.5, 30.0, 0.2, 2.0, 3.0, 8.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def scores(variances, arms, seeds, prompts, random):
    """Scores [arms, seeds, prompts] that have these variance components."""

    def normal(variance, *shape):
        return random.normal(0, variance**0.5, shape)

    return (
        np.arange(arms)[:, None, None] * 5.0
        + normal(variances.seed, 1, seeds, 1)
        + normal(variances.prompt, 1, 1, prompts)
        + normal(variances.seed_arm, arms, seeds, 1)
        + normal(variances.prompt_arm, arms, 1, prompts)
        + normal(variances.seed_prompt, 1, seeds, prompts)
        + normal(variances.residual, arms, seeds, prompts)
    )


# ---- variance components -------------------------------------------------------------------------


def test_components_by_hand():
    """Two arms, seeds and prompts. Only the prompts differ, by 2: mean square 16 / 1 over 4."""
    only_prompts = np.broadcast_to([1.0, 3.0], (2, 2, 2))
    assert power.components(only_prompts) == Components(0, 2, 0, 0, 0, 0)
    only_seeds = only_prompts.transpose(0, 2, 1)
    assert power.components(only_seeds) == Components(2, 0, 0, 0, 0, 0)
    # the arms differ by 2 with one seed and by -2 with the other: variance 8, twice the component
    crossed = np.array([[[1.0, 1], [-1, -1]], [[-1, -1], [1, 1]]])
    assert power.components(crossed) == Components(0, 0, 4, 0, 0, 0)


def test_an_arms_mean_is_no_variance():
    base = scores(PILOT, 3, 4, 20, rng(1))
    shifted = base + np.array([0.0, 7.0, -2.0])[:, None, None]
    one, other = power.components(base), power.components(shifted)
    assert vars(one) == pytest.approx(vars(other))


def test_components_come_back_from_simulated_pilots():
    random = rng(2)
    found = [vars(power.components(scores(PILOT, 4, 8, 150, random))) for _ in range(60)]
    for name, true in vars(PILOT).items():
        mean = np.mean([one[name] for one in found])
        assert mean == pytest.approx(true, rel=0.15), name


@pytest.mark.parametrize("shape", [(1, 4, 9), (2, 1, 9), (2, 4, 1), (4, 9)])
def test_components_need_two_of_each(shape):
    with pytest.raises(UserError, match="arms x seeds x prompts"):
        power.components(np.zeros(shape))


def test_simulated_effects_are_those_of_their_prompts():
    drawn, true = power.simulate(PILOT, 3, 40, rng(4), effect=1.5, count=500)
    assert drawn.shape == (500, 3, 40) and true.mean() == pytest.approx(1.5, abs=0.06)
    assert true.std() == pytest.approx(np.sqrt(2 * 2.0 / 40), rel=0.1)
    quiet = Components(1, 1, 0, 0, 1, 0)  # all that is left cancels
    drawn, true = power.simulate(quiet, 3, 4, rng(), effect=0.5, count=2)
    assert (drawn == 0.5).all() and (true == 0.5).all()


# ---- error rates ---------------------------------------------------------------------------------


def test_the_statistics_keep_their_promises_on_simulated_studies():
    rates = power.error_rates(PILOT, 10, 60, rng(5), count=300)
    assert 0.02 < rates["false positives"] < 0.09
    assert 0.86 < rates["seed interval covers"] <= 0.97  # a bootstrap of ten is a little narrow
    assert 0.86 < rates["two-level interval covers"] <= 0.99


def test_an_arm_beats_itself_as_often_as_chance_says():
    random = rng(6)
    rates = [power.split_halves(random.normal(size=(10, 20)), random, count=200) for _ in range(40)]
    assert rates[0]["expected"] == 1 / 32  # of five pairs all must agree
    assert np.mean([r["false positives"] for r in rates]) == pytest.approx(1 / 32, abs=0.015)
    with pytest.raises(UserError, match="four or more"):
        power.split_halves(np.zeros((3, 5)), random)


# ---- power ---------------------------------------------------------------------------------------


def test_sign_flips_of_many_rows_are_those_of_each():
    rows = rng(7).normal(0.2, 1, (50, 7)).round(1)  # with ties
    assert power.sign_flip_ps(rows).tolist() == [stats.sign_flip_p(row) for row in rows]


@pytest.mark.parametrize(("ratio", "seeds", "known"), [(1, 8, 0.81), (1, 10, 0.89), (2, 6, 0.98)])
def test_power_is_near_that_of_a_t_test(ratio, seeds, known):
    """The known values are those of the one-sided t test at level .05 (noncentral t)."""
    assert power.power(ratio, seeds, rng(8), count=2000) == pytest.approx(known, abs=0.05)


def test_four_seeds_can_never_show_anything():
    assert power.power(100, 4, rng()) == 0 and power.power(100, 5, rng()) == 1
    assert power.power(100, 6, rng(), alpha=0.05 / 6) == 0


def test_seeds_needed():
    assert power.seeds_needed(100, 0.1, rng()) == 5
    assert power.seeds_needed(0.001, 0.1, rng()) is None
    needed = power.seeds_needed(0.1, 0.1, rng(10))
    assert needed in (7, 8, 9)
    with pytest.raises(UserError, match="1 to 16 seeds"):
        power.power(1, 17, rng())
