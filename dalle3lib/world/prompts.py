"""Probe prompts: what no arm is shown in training, with what a picture must hold to satisfy them.

Six sets, each after one difficulty that the paper or its benchmarks name: three objects, colours
and shapes that never met, sentences of another build, places relative to each other, counts, and
printed words. Every scene belongs to the test split, so no other part was trained on it either.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from dalle3lib import UserError
from dalle3lib.randomness import rng
from dalle3lib.world.language import (
    INVERSE,
    NOTES,
    RELATION,
    article,
    descriptive_caption,
    full_phrase,
    pick,
    reworded_caption,
)
from dalle3lib.world.questions import NUMBERS
from dalle3lib.world.scene import (
    HELD_OUT_PAIRS,
    WORDS,
    Scene,
    Thing,
    draw,
    held_out,
    scene,
    split_of,
)

# Words that no scene of any split prints; each of their letters occurs in ``scene.WORDS``.
HELD_OUT_WORDS = tuple(
    "us so my as he if do an box cow pig wax rug hen mud pie boat leaf milk rose wind coin desk "
    "lamp".split()
)
BRIEF = "{colour} {noun}"  # how spatial, counting and text prompts call an object
AXIS = {"to the left of": "left of", "above": "above"}  # a relation in captions and in an ask
COLUMN = {"left": 0, "right": 2}  # of a place's name; the middle is 1
ROW = {"top": 0, "bottom": 2}


@dataclass(frozen=True)
class Probe:
    """A prompt, one scene that satisfies it, and what a picture must hold.

    ``ask`` has "objects" (a list of dicts of attributes), "relation" (``(i, name, j)``: object i
    is "left of" or "above" object j), "count" (how many objects are like the first), "word" and
    "background"; what the prompt does not state is left out or None.
    """

    prompt: str
    scene: Scene
    ask: dict


def satisfied(ask: dict, facts: dict) -> bool:
    """Whether the facts read from a picture hold all that is asked.

    ``facts`` is a dict like ``Scene.facts()``. Different objects asked for must be different ones
    in the picture. Objects beyond those asked for do no harm, unless a count is asked: then
    exactly so many must be like the first.
    """
    things = facts["objects"]
    if any(ask[name] not in (None, facts[name]) for name in ("background", "word")):
        return False
    if ask["count"] is not None:
        if sum(_fits(ask["objects"][0], thing) for thing in things) != ask["count"]:
            return False
    return any(
        all(map(_fits, ask["objects"], chosen)) and _related(ask["relation"], chosen)
        for chosen in permutations(things, len(ask["objects"]))
    )


def _fits(wanted: dict, thing: dict) -> bool:
    return all(thing[name] == value for name, value in wanted.items())


def _related(relation: tuple[int, str, int] | None, things: tuple[dict, ...]) -> bool:
    """Whether two of the objects stand as asked, by the names of their places."""
    if relation is None:
        return True
    i, name, j = relation
    line = COLUMN if name == "left of" else ROW
    first, second = (
        next((line[word] for word in things[k]["place"].split() if word in line), 1) for k in (i, j)
    )
    return first < second


def unseen(
    random: np.random.Generator,
    count: tuple[int, ...],
    change: Callable[[Scene], Scene | None],
    held: bool = False,
) -> Scene:
    """Draw scenes and change them (None: not of use) until one falls into the test split.

    Held-out pairs are in it if ``held``, else not: each set has one difficulty.
    """
    while True:
        spec = change(draw(random, count))
        if spec and split_of(spec) == "test" and held_out(spec) == held:
            return spec


def asked(objects: list[dict], **stated) -> dict:
    """A probe's ask: the objects and what else is stated."""
    nothing = {"relation": None, "count": None, "word": None, "background": None}
    return {"objects": objects, **nothing, **stated}


def named(*things: Thing) -> list[dict]:
    """What an ask says of objects that the prompt calls by colour and shape alone."""
    return [{"colour": thing.colour, "shape": thing.shape} for thing in things]


def brief(thing: Thing) -> str:
    """An object called by colour and shape alone: "a red circle"."""
    return article(full_phrase(thing, form=BRIEF))


