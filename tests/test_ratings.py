"""Ratings by hand, against a direct likelihood, and recovered from votes with a known truth."""

import numpy as np
import pandas as pd
import pytest
import tiny_study
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from dalle3lib import UserError, elo, ratings
from dalle3lib.evals import paper_tables
from dalle3lib.randomness import rng
from dalle3lib.simulated_raters import Crowd, simulate

HAND = [  # left, right, choice
    *[("a", "b", "left")] * 5,
    *[("b", "a", "right")] * 3,
    *[("a", "b", "tie")] * 4,
]
positive = st.floats(0.5, 50)


EQUAL = {q: dict.fromkeys(tiny_study.SYSTEMS, 0.0) for q in tiny_study.human.QUESTIONS}


def votes_of(rows, raters: int = 3) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["left", "right", "choice"])
    return table.assign(rater=table.index % raters, prompt=table.index % 4)


def square(values, names="abc") -> pd.DataFrame:
    names = list(names)
    table = pd.DataFrame(0.0, names, names)
    for (i, j), value in values.items():
        table.loc[i, j] = value
    return table


# ---- the likelihood ------------------------------------------------------------------------------


def test_two_systems_by_hand():
    """8 wins and 4 ties of 12 are a score of 10 to 2: 400 log10(5) points."""
    counts = ratings.wins(votes_of(HAND))
    assert counts.loc["a", "b"] == 10 and counts.loc["b", "a"] == 2
    found = ratings.fit(counts)
    assert found["a"] - found["b"] == pytest.approx(400 * np.log10(5))
    assert found.sum() == pytest.approx(0)


def test_a_chain_by_hand():
    """Without a vote between a and c their difference is the sum of the two that were asked."""
    found = ratings.fit(square({("a", "b"): 3, ("b", "a"): 1, ("b", "c"): 2, ("c", "b"): 1}))
    assert found["a"] - found["c"] == pytest.approx(400 * np.log10(3) + 400 * np.log10(2))


@settings(max_examples=25)
@given(st.lists(positive, min_size=6, max_size=6))
def test_evalica_finds_the_maximum_of_glides_likelihood(values):
    """Against a direct search with scipy, and the formula written out vote by vote."""
    pairs = [("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")]
    counts = square(dict(zip(pairs, values, strict=True)))
    found = ratings.fit(counts)

    def loss(r):
        r = dict(zip("abc", (*r, 0.0), strict=True))
        return -sum(
            n * np.log(elo.win_rate(r[i] - r[j])) for (i, j), n in zip(pairs, values, strict=True)
        )

    direct = minimize(loss, [0.0, 0.0], method="BFGS", options={"gtol": 1e-9}).x
    best = np.array([*direct, 0.0]) - direct.sum() / 3
    assert found.to_numpy() == pytest.approx(best, abs=0.05)
    likelihood = ratings.log_likelihood(found, counts)
    assert likelihood == pytest.approx(-loss((found - found["c"]).to_numpy()[:2]))
    assert likelihood >= -loss(direct) - 1e-7
    assert ratings.log_likelihood(found + 17, counts) == pytest.approx(likelihood)


@given(positive, positive)
def test_ratings_of_two_systems_are_their_win_rate(one, two):
    found = ratings.fit(square({("a", "b"): one, ("b", "a"): two}, "ab"))
    assert elo.win_rate(found["a"] - found["b"]) == pytest.approx(one / (one + two), abs=1e-6)


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [
        ({("a", "b"): 3, ("b", "c"): 2, ("c", "b"): 1}, "a never lost to the other systems"),
        ({("a", "b"): 3, ("b", "a"): 2, ("a", "c"): 1, ("b", "c"): 1}, "a, b never lost"),
        ({("a", "b"): 3, ("b", "a"): 2}, "never compared"),
    ],
)
def test_who_never_loses_or_was_never_compared_has_no_rating(counts, complaint):
    """evalica itself returns equal numbers there, without a word."""
    with pytest.raises(UserError, match=complaint):
        ratings.fit(square(counts))


def test_half_a_vote_is_enough_for_a_rating():
    found = ratings.fit(square({("a", "b"): 9.5, ("b", "a"): 0.5}, "ab"))
    assert found["a"] - found["b"] == pytest.approx(400 * np.log10(19))
    with pytest.raises(UserError, match="two or more systems"):
        ratings.fit(square({}, "a"))


# ---- Table 2 -------------------------------------------------------------------------------------


