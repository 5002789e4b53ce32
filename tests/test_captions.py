"""The blend keeps arms paired, and caption statistics can be counted by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle3lib import UserError, caption_facts, claims
from dalle3lib.captions import (
    PUBLISHED,
    blend,
    by_kind,
    compare,
    differences,
    drop_caption,
    looping,
    readable,
    statistics,
    use_synthetic,
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
        "loops": 0,
    }


@pytest.mark.parametrize(
    "caption",
    [
        "a red red red circle",
        "a circle, a circle, a circle",
        "on the left of the left of the left of the",
        "A cat and a dog and a dog And a dog.",
        "redredredredredred",
        "!!!!!!!!!!",
        "the word the word, The word",
        "one two three four five six seven eight " * 3,
    ],
)
def test_captions_that_loop(caption):
    assert looping(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a red circle and a red circle",
        "a red red star",  # once more is no circle
        "red redder reddest",
        "a very, very large star",
        "1000000 in the sky...",
        "a small red star, a small red moon and a small red ring",
        'two men, one with the word "no no" on his shirt, and one without',
    ],
)
def test_captions_that_do_not_loop(caption):
    assert not looping(caption)


def test_loops_are_counted():
    assert statistics(["a red red red star", "a star", "a red red star", "a moon"])["loops"] == 0.25


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
    assert "cut at the greatest length" not in table.index  # unknown where nobody counted
    cut = readable(compare({"mine": CAPTIONS}).assign(truncated=0.25))
    assert cut.loc["cut at the greatest length", "mine"] == "25.0%"


# --- for the ledger ------------------------------------------------------------------------------

TEXTS = {
    "alt-text": ["Sale", "a moon on sand"],
    "base captioner": ["IMG_1.jpg", "moon"],
    "SSC": ["a red star.", "a moon."],
    "DSC": ["a red star, in front of snow.", "a moon with snow behind."],
}


def test_differences_by_hand():
    objects = [
        {"shape": "star", "colour": "red", "texture": "plain", "size": "large", "place": "left"},
        {"shape": "moon", "colour": "red", "texture": "plain", "size": "large", "place": "left"},
    ]
    facts = [{"background": b, "objects": [o], "word": None} for b, o in zip(
        ("snow", "sand"), objects, strict=True)]  # fmt: skip
    tallies = {name: caption_facts.tally(found, facts) for name, found in TEXTS.items()}
    found = differences(TEXTS, tallies)
    effects = {name: entry["effect"] for name, entry in found.items()}
    assert effects == {
        "dsc-longer-than-ssc": pytest.approx((4 + 3) / 2),
        "synthetic-captions-share-habits": 50,
        "dsc-states-more-than-ssc": (3 + 1) / 2 - (2 + 1) / 2,
        "dsc-states-more-than-base": (3 + 1) / 2 - (0 + 1) / 2,
        "dsc-states-more-than-original": (3 + 1) / 2 - (0 + 2) / 2,
        "dsc-names-surroundings": 50,  # the second background is another
    }
    for entry in found.values():
        assert entry["interval"][0] <= entry["effect"] <= entry["interval"][1]
        assert entry["seeds"] == 1


def test_differences_fit_the_ledger():
    known = {c.id: c for c in claims.load() if c.chapter == "03_ssc_dsc"}
    facts = [World("dev", 2).scene(i).facts() for i in range(2)]
    tallies = {name: caption_facts.tally(found, facts) for name, found in TEXTS.items()}
    found = differences(TEXTS, tallies)
    assert set(found) == set(known)
    assert {name: entry["unit"] for name, entry in found.items()} == {
        name: claim.unit for name, claim in known.items()
    }


def test_differences_without_facts_are_those_of_the_texts():
    assert set(differences(TEXTS, {})) == {"dsc-longer-than-ssc", "synthetic-captions-share-habits"}
