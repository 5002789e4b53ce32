"""Where objects stand to each other: T2I-CompBench's rule for UniDet's boxes, and VISOR.

Both take the boxes of any detector (``detectors``). T2I-CompBench (Huang et al. 2023, §4;
2D_spatial_eval.py of its repository) gives half the score for finding both objects and half for
their places. Its code knows the words "on top of" but has no rule for them: none of the 32 complex
prompts that say so can earn the second half. Here they mean "on the top of", unless ``official``.
VISOR (Gokhale et al. 2022) counts pictures that show both objects, and those that place them right.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from dalle3lib import UserError
from dalle3lib.evals import per_image
from dalle3lib.evals.detectors import Box, Detector, Found, centre, iou
from dalle3lib.world.language import article

TOUCHING = 0.1  # IoU from which a direction earns less
DISTANCE = 150.0  # pixels within which, across or down, objects are near
NEAR = ("on side of", "next to", "near")
DIRECTIONS = {  # the side of the second object on which the first one is: (axis, sign)
    "on the left of": (0, -1),
    "on the right of": (0, 1),
    "on the bottom of": (1, 1),
    "on the top of": (1, -1),
}
# What the benchmark's code has no rule for: the first is among its words, the others are VISOR's
# and the world's.
UNRULED = {
    "on top of": (1, -1),
    "to the left of": (0, -1),
    "to the right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
VISOR_RELATIONS = ("to the left of", "to the right of", "above", "below")
PEOPLE = ("girl", "boy", "man", "woman")  # to UniDet each is a "person"


def relation_of(prompt: str) -> str | None:
    """The first of the benchmark's words of place, in its order, that a prompt holds, or None."""
    return next((r for r in (*NEAR, *DIRECTIONS, *UNRULED) if r in prompt), None)


def position_score(
    relation: str | None,
    first: Box,
    second: Box,
    official: bool = False,
    distance: float = DISTANCE,
) -> float:
    """How well the places of two boxes fit a relation of ``relation_of``: 0 to 1.

    In a direction the centres must be farther apart along it than across, and on the right side:
    1, or 0.1 / IoU if the boxes overlap by 0.1 or more. Near objects are within ``distance``
    pixels across or down: 1, else ``distance`` / the larger of both. 150 pixels are the
    benchmark's, whatever the size of a picture; small pictures need another distance.
    Unknown relations score 0; if ``official``, "on top of" and the world's are unknown.
    """
    apart = np.subtract(centre(second), centre(first))
    if relation in NEAR:
        across, down = abs(apart)
        return 1.0 if min(across, down) < distance else distance / max(across, down)
    axis, sign = (DIRECTIONS if official else DIRECTIONS | UNRULED).get(relation, (0, 0))
    if -sign * apart[axis] <= 0 or abs(apart[axis]) <= abs(apart[1 - axis]):
        return 0.0
    overlap = iou(first, second)
    return 1.0 if overlap < TOUCHING else TOUCHING / overlap


def _is(name: str, found: Found) -> bool:
    return found.name == name or (found.name == "person" and name in PEOPLE)


def pick(
    names: tuple[str, str], found: Sequence[Found], official: bool = False
) -> tuple[Found | None, Found | None]:
    """The first detection of each of two names, or None.

    Two objects of one name must be two detections; if ``official``, one detection is both.
    """
    first = next((f for f in found if _is(names[0], f)), None)
    others = [f for f in found if official or f is not first]
    return first, next((f for f in others if _is(names[1], f)), None)


def score(
    relation: str | None,
    first: Found | None,
    second: Found | None,
    official: bool = False,
    distance: float = DISTANCE,
) -> float:
    """T2I-CompBench's score of one picture, 0 or 0.5 to 1 (§4; 2D_spatial_eval.py).

    A quarter of each found object's confidence, and half of ``position_score`` if both are found;
    anything below 0.5 is 0.
    """
    value = 0.25 * sum(f.confidence for f in (first, second) if f)
    if first and second:
        value += position_score(relation, first.box, second.box, official, distance) / 2
    return value if value >= 0.5 else 0.0


def seen(first: Found, second: Found) -> str:
    """Where the first object is seen from the second, in words."""
    across, down = np.subtract(centre(first.box), centre(second.box))
    if abs(across) > abs(down):
        return "seen left of it" if across < 0 else "seen right of it"
    return "seen above it" if down < 0 else "seen below it" if down else "seen on the same spot"


def _reason(relation: str | None, names: tuple[str, str], found: tuple) -> str:
    missing = [name for name, f in zip(names, found, strict=True) if f is None]
    what = f"not seen: {', '.join(missing)}" if missing else seen(*found)
    return f"{names[0]} {relation or '(no relation)'} {names[1]}: {what}"


