"""Places by T2I-CompBench's rule and by VISOR's, computed by hand, and of the world's pictures."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle3lib import UserError
from dalle3lib.evals import compbench, detectors, spatial
from dalle3lib.evals.detectors import Found
from dalle3lib.evals.spatial import position_score, relation_of
from dalle3lib.world import probe, render

ORIGIN = (0, 0, 100, 100)
IMAGES = np.zeros((1, 8, 8, 3), np.uint8)


def moved(dx: float, dy: float) -> tuple[float, float, float, float]:
    """The box of 100 x 100 pixels whose middle is that far from the origin's."""
    return dx, dy, dx + 100, dy + 100


def given_boxes(*found: Found):
    """A detector that finds these objects in every picture."""
    return lambda images, names: [list(found)] * len(images)


# ---- relations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "relation"),
    [
        ("a girl on the top of a frog", "on the top of"),
        ("The red hat was on top of the brown coat rack.", "on top of"),
        ("a mouse on side of a key", "on side of"),
        ("a giraffe next to a lamp", "next to"),
        ("a bee near a cup on the left of a car", "near"),  # the first of the list
        ("a red star to the left of a blue moon.", "to the left of"),
        ("a red star below a blue moon.", "below"),
        ("a dog in front of a desk", None),
    ],
)
def test_the_words_of_place(prompt, relation):
    assert relation_of(prompt) == relation


def test_the_benchmarks_prompts_have_relations(benchmarks):
    found = [relation_of(p) for p in compbench.prompts("spatial")]
    assert set(found) == {*spatial.NEAR, *spatial.DIRECTIONS}
    assert found.count("on the top of") == 56
    sentences = compbench.lines("complex_val_spatial.txt")
    assert [relation_of(p) for p in sentences].count("on top of") == 32


# The first object stands at the origin, the second one is moved: right of it, below it.
@pytest.mark.parametrize(
    ("relation", "dx", "dy", "score"),
    [
        ("on the left of", 200, 0, 1),
        ("on the left of", -200, 0, 0),
        ("on the left of", 200, 199, 1),
        ("on the left of", 200, 200, 0),  # as far down as across
        ("on the left of", 200, 201, 0),
        ("on the left of", 0, 0, 0),
        ("on the right of", -200, 0, 1),
        ("on the right of", 200, 0, 0),
        ("on the top of", 0, 200, 1),
        ("on the top of", 0, -200, 0),
        ("on the top of", 200, 200, 0),
        ("on the bottom of", 0, -200, 1),
        ("on the bottom of", 0, 200, 0),
        # IoU of boxes that share 100 x (100 - d): (100 - d) / (100 + d)
        ("on the left of", 50, 0, 0.1 / (50 / 150)),
        ("on the left of", 82, 0, 1),  # 18 / 182 < 0.1
        ("on the left of", 80, 0, 0.1 / (20 / 180)),
        ("on the top of", 0, 50, 0.3),
        (None, 200, 0, 0),
    ],
)
def test_positions_by_hand(relation, dx, dy, score):
    for official in (True, False):
        assert position_score(relation, ORIGIN, moved(dx, dy), official) == pytest.approx(score)


@pytest.mark.parametrize(
    ("dx", "dy", "score"),
    [
        (149, 1000, 1),  # near in one direction is near
        (1000, -149, 1),
        (150, 150, 1),  # 150 / 150
        (-300, 200, 0.5),
        (200, 600, 0.25),
        (0, 0, 1),
    ],
)
@pytest.mark.parametrize("relation", spatial.NEAR)
def test_nearness_by_hand(relation, dx, dy, score):
    assert position_score(relation, ORIGIN, moved(dx, dy)) == pytest.approx(score)


def test_nearness_is_of_the_pictures_size():
    assert position_score("near", ORIGIN, moved(60, 40), distance=20) == pytest.approx(20 / 60)


@given(st.integers(-300, 300), st.integers(-300, 300))
def test_on_top_of_means_on_the_top_of_but_not_officially(dx, dy):
    second = moved(dx, dy)
    assert position_score("on top of", ORIGIN, second, official=True) == 0
    fixed = position_score("on top of", ORIGIN, second)
    assert fixed == position_score("on the top of", ORIGIN, second, official=True)


