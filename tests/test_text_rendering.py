"""Printed words: edits by hand and by their properties, error rates, and the world's reader."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle3lib import UserError
from dalle3lib.evals import text_rendering
from dalle3lib.evals.text_rendering import asked_text, edit_distance, error_rate
from dalle3lib.world import probe, render


@pytest.mark.parametrize(
    ("a", "b", "edits"),
    [
        ("", "", 0),
        ("cat", "cat", 0),
        ("cat", "cot", 1),
        ("cat", "cart", 1),
        ("cat", "at", 1),
        ("kitten", "sitting", 3),
        ("ab", "ba", 2),
        ("", "abc", 3),
        (["hello", "world"], ["hello", "there", "world"], 1),
    ],
)
def test_edits_by_hand(a, b, edits):
    assert edit_distance(a, b) == edit_distance(b, a) == edits


words = st.text("abc", max_size=6)


@given(words, words, words)
def test_edits_are_a_metric(a, b, c):
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_error_rates_by_hand():
    assert error_rate("cot", "cat") == pytest.approx(1 / 3)
    assert error_rate("", "cat") == 1
    assert error_rate("a cat in a hat", "cat") == pytest.approx(11 / 3)  # more than all is wrong
    assert error_rate(["the", "cot"], ["the", "cat"]) == 0.5
    assert error_rate("", "") == 0 and error_rate("x", "") == 1


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ('a red star. below, it says "cat".', "cat"),
        ("A sign that says 'Hello World'.", "Hello World"),
        ("A storefront with ‘NeurIPS’ written on it", "NeurIPS"),
        ("“Deep” and “Learning” on a wall", "Deep Learning"),
        ("the dog's bowl and the cat's bed", None),
        ("a sign that says 'don't walk' here", "don't walk"),
        ("a red star.", None),
    ],
)
def test_text_in_quotes(prompt, asked):
    assert asked_text(prompt) == asked


def test_drawbenchs_21_texts_are_found(benchmarks):
    prompts = (benchmarks / "dalle3-eval-samples/prompts/drawbench.txt").read_text().splitlines()
    found = [asked_text(prompt) for prompt in prompts]
    assert [i for i, text in enumerate(found) if text] == list(range(179, 200))
    assert len({text for text in found if text}) == 7


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)


def test_rows_by_hand():
    asked = {"p": "Hello World", "q": "cat"}
    read = ["hello  world", "hello", "", "cats"]
    frame = text_rendering.score_images(IMAGES, ["p", "p", "q", "q"], asked, lambda _: read, seed=3)
    assert list(frame)[:5] == ["prompt", "seed", "image", "score", "reason"]
    assert frame.score.tolist() == [1, 0, 0, 0] and (frame.seed == 3).all()
    assert frame.character_error_rate.tolist() == pytest.approx([0, 6 / 11, 1, 1 / 3])
    assert frame.word_error_rate.tolist() == [0, 0.5, 1, 1]
    assert frame.reason[2] == '"cat" asked, nothing read'
    assert frame.reason[3] == '"cat" asked, "cats" read'


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="1 prompts have no word asked for"):
        text_rendering.score_images(IMAGES[:1], ["p"], {}, lambda _: ["x"])
    with pytest.raises(UserError, match="4 images but 2"):
        text_rendering.score_images(IMAGES, ["p"] * 2, {"p": "x"}, lambda _: ["x"] * 4)
    with pytest.raises(UserError, match="1 images but 2"):
        text_rendering.score_images(IMAGES[:1], ["p"], {"p": "x"}, lambda _: ["x"] * 2)


def test_the_worlds_words_are_read():
    probes = probe("text", 8)
    images = np.stack([render(one.scene) for one in probes])
    prompts = [one.prompt for one in probes]
    words = {prompt: asked_text(prompt) for prompt in prompts}
    assert list(words.values()) == [one.ask["word"] for one in probes]
    assert (text_rendering.score_images(images, prompts, words).score == 1).all()
    shown = text_rendering.score_images(np.roll(images, 1, 0), prompts, words)
    assert (shown.score == 0).all() and (shown.character_error_rate > 0).all()
    blank = render(probe("spatial", 1)[0].scene)[None]
    assert text_rendering.world_reader(blank) == [""]
