"""Checks, repeats, agreement and biases: by hand, from the literature, and where they are known."""

import numpy as np
import pandas as pd
import pytest
import tiny_study

from dalle3lib import UserError, rater_quality
from dalle3lib.simulated_raters import Crowd, simulate

EQUAL = {q: dict.fromkeys(tiny_study.SYSTEMS, 0.0) for q in tiny_study.human.QUESTIONS}
APART = {q: dict(zip(tiny_study.SYSTEMS, (150, 0, -150), strict=True)) for q in EQUAL}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return tiny_study.make(tmp_path_factory.mktemp("quality"), trials=36, checks=8, repeats=9)


def coded(raters: dict[str, str]) -> pd.DataFrame:
    """Votes from a table as textbooks print it: a rater a line, a unit a column, "." for none."""
    names = {"0": "first", "1": "second", "2": "tie"}
    rows = [
        {"rater": i, "pair": f"p{unit}", "picked": names[value]}
        for i, line in enumerate(raters.values())
        for unit, value in enumerate(line.split())
        if value != "."
    ]
    return pd.DataFrame(rows).assign(current=True, role="main", question="style")


# ---- attention checks ----------------------------------------------------------------------------


def test_the_rule_by_hand():
    """A guesser gets 5 of 5 with 1/32, 7 or more of 8 with 9/256, 4 of 4 with 1/16: too often."""
    known = {0: 0, 4: 0, 5: 5, 6: 6, 8: 7, 12: 10}
    assert {n: rater_quality.least_right(n) for n in known} == known


def test_careless_raters_are_excluded_and_careful_ones_are_not(plan):
    votes = simulate(plan, Crowd(APART, careless=0.5), 20, seed=0)
    table = rater_quality.by_rater(votes)
    careless = table.seconds < 4  # in the simulation they take about 2 seconds, others 6
    assert 3 < careless.sum() < 17
    assert not table.excluded[~careless].any() and table.excluded[careless].mean() > 0.8
    kept = rater_quality.counted(votes)
    assert set(kept.rater) == set(table.index[~table.excluded])
    assert (table.checks == 8).all() and (table.repeats == 9).all() and (table.votes == 53).all()
    with pytest.raises(UserError, match="Every rater failed"):
        rater_quality.counted(votes[votes.rater.isin(table.index[table.excluded])])


def test_a_vote_that_was_taken_back_does_not_count(plan):
    votes = simulate(plan, Crowd(EQUAL), 2, seed=0)
    wrong = votes[votes.role == "check"].assign(current=False, choice="tie")
    pd.testing.assert_frame_equal(
        rater_quality.by_rater(pd.concat([wrong, votes])), rater_quality.by_rater(votes)
    )
    half = votes[votes.place < 10]
    assert (rater_quality.by_rater(half).votes == 10).all()


def test_the_same_side_again_is_another_answer(plan):
    """A repeat has its sides swapped: who always votes left contradicts themselves every time."""
    votes = simulate(plan, Crowd(EQUAL), 3, seed=0).assign(choice="left")
    votes = votes.drop(columns="picked").join(tiny_study.human.meaning(plan, votes)[["picked"]])
    assert (rater_quality.by_rater(votes).same == 0).all()
    assert (rater_quality.consistency(votes, 0).value == 0).all()
    by_system = votes.assign(picked="first")
    table = rater_quality.consistency(by_system, 0)
    assert (table.value == 100).all() and table.repeats.tolist() == [9, 9, 9]


# ---- agreement -----------------------------------------------------------------------------------


def test_alpha_of_krippendorffs_own_example():
    """Two observers, two values: .095 in "Computing Krippendorff's Alpha-Reliability" (2011)."""
    votes = coded({"A": "0 1 0 0 0 0 0 0 1 0", "B": "1 1 1 0 0 1 0 0 0 0"})
    found = rater_quality.agreement(votes, 0).loc["style"]
    assert found.alpha == pytest.approx(0.095, abs=5e-4)
    assert (found.pairs, found.votes) == (10, 20) and found.low < found.alpha < found.high


def test_alpha_by_hand_with_gaps_and_ties():
    """Units 00, 01, 222, 1 (left out). Coincidences: 00 2, 01 1, 10 1, 22 3 of n = 7. Observed
    disagreement 2/7; expected, from the margins 3, 1, 3: 1 − (6 + 0 + 6)/42 = 5/7; alpha 3/5."""
    votes = coded({"A": "0 0 2 1", "B": "0 1 2 .", "C": ". . 2 ."})
    found = rater_quality.agreement(votes, 0).loc["style"]
    assert found.alpha == pytest.approx(3 / 5) and found.pairs == 3


def test_alpha_where_there_is_nothing_to_compare():
    alone = rater_quality.agreement(coded({"A": "0 1 2"}), 0)
    assert alone.alpha.isna().all() and alone.pairs.tolist() == [0]
    assert rater_quality.agreement(coded({"A": "0 0", "B": "0 0"}), 0).alpha.isna().all()


def test_raters_who_agree_more_have_a_larger_alpha(plan):
    found = {}
    for name, strengths in {"equal": EQUAL, "apart": APART}.items():
        votes = simulate(plan, Crowd(strengths, tie=0), 20, seed=1)
        found[name] = rater_quality.agreement(votes, 0)
    assert (found["equal"].low < 0).all() and (found["equal"].high > 0).all()
    assert (found["apart"].low > 0).all()


# ---- biases --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [0, 120])
def test_side_bias_is_found_where_it_is_and_only_there(plan, side):
    """120 Elo points between equal systems are a win rate of 66.6 %."""
    votes = simulate(plan, Crowd(EQUAL, side=side, tie=0), 30, seed=2)
    found = rater_quality.side_bias(votes, 0)
    assert found.index.tolist()[0] == "all questions" and len(found) == 4
    everything = found.iloc[0]
    assert everything.votes == 30 * 45
    assert everything.low < (66.6 if side else 50) < everything.high
    assert (everything.low > 50) == bool(side)


def test_order_bias_by_hand(plan):
    """Everyone votes left in their first half and right in their second, ever faster."""
    votes = simulate(plan, Crowd(EQUAL, tie=0), 4, seed=0)
    main = votes[votes.role == "main"]
    late = main.place > main.groupby("rater").place.transform("median")
    votes = main.assign(choice=np.where(late, "right", "left"), seconds=np.where(late, 2.0, 5.0))
    found = rater_quality.order_bias(votes, 0)
    assert found.loc["left (%)"].tolist() == [100, 0, -100, -100, -100]
    assert found.loc["seconds"].tolist() == [5, 2, -3, -3, -3]
    assert found.loc["ties (%)", "value"] == 0


def test_raters_with_a_single_vote_have_no_second_half(plan):
    votes = simulate(plan, Crowd(EQUAL), 3, seed=0)
    found = rater_quality.order_bias(votes[votes.role == "main"].groupby("rater").head(1), 0)
    assert found[["value", "low", "high"]].isna().all(axis=None)


def test_steady_raters_have_no_order_bias(plan):
    found = rater_quality.order_bias(simulate(plan, Crowd(APART), 30, seed=3), 0)
    assert ((found.low < 0) & (found.high > 0)).sum() >= 3
    favourite = found.loc["favourite (%)", ["first half", "second half"]]
    assert (favourite > 65).all()
    alone = rater_quality.order_bias(simulate(plan, Crowd(APART), 1, seed=3), 0)
    assert alone.low.isna().all() and alone.value.notna().all()
