"""A DrawBench of the world: prompts in eight of its eleven categories, each with exact truth.

Eight categories name a difficulty, and the world has each of them:

- Colors: one object of a colour, or two of different colours.
- Conflicting: a colour and a shape that no training picture shows together.
- Counting: one to three of the same kind.
- Descriptions: every fact of a scene, in sentences that no training caption is built like.
- Misspellings: two words of a phrase with letters dropped, doubled or swapped.
- Positional: where two objects are to each other.
- Rare Words: a colour or shape by a name that occurs in no caption of the world.
- Text: a printed word, known or never printed.

The other three, "DALL-E", "Gary Marcus et al." and "Reddit", say where prompts were collected and
not what is hard about them, so there is nothing to imitate. The eight have their original sizes in
proportion. All scenes are of the test split.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import count as numbers

import numpy as np

from dalle3lib import UserError
from dalle3lib.randomness import rng
from dalle3lib.world.language import article, full_phrase, pick
from dalle3lib.world.prompts import Probe, asked, brief, named, probe
from dalle3lib.world.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    scene,
)

# How many prompts DrawBench has of these categories, 132 together (Saharia et al. 2022, table A.1).
SIZES_THERE = {
    "Colors": 25, "Conflicting": 10, "Counting": 19, "Descriptions": 20, "Misspellings": 10,
    "Positional": 20, "Rare Words": 7, "Text": 21,
}  # fmt: skip
RARE = {  # other names of colours and shapes; none of them is in a caption
    "red": "crimson", "orange": "tangerine", "yellow": "citrine", "green": "emerald",
    "blue": "azure", "purple": "violet", "pink": "roseate", "brown": "umber",
    "circle": "disc", "square": "quadrate", "triangle": "trigon", "diamond": "rhombus",
    "star": "pentagram", "cross": "rood", "heart": "cardioid", "moon": "crescent",
}  # fmt: skip


def _colors(index: int, seed: int, random: np.random.Generator) -> Probe:
    """One object and two of different colours, in turn."""
    while True:
        spec = scene("test", int(random.integers(2**31)), seed, (index % 2 + 1,))
        if len({thing.colour for thing in spec.objects}) == len(spec.objects):
            said = " and ".join(map(brief, spec.objects))
            return Probe(f"{said}.", spec, asked(named(*spec.objects)))


def _conflicting(index: int, seed: int, random: np.random.Generator) -> Probe:
    """A held-out pair alone, then with the background: there are but eight such pairs."""
    spec = _nth("combinations", index, seed).scene
    main = spec.main()
    if index < len(SHAPES):
        return Probe(f"{brief(main)}.", spec, asked(named(main)))
    ask = asked(named(main), background=spec.background)
    return Probe(f"{brief(main)} in front of {spec.background}.", spec, ask)


def _misspellings(index: int, seed: int, random: np.random.Generator) -> Probe:
    """A phrase of which the colour and the shape are misspelt."""
    spec = scene("test", int(random.integers(2**31)), seed, (1,))
    thing = spec.objects[0]
    wrong = {name: misspelt(getattr(thing, name), random) for name in ("colour", "shape")}
    ask = asked(named(thing))
    ask["objects"][0] |= {"size": thing.size, "texture": thing.texture}
    return Probe(f"{article(full_phrase(replace(thing, **wrong)))}.", spec, ask)


def _rare(index: int, seed: int, random: np.random.Generator) -> Probe:
    """One rare word: a shape's and a colour's in turn."""
    spec = scene("test", int(random.integers(2**31)), seed, (1,))
    thing = spec.objects[0]
    name = ("shape", "colour")[index % 2]
    renamed = replace(thing, **{name: RARE[getattr(thing, name)]})
    return Probe(f"{brief(renamed)}.", spec, asked(named(thing)))


@cache
def _first(name: str, count: int, seed: int) -> list[Probe]:
    return probe(name, count, seed)


def _nth(name: str, index: int, seed: int) -> Probe:
    """Probe ``index`` of a set; they are made by 50, because a set is made from its first on."""
    return _first(name, 50 * (index // 50 + 1), seed)[index]


def _of_set(name: str) -> Callable[[int, int, np.random.Generator], Probe]:
    return lambda index, seed, random: _nth(name, index, seed)


_MAKERS: dict[str, Callable[[int, int, np.random.Generator], Probe]] = {
    "Colors": _colors,
    "Conflicting": _conflicting,
    "Counting": _of_set("counting"),
    "Descriptions": _of_set("phrasings"),
    "Misspellings": _misspellings,
    "Positional": _of_set("spatial"),
    "Rare Words": _rare,
    "Text": _of_set("text"),
}
CATEGORIES = tuple(_MAKERS)
# The world's words for facts; of them the right one is nearest to a misspelt word.
VOCABULARY = (*COLOURS, *SHAPES, *TEXTURES, *SIZES, *BACKGROUNDS, *WORDS)


def misspelt(word: str, random: np.random.Generator) -> str:
    """The word with one typing error, first letter kept: a letter dropped, doubled or two swapped.

    It is no word of ``VOCABULARY``, and the nearest one there is ``word``. Words of four
    letters and fewer lose none, for what is left is often another word ("pin").
    """
    slips = []
    for i in range(1, len(word)):
        slips += [word[:i] + word[i + 1 :]] if len(word) > 4 else []
        slips += [word[: i + 1] + word[i:]]
        slips += [word[:i] + word[i + 1] + word[i] + word[i + 2 :]] if i + 1 < len(word) else []
    wrong = [s for s in dict.fromkeys(slips) if s not in VOCABULARY and nearest(s) == word]
    return pick(wrong, random)


def nearest(word: str) -> str:
    """The word of ``VOCABULARY`` that is most like this one (``difflib``'s ratio)."""
    return difflib.get_close_matches(word, VOCABULARY, 1, 0)[0]


def shares(count: int) -> dict[str, int]:
    """How many of ``count`` prompts each category gets: in proportion, by largest remainder."""
    total = sum(SIZES_THERE.values())
    exact = {name: count * size / total for name, size in SIZES_THERE.items()}
    given = {name: int(share) for name, share in exact.items()}
    left = sorted(exact, key=lambda name: given[name] - exact[name])[: count - sum(given.values())]
    return {name: n + (name in left) for name, n in given.items()}


def _distinct(name: str, seed: int) -> Iterator[Probe]:
    """The prompts of a category without end, none twice."""
    seen: set[str] = set()
    for index in numbers():
        made = _MAKERS[name](index, seed, rng(seed, f"drawbench/{name}", index))
        if made.prompt not in seen:
            seen.add(made.prompt)
            yield made


def prompts(count: int = 200, seed: int = 0) -> list[tuple[str, Probe]]:
    """``count`` prompts with their categories, category by category, the same for the same seed.

    Each probe's scene satisfies its ask. A smaller set has the first prompts of each category, so
    it is part of a larger one. Raises UserError if a category would be empty.
    """
    given = shares(count)
    if empty := [name for name, n in given.items() if n < 1]:
        raise UserError(f"{count} prompts leave none for {', '.join(empty)}: ask for 20 or more.")
    return [
        (name, made)
        for name, n in given.items()
        for _, made in zip(range(n), _distinct(name, seed), strict=False)
    ]
