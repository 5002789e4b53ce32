"""The world's own composition sets, in T2I-CompBench's protocols (Huang et al. 2023, §3).

A prompt of the first three names two objects of different shapes and one attribute of each, and
nothing else, so that each set has one difficulty: to bind colours, textures or sizes to their
objects. Size stands for the benchmark's "shape" category, whose words are those of form and size
("a small key and a big door"); a shape is a noun here. "spatial" and "numeracy" are the probe sets
"spatial" and "counting". No set has pairs held out of training: that is another difficulty.
"""

from dataclasses import replace

import numpy as np

from dalle3lib import UserError
from dalle3lib.randomness import rng
from dalle3lib.world.language import article, full_phrase
from dalle3lib.world.prompts import Probe, asked, probe, unseen
from dalle3lib.world.scene import Scene

BOUND = {"colour": "colour", "shape": "size", "texture": "texture"}  # what a set binds to a noun
PROBED = {"spatial": "spatial", "numeracy": "counting"}  # sets that are probe sets
COMPOSITIONS = (*BOUND, *PROBED)


def _pair(attribute: str, index: int, random: np.random.Generator) -> Probe:
    """Two objects that differ in shape and in the attribute; every other one is told backwards."""

    def different(spec: Scene) -> Scene | None:
        first, second = spec.objects
        same = first.shape == second.shape or getattr(first, attribute) == getattr(
            second, attribute
        )
        return None if same else replace(spec, word=None)

    spec = unseen(random, (2,), different)
    told = spec.objects[:: -1 if index % 2 else 1]
    first, second = (article(full_phrase(o, form=f"{{{attribute}}} {{noun}}")) for o in told)
    ask = asked([{attribute: getattr(o, attribute), "shape": o.shape} for o in told])
    return Probe(f"{first} and {second}.", spec, ask)


def composition(name: str, count: int, seed: int = 0) -> list[Probe]:
    """The first ``count`` prompts of a set, the same ones for the same name and seed.

    ``name`` is one of ``COMPOSITIONS``: "colour" ("a red circle and a blue square."), "shape" ("a
    small circle and a large square.", of which there are 112 different prompts), "texture" ("a
    striped circle and a dotted square."), "spatial" and "numeracy". Every scene is of the test
    split. Raises UserError for another name.
    """
    if name in PROBED:
        return probe(PROBED[name], count, seed)
    if name not in BOUND:
        raise UserError(
            f"There is no composition set {name!r}: choose one of {', '.join(COMPOSITIONS)}."
        )
    stream = f"composition/{name}"
    return [_pair(BOUND[name], i, rng(seed, stream, i)) for i in range(count)]