@given(st.integers(-300, 300), st.integers(-300, 300))
def test_a_relation_turned_round_is_its_inverse(dx, dy):
    second = moved(dx, dy)
    for one, other in (
        ("on the left of", "on the right of"),
        ("on the top of", "on the bottom of"),
        ("to the left of", "to the right of"),
        ("above", "below"),
    ):
        score = position_score(one, ORIGIN, second)
        assert score == position_score(other, second, ORIGIN)
        assert 0 <= score <= 1
        assert not (score and position_score(other, ORIGIN, second))


# ---- the score -----------------------------------------------------------------------------------

LEFT, RIGHT = (0, 0, 100, 100), (200, 0, 300, 100)


@pytest.mark.parametrize(
    ("first", "second", "score"),
    [
        (0.8, 0.6, 0.25 * 1.4 + 0.5),
        (1.0, None, 0),  # a quarter is below one half
        (None, 1.0, 0),
        (None, None, 0),
    ],
)
def test_scores_by_hand(first, second, score):
    a, b = (
        Found("x", box, sure) if sure else None for sure, box in ((first, LEFT), (second, RIGHT))
    )
    assert spatial.score("on the left of", a, b) == pytest.approx(score)


def test_below_one_half_is_nothing():
    wrong = "on the right of"
    assert spatial.score(wrong, Found("a", LEFT, 1.0), Found("b", RIGHT, 1.0)) == 0.5
    assert spatial.score(wrong, Found("a", LEFT, 1.0), Found("b", RIGHT, 0.99)) == 0
    near = Found("b", moved(50, 0), 0.4)  # position 0.3
    assert spatial.score("on the left of", Found("a", LEFT, 0.99), near) == 0  # 0.4975
    near = near._replace(confidence=0.42)
    assert spatial.score("on the left of", Found("a", LEFT, 0.99), near) == pytest.approx(0.5025)


def score_one(prompt: str, names: tuple[str, str] | None, *found: Found, **options) -> pd.Series:
    return spatial.score_images(
        IMAGES, [prompt], {prompt: names}, given_boxes(*found), **options
    ).iloc[0]


def test_on_top_of_is_scored_right_unless_official():
    found = Found("hat", (0, 0, 100, 100), 0.9), Found("rack", (0, 150, 100, 400), 0.7)
    row = score_one("The hat was on top of the rack.", ("hat", "rack"), *found)
    assert row.score == pytest.approx(0.4 + 0.5)
    assert row.reason == "hat on top of rack: seen above it"
    official = score_one("The hat was on top of the rack.", ("hat", "rack"), *found, official=True)
    assert official.score == 0  # 0.4 and no position
    for official in (True, False):
        row = score_one("a hat on the top of a rack", ("hat", "rack"), *found, official=official)
        assert row.score == pytest.approx(0.9)


def test_the_first_detection_of_a_name_counts():
    found = Found("cat", RIGHT, 0.9), Found("dog", LEFT, 0.9), Found("cat", (-200, 0, -100, 9), 0.5)
    row = score_one("a cat on the left of a dog", ("cat", "dog"), *found)
    assert row.score == 0 and row.reason == "cat on the left of dog: seen right of it"


def test_two_objects_of_one_name_are_two_detections_unless_official():
    found = Found("cat", LEFT, 1.0), Found("cat", RIGHT, 1.0)
    prompt = "a cat on the left of a cat"
    assert score_one(prompt, ("cat", "cat"), *found).score == 1
    assert score_one(prompt, ("cat", "cat"), *found, official=True).score == 0.5
    assert score_one(prompt, ("cat", "cat"), found[0]).score == 0


def test_people_are_persons_to_unidet():
    found = Found("person", LEFT, 1.0), Found("frog", RIGHT, 1.0)
    assert score_one("a girl on the left of a frog", ("girl", "frog"), *found).score == 1
    assert score_one("a bee on the left of a frog", ("bee", "frog"), *found).score == 0


def test_what_is_missing_is_named():
    row = score_one("a cat near a dog", ("cat", "dog"), Found("dog", LEFT, 1.0))
    assert row.score == 0 and row.reason == "cat near dog: not seen: cat"
    assert score_one("a cat near a dog", None, Found("dog", LEFT, 1.0)).score == 0
    with pytest.raises(UserError, match="1 prompts have no two objects, the first is 'a cat'"):
        spatial.score_images(IMAGES, ["a cat"], {}, given_boxes())
    with pytest.raises(UserError, match="1 images but 2 seeds"):
        spatial.score_images(IMAGES, ["a"], {"a": ("x", "y")}, given_boxes(), seed=[1, 2])
    with pytest.raises(UserError, match="1 images but 2 prompts"):
        spatial.score_images(IMAGES, ["a", "a"], {"a": ("x", "y")}, given_boxes())


