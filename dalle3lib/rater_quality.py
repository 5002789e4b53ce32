"""How good the votes are: attention checks, repeats, agreement, and biases of side and of order.

Functions take the table of ``VoteStore.votes``; rows that do not stand are left out. Intervals are
percentile bootstraps over raters: a rater's votes are drawn again together.
"""

import evalica
import numpy as np
import pandas as pd
from scipy.stats import binom

from dalle3lib import UserError, ratings, stats
from dalle3lib.human import QUESTIONS
from dalle3lib.randomness import rng

GUESSING = 0.05  # a guesser must not pass the checks more often than this


def least_right(checks: int) -> int:
    """How many of ``checks`` attention checks must be right for a rater's votes to count.

    The smallest number that somebody who guesses left or right reaches with a chance of at most
    5 %: 5 of 5, 7 of 8, 9 of 12. Fewer than 5 checks cannot tell, so 0: nobody is excluded.
    """
    reached = binom.sf(np.arange(checks + 1) - 1, checks, 0.5)
    enough = np.flatnonzero(reached <= GUESSING)
    return int(enough[0]) if len(enough) else 0


def by_rater(votes: pd.DataFrame) -> pd.DataFrame:
    """A row for each rater: how many votes, how reliable, and whether they count.

    Columns: votes, checks, right (of the checks; a tie is wrong), repeats, same (repeats with the
    same picture, or a tie again), left (% of votes that are no tie), ties (%), seconds (median),
    excluded. The rule (``least_right``) was fixed before any vote and reads the checks alone,
    never what a rater prefers.
    """
    votes = votes[votes.current]
    rows = {}
    for rater, own in votes.groupby("rater"):
        checks, main = own[own.role == "check"], own[own.role != "check"]
        same, chosen = _repeated(own), main.choice[main.choice != "tie"]
        right = int((checks.choice == checks.expected).sum())
        rows[rater] = {
            "votes": len(own),
            "checks": len(checks),
            "right": right,
            "repeats": len(same),
            "same": int(same.sum()),
            "left (%)": 100 * (chosen == "left").mean() if len(chosen) else np.nan,
            "ties (%)": 100 * (main.choice == "tie").mean() if len(main) else np.nan,
            "seconds": own.seconds.median(),
            "excluded": right < least_right(len(checks)),
        }
    return pd.DataFrame.from_dict(rows, "index").rename_axis("rater")


def counted(votes: pd.DataFrame) -> pd.DataFrame:
    """The votes of raters whom ``by_rater`` does not exclude; UserError if nobody is left."""
    table = by_rater(votes)
    kept = votes[votes.rater.isin(table.index[~table.excluded.astype(bool)])]
    if len(votes) and kept.empty:
        raise UserError("Every rater failed the attention checks, so no vote counts: ask others.")
    return kept


def _repeated(votes: pd.DataFrame) -> pd.Series:
    """For each pair that a rater saw twice: whether the answer was the same, by what was picked."""
    both = votes[votes.role != "check"].pivot(
        index=["rater", "question", "pair"], columns="role", values="picked"
    )
    both = both.reindex(columns=["main", "repeat"]).dropna()
    return both["main"] == both["repeat"]


def consistency(votes: pd.DataFrame, seed: int) -> pd.DataFrame:
    """How often the same rater answers the same on a repeat: columns repeats, value (%), low, high.

    A row for each question; somebody who always votes left answers the same never. Questions
    without repeats are left out.
    """
    same = _repeated(votes[votes.current]).rename("same").reset_index()
    rows = {}
    for question, own in _by_question(same):
        rows[question] = [len(own), *_share(own.same, own.rater, f"consistency/{question}", seed)]
    return pd.DataFrame.from_dict(rows, "index", columns=["repeats", "value", "low", "high"])


