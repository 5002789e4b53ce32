"""What becomes of a prompt's facts: kept, contradicted, left out, and what is invented besides."""

from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle3lib import prompt_facts
from dalle3lib.prompt_facts import facts_of, fates
from dalle3lib.randomness import rng
from dalle3lib.world import World, scene

WORLD = World("dev", 200)
KEPT, WRONG, LOST = prompt_facts.FATES


def test_the_facts_of_a_text():
    said = 'a large striped red circle above a small star. behind, there is snow. it says "cat".'
    assert facts_of(said) == {
        "background": "snow",
        "objects": [
            {"size": "large", "texture": "striped", "colour": "red", "shape": "circle",
             "place": "top"},
            {"size": "small", "shape": "star", "place": "bottom"},
        ],
        "word": "cat",
    }  # fmt: skip
    assert facts_of("Home page") == {"background": None, "objects": [], "word": None}


@settings(max_examples=40)
@given(st.integers(0, 199))
def test_a_descriptive_caption_states_the_facts_of_its_scene(index):
    facts, (_, short, descriptive) = scene("dev", index).facts(), WORLD.captions(index)
    said = facts_of(descriptive)
    assert said["background"] == facts["background"] and said["word"] == facts["word"]
    key = str
    assert sorted(said["objects"], key=key) != [] and len(said["objects"]) == len(facts["objects"])
    for found in (said, facts):  # so it keeps what the short caption of the same scene states
        counts = fates(short, found)
        assert counts and {fate for _, fate in counts} == {KEPT}
        assert prompt_facts.whole(short, found) == 1


@pytest.mark.parametrize(
    "prompt, text, expected",
    [
        ("a red circle.", "a small red circle at the top.", {("shape", KEPT), ("colour", KEPT)}),
        ("a red circle.", "a blue circle, on snow.", {("shape", KEPT), ("colour", WRONG)}),
        ("a red circle.", "a circle, on snow.", {("shape", KEPT), ("colour", LOST)}),
        ("a red circle.", "Home page", {("shape", LOST), ("colour", LOST)}),
        ("a circle, on snow.", "a circle, on sand.", {("shape", KEPT), ("background", WRONG)}),
        ("a circle, on snow.", "a circle.", {("shape", KEPT), ("background", LOST)}),
        # a value of another object does not count
        ("a red circle.", "a blue circle and a red star.", {("shape", KEPT), ("colour", WRONG)}),
    ],
)
def test_fates_by_hand(prompt, text, expected):
    assert fates(prompt, facts_of(text)) == Counter(expected)


def test_two_of_a_kind_are_two_objects():
    one, two = (facts_of(t) for t in ("a red circle.", "two red circles side by side."))
    assert fates("two red circles.", one) == {
        ("shape", KEPT): 1, ("shape", LOST): 1, ("colour", KEPT): 1, ("colour", LOST): 1,
    }  # fmt: skip
    assert prompt_facts.whole("two red circles.", one) == 0.5
    assert not prompt_facts.repeats("two red circles.", two)
    assert prompt_facts.repeats("a red circle.", two)
    assert not prompt_facts.repeats("a blue circle.", two)
    assert prompt_facts.agree("two red circles.", "two red circles side by side.")
    assert not prompt_facts.agree("a red circle.", "two red circles side by side.")
    assert not prompt_facts.agree("two red circles.", "a red circle.")
    assert not prompt_facts.agree("Home page", "a red circle.")  # it states nothing


def test_an_object_is_whole_with_all_that_is_said_of_it():
    text = facts_of("a striped red circle and a plain blue star.")
    assert prompt_facts.whole("a striped red circle.", text) == 1
    assert prompt_facts.whole("a striped red circle and a red star.", text) == 0.5
    assert prompt_facts.whole("a plain red circle.", text) == 0
    assert pd.isna(prompt_facts.whole("Home page", text))


def test_shares_by_hand():
    prompts = ["a red circle.", "a red circle.", "a blue star."]
    texts = ["a red circle.", "a green circle.", "a square."]
    table = prompt_facts.shares(
        prompt_facts.table(prompts, [facts_of(t) for t in texts]), rng(0, "x")
    )
    assert table.loc["shape", ["facts", KEPT, WRONG, LOST]].tolist() == [3, 2 / 3, 1 / 3, 0]
    assert table.loc["colour", ["facts", KEPT, WRONG, LOST]].tolist() == [3, 1 / 3, 1 / 3, 1 / 3]
    assert table.loc["all", KEPT] == 0.5 and pd.isna(table.loc["size", KEPT])
    assert (table[f"{KEPT} low"].dropna() <= table[KEPT].dropna()).all()


@settings(max_examples=40)
@given(st.integers(0, 199), st.integers(0, 199))
def test_every_fact_has_one_fate(i, j):
    prompt, text = WORLD.captions(i)[2], WORLD.captions(j)[2]
    stated = prompt_facts.stated({"x": [prompt]}).loc["x"].drop(["words", "objects"])
    counts = fates(prompt, facts_of(text))
    assert counts.total() == stated.sum()
    assert fates(prompt, facts_of(prompt)).keys() == {(a, KEPT) for a, n in stated.items() if n}


def test_inventions_by_hand():
    text = "a large red circle to the left of a small blue star. the background is snow."
    assert prompt_facts.invented("a red circle.", text) == {
        ("size", "large"): 1, ("place", "left"): 1, ("shape", "star"): 1, ("colour", "blue"): 1,
        ("size", "small"): 1, ("place", "right"): 1, ("background", "snow"): 1,
        ("printed word", "none"): 1, ("objects", "2"): 1,
    }  # fmt: skip
    assert ("background", "snow") not in prompt_facts.invented("a red circle on snow.", text)
    assert ("size", "large") not in prompt_facts.invented("a small red circle.", text)


def test_distance_of_distributions():
    prompts = ["a red circle."] * 2
    snow, sand = (prompt_facts.distribution(prompts, [t] * 2) for t in ("on snow", "on sand"))
    mixed = prompt_facts.distribution(prompts, ["on snow", "on sand"])
    assert mixed["background", "snow"] == 0.5
    assert prompt_facts.distance(snow, snow)["background"] == 0
    assert prompt_facts.distance(snow, sand)["background"] == 1
    assert prompt_facts.distance(snow, mixed)["background"] == 0.5
    shares, distances = prompt_facts.inventions(
        ["a circle."], ["a circle on snow."], ["a circle."] * 3, ["a circle on sand."] * 3
    )
    assert shares.loc[("background", "snow")].tolist() == [1, 0]
    assert distances.loc["background"].tolist() == [1, 0]


def test_texts_that_look_like_the_examples():
    examples = ["a large red circle on snow.", "a star."]
    good, strange, long, loose = (
        "a large red star on snow.", "a huge star.", "a a red red red star star on snow.",
        "large, on snow.",
    )  # fmt: skip
    assert set(prompt_facts.like([good], examples).values()) == {1.0}
    assert prompt_facts.like([strange], examples)["words known"] == 0
    assert prompt_facts.like([long], examples)["length known"] == 0
    assert prompt_facts.like([loose], examples)["read whole"] == 0
    assert prompt_facts.like([good, strange], examples)["all"] == 0.5
