"""The world's DrawBench: what it asks is true of its scenes, each category is hard in its way."""

import re

import pytest

from dalle3lib import UserError
from dalle3lib.randomness import rng
from dalle3lib.world import drawbench, satisfied
from dalle3lib.world.drawbench import CATEGORIES, RARE, SIZES_THERE, misspelt, nearest
from dalle3lib.world.language import FRAMES
from dalle3lib.world.prompts import HELD_OUT_WORDS
from dalle3lib.world.scene import COLOURS, HELD_OUT_PAIRS, SHAPES, WORDS, held_out, split_of
from dalle3lib.world.wording import known_words, words_of

PROMPTS = drawbench.prompts()
BY = {name: [p for category, p in PROMPTS if category == name] for name in CATEGORIES}


def test_two_hundred_prompts_in_proportion():
    assert len(PROMPTS) == len({probe.prompt for _, probe in PROMPTS}) == 200
    for name, size in SIZES_THERE.items():
        assert abs(len(BY[name]) - 200 * size / 132) < 1
    assert [name for name, _ in PROMPTS] == [n for n in CATEGORIES for _ in BY[n]]


def test_every_scene_satisfies_what_is_asked_and_no_arm_has_seen_it():
    for name, probe in PROMPTS:
        assert satisfied(probe.ask, probe.scene.facts()), probe.prompt
        assert split_of(probe.scene) == "test"
        assert held_out(probe.scene) == (name == "Conflicting")


def test_the_same_seed_gives_the_same_prompts_and_a_small_set_is_part_of_a_large_one():
    assert drawbench.prompts() == PROMPTS
    small = drawbench.prompts(40)
    assert len(small) == 40 and all(entry in PROMPTS for entry in small)
    assert [p.prompt for _, p in drawbench.prompts(seed=1)] != [p.prompt for _, p in PROMPTS]
    assert sum(drawbench.shares(317).values()) == 317
    with pytest.raises(UserError, match="Rare Words"):
        drawbench.prompts(8)


def test_colours_of_one_and_of_two_objects():
    for probe in BY["Colors"]:
        named = [(t["colour"], t["shape"]) for t in probe.ask["objects"]]
        assert all(" ".join(pair) in probe.prompt for pair in named)
        assert len({colour for colour, _ in named}) == len(named)
    assert {len(p.ask["objects"]) for p in BY["Colors"]} == {1, 2}


def test_conflicting_prompts_name_pairs_that_training_never_shows():
    pairs = [
        (p.ask["objects"][0]["colour"], p.ask["objects"][0]["shape"]) for p in BY["Conflicting"]
    ]
    assert set(pairs) == set(HELD_OUT_PAIRS)
    for probe, pair in zip(BY["Conflicting"], pairs, strict=True):
        assert " ".join(pair) in probe.prompt
        behind = probe.ask["background"]
        assert behind is None or f"in front of {behind}." in probe.prompt


def test_misspelt_prompts_ask_for_what_was_meant():
    for probe in BY["Misspellings"]:
        (thing,) = probe.ask["objects"]
        words = words_of(probe.prompt)
        assert thing["colour"] not in words and thing["shape"] not in words
        assert [nearest(w) for w in words[1:]] == [
            thing[n] for n in ("size", "texture", "colour", "shape")
        ]


@pytest.mark.parametrize("word", COLOURS + SHAPES)
def test_a_misspelt_word_is_one_slip_away(word):
    for i in range(20):
        wrong = misspelt(word, rng(0, "test", i))
        assert wrong != word and wrong not in drawbench.VOCABULARY and wrong[0] == word[0]
        same = sorted(wrong) == sorted(word)  # swapped
        assert same or {len(wrong) - len(word)} <= {-1, 1}
        assert len(wrong) >= len(word) or len(word) > 4


def test_rare_words_are_in_no_caption():
    assert set(RARE) == {*COLOURS, *SHAPES} and len(set(RARE.values())) == len(RARE)
    assert not set(RARE.values()) & (known_words() | {*WORDS, *HELD_OUT_WORDS})
    for probe in BY["Rare Words"]:
        (thing,) = probe.ask["objects"]
        rare = [v for v in (RARE[thing["colour"]], RARE[thing["shape"]]) if v in probe.prompt]
        assert len(rare) == 1


def test_descriptions_are_built_like_no_training_caption():
    starts = [frame.split("{")[0] for frame in FRAMES]
    for probe in BY["Descriptions"]:
        assert probe.ask["background"] in probe.prompt
        assert not any(start and probe.prompt.startswith(start) for start in starts[4:8])


def test_counts_relations_and_words_are_asked():
    assert {p.ask["count"] for p in BY["Counting"]} == {1, 2, 3}
    assert all(p.ask["relation"] for p in BY["Positional"])
    assert all(re.search(rf'"{p.ask["word"]}"', p.prompt) for p in BY["Text"])
