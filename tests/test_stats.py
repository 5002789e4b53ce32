"""The statistics: hand-computed cases, properties, and coverage in a small simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test, ttest_1samp

from dalle3lib import UserError, stats

finite = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))
differences = st.lists(finite, min_size=1, max_size=8)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def rng(seed=0):
    return np.random.default_rng(seed)


# --- sign flips ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "p"),
    [
        ([1], 1 / 2),
        ([1, 2, 3], 1 / 8),  # only the observed signs reach 6
        ([3, 2, -1], 2 / 8),  # sums are ±6 ±4 ±2 0 0: 6 and 4 reach 4
        ([1, 1, -1], 4 / 8),  # sum 1 is reached by one +++ and three ++-
        ([-1, -2, -3], 1),
        ([0, 0], 1),
        ([0.1, 0.2, 0.3, -0.3], 6 / 16),  # ties that floating point would miss
    ],
)
def test_sign_flip_by_hand(d, p):
    assert stats.sign_flip_p(d) == p


def test_ten_seeds_that_all_agree_give_two_to_the_minus_ten():
    assert stats.sign_flip_p(rng().random(10) + 0.1) == 2**-10


@settings(deadline=None)
@given(differences)
def test_sign_flip_equals_the_definition(d):
    total = sum(d)
    sums = [
        sum(s * x for s, x in zip(signs, d, strict=True))
        for signs in itertools.product((1, -1), repeat=len(d))
    ]
    tolerance = 1e-9 * sum(map(abs, d))
    assert stats.sign_flip_p(d) == np.mean([s >= total - tolerance for s in sums])


@settings(deadline=None)
@given(differences)
def test_sign_flip_is_a_p_value_of_signs_only(d):
    p, opposite = stats.sign_flip_p(d), stats.sign_flip_p([-x for x in d])
    assert 2.0 ** -len(d) <= p <= 1
    assert p + opposite >= 1  # both count the observed sum
    assert stats.sign_flip_p(d[::-1]) == p
    assert stats.sign_flip_p([8 * x for x in d]) == p


whole = st.lists(st.integers(-4, 4), min_size=1, max_size=12)


@given(whole)
def test_sign_flips_of_counts_are_those_of_any_numbers(d):
    assert stats.sign_flip_count_p(d) == pytest.approx(stats.sign_flip_p(d), rel=1e-12)


def test_sign_flips_of_many_counts():
    assert stats.sign_flip_count_p([1] * 200) == pytest.approx(2.0**-200)  # one choice of all
    assert stats.sign_flip_count_p([1, -1] * 100 + [0] * 9) == pytest.approx(0.5, abs=0.03)
    for wrong in ([], [0.5], [np.nan]):
        with pytest.raises(UserError):
            stats.sign_flip_count_p(wrong)


def test_sign_flip_agrees_with_scipy():
    d = rng(3).normal(0.3, 1, 9)
    reference = permutation_test(
        (d,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert stats.sign_flip_p(d) == pytest.approx(reference.pvalue)


def test_sign_flip_keeps_its_level_under_no_effect():
    p = np.array([stats.sign_flip_p(d) for d in rng(5).normal(0, 1, (2000, 8))])
    assert abs(np.mean(p <= 0.05) - 12 / 256) < 0.015  # 12/256 is the largest level below .05


@pytest.mark.parametrize("d", [[], [1, np.nan], [[1, 2]], [1.0] * 25])
def test_sign_flip_refuses_what_it_cannot_test(d):
    with pytest.raises(UserError):
        stats.sign_flip_p(d)


# --- Holm ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.02], [0.02]),
        ([0.5, 0.9], [1, 1]),
        ([0.01, 0.01, 0.01], [0.03, 0.03, 0.03]),
        ([], []),
    ],
)
def test_holm_by_hand(raw, adjusted):
    assert stats.holm(raw) == pytest.approx(adjusted)


@settings(deadline=None)
@given(p_values)
def test_holm_is_between_the_raw_value_and_bonferroni(raw):
    adjusted = stats.holm(raw)
    bonferroni = np.minimum(np.array(raw) * len(raw), 1)
    assert np.all(adjusted >= raw) and np.all(adjusted <= bonferroni + 1e-12)


@settings(deadline=None)
@given(p_values, st.randoms())
def test_holm_keeps_order_and_ignores_position(raw, random):
    adjusted = stats.holm(raw)
    assert np.all(np.diff(adjusted[np.argsort(raw)]) >= 0)
    places = random.sample(range(len(raw)), len(raw))
    assert stats.holm([raw[i] for i in places]) == pytest.approx(adjusted[places])


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(UserError):
        stats.holm([0.1, 1.2])


# --- intervals -----------------------------------------------------------------------------------


def test_interval_of_two_values_reaches_from_one_to_the_other():
    # resampled means are 0, 1/2 and 1 with probability 1/4, 1/2, 1/4: the 95 % reach is all of it
    assert stats.mean_interval([0, 1], rng()) == (0, 1)


def test_a_paired_effect_is_the_mean_difference_with_its_interval():
    a, b = [3.0, 5.0, 10.0], [1.0, 1.0, 1.0]
    found = stats.paired_effect(a, b, rng(7))
    assert found == {"effect": 5.0, "interval": stats.paired_bootstrap(a, b, rng(7))}


def test_paired_interval_is_that_of_the_differences():
    easy = rng(1).normal(0, 50, 200)  # what both arms share must cancel
    low, high = stats.paired_bootstrap(easy + 2 + rng(2).normal(0, 1, 200), easy, rng())
    assert low < 2 < high and high - low < 0.5


def test_interval_is_close_to_the_normal_one():
    values = rng(4).normal(10, 2, 400)
    low, high = stats.mean_interval(values, rng())
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)


def test_equal_values_leave_no_doubt():
    assert stats.mean_interval([0.3] * 10, rng()) == (0.3, 0.3)
    assert stats.seed_interval([0.5] * 10) == (0.5, 0.5)


def test_seed_interval_by_hand():
    """Mean 2, deviation 1, t(2) = 4.3027, sqrt(3)."""
    assert stats.seed_interval([1, 2, 3]) == pytest.approx((-0.4841, 4.4841), abs=1e-3)


def test_seed_interval_is_that_of_the_t_test():
    values = rng(3).normal(1, 2, 10)
    ends = ttest_1samp(values, 0).confidence_interval(0.9)
    assert stats.seed_interval(values, 0.9) == pytest.approx(tuple(ends))


@given(st.lists(finite, min_size=2, max_size=12), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_intervals_stay_within_the_values_and_repeat(values, seed):
    low, high = stats.mean_interval(values, rng(seed))
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert stats.mean_interval(values, rng(seed)) == (low, high)


def test_a_wider_level_gives_a_wider_interval():
    values = rng(6).normal(0, 1, 30)
    narrow, wide = (stats.mean_interval(values, rng(), level) for level in (0.8, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    narrow, wide = (stats.seed_interval(values, level) for level in (0.8, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_intervals_cover_the_truth_about_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 499)
    draws = rng(7).normal(1, 1, (300, 60))
    covered = [low <= 1 <= high for low, high in (stats.mean_interval(d, rng(8)) for d in draws)]
    assert 0.88 <= np.mean(covered) <= 0.98
    draws = rng(9).normal(1, 1, (4000, 10))
    covered = [low <= 1 <= high for low, high in map(stats.seed_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.011)


@pytest.mark.parametrize("values", [[1.0], [1, np.inf], [[1, 2], [3, 4]]])
def test_intervals_refuse_what_they_cannot_resample(values):
    with pytest.raises(UserError):
        stats.mean_interval(values, rng())
    with pytest.raises(UserError):
        stats.seed_interval(values)


def test_pairs_must_match():
    with pytest.raises(UserError, match="3 and 2"):
        stats.paired_bootstrap([1, 2, 3], [1, 2], rng())


def test_ratio_interval_of_equal_ratios_has_no_width():
    wholes = np.array([[1.0, 0.0], [2.0, 0.0], [5.0, 0.0]])
    low, high = stats.ratio_interval(wholes / 2, wholes, np.random.default_rng(0))
    assert low[0] == high[0] == pytest.approx(0.5)
    assert np.isnan(low[1]) and np.isnan(high[1])  # nothing to divide by


def test_ratio_interval_is_that_of_the_mean_where_all_wholes_are_one():
    values = np.random.default_rng(1).random(200)
    ends = stats.ratio_interval(values[:, None], np.ones((200, 1)), np.random.default_rng(2))
    expected = stats.mean_interval(values, np.random.default_rng(3))
    assert [end[0] for end in ends] == pytest.approx(expected, abs=0.004)


def test_ratio_interval_weighs_units_by_their_wholes():
    parts, wholes = np.array([[0.0], [90.0]] * 20), np.array([[10.0], [90.0]] * 20)
    low, high = stats.ratio_interval(parts, wholes, np.random.default_rng(0))
    assert low[0] < 0.9 < high[0] and low[0] > 0.8


@pytest.mark.parametrize("bad", [np.ones(3), np.ones((1, 2)), np.ones((3, 2)), [[1], [np.nan]]])
def test_ratio_interval_needs_two_equal_tables(bad):
    with pytest.raises(UserError):
        stats.ratio_interval(bad, np.ones((2, 1)), np.random.default_rng(0))


# --- matrices of seeds x prompts -----------------------------------------------------------------

NAN = np.nan


def test_seed_means_leave_out_what_no_seed_has():
    assert stats.seed_means([[1, NAN, 3], [5, NAN, 9]]).tolist() == [2, 7]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1, NAN], [1, 2]], "for some seeds only"),
        ([[NAN, NAN]], "No prompt is left"),
        ([1, 2], "seeds x prompts"),
        (np.zeros((3, 0)), "No prompt is left"),
        ([[1, np.inf], [1, 2]], "missing or infinite"),
    ],
)
def test_matrices_that_cannot_be_averaged(matrix, message):
    with pytest.raises(UserError, match=message):
        stats.effect(matrix, rng())


def test_two_level_interval_of_one_seed_is_that_over_prompts():
    values = rng(1).normal(3, 1, 150)
    two = stats.two_level_interval(values[None], rng(2))
    assert two == pytest.approx(stats.mean_interval(values, rng(3)), abs=0.01)


def test_two_level_interval_of_one_prompt_is_that_over_seeds():
    values = rng(1).normal(3, 1, 12)
    two = stats.two_level_interval(values[:, None], rng(2))
    assert two == pytest.approx(stats.mean_interval(values, rng(3)), abs=0.03)


def test_two_level_interval_by_hand():
    """Rows 0 and 1, columns alike: means 0, 1/2, 1 as of two values; no doubt about equal ones."""
    assert stats.two_level_interval([[0, 0, 0], [1, 1, 1]], rng()) == (0, 1)
    assert stats.two_level_interval(np.full((4, 5), 2.5), rng()) == (2.5, 2.5)
    with_missing = [[0, NAN, 0], [1, NAN, 1]]
    assert stats.two_level_interval(with_missing, rng()) == (0, 1)


def test_two_level_interval_is_wider_where_prompts_differ():
    seeds, prompts = rng(1).normal(0, 1, (10, 1)), rng(2).normal(0, 20, (1, 60))
    widths = [np.diff(stats.two_level_interval(m, rng()))[0] for m in (seeds, seeds + prompts)]
    assert widths[1] > 4 * widths[0]


@pytest.mark.parametrize(
    ("d", "p"),
    [
        ([0, 0, 0], 1 / 8),  # [1, 1, 1] on either side
        ([2, 2, 2], 1),  # [-1, -1, -1] above
        ([-3, 1, 1], 4 / 8),  # [-2, 2, 2]: of 6, 2 2 2, -2 -2 -2, -6 four reach 2; [4, 0, 0]: four
        ([0.5, 0.5, -0.5], 1 / 8),  # [1.5, 1.5, 0.5] and [0.5, 0.5, 1.5]
    ],
)
def test_equivalence_by_hand(d, p):
    assert stats.equivalence_p(d, 1) == p


def test_equivalence_needs_a_margin_and_enough_seeds():
    with pytest.raises(UserError, match="above zero"):
        stats.equivalence_p([0, 0], 0)
    d = rng(3).normal(0, 0.05, 10)
    assert stats.equivalence_p(d, 0.5) == 2**-10 and stats.equivalence_p(d, 0.01) > 0.05
    assert stats.equivalence_p(d, 0.5) == stats.equivalence_p(-d, 0.5)


def test_equivalence_errs_at_most_as_often_as_it_says():
    """Where the true difference is the margin itself, "no difference" must be rare."""
    p = [stats.equivalence_p(d, 1) for d in rng(4).normal(1, 0.7, (800, 8))]
    assert np.mean(np.array(p) <= 0.05) < 0.07


def test_slopes_by_hand():
    assert stats.slopes([0, 1, 2], [[0, 5], [3, 5], [6, 5]]).tolist() == [3, 0]
    assert stats.slopes([0, 10], np.ones((2, 3, 4))).shape == (3, 4)
    shares, scores = [0, 50, 65, 95], rng(5).normal(size=(4, 6))
    assert stats.slopes(shares, scores) == pytest.approx(np.polyfit(shares, scores, 1)[0])
    for bad in ([1, 1], [0], [0, 1, 2]):
        with pytest.raises(UserError, match="two or more shares"):
            stats.slopes(bad, np.zeros((2, 3)))


def test_effect_by_hand():
    """Seed means 1, 2, 3."""
    found = stats.effect([[0, 2], [1, 3], [2, 4]], rng(), "greater", 5)
    assert found["effect"] == 2 and found["seeds"] == 3 and found["by_seed"] == [1, 2, 3]
    assert found["p"] == 1 / 8 and found["equivalence_p"] == 1 / 8
    assert found["interval"] == pytest.approx((-0.4841, 4.4841), abs=1e-3)
    assert 0 <= found["two_level"][0] <= 1 and 3 <= found["two_level"][1] <= 4


@pytest.mark.parametrize(
    ("direction", "p"), [("greater", 1 / 8), ("less", 1), ("two-sided", 1 / 4), ("equal", None)]
)
def test_direction_of_the_test(direction, p):
    assert stats.directed_p([1, 2, 3], direction) == p
    assert "equivalence_p" not in stats.effect([[1, 2], [3, 4]], rng(), direction)
