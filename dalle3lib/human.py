"""Which pictures people compare, asked what, in which order: the plan of a human evaluation (§4.2).

A rater sees two pictures of one prompt and answers one of the paper's three questions. The plan
is made once (``human_study.make``); what a rater is shown is a pure function of the plan and the
rater's number. Nothing that a rater sees tells which system drew what: the systems stand in a
file of their own, the pictures have meaningless names, and sides are drawn at random.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import pandas as pd

from dalle3lib import UserError
from dalle3lib.files import read_json
from dalle3lib.randomness import rng

VERSION = 1  # of the plan's layout
ROLES = ("main", "check", "repeat")
SCRAMBLED, OTHER = "scrambled picture", "true picture of another prompt"  # the wrong ones


@dataclass(frozen=True)
class Question:
    """What is asked, a hint how to decide, and whether the caption is shown (§4.2.1 to §4.2.3)."""

    ask: str
    hint: str
    caption: bool


QUESTIONS = {
    "prompt following": Question(
        "Which picture shows better what the caption says?",
        "Read the whole caption. It does not matter which picture is prettier.",
        True,
    ),
    "style": Question(
        "Suppose a program had drawn these for you. Which picture would you rather have got?",
        "Go by your own taste; there is no right answer.",
        False,
    ),
    "coherence": Question(
        "In which picture do the things make more sense?",
        "Count what could not be: broken shapes, parts in the wrong place, unreadable letters. "
        "Choose the picture with fewer of them.",
        False,
    ),
}


@dataclass(frozen=True)
class Trial:
    """One question about two pictures, as one rater gets it.

    ``left`` and ``right`` are file names in the study's ``images``; ``caption`` is None unless the
    question shows it. A rater may see ``shown`` and nothing else: ``role`` (of ``ROLES``), ``pair``
    (the row of the plan) and ``flipped`` (its two pictures changed sides) are for the analysis.
    """

    id: str
    question: str
    caption: str | None
    left: str
    right: str
    role: str
    pair: str
    flipped: bool

    def shown(self) -> dict[str, str | None]:
        """What the rater gets to see: id, question, ask, hint, caption, left and right."""
        asked = QUESTIONS[self.question]
        told = {"id": self.id, "question": self.question, "ask": asked.ask, "hint": asked.hint}
        return told | {"caption": self.caption, "left": self.left, "right": self.right}


@dataclass(frozen=True, eq=False)
class Plan:
    """A study: its pairs of pictures, how many a rater gets, and which systems drew them.

    ``pairs`` and ``checks`` are rows with id, question, prompt, caption and two images;
    ``per_rater`` says how many of each role a rater gets; ``left_out`` lists what was not used and
    why; ``key`` maps a row's id to what its two images are. ``digest`` changes with any of it.
    """

    folder: Path
    pairs: list[dict]
    checks: list[dict]
    per_rater: dict[str, int]
    left_out: list[str]
    key: dict[str, list[str]]
    seed: int
    digest: str

    @cached_property
    def systems(self) -> list[str]:
        """The names of the systems that are compared, in alphabetical order."""
        return sorted({name for row in self.pairs for name in self.key[row["id"]]})

    @cached_property
    def questions(self) -> list[str]:
        """The questions that are asked."""
        return [name for name in QUESTIONS if any(row["question"] == name for row in self.pairs)]

    @cached_property
    def images(self) -> frozenset[str]:
        """The file names of all pictures: the only ones that a rater may be sent."""
        return frozenset(name for row in (*self.pairs, *self.checks) for name in row["images"])

    def sides(self, trial: Trial) -> tuple[str, str]:
        """What is shown left and right: a system's name, or what a check's picture is."""
        first, second = self.key[trial.pair]
        return (second, first) if trial.flipped else (first, second)

    def expected(self, trial: Trial) -> str | None:
        """The right answer of a check, "left" or "right"; None for other trials."""
        if trial.role != "check":
            return None
        return "right" if self.sides(trial)[0] in (SCRAMBLED, OTHER) else "left"


def load(folder: str | Path) -> Plan:
    """The plan in a study's folder; UserError if there is none or it is of another layout."""
    folder = Path(folder).expanduser().absolute()
    if not (folder / "plan.json").is_file():
        raise UserError(f"{folder} holds no study: make one first with `python -m dalle3lib rate`.")
    plan, key = read_json(folder / "plan.json"), read_json(folder / "key.json")
    if plan.get("version") != VERSION:
        raise UserError(f"{folder} was planned by another version of this program: use that one.")
    told = json.dumps([plan, key], sort_keys=True).encode()
    values = [plan[name] for name in ("pairs", "checks", "per_rater", "left_out")]
    return Plan(folder, *values, key, plan["seed"], hashlib.sha256(told).hexdigest())


