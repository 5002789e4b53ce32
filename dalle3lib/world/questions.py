"""Questions about a scene with exact answers: what a judge is trained and tested on."""

import numpy as np

from dalle3lib.world.language import RELATION, article
from dalle3lib.world.scene import BACKGROUNDS, COLOURS, SHAPES, WORD_SHARE, Scene


def _other(values: tuple[str, ...], value: str, random: np.random.Generator) -> str:
    """A value of the same attribute that is not ``value``."""
    rest = [v for v in values if v != value]
    return rest[int(random.integers(len(rest)))]


def questions(spec: Scene, random: np.random.Generator) -> list[tuple[str, str]]:
    """(question, answer) pairs about one scene, about half of the yes/no ones with answer "no".

    Attributes are asked only of a shape that occurs once, so every answer is unambiguous.
    """
    pairs = [
        ("how many objects are there?", str(len(spec.objects))),
        ("what is the background?", spec.background),
        (f"is the background {spec.background}?", "yes"),
        (f"is the background {_other(BACKGROUNDS, spec.background, random)}?", "no"),
    ]
    # Most scenes carry no word; asking only a share of them keeps yes and no in balance.
    if spec.word or random.random() < WORD_SHARE / (1 - WORD_SHARE):
        pairs.append(("is there a printed word?", "yes" if spec.word else "no"))
    if spec.word:
        pairs.append(("which word is printed?", spec.word))
    shown = {(o.colour, o.shape) for o in spec.objects}
    for thing in spec.objects:
        pairs.append((f"is there {article(thing.colour)} {thing.shape}?", "yes"))
        false = (_other(COLOURS, thing.colour, random), thing.shape)
        if random.random() < 0.5:
            false = (thing.colour, _other(SHAPES, thing.shape, random))
        if false not in shown:
            pairs.append((f"is there {article(false[0])} {false[1]}?", "no"))
        if sum(o.shape == thing.shape for o in spec.objects) == 1:
            pairs += [
                (f"what colour is the {thing.shape}?", thing.colour),
                (f"what texture is the {thing.shape}?", thing.texture),
                (f"how large is the {thing.shape}?", thing.size),
            ]
    if len({o.shape for o in spec.objects}) == 2 == len(spec.objects):
        first, second = spec.objects
        relation = RELATION[first.place, second.place]
        pairs.append((f"is the {first.shape} {relation} the {second.shape}?", "yes"))
        pairs.append((f"is the {second.shape} {relation} the {first.shape}?", "no"))
    return pairs