def test_table_2_as_win_rates_and_back():
    """The implied win rates in data/paper.csv from the printed Elo, and Elo from the rates."""
    printed = paper_tables.printed("Table 2")
    table = paper_tables.win_rates(printed)
    file = paper_tables.paths.ROOT / "data" / "paper.csv"
    implied = pd.read_csv(file).set_index("id").query("quantity.str.contains('win rate')")
    assert len(implied) == 8
    for row in implied.itertuples():
        question = row.quantity.removeprefix("human preference, ").removesuffix(", win rate")
        name = f"{question}: {row.system.replace(' 1.0 + refiner', '')}"
        assert table.loc[name, "value"] == pytest.approx(row.value, abs=0.05)
    back = elo.elo_difference(table["value"] / 100)
    assert back == pytest.approx(table.difference.to_numpy())


@pytest.mark.parametrize("question", paper_tables.printed("Table 2").index)
def test_votes_at_table_2s_rates_give_table_2s_differences(question):
    """All three systems at once: expected votes in, printed differences out."""
    printed = paper_tables.printed("Table 2").loc[question].dropna()
    names = list(printed.index)
    rates = {(i, j): elo.win_rate(printed[i] - printed[j]) for i in names for j in names if i != j}
    found = ratings.fit(680 * square(rates, names))
    assert len(names) == 3
    assert (found - printed).to_numpy() == pytest.approx(-printed.mean(), abs=1e-3)


# ---- intervals -----------------------------------------------------------------------------------


def test_a_vote_counts_once_however_it_is_clustered():
    """Two systems, one vote a rater and prompt: the interval is that of independent votes,
    sd of the log odds sqrt(1 / (n p q)), with a little for the few clusters."""
    random = np.random.default_rng(0)
    n = 40
    choice = np.where(random.random((n, n)) < 0.6, "left", "right").ravel()
    rows = {"left": "a", "right": "b", "choice": choice}
    votes = pd.DataFrame(rows).assign(rater=np.repeat(range(n), n), prompt=np.tile(range(n), n))
    found = ratings.compare(votes, rng(0, "test")).iloc[0]
    p = (choice == "left").mean()
    width = 2 * 1.96 * elo.SCALE / np.sqrt(n * n * p * (1 - p))
    measured = np.ptp(elo.elo_difference([found.low / 100, found.high / 100]))
    assert measured == pytest.approx(width, rel=0.35)
    assert found.value == pytest.approx(100 * p) and found.counted == pytest.approx(100 * p)
    # raters who all repeat one opinion are worth one vote each
    same = votes.assign(choice=np.repeat(choice[:n], n))
    wide = ratings.compare(same, rng(0, "test")).iloc[0]
    assert wide.high - wide.low > 3 * (found.high - found.low)


def test_intervals_need_several_raters():
    with pytest.raises(UserError, match="two or more raters"):
        ratings.rate(votes_of(HAND, raters=1), rng(0, "test"))
    few = [("a", "b", "left")] * 11 + [("a", "b", "right")]
    with pytest.raises(UserError, match="collect more"):
        ratings.rate(votes_of(few), rng(0, "test"))


def test_main_votes(tmp_path):
    plan = tiny_study.make(tmp_path)
    votes = simulate(plan, Crowd(strengths=EQUAL), 2, seed=0)
    votes.loc[votes.index[0], "current"] = False
    some = pd.concat([ratings.main_votes(votes, q) for q in plan.questions])
    assert set(some.role) == {"main"} and some.current.all()
    assert len(some) == 24 - (votes.role.iloc[0] == "main")
    with pytest.raises(UserError, match="no vote on style"):
        ratings.main_votes(votes[votes.question != "style"], "style")


# ---- votes needed --------------------------------------------------------------------------------


def test_votes_needed_by_hand():
    """The usual table at 80 % power; 20 votes together at a correlation of .05 count 1.95 times."""
    assert np.ceil(ratings.votes_needed([0.55, 0.6, 0.65, 0.7])).tolist() == [783, 194, 85, 47]
    assert ratings.votes_needed(0.4) == pytest.approx(ratings.votes_needed(0.6))
    together = ratings.votes_needed(0.6, per_cluster=20, alike=0.05)
    assert together == pytest.approx(1.95 * ratings.votes_needed(0.6))
    with pytest.raises(UserError, match="not a half"):
        ratings.votes_needed([0.6, 0.5])


def test_as_many_votes_as_needed_find_it_four_times_of_five():
    n, random = int(np.ceil(ratings.votes_needed(0.6))), np.random.default_rng(0)
    shares = random.binomial(n, 0.6, 20_000) / n
    found = np.abs(shares - 0.5) / np.sqrt(0.25 / n) > 1.96
    assert found.mean() == pytest.approx(0.8, abs=0.03)
