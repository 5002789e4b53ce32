"""The world's composition sets: one difficulty each, in the test split, in any number."""

import re

import pytest

from dalle3lib import UserError
from dalle3lib.evals import noun_phrases
from dalle3lib.world import probe, satisfied
from dalle3lib.world.compositions import BOUND, COMPOSITIONS, composition
from dalle3lib.world.scene import COLOURS, SHAPES, SIZES, TEXTURES, held_out, split_of

COUNT = 60
VALUES = {"colour": COLOURS, "size": SIZES, "texture": TEXTURES}


@pytest.fixture(scope="module")
def sets():
    return {name: composition(name, COUNT) for name in BOUND}


@pytest.mark.parametrize("name", BOUND)
def test_a_prompt_names_two_shapes_and_one_attribute_of_each(sets, name):
    attribute = BOUND[name]
    value, shape = f"({'|'.join(VALUES[attribute])})", f"({'|'.join(SHAPES)})"
    for one in sets[name]:
        found = re.fullmatch(rf"an? {value} {shape} and an? {value} {shape}\.", one.prompt)
        a, first, b, second = found.groups()
        assert a != b and first != second
        wanted = [{attribute: a, "shape": first}, {attribute: b, "shape": second}]
        nothing = {"relation": None, "count": None, "word": None, "background": None}
        assert one.ask == {"objects": wanted, **nothing}
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", one.prompt)


@pytest.mark.parametrize("name", BOUND)
def test_the_scene_satisfies_its_prompt_and_swapped_attributes_do_not(sets, name):
    for one in sets[name]:
        facts = one.scene.facts()
        assert satisfied(one.ask, facts) and facts["word"] is None
        first, second = facts["objects"]
        a = BOUND[name]
        first[a], second[a] = second[a], first[a]
        assert not satisfied(one.ask, facts)


@pytest.mark.parametrize("name", BOUND)
def test_scenes_are_of_the_test_split_without_held_out_pairs(sets, name):
    assert all(split_of(one.scene) == "test" and not held_out(one.scene) for one in sets[name])


@pytest.mark.parametrize("name", BOUND)
def test_half_of_the_prompts_begin_with_the_second_object(sets, name):
    first = [one.ask["objects"][0]["shape"] == one.scene.objects[0].shape for one in sets[name]]
    assert first == [True, False] * (COUNT // 2)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_sets_are_a_function_of_name_size_and_seed(sets, name):
    whole = sets[name] if name in sets else composition(name, COUNT)
    assert composition(name, 7) == whole[:7] and composition(name, 0) == []
    assert composition(name, 7, seed=1) != whole[:7]
    assert len({one.scene for one in whole}) == COUNT


def test_places_and_counts_are_those_of_the_probes():
    assert composition("spatial", 8, seed=3) == probe("spatial", 8, seed=3)
    assert composition("numeracy", 8, seed=3) == probe("counting", 8, seed=3)


def test_noun_phrases_of_the_prompts_are_exact(sets):
    for one in sets["colour"]:
        a, b = one.prompt.rstrip(".").split(" and ")
        assert noun_phrases.of_world([one.prompt]) == {one.prompt: [a, b]}


def test_another_set_is_refused():
    with pytest.raises(UserError, match="'size'.*colour, shape, texture, spatial, numeracy"):
        composition("size", 1)
