"""Captions of the world: what people and the web say about a scene."""

import re
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle3lib import UserError, captions
from dalle3lib.caption_facts import BETWEEN, TWO_OF_A_KIND, mark, names_subject, stated
from dalle3lib.randomness import rng
from dalle3lib.world import Scene, Thing, alt_text, descriptive_caption, scene, short_caption
from dalle3lib.world.language import (
    ADVERTS,
    HELD_OUT_PHRASES,
    PHRASES,
    UNRELATED,
    full_phrase,
    reworded_caption,
)
from dalle3lib.world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, draw

VALUES = set(SHAPES + COLOURS + TEXTURES + SIZES + BACKGROUNDS)
ALL_FACTS = {"background", "printed word", "shape", "colour", "texture", "size", "place"}

seeds = st.integers(0, 2**32)
scenes = st.builds(
    lambda seed, count: draw(rng(seed, "test"), (count,)), seeds, st.sampled_from([1, 2, 3])
)
wordings = st.sampled_from(
    [(descriptive_caption, PHRASES), (reworded_caption, HELD_OUT_PHRASES)],
)
STAR = Thing("star", "blue", "striped", "small", "left")
TWINS = Scene("sky", (STAR, replace(STAR, place="right")))


def random(seed: int = 0) -> np.random.Generator:
    return rng(seed, "test")


def articles_agree(text: str) -> bool:
    found = re.findall(r"\b(an?) (\w)", text.lower())
    return all((article == "an") == (letter in "aeiou") for article, letter in found)


def names(text: str, value: str) -> bool:
    """Whether a text has a value as a word, or its plural; quoted words do not count."""
    plain = re.sub(r'"[^"]*"', " ", text.lower()).replace("_", " ")
    return re.search(rf"\b{re.escape(value)}(e?s)?\b", plain) is not None


def phrased(thing: Thing, text: str, forms: tuple[str, ...], plural: bool = False) -> str:
    """The form in which the text names all attributes of the object together, or ""."""
    phrases = [full_phrase(thing, plural, form) for form in forms]
    return next((phrase for phrase in phrases if phrase in text), "")


# ---- short captions ------------------------------------------------------------------------------


@given(scenes, seeds)
def test_short_captions_name_the_main_subject(spec, seed):
    text, main = short_caption(spec, random(seed)), spec.main()
    assert text == text.lower() and text.endswith(".") and text.count(".") == 1
    assert names_subject(text, spec.facts()) and not mark(text, spec.facts()).false
    mine = {main.colour, main.shape, main.texture}
    assert not [v for v in VALUES - mine if names(text, v)]  # nothing but the subject
    assert ("two" in text.split()) == spec.twins()
    assert articles_agree(text)


def test_short_captions_by_hand():
    spec = Scene("snow", (Thing("cross", "orange", "plain", "large", "centre"),))
    frames = (
        "", "there is ", "we see ", "this is ", "a picture of ", "an image of ",
        "the picture shows ",
    )  # fmt: skip
    subjects = (
        "an orange cross",
        "a plain orange cross",
        "a cross in orange",
        "a plain cross in orange",
    )
    found = {short_caption(spec, random(seed)) for seed in range(3000)}
    assert found == {f"{frame}{subject}." for frame in frames for subject in subjects}


def test_short_captions_of_twins():
    found = {short_caption(TWINS, random(seed)) for seed in range(1000)}
    assert {
        "two blue stars.",
        "there are two striped blue stars.",
        "these are two stars in blue.",
    } < found
    assert not [text for text in found if " is " in text or "this" in text]


# ---- descriptive captions ------------------------------------------------------------------------


@settings(max_examples=300)
@given(scenes, seeds, wordings)
def test_descriptive_captions_state_every_fact_and_no_other(spec, seed, wording):
    caption, forms = wording
    text = caption(spec, random(seed))
    marks = mark(text, spec.facts())
    assert marks.told == marks.held == marks.stated == marks.right, (text, marks)
    assert marks.false == []
    for thing in spec.objects:  # the attributes stand together, with their own object
        assert phrased(thing, text, forms, plural=spec.twins())
    assert text == text.lower() and text.endswith(".") and articles_agree(text)


@given(seeds, wordings)
def test_descriptive_captions_put_things_in_their_places(seed, wording):
    caption, forms = wording
    spec = draw(random(seed), (2,))
    text = caption(spec, random(seed))
    upright = spec.objects[0].place == "top"
    if spec.twins():
        directions = ("one above the other",) if upright else ("side by side", "one to the left of")
        assert any(direction in text for direction in directions)
        return
    phrases = [phrased(thing, text, forms) for thing in spec.objects]
    first, second = map(text.find, phrases)
    if "to the left of" in text or " above " in text:
        assert first < second and upright == (" above " in text)
    elif "to the right of" in text or " below " in text:
        assert second < first and upright == (" below " in text)
    else:
        for thing, phrase in zip(spec.objects, phrases, strict=True):
            assert f"{phrase} at the {thing.place}" in text


def test_descriptive_captions_are_phrased_in_many_ways():
    texts = {descriptive_caption(TWINS, random(seed)) for seed in range(1500)}
    assert len(texts) == 10 * 5 * 2  # sentences, orders of attributes, directions
    assert "two small striped blue stars side by side, in front of sky." in texts
    assert (
        "these are two small blue stars with a striped texture one to the left of the other. "
        "the background shows sky." in texts
    )
    assert "there are two striped blue stars which are small side by side against sky." in texts