def _described(prompt: str, spec: Scene) -> Probe:
    """A probe whose prompt states every fact, places by their names or by a relation."""
    objects = spec.facts()["objects"]
    if any(f"{at} the {objects[0]['place']}" in prompt for at in ("at", "in")):
        relation = None
    else:
        first, second = (thing.pop("place") for thing in objects)
        relation = (0, AXIS[RELATION[first, second]], 1)
    ask = asked(objects, relation=relation, word=spec.word, background=spec.background)
    return Probe(prompt, spec, ask)


def _three(index: int, seed: int, random: np.random.Generator) -> Probe:
    """Three objects of different shapes; arms are trained on one or two."""

    def different(spec: Scene) -> Scene | None:
        return spec if len({thing.shape for thing in spec.objects}) == 3 else None

    spec = unseen(random, (3,), different)
    return _described(descriptive_caption(spec, random), spec)


def _combinations(index: int, seed: int, random: np.random.Generator) -> Probe:
    """The main object is of a colour and a shape that never met in training."""
    colour, shape = HELD_OUT_PAIRS[index % len(HELD_OUT_PAIRS)]

    def recoloured(spec: Scene) -> Scene:
        main = spec.main()
        paired = replace(main, colour=colour, shape=shape)
        return replace(spec, objects=tuple(paired if o is main else o for o in spec.objects))

    spec = unseen(random, (1, 2), recoloured, held=True)
    return _described(descriptive_caption(spec, random), spec)


def _phrasings(index: int, seed: int, random: np.random.Generator) -> Probe:
    """Scene ``index`` of the test split, so that it can be paired with its usual captions."""
    spec = scene("test", index, seed)
    return _described(reworded_caption(spec, random), spec)


def _spatial(index: int, seed: int, random: np.random.Generator) -> Probe:
    """Two objects of different shapes and one of the four relations, in turn."""
    places, between = tuple(RELATION.items())[index % 2]
    backwards = index % 4 > 1  # the prompt begins with the second object

    def apart(spec: Scene) -> Scene | None:
        first, second = spec.objects
        fits = (first.place, second.place) == places and first.shape != second.shape
        return replace(spec, word=None) if fits else None

    spec = unseen(random, (2,), apart)
    told = spec.objects[::-1] if backwards else spec.objects
    relation = (1, AXIS[between], 0) if backwards else (0, AXIS[between], 1)
    words = INVERSE[between] if backwards else between
    prompt = f"{brief(told[0])} {words} {brief(told[1])}."
    return Probe(prompt, spec, asked(named(*told), relation=relation))


def _counting(index: int, seed: int, random: np.random.Generator) -> Probe:
    """One, two or three objects of the same kind, in turn."""
    count = index % 3 + 1

    def alike(spec: Scene) -> Scene:
        first = spec.objects[0]
        objects = (replace(first, place=o.place, dx=o.dx, dy=o.dy) for o in spec.objects)
        return replace(spec, objects=tuple(objects), word=None)

    spec = unseen(random, (count,), alike)
    phrase = full_phrase(spec.objects[0], plural=count > 1, form=BRIEF)
    ask = asked(named(*spec.objects), count=count)
    return Probe(f"{NUMBERS[count]} {phrase}.", spec, ask)


def _text(index: int, seed: int, random: np.random.Generator) -> Probe:
    """One object and a printed word, known and never printed words in turn."""
    word = pick((WORDS, HELD_OUT_WORDS)[index % 2], random)

    def labelled(spec: Scene) -> Scene | None:  # a word takes the room of top and bottom
        return replace(spec, word=word) if spec.objects[0].place not in ROW else None

    spec = unseen(random, (1,), labelled)
    prompt = f"{brief(spec.objects[0])}. {pick(NOTES, random).format(word)}"
    return Probe(prompt, spec, asked(named(*spec.objects), word=word))


_SETS = {
    "three": _three,
    "combinations": _combinations,
    "phrasings": _phrasings,
    "spatial": _spatial,
    "counting": _counting,
    "text": _text,
}
PROBES = tuple(_SETS)


def probe(name: str, count: int, seed: int = 0) -> list[Probe]:
    """The first ``count`` probes of a set, the same ones for the same name and seed.

    ``name`` is one of ``PROBES``: "three" objects, "combinations" of colour and shape held out of
    training, "phrasings" held out of training captions, "spatial" relations, "counting" to three
    and "text". Raises UserError for another name.
    """
    if name not in _SETS:
        raise UserError(f"There is no probe set {name!r}: choose one of {', '.join(PROBES)}.")
    return [_SETS[name](i, seed, rng(seed, f"probe/{name}", i)) for i in range(count)]
