"""From votes to ratings: Elo by maximum likelihood, win rates, and how sure one can be of them.

The model is that of Bradley and Terry (1952), on the scale of ``elo``: system i beats j with
probability 1 / (1 + 10^((rating j − rating i) / 400)). A tie is half a win for each side, as in
GLIDE (Nichol et al. 2021, appendix A.1), whose likelihood is ``log_likelihood``; evalica finds its
maximum. Ratings are given with mean zero: only differences mean anything.

A vote is a row with the columns left, right (systems), choice (left, right or tie), rater, and
prompt: what ``VoteStore.votes`` returns, of one question, votes that stand, role "main".
"""

from dataclasses import dataclass
from itertools import combinations

import evalica
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.sparse.csgraph import connected_components
from scipy.stats import norm, t

from dalle3lib import UserError
from dalle3lib.elo import SCALE, win_rate

RESAMPLES = 300


def main_votes(votes: pd.DataFrame, question: str) -> pd.DataFrame:
    """The votes on one question that count: not taken back, no check, no repeat.

    UserError if there is none.
    """
    some = votes[votes.current & (votes.role == "main") & (votes.question == question)]
    if some.empty:
        raise UserError(f"There is no vote on {question} yet: collect some first.")
    return some


def wins(votes: pd.DataFrame) -> pd.DataFrame:
    """How often each system (row) was preferred to each other (column); a tie is half for both."""
    names = _systems(votes)
    return pd.DataFrame(_wins_by(votes, np.zeros(len(votes), int))[0], names, names)


def _systems(votes: pd.DataFrame) -> list[str]:
    """The systems that votes are about, in alphabetical order."""
    return sorted({*votes.left, *votes.right})


def _wins_by(votes: pd.DataFrame, group: np.ndarray) -> np.ndarray:
    """``wins`` of each group of votes, float64 [groups, systems, systems].

    ``group`` [votes] is the number of each vote's group.
    """
    names = _systems(votes)
    left, right = (pd.Index(names).get_indexer(side) for side in (votes.left, votes.right))
    share = votes.choice.map({"left": 1.0, "tie": 0.5, "right": 0.0}).to_numpy()
    counts = np.zeros((group.max() + 1, len(names), len(names)))
    np.add.at(counts, (group, left, right), share)
    np.add.at(counts, (group, right, left), 1 - share)
    return counts


def fit(counts: pd.DataFrame) -> pd.Series:
    """The Elo ratings, with mean zero, under which these ``wins`` were the likeliest.

    Raises UserError where no finite rating is: systems that were never compared, even through
    others, or that never lost (or won) against the rest, not even a tie (Ford 1957).
    """
    _check_finite(counts)
    return pd.Series(_likeliest(counts.to_numpy()), counts.index, name="Elo")


def _likeliest(counts: np.ndarray) -> np.ndarray:
    """The ratings [systems] of ``fit``, for wins that have finite ones."""
    first, second = np.nonzero(counts)
    found = evalica.bradley_terry(
        first.tolist(),
        second.tolist(),
        [evalica.Winner.X] * len(first),
        weights=counts[first, second],
        tolerance=1e-9,
        limit=100_000,
    )
    elo = SCALE * np.log(found.scores.sort_index().to_numpy())
    return elo - elo.mean()


def _check_finite(counts: pd.DataFrame) -> None:
    """UserError naming the systems that have no finite rating against the others."""
    if len(counts) < 2:
        raise UserError("Ratings need votes about two or more systems.")
    names, array = counts.index, counts.to_numpy()
    parts, of = connected_components(array, directed=True, connection="weak")
    if parts > 1:
        alone = ", ".join(names[of == of[0]])
        raise UserError(
            f"{alone} and the other systems were never compared: collect votes on both."
        )
    parts, of = connected_components(array, directed=True, connection="strong")
    for part in range(parts if parts > 1 else 0):
        some = of == part
        if not array[np.ix_(~some, some)].any():
            raise UserError(
                f"{', '.join(names[some])} never lost to the other systems, not even half a vote, "
                "so there is no finite rating: collect more votes, or leave it out and say so."
            )


def log_likelihood(ratings: pd.Series, counts: pd.DataFrame) -> float:
    """The log likelihood of ``wins`` under Elo ratings: GLIDE's loss, with the sign as meant.

    Printed there, a winner's rating would fall (see ``elo``). Unchanged by adding a constant.
    """
    r = ratings.reindex(counts.index).to_numpy()
    beats = -np.logaddexp(0, (r[None, :] - r[:, None]) / SCALE)
    return float((counts.to_numpy() * beats).sum())