def sentence(text: str, spec: Scene, forms: tuple[str, ...]) -> str:
    """The sentence around the objects, the background and the printed word."""
    for thing in spec.objects:
        text = text.replace(phrased(thing, text, forms, spec.twins()), "thing")
    return re.sub(r'"\w+"', "word", text.replace(spec.background, "place"))


def test_reworded_captions_are_built_of_known_words_in_unknown_ways():
    known, new, train_words, words = set(), set(), set(), set()
    for index in range(1500):
        spec = scene("train", index)
        usual = descriptive_caption(spec, random(index))
        reworded = reworded_caption(spec, random(index))
        known.add(sentence(usual, spec, PHRASES))
        new.add(sentence(reworded, spec, HELD_OUT_PHRASES))
        train_words.update(re.findall(r"\w+", usual))
        words.update(re.findall(r"\w+", reworded))
        assert not any(phrased(o, usual, HELD_OUT_PHRASES, spec.twins()) for o in spec.objects)
    assert len(known) > 40 and len(new) > 15
    assert known.isdisjoint(new)
    assert words <= train_words


# ---- alt-text ------------------------------------------------------------------------------------


def alt_texts(noise: float, count: int = 1500) -> list[tuple[str, Scene]]:
    drawn = [draw(rng(0, "alt-scenes", i)) for i in range(count)]
    return [(alt_text(s, noise, rng(1, "alt", i)), s) for i, s in enumerate(drawn)]


@pytest.fixture(scope="module")
def stated_rates() -> dict[float, dict[str, float]]:
    """How often each fact is stated in alt-texts, by noise level."""
    rates = {}
    for noise in (0, 0.5, 0.75):
        found = defaultdict(list)
        for text, spec in alt_texts(noise):
            for name, share in stated(text, spec.facts()).items():
                found[name].append(share)
        rates[noise] = {name: float(np.mean(shares)) for name, shares in found.items()}
    return rates


def test_alt_text_states_every_kind_of_fact_at_every_noise(stated_rates):
    for noise, rates in stated_rates.items():
        assert set(rates) == ALL_FACTS
        assert all(rate > 0.02 for rate in rates.values()), (noise, rates)


def test_alt_text_states_less_with_more_noise(stated_rates):
    for name in ALL_FACTS:
        rates = [stated_rates[noise][name] for noise in (0, 0.5, 0.75)]
        assert rates == sorted(rates, reverse=True) and rates[0] > rates[2]


def test_what_surrounds_the_facts_names_none():
    places = {"left", "right", "top", "bottom", "centre", *BETWEEN, *TWO_OF_A_KIND}
    named = [(t, v) for t in ADVERTS + UNRELATED for v in VALUES | places if names(t, v)]
    assert named == []


@pytest.mark.parametrize("noise", [0, 0.25, 0.5, 0.75])
def test_share_of_unrelated_alt_text(noise):
    n, share = 1500, 0.6 * noise
    unrelated = sum(not any(names(text, s) for s in SHAPES) for text, _ in alt_texts(noise))
    assert abs(unrelated - n * share) <= 4 * (n * share * (1 - share)) ** 0.5


def test_alt_text_without_noise_is_true_and_without_adverts():
    for text, spec in alt_texts(0, 500):
        assert mark(text, spec.facts()).false == []
        assert names(text, spec.main().shape)
        assert not re.search(r"\d|\||jpg", text)


def test_noisy_alt_text_errs_now_and_then():
    wrong = [mark(text, spec.facts()).false for text, spec in alt_texts(0.75)]
    assert 0.02 < np.mean([bool(w) for w in wrong]) < 0.5


def test_alt_text_has_the_habits_of_the_web():
    texts = [text for text, _ in alt_texts(0.5)]
    habits = captions.statistics(texts)
    published = captions.PUBLISHED.loc["LAION-2B alt-text"]
    for name, allowed in {
        "words_mean": 2, "words_median": 2, "words_p95": 6, "starts_with_article": 0.03,
        "ends_with_full_stop": 0.03, "starts_upper_case": 0.07, "has_digit": 0.09,
    }.items():  # fmt: skip
        assert abs(habits[name] - published[name]) <= allowed, name
    assert any(text.endswith(".jpg") for text in texts)
    assert all(map(articles_agree, texts))
    assert not [text for text in texts if "  " in text or "{" in text]


@pytest.mark.parametrize("noise", [-0.01, 0.76, 1, float("nan")])
def test_noise_out_of_range(noise):
    with pytest.raises(UserError, match="outside 0 to 0.75"):
        alt_text(TWINS, noise, random())


def test_another_style_states_the_same_facts():
    for index in range(300):
        spec = scene("train", index)
        texts = [
            alt_text(spec, 0.5, rng(0, "facts", index), rng(k, "style", index)) for k in (0, 1)
        ]
        first, second = (stated(t.replace("_", " "), spec.facts()) for t in texts)
        file = any(t.endswith(".jpg") for t in texts)  # a file name has no room for quotes
        assert file or first == second


def test_without_a_style_all_is_drawn_from_one_generator():
    for index in range(50):
        spec, one = scene("train", index), rng(0, "alt", index)
        assert alt_text(spec, 0.5, rng(0, "alt", index)) == alt_text(spec, 0.5, one, one)
