"""The world's judge: BLIP is asked one question for each thing that a prompt asks for.

It cannot think aloud, so its rules are in the questions: a picture is correct if every answer
fits. What a prompt leaves open is not asked about, and so the paper's rules hold here too: further
objects and small flaws are no fault. The judge never reads the prompt, only what it asks for
(``Probe.ask``).

Two limits lie in what it was trained on. Of several objects of one shape it counts the shape and
asks whether one of them is as asked, so it does not see that another has the wrong colour. And it
reads the world's words only: asked openly it never names another one. Asked "is the word cat
printed?" instead, it said yes to nearly half of the wrong words of the same length on scenes of the
dev split, so a printed word is asked for openly.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from dalle3lib import UserError, paths
from dalle3lib.evals import vqa
from dalle3lib.evals.judge import Judge, Picture, Verdict, matched, pixels
from dalle3lib.world.language import article
from dalle3lib.world.questions import NUMBERS

ENDS = {"left of": ("left", "right"), "above": ("top", "bottom")}
WORDED = {"left of": "to the left of", "above": "above"}
CHUNK = 64  # pictures between two steps of the progress bar

Check = tuple[str, tuple[str, ...]]  # a question and the answers that fit


def checks(ask: dict) -> list[Check]:
    """The questions about a picture and the answers that fit what is asked, each question once.

    ``ask`` is that of a ``world.prompts.Probe``. The words of the questions are those that the
    judge was trained on (``world.questions``).
    """
    things = ask["objects"]
    asked = [(f"is there {article(_phrase(thing))}?", ("yes",)) for thing in things]
    asked += _numbers(ask) + _places(things) + _relation(ask)
    if ask["word"] is not None:
        asked.append(("which word is printed?", (ask["word"],)))
    if ask["background"] is not None:
        asked.append((f"is the background {ask['background']}?", ("yes",)))
    return list(dict.fromkeys(asked))


def _phrase(thing: dict) -> str:
    return " ".join(thing[n] for n in ("size", "texture", "colour", "shape") if n in thing)


def _numbers(ask: dict) -> list[Check]:
    """How many of a shape: exactly the count that is asked, or at least as many as are alike."""
    things = ask["objects"]
    if ask["count"] is not None:
        return [(_how_many(things[0]["shape"]), (NUMBERS[ask["count"]],))]
    alike = Counter((_phrase(thing), thing["shape"]) for thing in things)
    return [(_how_many(shape), NUMBERS[n:]) for (_, shape), n in alike.items() if n > 1]


def _how_many(shape: str) -> str:
    return f"how many {shape}{'es' if shape.endswith('s') else 's'} are there?"


def _places(things: list[dict]) -> list[Check]:
    """Where each object is, or which shape is there if several objects have that shape."""
    shapes = [thing["shape"] for thing in things]
    asked: list[Check] = []
    for thing in (thing for thing in things if "place" in thing):
        shape, place = thing["shape"], thing["place"]
        alone = shapes.count(shape) == 1
        asked.append((f"where is the {shape}?", (place,)) if alone else _which(place, shape))
    return asked


def _which(place: str, shape: str) -> Check:
    return f"which shape is {'in' if place == 'centre' else 'at'} the {place}?", (shape,)


def _relation(ask: dict) -> list[Check]:
    """How two objects stand to each other; what is at each end, if words cannot tell them apart."""
    if ask["relation"] is None:
        return []
    i, name, j = ask["relation"]
    pair = ask["objects"][i], ask["objects"][j]
    for attributes in (("shape",), ("colour", "shape")):
        a, b = (" ".join(thing.get(n, "") for n in attributes).strip() for thing in pair)
        if a != b:
            return [(f"is the {a} {WORDED[name]} the {b}?", ("yes",))]
    return [_which(end, thing["shape"]) for end, thing in zip(ENDS[name], pair, strict=True)]


def judge(model, processor) -> Judge:
    """The judge that a VQA model makes: correct if each of the ``checks`` gets a fitting answer.

    The reason lists every question with its answer, and what would have fitted where it did not.
    Never unparsed: any other answer does not fit. The judge raises UserError for a picture without
    an ask, or without anything in it that could be asked about.
    """

    def judged(pictures: Sequence[Picture], prompts, asks) -> list[Verdict]:
        matched(pictures, prompts, asks)
        asked = [checks(ask) if ask else [] for ask in asks or [None] * len(pictures)]
        if bare := [p for p, found in zip(prompts, asked, strict=True) if not found]:
            raise UserError(
                f"The world's judge needs to know what a prompt asks for; {len(bare)} prompts do "
                f"not say ({bare[0]!r}): judge them with a vision-language model."
            )
        verdicts: list[Verdict] = []
        steps = range(0, len(pictures), CHUNK)
        for first in tqdm(steps, "judged", disable=len(steps) < 2):
            here = slice(first, first + CHUNK)
            verdicts += _judged(model, processor, pictures[here], asked[here])
        return verdicts

    return judged


def _judged(model, processor, pictures, asked: Sequence[list[Check]]) -> list[Verdict]:
    """The verdicts on pictures of one size, all their questions asked at once."""
    images = [pixels(picture) for picture in pictures]
    if len(sizes := {image.shape[:2] for image in images}) > 1:
        raise UserError(f"This judge takes pictures of one size, not of {len(sizes)}.")
    flat = [question for found in asked for question, _ in found]
    of = np.repeat(np.arange(len(asked)), [len(found) for found in asked])
    said = iter(vqa.answer(model, processor, np.stack(images), flat, of))
    return [verdict(found, [next(said) for _ in found]) for found in asked]


def verdict(asked: Sequence[Check], said: Sequence[str]) -> Verdict:
    """Correct iff every answer is one that fits; the reason says what was asked and answered."""
    lines = []
    for (question, fitting), answer in zip(asked, said, strict=True):
        note = "" if answer in fitting else f" (not {' or '.join(fitting)})"
        lines.append(f"{question} {answer}{note}")
    right = all(answer in fitting for (_, fitting), answer in zip(asked, said, strict=True))
    return Verdict(float(right), "; ".join(lines))


def load(name: str | Path | None = None) -> Judge:
    """The judge of a VQA model: the shipped one by default. UserError if it cannot be loaded."""
    return judge(*vqa.load(name or paths.foundation("judge")))
