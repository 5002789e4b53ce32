"""How many objects a picture shows: exact counts, and T2I-CompBench's numeracy.

Both count the boxes of any detector (``detectors``) after detections of the same object were
dropped. Numeracy (numeracy_eval.py of T2I-CompBench's repository) gives each of a prompt's n kinds
of object 1 / n: half of it if one is there, half if there are exactly as many as asked for.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dalle3lib import UserError
from dalle3lib.evals import per_image
from dalle3lib.evals.detectors import Detector, Found, area, iou, shared

SAME = 0.9  # overlap above which two boxes of one name are one object
NUMBERS = dict(a=1, an=1, one=1, two=2, three=3, four=4, five=5, six=6, seven=7, eight=8)
# What UniDet calls some of the benchmark's objects (whose code misspells the television).
LABELS = {
    "boy": "person", "girl": "person", "man": "person", "woman": "person", "ship": "boat",
    "goldfish": "fish", "painting": "picture", "television": "tv",
}  # fmt: skip


def same(a: Found, b: Found, official: bool = False) -> bool:
    """Whether two detections are one object: of one name, with an IoU above 0.9.

    If ``official``, the shared part of either box above 0.9, boxes a pixel wider and higher, as in
    the benchmark's code: the box of a group then swallows its members.
    """
    if a.name != b.name:
        return False
    if not official:
        return iou(a.box, b.box) > SAME
    return shared(a.box, b.box, 1) / min(area(a.box, 1), area(b.box, 1)) > SAME


def distinct(found: Sequence[Found], official: bool = False) -> list[Found]:
    """The detections without those that are the same object as an earlier one that is kept."""
    kept: list[Found] = []
    for one in found:
        if not any(same(one, other, official) for other in kept):
            kept.append(one)
    return kept


def counts(names: Sequence[str], found: Sequence[Found], official: bool = False) -> dict[str, int]:
    """How many distinct detections there are of each name.

    Where a detector has another label for it, this one counts (``LABELS``; always if
    ``official``), and failing that, every label that holds the name ("coffee cup" for "cup").
    """
    labels = [f.name for f in distinct(found, official)]
    result = {}
    for name in names:
        label = name if name in labels and not official else LABELS.get(name, name)
        result[name] = labels.count(label) or sum(label in other for other in labels)
    return result


def numeracy(asked: dict[str, int], counted: dict[str, int]) -> float:
    """T2I-CompBench's numeracy of one picture, 0 to 1; UserError if nothing is asked for."""
    if not asked:
        raise UserError("A prompt asks for no objects: give each of its names and their number.")
    points = [0.5 * (counted[n] > 0) + 0.5 * (counted[n] == k > 0) for n, k in asked.items()]
    return sum(points) / len(points)


def exact(asked: dict[str, int], counted: dict[str, int]) -> float:
    """1 if there are exactly as many objects of every name as asked for, else 0."""
    return float(all(counted[name] == number for name, number in asked.items()))


def score_images(
    images: np.ndarray,
    prompts: Sequence[str],
    asked: dict[str, dict[str, int]],
    detect: Detector,
    *,
    measure=numeracy,
    official: bool = False,
    seed: int | Sequence[int] = 0,
) -> pd.DataFrame:
    """The counts in images uint8 [N, H, W, 3], a row each (``per_image.table``).

    ``asked`` gives the number of each name of a prompt (``numbers_in`` or ``asked_of_world``);
    ``measure`` is ``numeracy`` or ``exact``. Raises UserError if a prompt is not among them.
    """
    per_image.same_number(len(images), prompts)
    wanted = per_image.look_up(asked, prompts, "objects to count")
    found = detect(images, [list(names) for names in wanted])
    counted = [counts(n, f, official) for n, f in zip(wanted, found, strict=True)]
    scores = [measure(a, c) for a, c in zip(wanted, counted, strict=True)]
    reasons = [
        "; ".join(f"{n}: {k} asked, {c[n]} seen" for n, k in a.items())
        for a, c in zip(wanted, counted, strict=True)
    ]
    return per_image.table(prompts, seed, scores, reasons)


# ---- what a prompt asks for ----------------------------------------------------------------------


def asked_of_world(prompts: Sequence[str], asks: Sequence[dict]) -> dict[str, dict[str, int]]:
    """The number of each prompt of the world's set "counting", such as {"red star": 2}."""
    return {
        prompt: {" ".join(ask["objects"][0].values()): ask["count"]}
        for prompt, ask in zip(prompts, asks, strict=True)
    }


def nouns(file: str | Path) -> dict[str, str]:
    """Singular and plural of the benchmark's nouns, each to its singular (new_objects.txt).

    Raises UserError if the file is missing or another one.
    """
    try:
        pairs = [line.lower().split(" - ") for line in Path(file).read_text("utf-8").splitlines()]
        return {form.strip(): one.strip() for one, many in pairs for form in (one, many)}
    except (OSError, ValueError) as error:
        raise UserError(
            f"The nouns of {file} cannot be read ({error}): it should be new_objects.txt of "
            "T2I-CompBench, lines such as 'cup - cups'."
        ) from error


def numbers_in(prompt: str, forms: dict[str, str]) -> dict[str, int]:
    """The objects a prompt asks for and how many of each: {"bee": 2, "bird": 1}.

    A number (a, an, one to eight) counts the one or two words behind it if they are a noun of
    ``forms`` (``nouns``).
    """
    words, found = re.findall(r"[\w'-]+", prompt.lower()), {}
    for i, word in enumerate(words):
        behind = (" ".join(words[i + 1 : i + 1 + n]) for n in (2, 1))
        name = next((forms[b] for b in behind if b in forms), None)
        if word in NUMBERS and name:
            found[name] = found.get(name, 0) + NUMBERS[word]
    return found
