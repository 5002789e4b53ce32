"""The world: what splits share, what pictures show, what captions say, what questions ask."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle3lib import UserError, captions
from dalle3lib.randomness import rng
from dalle3lib.world import (
    SPLITS,
    Scene,
    Thing,
    World,
    alt_text,
    descriptive_caption,
    language,
    questions,
    render,
    scene,
    short_caption,
)
from dalle3lib.world.render import HALF, OUTLINE, RADIUS, RGB, centre, inside, lettering
from dalle3lib.world.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    draw,
    split_of,
)

VALUES = set(SHAPES + COLOURS + TEXTURES + SIZES + BACKGROUNDS)
STRIP = slice(44, 62)  # the rows of a printed word

seeds = st.integers(0, 2**32)
scenes = st.builds(
    lambda seed, count: draw(rng(seed, "test"), (count,)), seeds, st.sampled_from([1, 2, 3])
)


def random(seed: int = 0) -> np.random.Generator:
    return rng(seed, "test")


def alone(background: str = "snow", word: str | None = None, **changes) -> Scene:
    """A scene of one object, a large plain red circle in the centre unless changed."""
    thing = Thing("circle", "red", "plain", "large", "centre")
    return Scene(background, (replace(thing, **changes),), word)


def changed(a: Scene, b: Scene) -> np.ndarray:
    """Which pixels of two scenes' pictures differ: bool [64, 64]."""
    return (render(a) != render(b)).any(2)


def without(spec: Scene, number: int) -> Scene:
    """The scene less one object."""
    return replace(spec, objects=spec.objects[:number] + spec.objects[number + 1 :])


# ---- scenes and splits ---------------------------------------------------------------------------


def test_no_facts_appear_in_two_splits():
    facts = {
        split: {json.dumps(scene(split, i).facts(), sort_keys=True) for i in range(2000)}
        for split in SPLITS
    }
    assert all(len(found) > 1500 for found in facts.values())  # nearly all different ones
    assert all(facts[a].isdisjoint(facts[b]) for a, b in combinations(SPLITS, 2))


def test_no_picture_appears_in_two_splits():
    pictures = {s: {r.image.tobytes() for r in World(s, 100)} for s in SPLITS}
    assert all(pictures[a].isdisjoint(pictures[b]) for a, b in combinations(SPLITS, 2))


def test_the_split_of_a_scene_depends_on_its_facts_alone():
    for index in range(200):
        spec = scene("dev", index)
        assert split_of(spec) == "dev"
        moved = tuple(replace(o, dx=-o.dx, dy=2) for o in spec.objects)
        assert split_of(replace(spec, objects=moved)) == "dev"


