"""Questions about a scene: the answers follow from the facts, in balance, with hard wrong ones."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle3lib.randomness import rng
from dalle3lib.world import Scene, Thing, questions
from dalle3lib.world.questions import KINDS, Question
from dalle3lib.world.scene import COLOURS, SHAPES, SIZES, TEXTURES, WORDS, draw

seeds = st.integers(0, 2**32)
scenes = st.builds(
    lambda seed, count: draw(rng(seed, "test"), (count,)), seeds, st.sampled_from([1, 2, 3])
)
ATTRIBUTE = {v: "size" for v in SIZES} | {v: "texture" for v in TEXTURES}
ATTRIBUTE |= {v: "colour" for v in COLOURS} | {v: "shape" for v in SHAPES}
HEIGHT = {"top": 0, "top left": 0, "top right": 0, "bottom": 2}  # all others: 1, downwards
COLUMN = {"left": 0, "top left": 0, "right": 2, "top right": 2}
SINGULAR = {shape + "s": shape for shape in SHAPES} | {"crosses": "cross"}


def random(seed: int = 0) -> np.random.Generator:
    return rng(seed, "test")


def asked(count: int) -> list[tuple[Scene, Question]]:
    specs = [draw(random(i)) for i in range(count)]
    return [(spec, q) for i, spec in enumerate(specs) for q in questions(spec, random(i))]


def fitting(phrase: str, things: list[dict]) -> list[dict]:
    """The things with all the attributes that a phrase names."""
    wanted = {ATTRIBUTE[word]: word for word in phrase.split()}
    return [t for t in things if wanted.items() <= t.items()]


def related(first: dict, relation: str, second: dict) -> bool:
    places = first["place"], second["place"]
    rows, columns = ([at.get(p, 1) for p in places] for at in (HEIGHT, COLUMN))
    return {
        "above": rows[0] < rows[1],
        "below": rows[0] > rows[1],
        "to the left of": rows[0] == rows[1] and columns[0] < columns[1],
        "to the right of": rows[0] == rows[1] and columns[0] > columns[1],
    }[relation]


def answer(question: str, facts: dict) -> str:
    """The answer read off the facts, with no code of the package."""
    things, word = facts["objects"], facts["word"]

    def yes(truth) -> str:
        return "yes" if truth else "no"

    def the(phrase: str) -> dict:
        (thing,) = fitting(phrase, things)  # exactly one
        return thing

    def number(found: list) -> str:
        return ("one", "two", "three")[len(found) - 1]

    rules = {
        r"how many objects are there": lambda: number(things),
        r"how many (\w+) are there": lambda shapes: number(fitting(SINGULAR[shapes], things)),
        r"what is the background": lambda: facts["background"],
        r"is the background (\w+)": lambda name: yes(name == facts["background"]),
        r"is there a printed word": lambda: yes(word),
        r"which word is printed": lambda: word,
        r"is the word (\w+) printed": lambda said: yes(said == word),
        r"what (colour|texture) is the (\w+)": lambda name, shape: the(shape)[name],
        r"how large is the (\w+)": lambda shape: the(shape)["size"],
        r"where is the (\w+)": lambda shape: the(shape)["place"],
        r"which shape is (?:at|in) the ([\w ]+)": lambda place: next(
            t["shape"] for t in things if t["place"] == place
        ),
        r"is the ([\w ]+?) (above|below|to the left of|to the right of) the ([\w ]+)": (
            lambda a, relation, b: yes(related(the(a), relation, the(b)))
        ),
        r"(?:is there )?an? ([\w ]+)": lambda phrase: yes(fitting(phrase, things)),
    }
    for pattern, rule in rules.items():
        if found := re.fullmatch(pattern + r"\?", question):
            return rule(*found.groups())
    raise AssertionError(f"no rule answers {question!r}")


@settings(max_examples=150)
@given(scenes, seeds)
def test_answers_follow_from_the_facts(spec, seed):
    found = questions(spec, random(seed))
    for text, said, kind in found:
        assert said == answer(text, spec.facts()), text
        assert text == text.lower() and kind in KINDS
        for article, letter in re.findall(r"\b(an?) (\w)", text):
            assert (article == "an") == (letter in "aeiou"), text
    assert len({q.text for q in found}) == len(found)  # no question twice
    assert questions(spec, random(seed)) == found  # a function of the generator's state


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        ("colour", "what colour is the"),
        ("texture", "what texture is the"),
        ("size", "how large is the"),
        ("place", "where is the"),
        ("shape", "which shape is at the"),
        ("colour-shape", "is there a red"),
        ("colour-shape", "an orange"),
        ("texture-shape", "is there a striped"),
        ("size-shape", "a large"),
        ("phrase", "is there a small dotted"),
        ("relation", "is the circle to the left of"),
        ("relation", "is the star above"),
        ("count", "how many objects"),
        ("count", "how many crosses"),
        ("background", "what is the background"),
        ("background", "is the background"),
        ("word", "is there a printed"),
        ("reading", "which word"),
        ("word", "is the word"),
    ],
)
def test_every_kind_of_question_is_asked(kind, start, everything):
    assert any(q.kind == kind and q.text.startswith(start) for _, q in everything)


@pytest.fixture(scope="module")
def everything() -> list[tuple[Scene, Question]]:
    return asked(800)


def test_yes_and_no_are_equally_frequent_in_every_kind(everything):
    counts = defaultdict(Counter)
    for _, (text, said, kind) in everything:
        if said in ("yes", "no") and kind != "reading":  # "no" may be printed
            counts[kind, "printed" in text and text.split()[2]][said] += 1
    assert {kind for kind, _ in counts} == {
        "colour-shape", "texture-shape", "size-shape", "phrase", "relation", "background", "word",
    }  # fmt: skip
    for kind, count in counts.items():
        wanted, n = 0.5, count.total()
        spread = 4 * (wanted * (1 - wanted) / n) ** 0.5
        assert abs(count["yes"] / n - wanted) < spread + 0.02, (kind, count)


def test_wrong_phrases_often_mix_what_is_there(everything):
    """A red circle and a blue square: "a red square?" names nothing that the picture lacks."""
    pairs = [
        (spec, q.text.rstrip("?").split()[-2:])
        for spec, q in everything
        if q.kind == "colour-shape" and q.answer == "no" and len(spec.objects) == 2
    ]
    mixed = [
        {o.colour for o in spec.objects} >= {colour} and {o.shape for o in spec.objects} >= {shape}
        for spec, (colour, shape) in pairs
    ]
    assert 0.4 < np.mean(mixed) < 0.7


def test_wrong_phrases_change_one_attribute(everything):
    for spec, (text, said, kind) in everything:
        if kind in ("colour-shape", "texture-shape", "size-shape", "phrase") and said == "no":
            words = re.sub(r"is there |\ban? |\?", "", text).split()
            near = [sum(getattr(o, ATTRIBUTE[w]) != w for w in words) for o in spec.objects]
            assert min(near) == 1, (spec, text)


def test_wrong_words_are_often_as_long_as_the_right_one():
    spec = Scene("snow", (Thing("star", "red", "plain", "large", "left"),), "fox")
    found = [q for i in range(400) for q in questions(spec, random(i)) if q.kind == "word"]
    wrong = [q.text.split()[3] for q in found if q.answer == "no"]
    assert 150 < len(wrong) < 250 and set(wrong) <= set(WORDS) - {"fox"}
    assert 0.5 < np.mean([len(word) == 3 for word in wrong]) < 0.85


def test_twins_are_asked_about_once():
    twin = Thing("star", "red", "plain", "large", "left")
    spec = Scene("snow", (twin, Thing("star", "red", "plain", "large", "right")))
    found = {q.text: q.answer for i in range(50) for q in questions(spec, random(i))}
    assert found["how many stars are there?"] == "two" == found["how many objects are there?"]
    assert found["a red star?"] == "yes" and found["which shape is at the left?"] == "star"
    assert not any("the star" in text or "above" in text for text in found)
