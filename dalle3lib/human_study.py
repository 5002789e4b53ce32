"""Making a study for human raters: which pictures are compared, written blind to a folder.

The folder holds ``images`` under meaningless names, ``plan.json`` (what is asked about which two
pictures) and ``key.json`` (which system drew them, and the answers of the checks), so that one can
look at the plan without learning who drew what.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dalle3lib import UserError, human
from dalle3lib.files import to_json, write_atomic
from dalle3lib.human import OTHER, QUESTIONS, SCRAMBLED
from dalle3lib.human_samples import Samples, pixels, save_blinded
from dalle3lib.randomness import rng


def make(
    folder: str | Path,
    systems: dict[str, dict[str, Samples]],
    *,
    seed: int,
    prompts: int | None = None,
    trials: int = 60,
    checks: int = 6,
    repeats: int = 6,
    references: Samples | None = None,
    size: int | None = None,
) -> human.Plan:
    """Write the plan of a study of two or more systems, with its pictures, to a new folder.

    ``systems`` gives each system's samples by question (``human_samples.read_all``). Every pair of
    systems is compared on the same prompts, ``prompts`` of each question drawn at random (None:
    all that every system has). A rater gets ``trials`` pairs, ``checks`` pairs with an obvious
    answer and ``repeats`` of the pairs once more with sides swapped. ``references`` are true
    pictures of the prompts (photographs, rendered scenes): with them, a check of prompt following
    is the true picture against that of another prompt; otherwise a check is a picture against its
    own pixels in random order. ``size`` scales all pictures to squares.

    The same arguments write the same bytes. Raises UserError if the folder has a plan already, if
    there are fewer than two systems, no common prompt, other captions for one prompt, or pictures
    of several sizes and no ``size``.
    """
    folder = Path(folder).expanduser()
    if (folder / "plan.json").exists():
        raise UserError(f"{folder} holds a study already: choose another folder, or open that one.")
    if len(systems) < 2:
        raise UserError(f"A comparison needs two or more systems, not {len(systems)}.")
    if (
        min([trials, *(n for n in (prompts, size) if n is not None)]) < 1
        or min(checks, repeats) < 0
    ):
        raise UserError(
            "Prompts, trials and size must be 1 or more, checks and repeats not below 0."
        )
    (folder / "images").mkdir(parents=True, exist_ok=True)
    asked, left_out = _prompts(systems, prompts, seed)
    album = _Pictures(folder / "images", f"{seed}", size)
    pairs, key = _written(_pairs(systems, asked, seed), "p", asked, album)
    obvious = _checks(systems, asked, references, seed, checks, size)
    rows, answers = _written(obvious, "c", asked, album)
    trials = min(trials, len(pairs))
    numbers = {"main": trials, "check": min(checks, len(rows)), "repeat": min(repeats, trials // 4)}
    plan = {"version": human.VERSION, "seed": seed, "per_rater": numbers, "left_out": left_out}
    plan["questions"] = {question: vars(QUESTIONS[question]) for question in asked}
    write_atomic(folder / "key.json", to_json(key | answers).encode())
    write_atomic(folder / "plan.json", to_json(plan | {"pairs": pairs, "checks": rows}).encode())
    return human.load(folder)


@dataclass(frozen=True)
class _Pictures:
    """Where pictures go under blind names: all of one size, or all scaled to one."""

    folder: Path
    secret: str
    size: int | None

    def pair(self, two: tuple) -> list[str]:
        """The names of two pictures after writing them; UserError if their sizes differ."""
        a, b = (pixels(picture, self.size) for picture in two)
        if a.shape != b.shape:
            raise UserError(
                f"Two pictures of a pair have {a.shape[1]}x{a.shape[0]} and {b.shape[1]}x"
                f"{b.shape[0]} pixels, which would tell them apart: choose a size for all."
            )
        return [save_blinded(image, self.folder, self.secret) for image in (a, b)]


def _written(
    comparisons: Iterator[tuple], letter: str, asked: dict, album: _Pictures
) -> tuple[list[dict], dict[str, list[str]]]:
    """Comparisons (question, prompt, two pictures, what they are) as rows and key of a plan."""
    rows, key = [], {}
    for question, name, two, kinds in comparisons:
        row = {"id": f"{letter}{len(rows):05d}", "question": question, "prompt": name}
        rows.append(row | {"caption": asked[question][name], "images": album.pair(two)})
        key[row["id"]] = list(kinds)
    return rows, key


def _prompts(
    systems: dict[str, dict[str, Samples]], count: int | None, seed: int
) -> tuple[dict[str, dict[str, str | None]], list[str]]:
    """The prompts of each question (name to caption or None), and what was left out and why."""
    asked, left_out = {}, []
    for question, wording in QUESTIONS.items():
        if without := [name for name, samples in systems.items() if question not in samples]:
            left_out.append(f"{question} is not asked: nothing to ask about {', '.join(without)}")
            continue
        samples = [of[question] for of in systems.values()]
        names = [set(one.pictures) for one in samples]
        common, some = sorted(set.intersection(*names)), set.union(*names)
        if lost := len(some) - len(common):
            left_out.append(f"{question}: {lost} prompts that not every system has drawn")
        if not common:
            raise UserError(
                f"The systems have no prompt in common for {question}: their pictures need the "
                "same names."
            )
        order = rng(seed, f"human/prompts/{question}").permutation(len(common))
        chosen = [common[i] for i in order[:count]]
        asked[question] = {n: _caption(samples, n) if wording.caption else None for n in chosen}
    if not asked:
        raise UserError("No question can be asked about all systems: give pictures with captions.")
    return asked, left_out


def _caption(samples: list[Samples], name: str) -> str:
    """The one caption that all systems have for a prompt; UserError if there is no such."""
    said = {one.captions.get(name) for one in samples}
    if len(said) > 1 or None in said:
        raise UserError(f"The systems have different captions for {name}, or none: give one.")
    return said.pop()


def _pairs(systems: dict[str, dict[str, Samples]], asked: dict, seed: int) -> Iterator[tuple]:
    """All comparisons of systems, in the order in which raters get them.

    Questions take turns, then pairs of systems, and within each the sides alternate. So whatever
    stretch of the list a rater gets, it holds as many of each, as often left as right, within one.
    """
    twos, questions = list(itertools.combinations(systems, 2)), list(asked)
    groups = []
    for i in range(len(twos) * len(questions)):
        question = questions[i % len(questions)]
        two = twos[(i // len(questions) + i % len(questions)) % len(twos)]  # others each turn
        random = rng(seed, f"human/pairs/{question}/{'/'.join(two)}")
        order, swap = random.permutation(sorted(asked[question])).tolist(), random.integers(2)
        sides = [two[::-1] if (n + swap) % 2 else two for n in range(len(order))]
        groups.append([(question, name, s) for name, s in zip(order, sides, strict=True)])
    for question, name, sides in _taking_turns(groups):
        yield question, name, tuple(systems[s][question].pictures[name] for s in sides), sides


def _taking_turns(groups: list[list]) -> list:
    """The members of all groups in their order, each group spread evenly over the whole."""
    spread = [((m + 0.5) / len(g), i, m) for i, g in enumerate(groups) for m in range(len(g))]
    return [groups[i][m] for _, i, m in sorted(spread)]


def _checks(
    systems: dict[str, dict[str, Samples]],
    asked: dict,
    references: Samples | None,
    seed: int,
    count: int,
    size: int | None,
) -> Iterator[tuple]:
    """Comparisons with an obvious answer, ``count`` of each question; sides alternate."""
    groups = []
    for question, names in asked.items():
        order = rng(seed, f"human/checks/{question}").permutation(sorted(names)).tolist()
        groups.append([(question, name, i) for i, name in enumerate(order[:count])])
    for question, name, i in _taking_turns(groups):
        if references and QUESTIONS[question].caption:
            two, kinds = _true_and_other(references, name), ("true picture", OTHER)
        else:
            system = list(systems)[i % len(systems)]
            random = rng(seed, f"human/scrambled/{question}", i)
            picture = pixels(systems[system][question].pictures[name], size)
            mixed = random.permutation(picture.reshape(-1, 3)).reshape(picture.shape)
            two, kinds = (picture, mixed), (system, SCRAMBLED)
        yield question, name, *((two[::-1], kinds[::-1]) if i % 2 else (two, kinds))


def _true_and_other(references: Samples, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The true picture of a prompt, and of all other true pictures the one least like it."""
    if name not in references.pictures:
        raise UserError(f"There is no true picture of prompt {name}: give one for every prompt.")
    true = {n: pixels(p, 64).astype(np.float32) for n, p in references.pictures.items()}
    other = max(true, key=lambda n: float(np.abs(true[n] - true[name]).mean()))
    if other == name:
        raise UserError("The true pictures are all the same: give those of the prompts.")
    return references.pictures[name], references.pictures[other]
