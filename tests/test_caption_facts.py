"""What captions state is read with its object, and marked as one would by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle3lib import UserError
from dalle3lib.caption_facts import (
    ATTRIBUTES,
    LOOSE,
    coverage,
    faults,
    mark,
    names_subject,
    parse,
    rates,
    stated,
    subject_only,
    tally,
)
from dalle3lib.images import Record
from dalle3lib.randomness import rng
from dalle3lib.world import Scene, Thing, World, alt_text, scene

CROSS = {"shape": "cross", "colour": "red", "texture": "plain", "size": "large", "place": "left"}
MOON = {"shape": "moon", "colour": "blue", "texture": "plain", "size": "large", "place": "right"}
FACTS = {"background": "snow", "objects": [CROSS, MOON], "word": "sky"}
NOTHING = dict.fromkeys(ATTRIBUTES, 0)


def said(text: str) -> list[dict]:
    """The objects that a text states, each as a mapping from attribute to value."""
    return [{s.attribute: s.value for s in statements} for statements in parse(text).objects]


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("a small checkered cross in red", [{"size": "small", "texture": "checkered",
                                             "colour": "red", "shape": "cross"}]),
        ("stars which are large, blue and plain", [{"size": "large", "colour": "blue",
                                                    "texture": "plain", "shape": "star"}]),
        ("IMG_12_Pink_Heart_left.jpg", [{"colour": "pink", "shape": "heart", "place": "left"}]),
        ("a heart with a dotted texture in the centre", [{"texture": "dotted", "shape": "heart",
                                                          "place": "centre"}]),
        ("a star to the right of a moon", [{"shape": "star", "place": "right"},
                                           {"shape": "moon", "place": "left"}]),
        ("a star above\n a moon", [{"shape": "star", "place": "top"},
                                   {"shape": "moon", "place": "bottom"}]),
        ("two red moons side by side", [{"colour": "red", "shape": "moon", "place": "left"},
                                        {"colour": "red", "shape": "moon", "place": "right"}]),
        ("a moon at the top left", [{"shape": "moon", "place": "top left"}]),
        ("moonshine, crossing", []),
        ('"red moon"', []),
    ],
)  # fmt: skip
def test_objects_by_hand(text, objects):
    assert said(text) == objects


def test_scene_and_loose_values_by_hand():
    found = parse('Red, a moon. Behind, there is snow, snow. Below, it says "Sky')
    assert [s[:2] for s in found.scene] == [("background", "snow"), ("printed word", "sky")]
    assert [s[:2] for s in found.loose] == [("colour", "red")]
    assert [s[:2] for s in parse("a moon above snow").loose] == [("place", "above")]
    for note in ('the text at the bottom is "go".', 'below, it says "go".'):
        assert not parse(f"a moon. {note}").loose


@given(st.text())
def test_any_text_can_be_read(text):
    found = parse(text + " red moon " + text)
    spans = [s for statements in found.objects for s in statements] + found.scene + found.loose
    assert all(0 <= s.start <= s.end <= 2 * len(text) + 10 for s in spans)


def test_positions_are_those_of_the_text():
    text = 'İ Two RED Moons one above the other on "Sky"'  # the first letter grows in lower case
    first, second = parse(text).objects
    at = {s.attribute: text[s.start : s.end] for s in first}
    assert at == {"colour": "RED", "shape": "Moon", "place": "one above the other"}
    assert {text[s.start : s.end] for s in second} == {"Two", "one above the other"}


# --- marking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Click to enlarge", {}),
        ("Large red cross", {"size": 0.5, "colour": 0.5, "shape": 0.5}),
        ("IMG_0042_blue_moon_snow.jpg", {"colour": 0.5, "shape": 0.5, "background": 1}),
        ("two crosses, two moons", {"shape": 1}),
        ("a cross to the left of a moon", {"shape": 1, "place": 1}),
        ("a moon to the left of a cross", {"shape": 1}),
        ("a blue cross and a red moon", {"shape": 1}),  # both colours are there, but elsewhere
        ("a large plain blue cross", {"size": 0.5, "texture": 0.5, "shape": 0.5}),  # not the moon
        ('it says "sky".', {"printed word": 1}),
        ("the sky", {}),  # not quoted, hence no printed word
    ],
)
def test_stated_by_hand(text, expected):
    assert stated(text, FACTS) == NOTHING | expected


@pytest.mark.parametrize(
    ("text", "false"),
    [
        ("a large red cross on snow", []),
        ("a large red heart on sand", ["heart", "sand"]),
        ("a blue cross and a red moon", ["blue", "red"]),
        ("a small star, a cross and a moon", ["small", "star"]),  # one object too many
        ("two crosses", ["two"]),  # the second is not there
        ('a cross. "no" is printed at the bottom.', ["no"]),
        ("blue and striped", ["blue", "striped"]),  # said of nothing
        ("a moon to the left of a cross", ["to the left of", "to the left of"]),
    ],
)
def test_what_is_false_by_hand(text, false):
    marks = mark(text, FACTS)
    assert [text[s.start : s.end] for s in marks.false] == false
    assert marks.stated.total() == marks.right.total() + len(false)


def test_a_picture_without_a_printed_word_has_no_such_fact():
    facts = FACTS | {"word": None}
    assert "printed word" not in stated("x", facts)
    assert mark('a cross. it says "sky"', facts).false[0].value == "sky"


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from([0, 0.5, 0.75]))
def test_counts_hold_together_for_any_caption_of_any_picture(i, j, noise):
    world = World("train", 10**6 + 1)
    texts = [*world.captions(j), alt_text(scene("train", j), noise, rng(0, "alt", j))]
    for text in texts:
        marks = mark(text, scene("train", i).facts())
        assert all(marks.told[a] <= marks.held[a] for a in (*ATTRIBUTES, LOOSE))
        assert all(marks.right[a] <= marks.stated[a] for a in (*ATTRIBUTES, LOOSE))
        assert len(marks.false) == marks.stated.total() - marks.right.total()


def test_the_main_subject_needs_its_own_colour():
    assert names_subject("a cross in red", FACTS) and names_subject("two red crosses", FACTS)
    for text in ("a blue cross", "a blue moon", "a cross", "red", "a red moon and a blue cross"):
        assert not names_subject(text, FACTS)
    small = FACTS | {"objects": [CROSS | {"size": "small"}, MOON]}
    assert names_subject("blue moon", small) and not names_subject("red cross", small)
    assert subject_only(small) == FACTS | {"objects": [MOON]}


# --- many captions -------------------------------------------------------------------------------


def test_rates_by_hand():
    texts = ["a red cross, on sand", "a cross and a blue star", "nothing"]
    table = tally(texts, [FACTS] * 3)
    found = rates(table, rng(0, "rates"))
    assert found.loc["shape", ["recall", "precision"]].tolist() == [2 / 6, 2 / 3]
    assert found.loc["colour", ["recall", "precision"]].tolist() == [2 / 6, 1]
    assert found.loc["background", ["recall", "precision"]].tolist() == [0, 0]
    assert found.loc["all", ["recall", "precision"]].tolist() == [4 / 36, 4 / 6]
    assert np.isnan(found.loc["size", ["precision", "precision low"]].astype(float)).all()
    for name in ("recall", "precision"):
        known = found.dropna()
        assert (known[f"{name} low"] <= known[name]).all()
        assert (known[name] <= known[f"{name} high"]).all()
    loose = rates(tally(["a cross", "red"], [FACTS] * 2), rng(0, "loose"))
    assert loose.loc["all", "precision"] == 1 / 2  # said of nothing, so not right


def record(alt, facts=FACTS, descriptive="d"):
    return Record("k", np.zeros((2, 2, 3), dtype=np.uint8), alt, None, descriptive, facts)


def test_coverage_averages_over_records():
    table = coverage([record("red cross"), record("red cross and blue moon on snow")])
    assert list(table.columns) == ["alt-text", "descriptive"]
    assert table.loc["colour", "alt-text"] == pytest.approx((0.5 + 1) / 2)
    assert table.loc["background", "alt-text"] == pytest.approx(0.5)
    assert (table["descriptive"] == 0).all()
    with pytest.raises(UserError, match="hold facts"):
        coverage([record("red"), record("red", facts=None)])


def test_faults_by_hand():
    star = FACTS | {"objects": [CROSS | {"shape": "star"}], "word": None}
    records = [record("IMG_1.JPG"), record("blue star"), record("star", star), record("Sale")]
    table = faults(records)
    assert list(table["alt-text"]) == ["IMG_1.JPG", "blue star", "star", "Sale"]
    assert list(table["is a file name"]) == [True, False, False, False]
    assert list(table["says nothing"]) == [True, False, False, True]
    assert list(table["names what is not there"]) == [False, True, False, False]
    assert table["facts stated"].tolist() == pytest.approx([0, 1 / 12, 1 / 6, 0])
    assert list(faults([record("x.png", facts=None)]).columns) == ["alt-text", "is a file name"]


def test_the_worlds_descriptive_captions_state_every_fact_and_nothing_false():
    records = list(World("dev", 150))
    table = coverage(records)
    assert (table["descriptive"] == 1).all()
    for kind in ("short", "descriptive"):
        assert not any(mark(getattr(r, kind), r.facts).false for r in records)
    # every attribute has a chance in the alt-text too: the comparison is open
    assert (table["alt-text"] > 0).all() and (table["alt-text"] < 0.9).all()


def test_three_objects_are_told_apart():
    places = ("top left", "top right", "bottom")
    things = [Thing("star", c, "plain", "small", p) for c, p in zip("abc", places, strict=True)]
    facts = Scene("snow", tuple(things)).facts()
    for thing, colour in zip(facts["objects"], ("red", "pink", "blue"), strict=True):
        thing["colour"] = colour
    text = "a blue star at the bottom, a pink star at the top right, a red star at the top left"
    marks = mark(text, facts)
    assert marks.false == [] and marks.told["place"] == marks.told["colour"] == 3