def agreement(votes: pd.DataFrame, seed: int) -> pd.DataFrame:
    """How far raters agree on the same pairs, by question: Krippendorff's alpha (nominal).

    Columns: pairs (with two votes or more), votes, alpha (1: always; 0: as by chance; below 0:
    against each other), low, high (Krippendorff's own bootstrap). A unit is a pair of pictures, a
    value which of the two was picked, or a tie. Which picture of a pair comes first in the plan is
    by chance, so agreement that comes from one system winning everywhere counts as agreement.
    """
    votes, rows = votes[votes.current & (votes.role == "main")], {}
    for question, own in _by_question(votes):
        table = own.pivot(index="rater", columns="pair", values="picked")
        table = table.loc[:, table.notna().sum() >= 2]
        if table.stack().nunique() < 2:  # nothing to agree on, or nobody to agree with
            rows[question] = [table.shape[1], int(table.notna().sum().sum()), *[np.nan] * 3]
            continue
        codes = table.replace({"first": 0.0, "second": 1.0, "tie": 2.0}).astype(float)
        start = int(rng(seed, f"alpha/{question}").integers(2**31))
        found = evalica.alpha_bootstrap(codes, n_resamples=2000, random_state=start)
        rows[question] = [table.shape[1], int(table.notna().sum().sum()), found.alpha]
        rows[question] += [found.low, found.high]
    return pd.DataFrame.from_dict(rows, "index", columns="pairs votes alpha low high".split())


def side_bias(votes: pd.DataFrame, seed: int) -> pd.DataFrame:
    """How often the left picture is picked, of votes that are no tie: votes, value (%), low, high.

    A row for each question and one for all. Sides are balanced by the plan, so 50 % is unbiased.
    """
    some = votes[votes.current & (votes.role != "check") & (votes.choice != "tie")]
    groups = {"all questions": some} | dict(_by_question(some))
    rows = {
        name: [len(own), *_share(own.choice == "left", own.rater, f"side/{name}", seed)]
        for name, own in groups.items()
    }
    return pd.DataFrame.from_dict(rows, "index", columns=["votes", "value", "low", "high"])


def order_bias(votes: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What changes between the first and the second half of a rater's votes, all questions.

    Columns: first half, second half, value (second minus first), low, high; rows: left (% of votes
    that are no tie), ties (%), favourite (% of votes, ties half, for the system of the pair that
    wins the larger share of its votes on the question), seconds. Every rater counts alike; who
    lacks votes in one half is left out. Questions come in an order of each rater's own, so that
    none sits in one half.
    """
    some = votes[votes.current & (votes.role == "main")]
    half = some.place > some.groupby("rater").place.transform("median")
    measures = {
        "left (%)": 100.0 * (some.choice == "left").where(some.choice != "tie"),
        "ties (%)": 100.0 * (some.choice == "tie"),
        "favourite (%)": 100 * _favourite(some),
        "seconds": some.seconds,
    }
    rows = {}
    for name, values in measures.items():
        means = values.groupby([some.rater, half]).mean().unstack()
        means = means.reindex(columns=[False, True]).dropna()
        apart = means[True] - means[False]
        enough = len(apart) > 1
        ends = stats.mean_interval(apart, rng(seed, f"order/{name}")) if enough else [np.nan] * 2
        rows[name] = [means[False].mean(), means[True].mean(), apart.mean(), *ends]
    columns = ["first half", "second half", "value", "low", "high"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns)


def _favourite(votes: pd.DataFrame) -> pd.Series:
    """Whether a vote (tie: half) went to the system that wins most of all votes on the question."""
    left = votes.choice.map({"left": 1.0, "tie": 0.5, "right": 0.0})
    found = pd.Series(np.nan, votes.index)
    for _, own in votes.groupby("question"):
        counts = ratings.wins(own)
        won = counts.sum(axis=1) / (counts + counts.T).sum(axis=1)
        better = own.left.map(won) > own.right.map(won)
        worse = own.left.map(won) < own.right.map(won)
        found[own.index] = left[own.index].where(better, (1 - left[own.index]).where(worse))
    return found


def _by_question(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each question that there is, in the paper's order."""
    return [(q, table[table.question == q]) for q in QUESTIONS if (table.question == q).any()]


def _share(hits: pd.Series, raters: pd.Series, stream: str, seed: int) -> list[float]:
    """A share in % with its interval over raters (NaN for fewer than two raters)."""
    table = (
        pd.DataFrame({"hits": hits.to_numpy(float), "all": 1.0}).groupby(raters.to_numpy()).sum()
    )
    value = 100 * table["hits"].sum() / table["all"].sum() if len(table) else np.nan
    if len(table) < 2:
        return [value, np.nan, np.nan]
    parts, wholes = table[["hits"]].to_numpy(), table[["all"]].to_numpy()
    low, high = stats.ratio_interval(parts, wholes, rng(seed, stream))
    return [value, 100 * low[0], 100 * high[0]]
