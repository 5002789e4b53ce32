"""Detectors: what a picture shows and where, as boxes, for the scores of places and of counts.

A detector is a function of images and of the names to look for in each; whichever it is, it gives
``Found`` objects, the most confident first. ``world`` makes one of the world's reader;
``zero_shot`` asks a public model of transformers, such as OWL-ViT (Minderer et al. 2022).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from dalle3lib import pretrained
from dalle3lib.evals.per_image import same_number
from dalle3lib.world import reader
from dalle3lib.world.canvas import WORD_RISE, Canvas
from dalle3lib.world.render import RADIUS

Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels


class Found(NamedTuple):
    """An object that a detector found: what it is, where, and how surely (0 to 1)."""

    name: str
    box: Box
    confidence: float


Detector = Callable[[np.ndarray, Sequence[Sequence[str]]], list[list[Found]]]


def centre(box: Box) -> tuple[float, float]:
    """The middle (x, y) of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def area(box: Box, rim: float = 0) -> float:
    """The area of a box, 0 if it has none; ``rim`` is added to both of its sides."""
    return max(0, box[2] - box[0] + rim) * max(0, box[3] - box[1] + rim)


def shared(a: Box, b: Box, rim: float = 0) -> float:
    """The area that two boxes share."""
    return area((*map(max, a[:2], b[:2]), *map(min, a[2:], b[2:])), rim)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0 to 1; 0 if neither has an area."""
    both = shared(a, b)
    return both / union if (union := area(a) + area(b) - both) else 0.0


# ---- the world's reader --------------------------------------------------------------------------


def world(images: np.ndarray, names: Sequence[Sequence[str]]) -> list[list[Found]]:
    """What the world's reader finds of the named objects, in reading order, each with confidence 1.

    ``images`` are uint8 [N, H, W, 3] of a canvas, ``names`` [N] lists such as ["red circle"]: every
    object that has all these attributes is found under that name, in the box that its place, its
    size and the printed word give. The reader tells no jitter: boxes may be a pixel off.
    """
    return of_facts(reader.read(images))(images, names)


def of_facts(facts: Sequence[dict]) -> Detector:
    """The detector ``world`` for pictures that were read before: ``reader.read`` gave ``facts``."""

    def detect(images: np.ndarray, names: Sequence[Sequence[str]]) -> list[list[Found]]:
        same_number(len(images), names)
        canvas, scale = reader.canvas_of(images)
        return [_named(*pair, canvas, scale) for pair in zip(facts, names, strict=True)]

    return detect


def _named(facts: dict, names: Sequence[str], canvas: Canvas, scale: int) -> list[Found]:
    """The objects in one picture's facts that have the names, with their boxes."""
    rise = WORD_RISE if facts["word"] else 0
    found = []
    for name in dict.fromkeys(names):
        for thing in facts["objects"]:
            if set(name.split()) <= set(thing.values()):
                (x, y), radius = canvas.centre[thing["place"]], RADIUS[thing["size"]]
                box = x - radius, y - rise - radius, x + radius, y - rise + radius
                found.append(Found(name, tuple(scale * side for side in box), 1.0))
    return found


# ---- public models -------------------------------------------------------------------------------


def load(name: Path | str, **options) -> tuple[torch.nn.Module, object]:
    """Model (frozen, evaluation mode) and processor of a zero-shot detector, such as
    "google/owlvit-base-patch32", from a directory or a public name.

    ``options`` (``revision``, ...) go to both ``from_pretrained`` calls. Raises UserError if there
    is no such model or its files are damaged.
    """
    with pretrained.loading(f"the detector {name}"):
        model = AutoModelForZeroShotObjectDetection.from_pretrained(name, **options)
        processor = AutoProcessor.from_pretrained(name, **options)
    return model.float().eval().requires_grad_(False), processor


def zero_shot(
    model: torch.nn.Module, processor, threshold: float = 0.1, template: str = "{}"
) -> Detector:
    """A detector of any named object by a model of ``load``.

    Objects of a confidence above ``threshold`` are found (0.1: VISOR's for OWL-ViT), the most
    confident first. ``template`` is what the model is asked, "{}" standing for the name. A picture
    is encoded once for all its names.
    """

    @torch.no_grad()
    def detect(images: np.ndarray, names: Sequence[Sequence[str]]) -> list[list[Found]]:
        same_number(len(images), names)
        found = []
        for image, wanted in zip(tqdm(images, "detecting", leave=False), names, strict=True):
            wanted = list(dict.fromkeys(wanted))
            asked = [template.format(name) for name in wanted]
            found.append(_detect(model, processor, image, asked, wanted, threshold))
        return found

    return detect


def _detect(model, processor, image, asked, names, threshold) -> list[Found]:
    """What a model finds in one picture uint8 [H, W, 3], the most confident first."""
    if not names:
        return []
    inputs = processor(text=[asked], images=image, truncation=True, return_tensors="pt")
    result = processor.post_process_grounded_object_detection(
        model(**inputs.to(model.device)),
        threshold=threshold,
        target_sizes=[image.shape[:2]],
        text_labels=[names],
    )[0]
    parts = (result[key] for key in ("text_labels", "boxes", "scores"))
    found = [Found(n, tuple(b.tolist()), s.item()) for n, b, s in zip(*parts, strict=True)]
    return sorted(found, key=lambda f: -f.confidence)
