"""Probe prompts: what each set asks for, what satisfies it, and that training never shows it."""

import copy
import re
from collections import Counter

import pytest

from dalle3lib import UserError
from dalle3lib.randomness import rng
from dalle3lib.world import Probe, descriptive_caption, probe, satisfied, scene
from dalle3lib.world.prompts import HELD_OUT_WORDS, PROBES
from dalle3lib.world.scene import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    held_out,
    split_of,
)

COUNT = 48
VALUES = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES}


@pytest.fixture(scope="module")
def probes() -> dict[str, list[Probe]]:
    """The first probes of every set."""
    return {name: probe(name, COUNT) for name in PROBES}


def another(values: tuple[str, ...], value: str) -> str:
    return values[(values.index(value) + 1) % len(values)]


def facts(*things: tuple[str, str, str], background: str = "snow", word: str | None = None) -> dict:
    """What was read: (colour, shape, place) of each object."""
    objects = [
        {"shape": shape, "colour": colour, "texture": "plain", "size": "large", "place": place}
        for colour, shape, place in things
    ]
    return {"background": background, "objects": objects, "word": word}


def ask(*things: tuple[str, str], **stated) -> dict:
    nothing = {"relation": None, "count": None, "word": None, "background": None}
    return {"objects": [{"colour": c, "shape": s} for c, s in things], **nothing, **stated}


# ---- what satisfies an ask -----------------------------------------------------------------------


def test_objects_are_found_in_any_order_each_once():
    shown = facts(("blue", "star", "left"), ("red", "circle", "right"))
    assert satisfied(ask(("red", "circle"), ("blue", "star")), shown)
    assert satisfied(ask(("red", "circle")), shown)  # more than asked for does no harm
    assert not satisfied(ask(("red", "star")), shown)  # attributes belong to their object
    assert not satisfied(ask(("red", "circle"), ("red", "circle")), shown)  # there is only one
    assert not satisfied(ask(("red", "circle")), facts())


@pytest.mark.parametrize(
    ("first", "second", "left", "above"),
    [
        ("left", "right", True, False),
        ("right", "left", False, False),
        ("top", "bottom", False, True),
        ("bottom", "top", False, False),
        ("top left", "bottom", True, True),
        ("top left", "top right", True, False),
        ("centre", "right", True, False),
        ("top", "centre", False, True),
        ("centre", "centre", False, False),
    ],
)
def test_relations_by_places(first, second, left, above):
    shown = facts(("red", "circle", first), ("blue", "star", second))
    things = (("red", "circle"), ("blue", "star"))
    assert satisfied(ask(*things, relation=(0, "left of", 1)), shown) == left
    assert satisfied(ask(*things, relation=(0, "above", 1)), shown) == above
    assert satisfied(ask(*things[::-1], relation=(1, "left of", 0)), shown) == left


def test_a_relation_may_hold_for_one_of_several_like_objects():
    shown = facts(("red", "circle", "right"), ("blue", "star", "centre"), ("red", "circle", "left"))
    assert satisfied(ask(("red", "circle"), ("blue", "star"), relation=(0, "left of", 1)), shown)


def test_counts_are_exact_and_of_the_objects_asked_for():
    three = facts(
        ("red", "star", "top left"), ("red", "star", "top right"), ("red", "star", "bottom")
    )
    for count in (1, 2, 3):
        wanted = ask(*[("red", "star")] * count, count=count)
        assert satisfied(wanted, three) == (count == 3)
    beside = facts(("red", "star", "left"), ("blue", "star", "right"))
    assert satisfied(ask(("red", "star"), count=1), beside)


def test_backgrounds_and_words():
    shown = facts(("red", "star", "left"), background="sky", word="cat")
    assert satisfied(ask(("red", "star"), background="sky", word="cat"), shown)
    assert satisfied(ask(("red", "star")), shown)  # nothing is asked of either
    assert not satisfied(ask(("red", "star"), background="sand"), shown)
    assert not satisfied(ask(("red", "star"), word="cow"), shown)
    assert not satisfied(ask(("red", "star"), word="cat"), {**shown, "word": None})


# ---- the sets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBES)
def test_every_scene_satisfies_its_own_prompt_and_no_changed_one_does(probes, name):
    for one in probes[name]:
        read = one.scene.facts()
        assert satisfied(one.ask, read), one.prompt
        assert set(one.ask) == {"objects", "relation", "count", "word", "background"}
        for number in range(len(read["objects"])):
            main = {
                "colour": read["objects"][number]["colour"],
                "shape": read["objects"][number]["shape"],
            }
            assert any(main.items() <= wanted.items() for wanted in one.ask["objects"])
            fewer = copy.deepcopy(read)
            del fewer["objects"][number]
            assert not satisfied(one.ask, fewer), one.prompt
            stated = set().union(*one.ask["objects"]) & set(VALUES)
            for attribute in stated:
                other = copy.deepcopy(read)
                thing = other["objects"][number]
                thing[attribute] = another(VALUES[attribute], thing[attribute])
                assert not satisfied(one.ask, other), (one.prompt, other)
        for attribute, value in (("background", "nowhere"), ("word", "qqq")):
            if one.ask[attribute]:
                assert not satisfied(one.ask, {**read, attribute: value})


@pytest.mark.parametrize("name", ["three", "combinations", "phrasings", "spatial"])
def test_places_are_asked_by_name_or_by_relation(probes, name):
    for one in probes[name]:
        placed = ["place" in wanted for wanted in one.ask["objects"]]
        assert all(placed) != (one.ask["relation"] is not None) and len(set(placed)) == 1
        middle = one.scene.facts()
        for thing in middle["objects"]:
            thing["place"] = "nowhere"
        assert not satisfied(one.ask, middle)
        if not all(placed):  # the other way round
            middle["objects"] = one.scene.facts()["objects"]
            first, second = middle["objects"]
            first["place"], second["place"] = second["place"], first["place"]
            assert satisfied(one.ask, middle) == one.scene.twins()