def test_split_sizes_follow_their_shares():
    counts = Counter(split_of(draw(random(i))) for i in range(4000))
    for split, (low, high) in SPLITS.items():
        share = (high - low) / 100
        assert abs(counts[split] - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5


def test_a_scene_is_a_function_of_split_index_and_seed():
    def ten(**options):
        return [scene("train", i, **options) for i in range(10)]

    assert ten() == ten() == ten(seed=0)
    assert all(a != b for a, b in zip(ten(), ten(seed=1), strict=True))
    assert len(set(ten())) == 10


def test_unknown_split():
    with pytest.raises(UserError, match="'validation'.*foundation, train, dev, test"):
        scene("validation", 0)


@given(scenes)
def test_scenes_hold_what_the_world_knows(spec):
    assert spec.background in BACKGROUNDS and (spec.word is None or spec.word in WORDS)
    assert 1 <= len(spec.objects) <= 3
    for thing in spec.objects:
        assert thing.shape in SHAPES and thing.colour in COLOURS
        assert thing.texture in TEXTURES and thing.size in SIZES
        assert -2 <= thing.dx <= 2 and -2 <= thing.dy <= 2
    middles = [centre(o, False) for o in spec.objects]
    order = [(y // 20, x) for x, y in middles]  # reading order: rows first
    assert order == sorted(order)


def test_every_attribute_is_uniform():
    drawn = [draw(random(i)) for i in range(3000)]
    things = [o for spec in drawn for o in spec.objects]
    for name, values in (("shape", SHAPES), ("colour", COLOURS), ("texture", TEXTURES)):
        counts = Counter(getattr(o, name) for o in things)
        expected = len(things) / len(values)
        assert set(counts) == set(values)
        # twins copy an attribute, so counts spread a little more than independent draws
        assert all(abs(n - expected) < 5 * expected**0.5 for n in counts.values())
    jitters = {o.dx for o in things} | {o.dy for o in things}
    assert jitters == {-2, -1, 0, 1, 2}


def test_main_subject_is_the_larger_then_the_first():
    small = Thing("star", "blue", "plain", "small", "left")
    large = Thing("moon", "pink", "plain", "large", "right")
    assert Scene("sky", (small, large)).main() is large
    assert Scene("sky", (large, small)).main() is large
    assert Scene("sky", (small, replace(small, colour="red"))).main() is small


def test_twins_are_two_of_the_same_kind():
    one = Thing("star", "blue", "plain", "small", "left")
    other = replace(one, place="right", dx=1)
    assert Scene("sky", (one, other)).twins()
    assert not Scene("sky", (one,)).twins()
    assert not Scene("sky", (one, replace(other, size="large"))).twins()


def test_facts_are_json_without_the_jitter():
    spec = alone(dx=2, dy=-1, word="cat")
    assert json.loads(json.dumps(spec.facts())) == {
        "background": "snow",
        "objects": [
            {
                "shape": "circle",
                "colour": "red",
                "texture": "plain",
                "size": "large",
                "place": "centre",
            }
        ],
        "word": "cat",
    }


# ---- pictures ------------------------------------------------------------------------------------


@given(scenes)
def test_rendering_is_deterministic(spec):
    first = render(spec)
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    render(draw(random(7)))  # another picture in between must not stain the cached sprites
    assert np.array_equal(first, render(spec))


@settings(max_examples=200)
@given(scenes)
def test_objects_are_visible_and_apart_and_inside_the_picture(spec):
    shown = [changed(spec, without(spec, i)) for i in range(len(spec.objects))]
    for mask in shown:
        assert mask.sum() > 50  # pixels
        assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()
        assert not (spec.word and mask[STRIP].any())
    assert not any((a & b).any() for a, b in combinations(shown, 2))


def test_no_place_and_jitter_bring_sprites_together_or_out():
    drawn = [draw(random(i), (1, 2, 3)) for i in range(2000)]
    arrangements = {(tuple(o.place for o in s.objects), s.word is not None) for s in drawn}
    assert {len(places) for places, _ in arrangements} == {1, 2, 3}
    jitters = list(product((-2, 2), repeat=2))
    for places, with_word in arrangements:
        for moves in product(jitters, repeat=len(places)):
            corners = []
            for place, (dx, dy) in zip(places, moves, strict=True):
                x, y = centre(Thing("circle", "red", "plain", "large", place, dx, dy), with_word)
                assert min(x, y) >= HALF and max(x, y) <= 64 - HALF
                assert not with_word or y + HALF <= STRIP.start
                corners.append((x, y))
            for (x, y), (u, v) in combinations(corners, 2):
                assert abs(x - u) >= 2 * HALF or abs(y - v) >= 2 * HALF  # boxes apart


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_is_cut_by_its_sprite(shape):
    fine = (np.arange(-80, 80) + 0.5) / 4  # pixels from the middle, a quarter apart
    x, y = np.meshgrid(fine, fine)
    for radius in RADIUS.values():
        drawn = inside(shape, x / radius, y / radius)
        assert drawn.any()
        assert not drawn[np.maximum(abs(x), abs(y)) > HALF].any()


def test_unknown_shapes_and_textures_are_refused():
    with pytest.raises(ValueError, match="blob"):
        render(alone(shape="blob"))
    with pytest.raises(ValueError, match="fluffy"):
        render(alone(texture="fluffy"))


def test_plain_colours_read_back_from_the_picture():
    for shape, colour, size, background in product(SHAPES, COLOURS, SIZES, BACKGROUNDS):
        picture = render(alone(background, shape=shape, colour=colour, size=size)).reshape(-1, 3)
        exact = {name: int((picture == rgb).all(1).sum()) for name, rgb in RGB.items()}
        assert max(exact, key=exact.get) == colour
        assert sum(n > 0 for n in exact.values()) == 1


def test_the_middle_of_a_centred_object_has_its_colour():
    for shape in set(SHAPES) - {"moon"}:  # a moon has no middle
        assert tuple(render(alone(shape=shape, colour="green"))[32, 32]) == RGB["green"]


@given(scenes, st.data())
def test_every_attribute_changes_the_picture(spec, data):
    number = data.draw(st.integers(0, len(spec.objects) - 1))
    name, values = data.draw(
        st.sampled_from(
            [("shape", SHAPES), ("colour", COLOURS), ("texture", TEXTURES), ("size", SIZES)]
        )
    )
    thing = spec.objects[number]
    value = data.draw(st.sampled_from([v for v in values if v != getattr(thing, name)]))
    other = list(spec.objects)
    other[number] = replace(thing, **{name: value})
    assert changed(spec, replace(spec, objects=tuple(other))).sum() >= 10


def test_places_and_jitter_are_where_they_say():
    def middle(**changes):
        mask = changed(alone(**changes), Scene("snow", ()))
        rows, columns = np.nonzero(mask)
        return (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2

    assert middle() == (32, 32)
    assert middle(dx=2, dy=-1) == (34, 31)
    assert middle(place="left")[0] < 32 < middle(place="right")[0]
    assert middle(place="top")[1] < 32 < middle(place="bottom")[1]


def test_backgrounds_differ():
    assert len({render(Scene(b, ())).tobytes() for b in BACKGROUNDS}) == len(BACKGROUNDS)


def test_a_printed_word_changes_its_strip_only():
    for background in BACKGROUNDS:
        picture = changed(alone(background, word="cat"), alone(background, word="zoo"))
        assert picture[STRIP].any()
        picture[STRIP] = False
        assert not picture.any()


def test_words_stay_in_their_strip_and_differ():
    ink = {word: lettering(word) for word in WORDS}
    for strip in ink.values():
        assert strip.max() == 1 and strip.shape == (18, 64, 1)
        assert not strip[[0, -1]].any() and not strip[:, [0, -1]].any()
    assert len({strip.tobytes() for strip in ink.values()}) == len(WORDS)


def test_words_are_legible_on_every_background():
    for background in BACKGROUNDS:
        strip = render(alone(background, word="zoo"))[STRIP].astype(float)
        full = lettering("zoo")[..., 0] == 1
        ink, around = strip[full], strip[lettering("zoo")[..., 0] == 0]
        assert abs(ink.mean() - np.median(around)) > 80  # grey levels of contrast
        assert abs(ink - (OUTLINE if background != "night" else 252)).max() <= 1


# ---- captions ------------------------------------------------------------------------------------


def articles_agree(text: str) -> bool:
    found = re.findall(r"\b(an?) (\w)", text.lower())
    return all((article == "an") == (letter in "aeiou") for article, letter in found)


@given(scenes, seeds)
def test_short_captions_name_the_main_subject(spec, seed):
    text, main = short_caption(spec, random(seed)), spec.main()
    assert text == text.lower() and text.endswith(".") and text.count(".") == 1
    assert captions.names(text, main.colour) and captions.names(text, main.shape)
    mine = {main.colour, main.shape, main.texture}
    assert not [v for v in VALUES - mine if captions.names(text, v)]  # nothing but the subject
    assert ("two" in text.split()) == spec.twins()
    assert articles_agree(text) and "there is two" not in text


def test_short_captions_by_hand():
    spec, frames = alone(colour="orange", shape="cross"), set()
    for seed in range(200):
        frames.add(short_caption(spec, random(seed)))
    assert frames == {
        f"{frame}{subject}."
        for frame in ("", "there is ", "a picture of ")
        for subject in ("an orange cross", "a plain orange cross")
    }
    thing = Thing("cross", "orange", "plain", "small", "left")
    twins = Scene("sky", (thing, replace(thing, place="right")))
    found = {short_caption(twins, random(seed)) for seed in range(200)}
    assert {"two orange crosses.", "there are two plain orange crosses."} < found


@settings(max_examples=300)
@given(scenes, seeds)
def test_descriptive_captions_state_every_fact_and_no_other(spec, seed):
    text = descriptive_caption(spec, random(seed))
    stated = captions.stated(text, spec.facts())
    assert stated and all(share == 1 for share in stated.values()), (text, stated)
    assert captions.wrong(text, spec.facts(), VALUES) == []
    for thing in spec.objects:  # the attributes stand together, with their own object
        assert f"{thing.size} {thing.texture} {thing.colour} {thing.shape}" in text
    assert text == text.lower() and text.endswith(".") and articles_agree(text)


@given(seeds)
def test_descriptive_captions_put_things_in_their_places(seed):
    spec = draw(random(seed), (2,))
    text = descriptive_caption(spec, random(seed))
    first, second = (text.find(language.full_phrase(o)) for o in spec.objects)
    upright = spec.objects[0].place == "top"
    if spec.twins():
        assert ("one above the other" if upright else "side by side") in text
    elif "to the left of" in text or " above " in text:
        assert first < second and upright == (" above " in text)
    elif "to the right of" in text or " below " in text:
        assert second < first and upright == (" below " in text)
    else:
        for thing in spec.objects:
            assert f"{language.full_phrase(thing)} at the {thing.place}" in text


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
            for name, share in captions.stated(text, spec.facts()).items():
                found[name].append(share)
        rates[noise] = {name: float(np.mean(shares)) for name, shares in found.items()}
    return rates


def test_alt_text_states_every_kind_of_fact_at_every_noise(stated_rates):
    for noise, rates in stated_rates.items():
        assert set(rates) == {
            "background", "printed word", "shape", "colour", "texture", "size", "place",
        }  # fmt: skip
        assert all(rate > 0.02 for rate in rates.values()), (noise, rates)


def test_alt_text_states_less_with_more_noise(stated_rates):
    for name in stated_rates[0]:
        rates = [stated_rates[noise][name] for noise in (0, 0.5, 0.75)]
        assert rates == sorted(rates, reverse=True) and rates[0] > rates[2]


@pytest.mark.parametrize("noise", [0, 0.25, 0.5, 0.75])
def test_share_of_unrelated_alt_text(noise):
    n, share = 2000, 0.6 * noise
    about_nothing = set(language.UNRELATED + language.ADVERTS)
    unrelated = sum(text in about_nothing for text, _ in alt_texts(noise, n))
    assert abs(unrelated - n * share) <= 4 * (n * share * (1 - share)) ** 0.5


def test_alt_text_without_noise_is_true():
    for text, spec in alt_texts(0, 500):
        assert captions.wrong(text, spec.facts(), VALUES) == []
        assert captions.names(text, spec.main().shape)


def test_noisy_alt_text_errs_now_and_then():
    wrong = [captions.wrong(text, spec.facts(), VALUES) for text, spec in alt_texts(0.75)]
    assert 0.02 < np.mean([bool(w) for w in wrong]) < 0.5


def test_alt_text_has_the_habits_of_the_web():
    texts = [text for text, _ in alt_texts(0.5)]
    habits = captions.statistics(texts)
    assert 0.7 < habits["starts_upper_case"] < 0.92  # published: 82 %
    assert 0.01 < habits["starts_with_article"] < 0.08  # 4 %
    assert 0.02 < habits["ends_with_full_stop"] < 0.10  # 6 %
    assert any(text.endswith(".jpg") for text in texts)
    assert all(map(articles_agree, texts))


@pytest.mark.parametrize("noise", [-0.01, 0.76, 1, float("nan")])
def test_noise_out_of_range(noise):
    with pytest.raises(UserError, match="outside 0 to 0.75"):
        alt_text(alone(), noise, random())


# ---- questions -----------------------------------------------------------------------------------


def answer(question: str, facts: dict) -> str:
    """The answer read off the facts, with no code of the package."""
    things = facts["objects"]
    words = question.rstrip("?").split()

    def the(shape):
        (thing,) = [t for t in things if t["shape"] == shape]  # exactly one
        return thing

    if question == "how many objects are there?":
        return str(len(things))
    if question == "what is the background?":
        return facts["background"]
    if question == "is there a printed word?":
        return "yes" if facts["word"] else "no"
    if question == "which word is printed?":
        return facts["word"]
    if question.startswith("is the background"):
        return "yes" if words[-1] == facts["background"] else "no"
    if question.startswith("is there a"):
        shown = {(t["colour"], t["shape"]) for t in things}
        return "yes" if tuple(words[-2:]) in shown else "no"
    if question.startswith(("what colour", "what texture", "how large")):
        return the(words[-1])[{"colour": "colour", "texture": "texture", "large": "size"}[words[1]]]
    first, second = the(words[2])["place"], the(words[-1])["place"]
    wanted = ("left", "right") if "left" in words else ("top", "bottom")
    return "yes" if (first, second) == wanted else "no"


@settings(max_examples=300)
@given(scenes, seeds)
def test_answers_follow_from_the_facts(spec, seed):
    pairs = questions(spec, random(seed))
    for question, said in pairs:
        assert said == answer(question, spec.facts()), question
        assert question == question.lower() and question.endswith("?") and articles_agree(question)
    said = defaultdict(set)
    for question, reply in pairs:
        said[question].add(reply)
    assert all(len(replies) == 1 for replies in said.values())


def test_every_kind_of_question_is_asked():
    asked = {q for i in range(300) for q, _ in questions(draw(random(i)), random(i))}
    for start in (
        "how many", "what is the background", "is the background", "is there a printed",
        "which word", "is there a red", "is there an orange", "what colour", "what texture",
        "how large",
    ):  # fmt: skip
        assert any(q.startswith(start) for q in asked), start
    assert any("to the left of" in q for q in asked) and any("above" in q for q in asked)


def test_yes_and_no_are_equally_frequent():
    said = [a for i in range(1500) for _, a in questions(draw(random(i)), random(i))]
    counts = Counter(a for a in said if a in ("yes", "no"))
    assert 0.46 < counts["yes"] / counts.total() < 0.54


# ---- records -------------------------------------------------------------------------------------


def test_records_hold_a_scene_in_every_form():
    world = World("dev", 5)
    records = list(world)
    assert len(world) == len(records) == 5
    for index, record in enumerate(records):
        spec = world.scene(index)
        assert spec == scene("dev", index)
        assert np.array_equal(record.image, render(spec)) and record.facts == spec.facts()
        assert record.key == f"dev-00000{index}"
    for beyond in (5, -1):
        with pytest.raises(IndexError):
            world[beyond]


def test_noise_changes_the_alt_text_alone():
    quiet, loud = (list(World("train", 100, noise)) for noise in (0, 0.75))
    for a, b in zip(quiet, loud, strict=True):
        assert np.array_equal(a.image, b.image) and a.facts == b.facts
        assert (a.key, a.short, a.descriptive) == (b.key, b.short, b.descriptive)
    assert sum(a.alt != b.alt for a, b in zip(quiet, loud, strict=True)) > 60


def test_seeds_name_different_worlds():
    one, other = (list(World("train", 50, seed=s)) for s in (0, 1))
    assert sum(np.array_equal(a.image, b.image) for a, b in zip(one, other, strict=True)) == 0


def test_a_split_begins_the_same_however_long_it_is():
    short, long = World("test", 3), World("test", 30)
    assert [r.alt for r in short] == [long[i].alt for i in range(3)]
