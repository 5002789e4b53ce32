"""Counts: duplicates, numeracy and exact counts by hand, and those of the world's pictures."""

import numpy as np
import pytest

from dalle3lib import UserError
from dalle3lib.evals import compbench, counting, detectors
from dalle3lib.evals.counting import counts, distinct, exact, numeracy
from dalle3lib.evals.detectors import Found
from dalle3lib.world import probe, render

IMAGES = np.zeros((1, 8, 8, 3), np.uint8)


def cat(*box: float, name: str = "cat") -> Found:
    return Found(name, box, 1.0)


# ---- duplicates ----------------------------------------------------------------------------------


def test_boxes_that_overlap_by_more_than_nine_tenths_are_one_object():
    one = cat(0, 0, 100, 100)
    assert distinct([one, one]) == [one]
    assert distinct([one, cat(0, 0, 100, 91)]) == [one]  # IoU 0.91
    assert len(distinct([one, cat(0, 0, 100, 90)])) == 2  # 0.9 is not more
    assert len(distinct([one, cat(0, 0, 100, 100, name="dog")])) == 2
    assert len(distinct([one, cat(200, 0, 300, 100)])) == 2
    assert distinct([]) == []


def test_a_box_is_compared_with_the_kept_ones_only():
    """The second is the first again, the third would be the second again, but not the first."""
    found = [cat(0, 0, 100, 100), cat(0, 0, 100, 92), cat(0, 0, 100, 85)]
    assert distinct(found) == [found[0], found[2]]


def test_officially_a_box_in_another_is_the_same_object():
    group, member = cat(0, 0, 100, 100), cat(10, 10, 30, 30)
    assert len(distinct([group, member])) == 2
    assert distinct([group, member], official=True) == [group]
    assert distinct([member, group], official=True) == [member]
    # by inclusive pixels: 100 x 10 of 100 x 11 pixels are 0.909, without them 99 x 9 of 99 x 10
    assert len(distinct([cat(0, 0, 99, 10), cat(0, 1, 99, 40)], official=True)) == 1
    assert len(distinct([cat(0, 0, 99, 9), cat(0, 1, 99, 40)], official=True)) == 2  # 0.9


def test_names_are_counted_by_the_detectors_labels():
    found = [cat(i * 200, 0, i * 200 + 100, 100, name=n) for i, n in enumerate(
        ["person", "person", "coffee cup", "boat", "ship", "girl"]
    )]  # fmt: skip
    assert counts(["boy", "cup", "ship", "bee"], found) == {"boy": 2, "cup": 1, "ship": 1, "bee": 0}
    assert counts(["girl"], found) == {"girl": 1}
    assert counts(["girl"], found, official=True) == {"girl": 2}


# ---- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "counted", "score"),
    [
        ({"cat": 2}, {"cat": 2}, 1),
        ({"cat": 2}, {"cat": 3}, 0.5),
        ({"cat": 2}, {"cat": 0}, 0),
        ({"cat": 2, "dog": 1}, {"cat": 2, "dog": 0}, 0.5),
        ({"cat": 2, "dog": 1}, {"cat": 1, "dog": 1}, 0.75),
        ({"cat": 1, "dog": 1, "bee": 4}, {"cat": 1, "dog": 2, "bee": 0}, (1 + 0.5) / 3),
    ],
)
def test_numeracy_by_hand(asked, counted, score):
    assert numeracy(asked, counted) == pytest.approx(score)
    assert exact(asked, counted) == (score == 1)


def test_nothing_asked_for_is_no_score():
    with pytest.raises(UserError, match="asks for no objects"):
        numeracy({}, {})


def test_rows_tell_what_was_asked_and_seen():
    prompt, asked = "two cats and a dog", {"two cats and a dog": {"cat": 2, "dog": 1}}
    detect = lambda images, names: [[cat(0, 0, 9, 9), cat(20, 0, 29, 9), cat(0, 0, 9, 9)]]  # noqa: E731
    row = counting.score_images(IMAGES, [prompt], asked, detect, seed=[42]).iloc[0]
    assert (row.prompt, row.seed, row.image, row.score) == (prompt, 42, 0, 0.5)
    assert row.reason == "cat: 2 asked, 2 seen; dog: 1 asked, 0 seen"
    row = counting.score_images(IMAGES, [prompt], asked, detect, measure=exact).iloc[0]
    assert row.score == 0
    with pytest.raises(UserError, match="1 prompts have no objects to count"):
        counting.score_images(IMAGES, ["three"], asked, detect)


# ---- what prompts ask for ------------------------------------------------------------------------

FORMS = {"cat": "cat", "cats": "cat", "hot dog": "hot dog", "hot dogs": "hot dog", "dogs": "dog"}
FORMS |= {"sheep": "sheep"}


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("two cats", {"cat": 2}),
        ("Eight cats, a cat and one sheep", {"cat": 9, "sheep": 1}),
        ("three hot dogs and two dogs played", {"hot dog": 3, "dog": 2}),
        ("two sheep near nine cats", {"sheep": 2}),
        ("two big cats", {}),  # no noun behind the number
        ("cats", {}),
        ("", {}),
    ],
)
def test_numbers_in_prompts(prompt, asked):
    assert counting.numbers_in(prompt, FORMS) == asked


def test_every_prompt_of_the_benchmark_asks_for_a_number(benchmarks):
    forms = counting.nouns(benchmarks / "t2i-compbench" / "new_objects.txt")
    assert forms["bottles"] == forms["bottle"] == "bottle"
    prompts = compbench.prompts("numeracy")
    asked = [counting.numbers_in(prompt, forms) for prompt in prompts]
    assert all(asked) and {n for some in asked for n in some.values()} == set(range(1, 9))
    assert asked[prompts.index("two bees, two vases and one bird")] == {
        "bee": 2,
        "vase": 2,
        "bird": 1,
    }


def test_another_file_has_no_nouns(tmp_path):
    with pytest.raises(UserError, match="new_objects.txt"):
        counting.nouns(tmp_path / "nothing.txt")
    (tmp_path / "other.txt").write_text("a line\n")
    with pytest.raises(UserError, match="cannot be read"):
        counting.nouns(tmp_path / "other.txt")


# ---- the world -----------------------------------------------------------------------------------


def test_the_worlds_scenes_have_the_right_number_and_others_have_not():
    probes = probe("counting", 12)
    prompts = [one.prompt for one in probes]
    asked = counting.asked_of_world(prompts, [one.ask for one in probes])
    assert list(asked[prompts[1]].values()) == [2]
    images = np.stack([render(one.scene) for one in probes])
    right = counting.score_images(images, prompts, asked, detectors.world, measure=exact)
    assert (right.score == 1).all()
    more = {p: {name: n % 3 + 1 for name, n in some.items()} for p, some in asked.items()}
    assert (counting.score_images(images, prompts, more, detectors.world).score == 0.5).all()
    none = {p: {"nothing": 1} for p in prompts}
    assert (counting.score_images(images, prompts, none, detectors.world).score == 0).all()