@pytest.mark.parametrize("name", PROBES)
def test_asks_hold_what_the_prompt_states(probes, name):
    for one in probes[name]:
        assert one.prompt == one.prompt.lower() and one.prompt.endswith(".")
        values = [v for wanted in one.ask["objects"] for k, v in wanted.items() if k != "place"]
        plain = re.sub(r'"\w+"', "", one.prompt)
        assert all(value in plain for value in values)
        assert (one.ask["word"] is not None) == ('"' in one.prompt)
        assert one.ask["word"] is None or f'"{one.ask["word"]}"' in one.prompt
        named = [b for b in BACKGROUNDS if re.search(rf"\b{b}\b", plain)]
        assert named == ([one.ask["background"]] if one.ask["background"] else [])


@pytest.mark.parametrize("name", PROBES)
def test_probes_are_a_function_of_name_index_and_seed(probes, name):
    assert probe(name, 5) == probes[name][:5]
    assert probe(name, 5, seed=1) != probes[name][:5]
    assert len({one.prompt for one in probes[name]}) > 0.7 * COUNT
    assert len({one.scene for one in probes[name]}) == COUNT
    assert probe(name, 0) == []


@pytest.mark.parametrize("name", PROBES)
def test_no_scene_of_a_probe_is_trained_on(probes, name):
    for one in probes[name]:
        assert split_of(one.scene) == "test"
        assert held_out(one.scene) == (name == "combinations")


def test_three_different_objects(probes):
    for one in probes["three"]:
        assert len(one.ask["objects"]) == 3 == len({o.shape for o in one.scene.objects})


def test_combinations_are_balanced_and_never_met_in_training(probes):
    pairs = Counter(
        (o.colour, o.shape) for o in (one.scene.main() for one in probes["combinations"])
    )
    assert pairs == dict.fromkeys(HELD_OUT_PAIRS, COUNT // len(HELD_OUT_PAIRS))
    trained = {(o.colour, o.shape) for i in range(1000) for o in scene("train", i).objects}
    assert trained.isdisjoint(pairs)
    assert {shape for _, shape in trained} == set(SHAPES)  # each part of a pair is known


def build(text: str) -> str:
    """A caption's build: its words with the values left out."""
    values = (*SHAPES, *COLOURS, *TEXTURES, *SIZES, *BACKGROUNDS)
    return re.sub(rf'"\w+"|\b({"|".join(values)})(e?s)?\b', "-", text)


def test_phrasings_are_of_test_scenes_and_of_no_training_build(probes):
    for index, one in enumerate(probes["phrasings"]):
        assert one.scene == scene("test", index)
    trained = {build(descriptive_caption(scene("train", i), rng(i, "t"))) for i in range(1500)}
    assert trained.isdisjoint(build(one.prompt) for one in probes["phrasings"])
    assert not trained.isdisjoint(build(one.prompt) for one in probes["combinations"])


def test_spatial_relations_are_balanced(probes):
    relations = ("to the left of", "to the right of", "above", "below")
    found = Counter(r for one in probes["spatial"] for r in relations if f" {r} " in one.prompt)
    assert found == dict.fromkeys(relations, COUNT // 4)
    for one in probes["spatial"]:
        first, second = one.ask["objects"]
        assert first["shape"] != second["shape"]
        pattern = (
            rf"an? {first['colour']} {first['shape']} .+ an? {second['colour']} {second['shape']}\."
        )
        assert re.fullmatch(pattern, one.prompt)
        i, name, j = one.ask["relation"]
        forward = "left of" in one.prompt or "above" in one.prompt
        assert (i, j) == ((0, 1) if forward else (1, 0))
        assert name == ("left of" if " of " in one.prompt else "above")


def test_counts_are_balanced(probes):
    numbers = Counter(one.prompt.split()[0] for one in probes["counting"])
    assert numbers == dict.fromkeys(("one", "two", "three"), COUNT // 3)
    for one in probes["counting"]:
        number, colour, noun = one.prompt.rstrip(".").split()
        count = ("one", "two", "three").index(number) + 1
        assert one.ask["count"] == len(one.ask["objects"]) == len(one.scene.objects) == count
        assert {(o.colour, o.shape) for o in one.scene.objects} == {
            (colour, one.scene.main().shape)
        }
        assert noun.startswith(one.scene.main().shape) and noun.endswith("s") >= (count > 1)
        beyond = one.scene.facts()
        beyond["objects"].append(beyond["objects"][0])
        assert not satisfied(one.ask, beyond)


def test_half_of_the_words_are_printed_nowhere_in_training(probes):
    asked = [one.ask["word"] for one in probes["text"]]
    assert sum(word in HELD_OUT_WORDS for word in asked) == COUNT // 2
    assert all(word in WORDS + HELD_OUT_WORDS for word in asked)
    assert [one.scene.word for one in probes["text"]] == asked
    assert set(HELD_OUT_WORDS).isdisjoint(WORDS) and len(set(HELD_OUT_WORDS)) == len(HELD_OUT_WORDS)
    assert {len(word) for word in HELD_OUT_WORDS} == {2, 3, 4}
    assert set("".join(HELD_OUT_WORDS)) <= set("".join(WORDS))  # their letters are known
    assert not {one.scene.objects[0].place for one in probes["text"]} & {"top", "bottom"}


def test_unknown_probe():
    with pytest.raises(
        UserError, match="'four'.*three, combinations, phrasings, spatial, counting"
    ):
        probe("four", 1)
