"""CIDEr-D as one computes it by hand."""

import math

import pytest

from dalle3lib import UserError
from dalle3lib.evals.caption_agreement import agreement, cider_d, words


def test_words_are_lower_case_without_punctuation():
    assert words('A dog\'s "Big" day, at 5.') == ["a", "dog's", "big", "day", "at", "5"]


def test_two_images_by_hand():
    """Every word occurs for one of two images, so all weigh log 2, which cancels in cosines."""
    first, second = cider_d(["A red cat.", "a dog"], [["a red cat"], ["the dog"]])
    assert first == pytest.approx(10 * (1 + 1 + 1 + 0) / 4)  # there are no runs of four words
    assert second == pytest.approx(10 * (1 / 2 + 0 + 0 + 0) / 4)


def test_length_repetition_and_several_references_by_hand():
    penalty = math.exp(-1 / 72)  # one run of two words more: exp(-1² / (2 · 6²))
    cosines = [3 / math.sqrt(4 * 3), 2 / math.sqrt(3 * 2), 1 / math.sqrt(2 * 1), 0]
    (long, _) = cider_d(["a red cat sat", "x"], [["a red cat"], ["the dog"]])
    assert long == pytest.approx(10 * penalty * sum(cosines) / 4)
    (again, _) = cider_d(["cat cat", "x"], [["cat"], ["the dog"]])
    assert again == pytest.approx(10 * penalty * (1 / 2) / 4)  # the second "cat" is cut
    (mean, _) = cider_d(["a red cat", "x"], [["a red cat", "no such words"], ["the dog"]])
    assert mean == pytest.approx(7.5 / 2)


def test_a_word_that_all_images_share_weighs_nothing():
    first, _ = cider_d(["a", "x"], [["a cat"], ["a dog"]])
    assert first == 0


@pytest.mark.parametrize(
    ("captions", "references"),
    [(["a"], [["a"]]), (["a", "b"], [["a"]]), (["a", "b"], [["a"], []]), ([], [])],
)
def test_nothing_to_compare(captions, references):
    with pytest.raises(UserError, match="two or more images with references"):
        cider_d(captions, references)


def test_people_agree_with_people_about_their_own_photograph(benchmarks):
    from dalle3lib import coco

    said = list(coco.references(benchmarks / "coco-mini").values())
    one, others = [texts[0] for texts in said], [texts[1:] for texts in said]
    own = cider_d(one, others).mean()
    assert own > 0.5 and own > 5 * cider_d(one[1:] + one[:1], others).mean()


def test_kinds_of_caption_are_held_against_the_same_references():
    references = [["a red cat"], [], ["the dog"]]
    table = agreement({"one": ["a red cat", "lost", "a dog"], "none": ["x"] * 3}, references)
    assert table.loc["one", "CIDEr-D"] == pytest.approx((7.5 + 1.25) / 2)
    assert table.loc["one", "as printed"] == pytest.approx(437.5)
    assert table.loc["none"].tolist() == [0, 0, 0, 0]
    assert 1.25 <= table.loc["one", "low"] <= table.loc["one", "high"] <= 7.5
