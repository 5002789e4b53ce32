"""Grounding: boxes, which word names what, where it looks, and what it loses."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dalle3lib.caption_attention import Word
from dalle3lib.evals import grounding
from dalle3lib.images import Record
from dalle3lib.randomness import rng
from dalle3lib.world import Scene, Thing, World, render

TWO = Scene(
    "grass",
    (
        Thing("circle", "red", "plain", "large", "left"),
        Thing("star", "blue", "dotted", "small", "right", 1, -1),
    ),
    "go",
)
ONE = Scene("snow", (Thing("heart", "pink", "plain", "small", "centre"),))


def record(spec: Scene) -> Record:
    return Record("key", render(spec), "alt", facts=spec.facts())


def spoken(text: str) -> list[Word]:
    """Words of one token each."""
    return [Word(word, [place]) for place, word in enumerate(text.split(), 1)]


def test_a_box_covers_shares_of_patches():
    box = slice(8, 24), slice(0, 12)
    expected = np.zeros((8, 8))
    expected[1:3, 0], expected[1:3, 1] = 1, 0.5
    np.testing.assert_allclose(grounding.covered(box, 8, 8), expected)


@given(
    st.tuples(st.integers(0, 64), st.integers(0, 64)).map(sorted),
    st.tuples(st.integers(0, 64), st.integers(0, 64)).map(sorted),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_the_mean_of_what_is_covered_is_the_area(rows, columns, down, across):
    found = grounding.covered((slice(*rows), slice(*columns)), down, across)
    assert found.shape == (down, across) and found.min() >= 0 and found.max() <= 1 + 1e-9
    area = (rows[1] - rows[0]) * (columns[1] - columns[0]) / 64**2
    assert found.mean() == pytest.approx(area)


def test_an_object_lies_in_its_box_and_leaves_with_it():
    for index in range(40):
        spec = World("dev", 40).scene(index)
        for gone in range(len(spec.objects)):
            rest = spec.objects[:gone] + spec.objects[gone + 1 :]
            bare = render(Scene(spec.background, rest, spec.word))
            assert (grounding.without(record(spec), gone) == bare).all()


@pytest.mark.parametrize(
    ("caption", "colour", "shape"),
    [
        ("a red circle and a blue star", [(1, 0), (5, 1)], [(2, 0), (6, 1)]),
        ("two circles of green", [], [(1, 0)]),  # green is wrong; a plural names too
        ("a red thing near a red circle", [], [(6, 0)]),  # which red?
        ('a star saying "red"', [], [(1, 1)]),  # quoted, it is no colour
    ],
)
def test_which_word_names_which_object(caption, colour, shape):
    facts = TWO.facts()
    assert grounding.naming(spoken(caption), facts, "colour") == colour
    assert grounding.naming(spoken(caption), facts, "shape") == shape


def test_a_value_of_both_objects_names_neither():
    both = Scene("sand", (TWO.objects[0], Thing("star", "red", "plain", "large", "right")))
    assert grounding.naming(spoken("a red star"), both.facts(), "colour") == []
    assert grounding.naming(spoken("a red star"), both.facts(), "shape") == [(2, 1)]


def test_where_a_word_looks_by_hand():
    patches = torch.zeros(3, 2, 2)  # quarters of the picture; "red" at left, "star" at right
    patches[0] = 0.25
    patches[1] = torch.tensor([[0.3, 0.1], [0.2, 0.0]])  # sums to 0.6: the rest is class token
    patches[2] = torch.tensor([[0.0, 0.5], [0.0, 0.5]])
    spec = Scene("sand", TWO.objects)
    words = spoken("a red star")
    (red,) = grounding.look(words, patches, spec.facts(), "colour")
    # boxes: rows 16 to 48, and the left or right half: half of each quarter on that side
    assert red["word"] == 1 and red["thing"] == 0 and red["by area"] == pytest.approx(0.25)
    assert red["named"] == pytest.approx(0.5 * 0.5 / 0.6)
    assert red["other object"] == pytest.approx(0.5 * 0.1 / 0.6)
    assert red["other words"] == pytest.approx((0.25 + 0) / 2)
    (star,) = grounding.look(words, patches, spec.facts(), "shape")
    assert star["named"] == pytest.approx(0.5) and star["other object"] == 0


def test_even_attention_is_at_the_area():
    seen = [record(TWO), record(ONE), record(ONE)]
    said = [spoken("a red circle"), spoken("a pink heart"), []]
    table = grounding.grounding(said, torch.full((3, 3, 8, 8), 1 / 64), seen)
    assert table["picture"].tolist() == [0, 0, 1, 1]
    assert table["objects"].tolist() == [2, 2, 1, 1]
    assert table["attribute"].tolist() == ["colour", "shape"] * 2
    np.testing.assert_allclose(table[["named", "other words", "by area"]], 0.25)
    assert table["other object"].isna().tolist() == [False, False, True, True]


def brightness(monkeypatch):
    """A captioner for which a token at place p is p times as probable as the picture is bright."""

    def log_probabilities(model, images, tokens):
        bright = images.double().mean(dim=(1, 2, 3))
        return bright[:, None] * torch.arange(1.0, tokens.shape[1])

    known = SimpleNamespace(
        pixels=lambda model, images: torch.from_numpy(images),
        token_log_probabilities=log_probabilities,
    )
    monkeypatch.setattr(grounding, "captioner", known)


def test_what_a_word_loses_without_its_object(monkeypatch):
    brightness(monkeypatch)
    seen = [record(ONE), record(TWO)]
    said = [[Word("pink", [1]), Word("heart", [2, 3])], spoken("a blue star")]
    tokens = torch.zeros(2, 5, dtype=torch.long)
    table = grounding.grounding(said, torch.full((2, 4, 8, 8), 1 / 64), seen)
    found = grounding.removal(None, tokens, said, seen, table)
    light = [r.image.mean() for r in seen]
    heart = light[0] - grounding.without(seen[0], 0).mean()
    circle, star = (light[1] - grounding.without(seen[1], i).mean() for i in (0, 1))
    assert found["attribute"].tolist() == ["colour", "shape", "colour", "shape"]
    expected = [[heart, np.nan], [(2 + 3) * heart, np.nan], [2 * star, 2 * circle]]
    expected.append([3 * star, 3 * circle])
    np.testing.assert_allclose(found[grounding.LOSSES], expected)
    assert found.drop(columns=grounding.LOSSES).equals(table)


def test_nothing_named_is_an_empty_table(monkeypatch):
    brightness(monkeypatch)
    tokens = torch.zeros(1, 3, dtype=torch.long)
    table = grounding.grounding([[]], torch.ones(1, 2, 8, 8), [record(ONE)])
    table = grounding.removal(None, tokens, [[]], [record(ONE)], table)
    found = grounding.summary(table, grounding.SHARES + grounding.LOSSES, rng(0, "test"))
    assert len(table) == len(found) == 0


def test_a_picture_counts_once():
    table = pd.DataFrame(
        {
            "picture": [0, 0, 1, 2],
            "objects": [2, 2, 2, 1],
            "attribute": ["colour"] * 4,
            "named": [0.0, 1.0, 0.9, 0.3],
            "other object": [0.1, 0.1, 0.3, np.nan],
        }
    )
    found = grounding.summary(table, ["named", "other object"], rng(0, "test"))
    two, one = found.loc[(2, "colour")], found.loc[(1, "colour")]
    assert two["words"] == 3 and two["pictures"] == 2
    assert two["named"] == pytest.approx(0.7) and two["other object"] == pytest.approx(0.2)
    assert 0.5 <= two["low named"] <= 0.7 <= two["high named"] <= 0.9
    assert one["named"] == pytest.approx(0.3)
    assert np.isnan(one["low named"]) and np.isnan(one["other object"])
