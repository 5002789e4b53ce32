"""The blend keeps arms paired, and caption statistics can be counted by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle3lib import UserError
from dalle3lib.captions import (
    PUBLISHED,
    blend,
    by_kind,
    compare,
    coverage,
    drop_caption,
    faults,
    names,
    readable,
    stated,
    statistics,
    use_synthetic,
    vocabulary,
    wrong,
)
from dalle3lib.images import Record
from dalle3lib.world import World

seeds, steps, batches = st.integers(0, 2**40), st.integers(0, 10**6), st.integers(1, 64)
percents = st.floats(0, 100)


@given(seeds, steps, batches, percents, percents)
def test_a_higher_ratio_only_turns_originals_into_synthetic_captions(seed, step, batch, a, b):
    low, high = sorted((a, b))
    fewer, more = (use_synthetic(seed, step, batch, ratio) for ratio in (low, high))
    assert fewer.dtype == bool and fewer.shape == (batch,)
    assert (more | ~fewer).all()  # synthetic at the low ratio implies synthetic at the high one


@given(seeds, steps, batches)
def test_the_ends_of_the_ratio(seed, step, batch):
    assert not use_synthetic(seed, step, batch, 0).any()
    assert use_synthetic(seed, step, batch, 100).all()
    assert not drop_caption(seed, step, batch, 0).any()
    assert drop_caption(seed, step, batch, 1).all()


@given(seeds, steps, percents)
def test_the_same_call_gives_the_same_draw(seed, step, ratio):
    assert (use_synthetic(seed, step, 32, ratio) == use_synthetic(seed, step, 32, ratio)).all()


def test_the_ratio_is_met_and_steps_differ():
    draws = np.stack([use_synthetic(3, step, 64, 95) for step in range(400)])
    assert draws.mean() == pytest.approx(0.95, abs=0.006)  # four standard errors
    assert len({tuple(row) for row in draws}) > 350
    dropped = np.stack([drop_caption(3, step, 64, 0.1) for step in range(400)])
    assert dropped.mean() == pytest.approx(0.10, abs=0.008)
    # dropping is drawn apart from the blend: both kinds of caption are dropped equally often
    assert dropped[~draws].mean() == pytest.approx(0.10, abs=0.035)


@pytest.mark.parametrize("ratio", [-1, 100.5, float("nan")])
def test_impossible_ratios(ratio):
    with pytest.raises(UserError, match="0 to 100 percent"):
        use_synthetic(0, 0, 4, ratio)
    with pytest.raises(UserError, match="0 to 1"):
        drop_caption(0, 0, 4, ratio)


def test_blend_by_hand():
    use = np.array([True, False, True])
    assert blend(["a", "b", "c"], ["A", "B", "C"], use) == ["A", "b", "C"]
    assert blend(range(3), range(10, 13), ~use) == [0, 11, 2]
    with pytest.raises(ValueError):
        blend(["a"], ["A", "B"], use)


CAPTIONS = [
    "A red cube.",  # article, full stop, upper case
    "the Cube is red",  # article
    "IMG_0042.jpg",  # upper case, digit
    "a red cube.",  # article, full stop
    "a red cube.",
]


def test_statistics_by_hand():
    assert statistics(CAPTIONS) == {
        "count": 5,
        "words_mean": pytest.approx((3 + 4 + 1 + 3 + 3) / 5),
        "words_median": 3,
        "words_p95": pytest.approx(3.8),  # 95 % of the way from the first to the fifth
        "starts_with_article": 4 / 5,
        "ends_with_full_stop": 3 / 5,
        "starts_upper_case": 2 / 5,
        "has_digit": 1 / 5,
        "vocabulary": 7,  # a, red, cube, the, is, img_0042, jpg
        "repeated": 2 / 5,
    }


def test_statistics_of_one_caption():
    found = statistics(["Anna paints!"])
    assert found["starts_with_article"] == 0  # "Anna" is no article
    assert found["words_mean"] == found["words_median"] == found["words_p95"] == 2
    assert found["repeated"] == found["has_digit"] == found["ends_with_full_stop"] == 0


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=20))
def test_shares_are_shares_and_order_does_not_matter(captions):
    found = statistics(captions)
    for name in ("starts_with_article", "ends_with_full_stop", "has_digit", "repeated"):
        assert 0 <= found[name] <= 1
    backwards = statistics(captions[::-1])
    assert backwards == pytest.approx(found)
    assert found["words_mean"] >= 1


def test_nothing_to_count():
    with pytest.raises(UserError, match="no captions"):
        statistics([])
    with pytest.raises(UserError, match=r"2 of 3 captions are empty \(the first is number 1\)"):
        statistics(["a", "", "  \n"])


def test_compare_has_one_row_per_set_in_the_published_columns():
    table = compare({"mine": CAPTIONS, "yours": ["a", "b"]})
    assert list(table.index) == ["mine", "yours"]
    assert table.loc["yours", "words_mean"] == 1
    assert set(PUBLISHED.columns) <= set(table.columns)


def test_the_published_table_tells_the_papers_story():
    alt, blip = PUBLISHED.loc["LAION-2B alt-text"], PUBLISHED.loc["LAION-COCO captions (BLIP)"]
    assert blip["starts_with_article"] > 10 * alt["starts_with_article"]
    assert blip["vocabulary"] < alt["vocabulary"] / 2
    shares = PUBLISHED[["starts_with_article", "ends_with_full_stop", "has_digit"]]
    assert ((shares > 0) & (shares < 1)).all(axis=None)


def test_by_kind_leaves_out_what_nobody_holds():
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    records = [Record("a", image, "x", short="y"), Record("b", image, "z")]
    assert by_kind(records) == {"alt-text": ["x", "z"], "short": ["y"]}


def test_readable_shows_every_habit_as_text():
    table = readable(pd.concat([compare({"mine": CAPTIONS}), PUBLISHED]))
    assert list(table.columns) == ["mine", *PUBLISHED.index]
    assert table.loc["start with a, an, the", "mine"] == "80.0%"
    assert table.loc["different words", "LAION-2B alt-text"] == "21,989"
    assert table.loc["occur more than once", "LAION-2B alt-text"] == "–"  # not published


# --- what captions say ---------------------------------------------------------------------------

FACTS = {
    "background": "snow",
    "objects": [
        {"shape": "cross", "colour": "red", "size": "large", "place": "left"},
        {"shape": "moon", "colour": "blue", "size": "large", "place": "right"},
    ],
    "word": "sky",
}
NOTHING = {"background": 0, "printed word": 0, "shape": 0, "colour": 0, "size": 0, "place": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Click to enlarge", {}),
        ("Large red cross", {"size": 1, "colour": 0.5, "shape": 0.5}),  # both objects are large
        ("IMG_0042_blue_moon_snow.jpg", {"colour": 0.5, "shape": 0.5, "background": 1}),
        ("two crosses, two moons", {"shape": 1}),
        ("a cross to the left of a moon", {"shape": 1, "place": 1}),
        ("one at the top, one below", {}),  # the other direction
        ('it says "sky".', {"printed word": 1}),
        ("the sky", {}),  # not quoted, hence no printed word
        ("tiredness, snowman, moonshine, crossing", {}),  # parts of words
    ],
)
def test_stated_by_hand(text, expected):
    assert stated(text, FACTS) == NOTHING | expected


def test_a_picture_without_a_printed_word_has_no_such_fact():
    assert "printed word" not in stated("x", FACTS | {"word": None})


def test_wrong_by_hand():
    values = {"red", "blue", "green", "cross", "moon", "star", "snow", "sky", "large", "small"}
    assert wrong("Large green star on snow", FACTS, values) == ["green", "star"]
    assert wrong('red moon "sky"', FACTS, values) == []  # both true, if not of one object


def test_names_needs_the_whole_word():
    assert names("A RED cube", "red") and names("boxes", "box") and names("top left", "top left")
    assert not names("hundred", "red") and not names('it says "red"', "red")


def record(alt, facts=FACTS, descriptive="d"):
    return Record("k", np.zeros((2, 2, 3), dtype=np.uint8), alt, None, descriptive, facts)


def test_vocabulary_gathers_all_values_but_places():
    assert vocabulary([record("x")]) == {"snow", "cross", "moon", "red", "blue", "large"}


def test_coverage_averages_over_records():
    table = coverage([record("red"), record("red and blue on snow")])
    assert list(table.columns) == ["alt-text", "descriptive"]
    assert table.loc["colour", "alt-text"] == pytest.approx((0.5 + 1) / 2)
    assert table.loc["background", "alt-text"] == pytest.approx(0.5)
    assert (table["descriptive"] == 0).all()
    with pytest.raises(UserError, match="hold facts"):
        coverage([record("red"), record("red", facts=None)])


def test_faults_by_hand():
    star = FACTS | {"objects": [FACTS["objects"][0] | {"shape": "star"}], "word": None}
    records = [record("IMG_1.JPG"), record("blue star"), record("star", star), record("Sale")]
    table = faults(records)
    assert list(table["alt-text"]) == ["IMG_1.JPG", "blue star", "star", "Sale"]
    assert list(table["is a file name"]) == [True, False, False, False]
    assert list(table["says nothing"]) == [True, False, False, True]
    assert list(table["names what is not there"]) == [False, True, False, False]
    assert table["facts stated"].tolist() == pytest.approx([0, 0.5 / 6, 1 / 5, 0])
    assert list(faults([record("x.png", facts=None)]).columns) == ["alt-text", "is a file name"]


def test_the_worlds_descriptive_captions_state_every_fact_and_nothing_false():
    records = list(World("dev", 150))
    table, values = coverage(records), vocabulary(records)
    assert (table["descriptive"] == 1).all()
    assert not any(wrong(r.descriptive, r.facts, values) for r in records)
    assert not any(wrong(r.short, r.facts, values) for r in records)
    # every attribute has a chance in the alt-text too: the comparison is open
    assert (table["alt-text"] > 0).all() and (table["alt-text"] < 0.9).all()
