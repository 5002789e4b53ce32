"""Simulated raters: votes whose truth is known, to test how votes are stored and analysed.

They never look at a picture. They are told how strong each system is and vote by chance, with the
errors that people make. What they vote says nothing about the systems, only about the analysis.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from dalle3lib import UserError, human, rater_quality, ratings
from dalle3lib.elo import SCALE, win_rate
from dalle3lib.files import write_atomic
from dalle3lib.randomness import rng
from dalle3lib.vote_store import VoteStore

NOTE = "SIMULATED.txt"  # beside votes that nobody gave
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)  # for means over a normal distribution


@dataclass(frozen=True)
class Crowd:
    """The raters of a simulation: what is true, and their errors.

    ``strengths`` are Elo points by question and system. ``tie``: two glances at a pair that
    contradict each other are called a tie with this chance (so ties never favour a system).
    ``side``: Elo points that the left picture gains, the same for all; ``taste`` and ``luck``:
    standard deviations in Elo points of a rater's own view of a system, and of how well one of its
    pictures came out; ``lapse``: share of votes given at random; ``careless``: share of raters who
    give every vote at random.
    """

    strengths: dict[str, dict[str, float]]
    tie: float = 0.3
    side: float = 0.0
    taste: float = 0.0
    luck: float = 0.0
    lapse: float = 0.0
    careless: float = 0.0


def by_lot(plan: human.Plan, step: float, seed: int) -> dict[str, dict[str, float]]:
    """Strengths for a ``Crowd``, given out so that nobody takes them for news about the systems.

    Neighbours are ``step`` Elo points apart, around zero. A lot decides who is the strongest in
    the first question; in each further question everybody moves on by one place.
    """
    names, found = plan.systems, {}
    order = rng(seed, "strengths").permutation(len(names)).tolist()
    for turn, question in enumerate(plan.questions):
        places = [(place + turn) % len(names) for place in order]
        points = [step * ((len(names) - 1) / 2 - place) for place in places]
        found[question] = dict(zip(names, points, strict=True))
    return found


def example(plan: human.Plan, seed: int) -> Crowd:
    """The raters of chapter 09: strengths ``by_lot``, and plausible errors, measured on nobody."""
    errors = {"tie": 0.3, "side": 25, "taste": 30, "luck": 60, "lapse": 0.04, "careless": 0.15}
    return Crowd(by_lot(plan, 70, seed), **errors)


def simulate(plan: human.Plan, crowd: Crowd, raters: int, seed: int) -> pd.DataFrame:
    """The votes of simulated raters on everything that they are shown, in order.

    Columns: rater, trial, choice, seconds, and what ``human.meaning`` adds; ``current`` is True.
    A pure function of the plan's prompts, systems and seed and of the arguments, whatever the
    pictures look like. Checks are answered rightly, but for lapses.
    """
    rows, prompts = [], {row["id"]: row["prompt"] for row in plan.pairs}
    for rater in range(raters):
        random = rng(seed, "simulated rater", rater)
        lapse = 1.0 if random.random() < crowd.careless else crowd.lapse
        taste = _normal(random, crowd.taste, plan.systems)
        for trial in human.trials(plan, rater):
            p = _left_wins(plan, crowd, trial, taste, prompts, seed)
            choice = _vote(p, crowd.tie, lapse, random)
            seconds = float(np.exp(random.normal(np.log(2 if lapse == 1 else 6), 0.4)))
            rows.append((rater, trial.id, choice, round(seconds, 2)))
    table = pd.DataFrame(rows, columns=["rater", "trial", "choice", "seconds"])
    return table.assign(current=True).join(human.meaning(plan, table))


def cast(store: VoteStore, votes: pd.DataFrame) -> None:
    """Put the votes of ``simulate`` into an empty store, and a note in its folder (``marked``).

    UserError if the store has raters already.
    """
    if store.raters():
        raise UserError("This store has raters: put simulated votes into a study of their own.")
    write_atomic(store.plan.folder / NOTE, b"The votes in this folder are simulated.\n")
    store.invite(votes.rater.nunique())
    for row in votes.itertuples():
        store.vote(int(row.rater), row.trial, row.choice, row.trial, row.seconds)


def marked(folder: Path) -> bool:
    """Whether the votes in a study's folder are simulated."""
    return (folder / NOTE).is_file()


def _left_wins(
    plan: human.Plan,
    crowd: Crowd,
    trial: human.Trial,
    taste: dict[str, float],
    prompts: dict[str, str],
    seed: int,
) -> float:
    """The chance that a glance of this rater prefers the left picture."""
    if trial.role == "check":
        return float(plan.expected(trial) == "left")
    strengths, value = crowd.strengths[trial.question], []
    for system in plan.sides(trial):
        stream = f"luck/{trial.question}/{prompts[trial.pair]}/{system}"
        value.append(strengths[system] + taste[system] + rng(seed, stream).normal(0, crowd.luck))
    return float(expit((value[0] - value[1] + crowd.side) / SCALE))


def _normal(random: np.random.Generator, deviation: float, names: list[str]) -> dict[str, float]:
    """A normal draw with mean 0 for each name."""
    return dict(zip(names, (deviation * random.normal(size=len(names))).tolist(), strict=True))


def _vote(p: float, tie: float, lapse: float, random: np.random.Generator) -> str:
    """left, right or tie, from two glances that each prefer left with chance ``p``."""
    lapsed, same, first, second = random.random(4)
    if lapsed < lapse:
        p = 0.5
    one, two = first < p, second < p
    if one != two and same < tie:
        return "tie"
    return "left" if one else "right"


def true_ratings(crowd: Crowd, question: str) -> pd.Series:
    """The Elo that endless votes of such raters on such pictures would give, with mean zero.

    Without errors these are the strengths. Tastes, luck, sides and lapses pull all win rates
    towards a half, so ratings come out closer together than the strengths: that is no fault of
    the analysis but what such raters prefer. Careless raters are left out, as the checks find them.
    """
    strengths = crowd.strengths[question]
    names, wide = sorted(strengths), np.sqrt(2 * (crowd.taste**2 + crowd.luck**2))
    counts = pd.DataFrame(0.0, names, names)
    for a in names:
        for b in (name for name in names if name != a):
            apart = strengths[a] - strengths[b] + wide * NODES
            rate = np.mean([expit((apart + s) / SCALE) for s in (crowd.side, -crowd.side)], axis=0)
            mean = (WEIGHTS * rate).sum() / WEIGHTS.sum()
            counts.loc[a, b] = (1 - crowd.lapse) * mean + crowd.lapse / 2
    return ratings.fit(counts)


def coverage(
    plan: human.Plan, crowd: Crowd, question: str, *, studies: int, raters: int, seed: int
) -> pd.DataFrame:
    """Simulate a study many times: a row for each study and pair of systems.

    Columns: study, pair, true (win rate in %), low, high (of ``ratings.compare``), held (the truth
    lies in the interval). Votes of raters that fail the checks do not count.
    """
    true, rows = true_ratings(crowd, question), []
    for study in range(studies):
        votes = rater_quality.counted(simulate(plan, crowd, raters, seed=seed + study))
        random = rng(seed + study, f"coverage/{question}")
        table = ratings.compare(ratings.main_votes(votes, question), random)
        for pair, found in table.iterrows():
            first, second = pair.split(" over ")
            rate = 100 * win_rate(true[first] - true[second])
            held = found.low <= rate <= found.high
            rows.append((study, pair, rate, found.low, found.high, held))
    return pd.DataFrame(rows, columns=["study", "pair", "true", "low", "high", "held"])