@lru_cache(maxsize=256)  # a page asks for it at every vote
def trials(plan: Plan, rater: int) -> tuple[Trial, ...]:
    """What the rater of this number (from 0) is shown, in order: the same whenever it is asked.

    Raters take the plan's pairs in turn, as one takes cards from a pile that is put back when it
    is used up, so after any number of raters each pair has been shown equally often, within one;
    each time round, its pictures change sides. Questions come in blocks, in an order of the rater's
    own. Repeats are pairs from a block's first half, shown again in its second half with sides
    swapped; checks may come anywhere in a block.
    """
    if rater < 0:
        raise UserError(f"Raters are numbered from 0, so there is no rater {rater}.")
    random = rng(plan.seed, "human/order", rater)
    main = list(_turn(plan, plan.pairs, rater, "main"))
    checks = list(_turn(plan, plan.checks, rater, "check"))
    again = _shares(plan.per_rater["repeat"], [t.question for t in main], rater)
    shown: list[Trial] = []
    for question in random.permutation(sorted(again)):
        block = [trial for trial in (*main, *checks) if trial.question == question]
        block = [block[i] for i in random.permutation(len(block))]
        first, second = block[: (len(block) + 1) // 2], block[(len(block) + 1) // 2 :]
        twice = [trial for trial in first if trial.role == "main"][: again[question]]
        second += [_trial(plan, _rows(plan)[t.pair], "repeat", not t.flipped) for t in twice]
        shown += first + [second[i] for i in random.permutation(len(second))]
    return tuple(shown)


def _turn(plan: Plan, rows: list[dict], rater: int, role: str) -> Iterator[Trial]:
    """The rows that it is this rater's turn to see."""
    count = plan.per_rater[role]
    for i in range(rater * count, (rater + 1) * count):
        times, place = divmod(i, len(rows))
        yield _trial(plan, rows[place], role, bool(times % 2))


def _trial(plan: Plan, row: dict, role: str, flipped: bool) -> Trial:
    """A row of the plan as a trial; the name of the trial tells neither its role nor its sides."""
    name = f"{plan.digest}|{row['id']}|{flipped}".encode()
    images = row["images"][::-1] if flipped else row["images"]
    told = hashlib.blake2b(name, digest_size=8).hexdigest()
    return Trial(told, row["question"], row["caption"], *images, role, row["id"], flipped)


def _rows(plan: Plan) -> dict[str, dict]:
    """The plan's rows by id."""
    return {row["id"]: row for row in (*plan.pairs, *plan.checks)}


def _shares(count: int, questions: list[str], rater: int) -> dict[str, int]:
    """How many of ``count`` repeats each question gets: as many, and a remainder in turn."""
    names = sorted(set(questions))
    return {n: len(range((i + rater) % len(names), count, len(names))) for i, n in enumerate(names)}


def overview(plan: Plan) -> pd.DataFrame:
    """How many pairs, and of how many prompts, each question and pair of systems has."""
    rows = [(r["question"], " / ".join(sorted(plan.key[r["id"]])), r["prompt"]) for r in plan.pairs]
    table = pd.DataFrame(rows, columns=["question", "systems", "prompt"])
    counts = table.groupby(["question", "systems"]).prompt.agg(pairs="size", prompts="nunique")
    return counts.reindex(plan.questions, level="question")


# ---- what votes mean -----------------------------------------------------------------------------


def meaning(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """What the plan tells of votes: a table with the index of ``rows`` (rater, trial, choice).

    Columns: place (of the trial in the rater's order, from 0), question, prompt, pair, role, left
    and right (systems, or what a check's pictures are), winner (one of these, or "tie"; missing
    for an undo), picked (the "first" or "second" picture of the plan's row, or "tie"; likewise),
    expected (a check's right answer).
    """
    prompts = {name: row["prompt"] for name, row in _rows(plan).items()}
    known = {
        (rater, trial.id): (place, trial)
        for rater in rows.rater.unique()
        for place, trial in enumerate(trials(plan, int(rater)))
    }
    told = []
    for rater, name, choice in zip(rows.rater, rows.trial, rows.choice, strict=True):
        place, trial = known[rater, name]
        left, right = plan.sides(trial)
        winner = {"left": left, "right": right, "tie": "tie"}.get(choice)
        sides = ("second", "first") if trial.flipped else ("first", "second")
        picked = dict(zip(("left", "right", "tie"), (*sides, "tie"), strict=True)).get(choice)
        row = (place, trial.question, prompts[trial.pair], trial.pair, trial.role, left, right)
        told.append((*row, winner, picked, plan.expected(trial)))
    columns = "place question prompt pair role left right winner picked expected".split()
    return pd.DataFrame(told, columns=columns, index=rows.index)
