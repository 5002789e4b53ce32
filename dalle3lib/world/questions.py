"""Questions about a scene with exact answers: what a judge is trained and tested on."""

from itertools import combinations
from typing import NamedTuple

import numpy as np

from dalle3lib.world.language import INVERSE, article, full_phrase, pick
from dalle3lib.world.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    WORD_SHARE,
    WORDS,
    Scene,
    Thing,
)

VALUES = {"size": SIZES, "texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}
NUMBERS = ("zero", "one", "two", "three")
ASKED_OF_ONE = {  # an attribute of the only object of a shape, asked for openly
    "colour": "what colour is the {}?",
    "texture": "what texture is the {}?",
    "size": "how large is the {}?",
    "place": "where is the {}?",
}
PHRASES = {  # the attributes that a phrase may name; their order is that of English
    "colour-shape": (("colour", "shape"),),
    "texture-shape": (("texture", "shape"),),
    "size-shape": (("size", "shape"),),
    "phrase": (
        ("size", "colour", "shape"),
        ("texture", "colour", "shape"),
        ("size", "texture", "shape"),
        ("size", "texture", "colour", "shape"),
    ),
}
KINDS = (*ASKED_OF_ONE, "shape", *PHRASES, "relation", "count", "background", "word", "reading")


class Question(NamedTuple):
    """What is asked, the true answer ("yes", "no", or one or two words) and the kind asked of."""

    text: str
    answer: str
    kind: str


def questions(spec: Scene, random: np.random.Generator) -> list[Question]:
    """The questions about one scene, each with its only true answer; ``KINDS`` lists their kinds.

    In each kind about half of the yes/no questions have the answer "no". Many of the phrases with
    a wrong attribute borrow it from another object of the scene. Attributes are asked only of a
    shape that occurs once.
    """
    asked = [
        *_phrases(spec, random),
        *_attributes(spec),
        *_relations(spec, random),
        *_counts(spec),
        *_background(spec, random),
        *_word(spec, random),
    ]
    return list(dict.fromkeys(asked))  # two objects may give rise to the same question


def _other(values: tuple[str, ...], value: str, random: np.random.Generator) -> str:
    """A value of the same attribute that is not ``value``."""
    return pick([v for v in values if v != value], random)


def _shows(spec: Scene, wanted: dict[str, str]) -> bool:
    """Whether an object of the scene has all the wanted attributes."""
    return any(all(getattr(o, a) == v for a, v in wanted.items()) for o in spec.objects)


def _false(
    spec: Scene, thing: Thing, attributes: tuple[str, ...], random: np.random.Generator
) -> dict[str, str]:
    """The thing's attributes with one of them changed so that no object of the scene has them all.

    Most tries borrow the value from another object, as in "a red square" of a red circle and
    a blue square: a wrong phrase of which everything, by itself, is in the picture.
    """
    others = [o for o in spec.objects if o is not thing]
    while True:
        wanted = {a: getattr(thing, a) for a in attributes}
        changed = pick(attributes, random)
        if others and random.random() < 0.7:
            wanted[changed] = getattr(pick(others, random), changed)
        else:
            wanted[changed] = pick(VALUES[changed], random)
        if not _shows(spec, wanted):
            return wanted


def _phrases(spec: Scene, random: np.random.Generator) -> list[Question]:
    """Is there a red circle? For each object one true phrase and one false phrase of every kind.

    Half of them come as the bare phrase, "a red circle?", as T2I-CompBench asks.
    """
    asked = []
    for kind, choices in PHRASES.items():
        for thing in spec.objects:
            attributes = pick(choices, random)
            true = {a: getattr(thing, a) for a in attributes}
            false = _false(spec, thing, attributes, random)
            for wanted, answer in ((true, "yes"), (false, "no")):
                frame = pick(("is there {}?", "{}?"), random)
                text = frame.format(article(" ".join(wanted.values())))
                asked.append(Question(text, answer, kind))
    return asked


def _attributes(spec: Scene) -> list[Question]:
    """What each object is, asked by place, and what it is like, asked by shape if there is one."""
    asked = []
    for thing in spec.objects:
        where = f"{'in' if thing.place == 'centre' else 'at'} the {thing.place}"
        asked.append(Question(f"which shape is {where}?", thing.shape, "shape"))
        if sum(o.shape == thing.shape for o in spec.objects) == 1:
            asked += [
                Question(text.format(thing.shape), getattr(thing, kind), kind)
                for kind, text in ASKED_OF_ONE.items()
            ]
    return asked


def _name(spec: Scene, thing: Thing, random: np.random.Generator) -> str | None:
    """What tells an object from all others of the scene, with "the": shape, or colour and shape."""
    for attributes in (("shape",), ("colour", "shape")):
        phrase = [getattr(thing, a) for a in attributes]
        alone = sum([getattr(o, a) for a in attributes] == phrase for o in spec.objects) == 1
        if alone and (len(attributes) == 2 or random.random() < 0.5):
            return " ".join(["the", *phrase])
    return None


def _relations(spec: Scene, random: np.random.Generator) -> list[Question]:
    """Is the circle above the square? Both true statements on two objects and two false ones.

    One of the false ones turns the relation round, the other names the other axis.
    """
    asked = []
    for first, second in combinations(spec.objects, 2):
        a, b = (_name(spec, thing, random) for thing in (first, second))
        if not (a and b):
            continue
        along, across = ("above", "to the left of")[:: 1 if second.place == "bottom" else -1]
        true = [(a, along, b), (b, INVERSE[along], a)]
        turned = [(b, along, a), (a, INVERSE[along], b)]
        crossed = [(x, r, y) for x, y in ((a, b), (b, a)) for r in (across, INVERSE[across])]
        said = [(t, "yes") for t in true]
        said += [(pick(turned, random), "no"), (pick(crossed, random), "no")]
        asked += [Question(f"is {x} {r} {y}?", answer, "relation") for (x, r, y), answer in said]
    return asked


def _counts(spec: Scene) -> list[Question]:
    """How many objects there are, and how many of each shape that is shown."""
    asked = [Question("how many objects are there?", NUMBERS[len(spec.objects)], "count")]
    for thing in spec.objects:
        count = NUMBERS[sum(o.shape == thing.shape for o in spec.objects)]
        plural = full_phrase(thing, plural=True).split()[-1]
        asked.append(Question(f"how many {plural} are there?", count, "count"))
    return asked


def _background(spec: Scene, random: np.random.Generator) -> list[Question]:
    other = _other(BACKGROUNDS, spec.background, random)
    return [
        Question("what is the background?", spec.background, "background"),
        Question(f"is the background {spec.background}?", "yes", "background"),
        Question(f"is the background {other}?", "no", "background"),
    ]


def _word(spec: Scene, random: np.random.Generator) -> list[Question]:
    """Whether a word is printed, and which. Half of the wrong words are as long as the right one.

    Most scenes carry no word; asking only a share of them keeps yes and no in balance.
    """
    if spec.word is None:
        asked, share = [], WORD_SHARE / (1 - WORD_SHARE)
        if random.random() < share:
            asked.append(Question("is there a printed word?", "no", "word"))
        if random.random() < share / 2:
            asked.append(Question(f"is the word {pick(WORDS, random)} printed?", "no", "word"))
        return asked
    asked = [
        Question("is there a printed word?", "yes", "word"),
        Question("which word is printed?", spec.word, "reading"),
        Question(f"is the word {spec.word} printed?", "yes", "word"),
    ]
    if random.random() < 0.5:
        alike = tuple(w for w in WORDS if len(w) == len(spec.word))
        wrong = _other(pick((alike, WORDS), random), spec.word, random)
        asked.append(Question(f"is the word {wrong} printed?", "no", "word"))
    return asked