# ---- VISOR ---------------------------------------------------------------------------------------


def test_visor_by_hand():
    """Two prompts of four pictures: three and one right, one wrong, the others miss an object."""
    both = [True] * 4 + [True, False, False, False]
    right = [1, 1, 1, 0] + [1, 0, 0, 0]
    frame = pd.DataFrame({"prompt": ["p"] * 4 + ["q"] * 4, "score": right, "both": both})
    assert spatial.visor(frame) == {
        "OA": 5 / 8,
        "unconditional": 4 / 8,
        "conditional": 4 / 5,
        "VISOR_1": 1,
        "VISOR_2": 0.5,
        "VISOR_3": 0.5,
        "VISOR_4": 0,
    }


def test_visor_without_pictures_of_both_or_with_uneven_numbers():
    frame = pd.DataFrame({"prompt": ["p", "q"], "score": [0.0, 0.0], "both": [False, False]})
    found = spatial.visor(frame)
    assert np.isnan(found.pop("conditional"))
    assert found == {"OA": 0, "unconditional": 0, "VISOR_1": 0}
    more = pd.concat([frame, frame[:1].assign(score=1.0, both=True)])
    with pytest.raises(UserError, match="as many pictures"):
        spatial.visor(more)
    assert spatial.visor(more, of=[0, 1, 2])["VISOR_1"] == pytest.approx(1 / 3)  # "p" stands twice


@pytest.mark.parametrize(
    ("relation", "dx", "dy", "right"),
    [
        ("to the left of", 1, 90, True),  # however far, whatever is between
        ("to the left of", 0, 90, False),
        ("to the right of", -1, 90, True),
        ("above", 90, 1, True),
        ("above", 90, -1, False),
        ("below", 90, -1, True),
    ],
)
def test_visor_compares_centres(relation, dx, dy, right):
    prompt = f"a cat {relation} a dog"
    detect = given_boxes(Found("cat", ORIGIN, 0.3), Found("dog", moved(dx, dy), 0.2))
    frame = spatial.visor_images(IMAGES, [prompt], {prompt: ("cat", "dog")}, detect)
    assert frame.score.tolist() == [right] and frame.both.tolist() == [True]


def test_visors_prompts_are_all_pairs_in_both_orders():
    frame = spatial.visor_prompts(["cat", "dog", "apple"])
    assert len(frame) == 3 * 8 == frame.prompt.nunique()
    row = frame[frame.prompt == "an apple above a cat"].iloc[0]
    assert (row["first"], row["second"]) == ("apple", "cat")
    assert len(spatial.visor_prompts([str(i) for i in range(80)])) == 25_280


# ---- the world -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probes():
    return probe("spatial", 16)


def test_the_worlds_scenes_are_right_and_their_mirrors_wrong(probes):
    prompts = [one.prompt for one in probes]
    objects = spatial.objects_of_world(prompts, [one.ask for one in probes])
    images = np.stack([render(one.scene) for one in probes])
    frame = spatial.score_images(images, prompts, objects, detectors.world, seed=7)
    assert list(frame) == ["prompt", "seed", "image", "score", "reason"]
    assert (frame.score == 1).all() and (frame.seed == 7).all()
    assert frame.image.tolist() == list(range(16)) and frame.prompt.tolist() == prompts
    flipped = spatial.objects_of_world(prompts, [one.ask for one in probes])
    flipped = {prompt: pair[::-1] for prompt, pair in flipped.items()}
    wrong = spatial.score_images(images, prompts, flipped, detectors.world)
    assert (wrong.score == 0.5).all()  # both are there
    found = spatial.visor(spatial.visor_images(images, prompts, objects, detectors.world))
    assert found == {"OA": 1, "unconditional": 1, "conditional": 1, "VISOR_1": 1}
    mixed = spatial.visor_images(images[::-1], prompts, objects, detectors.world)
    assert mixed.both.mean() < 0.2