def _detect(images, prompts, objects, detect, official) -> list[tuple]:
    """The relation, the two names and the two detections of each picture."""
    per_image.same_number(len(images), prompts)
    names = [n or ("?", "?") for n in per_image.look_up(objects, prompts, "two objects")]
    found = detect(images, [[n for n in pair if n != "?"] for pair in names])
    return [
        (relation_of(prompt), pair, pick(pair, here, official))
        for prompt, pair, here in zip(prompts, names, found, strict=True)
    ]


def score_images(
    images: np.ndarray,
    prompts: Sequence[str],
    objects: dict[str, tuple[str, str] | None],
    detect: Detector,
    *,
    official: bool = False,
    distance: float = DISTANCE,
    seed: int | Sequence[int] = 0,
) -> pd.DataFrame:
    """T2I-CompBench's spatial score of images uint8 [N, H, W, 3], a row each (``per_image.table``).

    ``objects`` gives the two names of each prompt, in its order (``noun_phrases.objects`` or
    ``objects_of_world``); None scores 0. Raises UserError if a prompt is not among them.
    """
    rows = _detect(images, prompts, objects, detect, official)
    scores = [score(relation, *found, official, distance) for relation, _, found in rows]
    return per_image.table(prompts, seed, scores, [_reason(*row) for row in rows])


def objects_of_world(prompts: Sequence[str], asks: Sequence[dict]) -> dict[str, tuple[str, str]]:
    """The two objects of each prompt of the set "spatial", such as ("red star", "blue moon")."""
    names = ([" ".join(o.values()) for o in ask["objects"]] for ask in asks)
    return {prompt: tuple(pair) for prompt, pair in zip(prompts, names, strict=True)}


# ---- VISOR ---------------------------------------------------------------------------------------


def visor_prompts(names: Sequence[str]) -> pd.DataFrame:
    """VISOR's scored prompts: ``prompt``, ``first``, ``second`` of every pair in both orders.

    "a cat to the left of a dog" and so on: 8 prompts for each pair, 25,280 for COCO's 80 names.
    """
    rows = [
        (f"{article(a)} {relation} {article(b)}", a, b)
        for pair in combinations(names, 2)
        for relation in VISOR_RELATIONS
        for a, b in (pair, pair[::-1])
    ]
    return pd.DataFrame(rows, columns=["prompt", "first", "second"])


def visor_images(
    images: np.ndarray,
    prompts: Sequence[str],
    objects: dict[str, tuple[str, str]],
    detect: Detector,
    *,
    seed: int | Sequence[int] = 0,
) -> pd.DataFrame:
    """Whether pictures show both objects as related: ``per_image.table`` and a column ``both``.

    ``score`` is 1 if both are found and the centre of the first box is on the right side of that
    of the second, however far; ``both`` says whether both are found.
    """
    rows = _detect(images, prompts, objects, detect, official=False)
    both = [None not in found for _, _, found in rows]
    right = [b and _beside(r, *found) for b, (r, _, found) in zip(both, rows, strict=True)]
    frame = per_image.table(prompts, seed, right, [_reason(*row) for row in rows])
    return frame.assign(both=both)


def _beside(relation: str | None, first: Found, second: Found) -> bool:
    axis, sign = (DIRECTIONS | UNRULED).get(relation, (0, 0))
    return bool(sign * (centre(first.box)[axis] - centre(second.box)[axis]) > 0)


def visor(frame: pd.DataFrame, of: Sequence[int] | None = None) -> dict[str, float]:
    """VISOR's numbers, as shares 0 to 1, of the table of ``visor_images``.

    "OA": both objects found; "unconditional": and placed right; "conditional": placed right of
    those with both found (nan if none); "VISOR_n": prompts with at least n of their pictures right,
    for n up to the number of pictures of a prompt (4 in the benchmark). ``of`` numbers the prompt
    of each picture; without it, pictures with the same text belong together. Raises UserError
    unless every prompt has as many.
    """
    right = frame.score.groupby(frame.prompt if of is None else np.asarray(of)).agg(
        ["sum", "count"]
    )
    if right["count"].nunique() != 1:
        raise UserError(
            "VISOR needs as many pictures of each prompt: complete the samples, or tell which "
            "picture is of which prompt if two prompts have one text."
        )
    shares = {
        "OA": frame.both.mean(),
        "unconditional": frame.score.mean(),
        "conditional": frame.score[frame.both].mean(),
    }
    most = int(right["count"].iloc[0])
    shares |= {f"VISOR_{n}": (right["sum"] >= n).mean() for n in range(1, most + 1)}
    return {name: float(share) for name, share in shares.items()}