# ---- how sure ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """How much ratings vary over other raters and other prompts, from three bootstraps.

    Votes of one rater are alike, and so are votes on one prompt. The bootstraps draw again whole
    raters, whole prompts, and single cells (a rater's votes on a prompt); each gives a covariance
    of the ratings [systems, systems]. The first two minus the third count every source of chance
    once (Cameron, Gelbach & Miller 2011); drawing raters and prompts together would count the
    noise of single votes three times (Owen 2007).
    """

    raters: np.ndarray
    prompts: np.ndarray
    cells: np.ndarray
    level: float  # coverage of the intervals, 0 to 1
    clusters: int  # raters or prompts, whichever are fewer

    def half_width(self, contrast: np.ndarray) -> float:
        """Half the interval of ``contrast`` [systems] times the ratings, in Elo points.

        The noise of single votes is known from many of them and takes the normal quantile. What
        raters and prompts add to it (at least 0) is known from few: it takes Student's.
        """
        r, p, c = (float(contrast @ v @ contrast) for v in (self.raters, self.prompts, self.cells))
        tail = (1 + self.level) / 2
        added = max(r + p - 2 * c, 0.0)
        return float(np.sqrt(norm.ppf(tail) ** 2 * c + t.ppf(tail, self.clusters - 1) ** 2 * added))


def spread(
    votes: pd.DataFrame,
    random: np.random.Generator,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Spread:
    """How much the ratings of these votes vary, for intervals of coverage ``level``.

    UserError for fewer than two raters or prompts, or if in over a twentieth of the resamples a
    system never loses.
    """
    clusters = [votes[name].nunique() for name in ("rater", "prompt")]
    if min(clusters) < 2:
        raise UserError("Intervals need the votes of two or more raters on two or more prompts.")
    groups = (["rater"], ["prompt"], ["rater", "prompt"])
    found = [_resampled(votes, votes.groupby(g).ngroup(), random, resamples) for g in groups]
    return Spread(*found, level, min(clusters))


def _finite(counts: np.ndarray) -> bool:
    """Whether wins [systems, systems] have finite ratings: see ``fit``."""
    if np.count_nonzero(counts) == counts.size - len(counts):  # everybody beat everybody
        return True
    return connected_components(counts, directed=True, connection="strong")[0] == 1


def _resampled(
    votes: pd.DataFrame, group: pd.Series, random: np.random.Generator, resamples: int
) -> np.ndarray:
    """The covariance of the ratings [systems, systems] when whole groups of votes are redrawn."""
    counts = _wins_by(votes, group.to_numpy())
    n = len(counts)
    drawn = np.tensordot(random.multinomial(n, np.full(n, 1 / n), resamples), counts, 1)
    found = [_likeliest(one) for one in drawn if _finite(one)]
    if len(found) < 0.95 * resamples:
        raise UserError(
            f"In {resamples - len(found)} of {resamples} resamples a system never loses or never "
            "wins, so these votes cannot tell how sure its rating is: collect more."
        )
    return np.cov(np.array(found), rowvar=False) * n / (n - 1)


def rate(votes: pd.DataFrame, random: np.random.Generator, level: float = 0.95) -> pd.DataFrame:
    """The Elo of each system with its interval, best first: columns Elo, low, high.

    The interval covers other raters and other prompts (``Spread``). UserError as ``fit`` and
    ``spread``.
    """
    ratings, over = fit(wins(votes)), spread(votes, random, level)
    ones = np.eye(len(ratings)) - 1 / len(ratings)  # a rating less the mean of all
    half = np.array([over.half_width(one) for one in ones])
    table = pd.DataFrame({"Elo": ratings, "low": ratings - half, "high": ratings + half})
    return table.sort_values("Elo", ascending=False)


def compare(votes: pd.DataFrame, random: np.random.Generator, level: float = 0.95) -> pd.DataFrame:
    """Every pair of systems, the better one first: how often it is preferred, and how sure that is.

    Columns: votes (between the two), counted (% of them for the first, ties half; missing without
    votes), difference (Elo), value (% that the ratings expect), low, high (its interval, made of
    that of the difference). Errors as ``rate``.
    """
    counts = wins(votes)
    ratings, over, rows = fit(counts), spread(votes, random, level), {}
    one_hot = dict(zip(ratings.index, np.eye(len(ratings)), strict=True))
    for a, b in combinations(ratings.sort_values(ascending=False).index, 2):
        total, apart = counts.loc[a, b] + counts.loc[b, a], ratings[a] - ratings[b]
        half = over.half_width(one_hot[a] - one_hot[b])
        rates = 100 * win_rate(apart + half * np.array([0, -1, 1]))
        share = 100 * counts.loc[a, b] / total if total else np.nan
        rows[f"{a} over {b}"] = [round(total), share, apart, *rates]
    columns = ["votes", "counted", "difference", "value", "low", "high"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns)


# ---- how many votes ------------------------------------------------------------------------------


def votes_needed(
    rate: ArrayLike, chance: float = 0.8, per_cluster: float = 1, alike: float = 0.0
) -> np.ndarray:
    """How many votes on a pair find a true win rate (0 to 1, not 0.5) to differ from a half.

    Two-sided at 5 %, with a chance of ``chance``; a real number, to be rounded up. Votes that come
    ``per_cluster`` together (of a rater, on a prompt) with a correlation of ``alike`` (0 to 1) are
    worth less: the number is multiplied by the design effect 1 + (per_cluster − 1) · alike (Kish
    1965). The usual formula of one proportion against a half; UserError for a rate of a half.
    """
    rate = np.asarray(rate, np.float64)
    if (rate == 0.5).any() or ((rate < 0) | (rate > 1)).any():
        raise UserError("A win rate to be found lies between 0 and 1 and is not a half.")
    reach = norm.ppf(0.975) / 2 + norm.ppf(chance) * np.sqrt(rate * (1 - rate))
    return (reach / (rate - 0.5)) ** 2 * (1 + (per_cluster - 1) * alike)
