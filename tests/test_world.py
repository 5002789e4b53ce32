"""The world: what splits share, what pictures show, what records hold."""

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle3lib import UserError, caption_facts
from dalle3lib.randomness import rng
from dalle3lib.world import (
    SPLITS,
    Scene,
    Thing,
    World,
    render,
    scene,
)
from dalle3lib.world.canvas import CANVASES, HALF, LANDSCAPE, LETTER, PORTRAIT, SQUARE
from dalle3lib.world.render import (
    OUTLINE,
    RADIUS,
    RGB,
    WHITE,
    backdrop,
    inside,
    letter,
)
from dalle3lib.world.scene import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    draw,
    split_of,
)

STRIP = slice(SQUARE.word_top, SQUARE.word_top + LETTER)  # the rows of a printed word

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
        moved = tuple(replace(o, dx=-o.dx, dy=1) for o in spec.objects)
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
        assert -1 <= thing.dx <= 1 and -1 <= thing.dy <= 1
    order = [tuple(part.start for part in SQUARE.square(o.place, False)) for o in spec.objects]
    assert order == sorted(order)  # reading order: rows first


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
    assert jitters == {-1, 0, 1}


def test_held_out_pairs_occur_in_the_foundation_split_only():
    assert {colour for colour, _ in HELD_OUT_PAIRS} == set(COLOURS)
    assert [shape for _, shape in HELD_OUT_PAIRS] == list(SHAPES)
    for split in SPLITS:
        things = [o for i in range(250) for o in scene(split, i, counts=(3,)).objects]
        shown = {(o.colour, o.shape) for o in things}
        held_out = set(HELD_OUT_PAIRS)
        assert held_out <= shown if split == "foundation" else held_out.isdisjoint(shown)
        assert len(shown | held_out) == len(COLOURS) * len(SHAPES)  # all others occur


def test_a_scene_comes_back_from_its_facts():
    for index in range(200):
        spec = scene("train", index)
        again = Scene.from_facts(spec.facts())
        assert again.facts() == spec.facts() and again.main().kind() == spec.main().kind()
        assert again.twins() == spec.twins()


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
    spec = alone(dx=1, dy=-1, word="cat")
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
    for mask, thing in zip(shown, spec.objects, strict=True):
        assert mask.sum() > 50  # pixels
        own = mask[SQUARE.square(thing.place, spec.word is not None)]
        assert own.sum() == mask.sum()  # nowhere but in its square
        assert not own[[0, -1]].any() and not own[:, [0, -1]].any()  # and not cut by it


def test_squares_lie_on_the_grid_and_apart():
    drawn = [draw(random(i), (1, 2, 3)) for i in range(2000)]
    arrangements = {(tuple(o.place for o in s.objects), s.word is not None) for s in drawn}
    assert len(arrangements) == 12  # 5, 2 and 1 without a word, 3 and 1 with one
    for places, with_word in arrangements:
        taken = np.zeros((64, 64), int)
        taken[STRIP] += with_word
        for place in places:
            where = SQUARE.square(place, with_word)
            assert taken[where].shape == (2 * HALF, 2 * HALF)  # inside the picture
            assert all(part.start % 8 == 0 for part in where)
            taken[where] += 1
        assert taken.max() == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_is_cut_by_its_sprite(shape):
    fine = (np.arange(-80, 80) + 0.5) / 4  # pixels from the middle, a quarter apart
    x, y = np.meshgrid(fine, fine)
    for radius in RADIUS.values():
        drawn = inside(shape, x / radius, y / radius)
        assert drawn.any()
        assert not drawn[np.maximum(abs(x), abs(y)) > HALF - 1].any()  # a pixel to move in


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
    assert middle(dx=1, dy=-1) == (33, 31)
    assert middle(place="left")[0] < 32 < middle(place="right")[0]
    assert middle(place="top")[1] < 32 < middle(place="bottom")[1]


@pytest.mark.parametrize("texture", TEXTURES)
def test_patterns_stay_in_place_when_an_object_moves(texture):
    moves = list(product((-1, 0, 1), repeat=2))
    shown = [render(alone(shape="square", texture=texture, dx=x, dy=y)) for x, y in moves]
    middle = slice(25, 39)  # inside the square, wherever it moves
    assert all(np.array_equal(shown[0][middle, middle], s[middle, middle]) for s in shown)
    # the cloth: the same colour and white, every 8 pixels again
    patch = shown[0][middle, middle].astype(int)
    colours = {tuple(pixel) for pixel in patch.reshape(-1, 3)}
    assert colours == {RGB["red"]} | ({tuple(WHITE.astype(int))} if texture != "plain" else set())
    assert np.array_equal(patch[8:], patch[:-8]) and np.array_equal(patch[:, 8:], patch[:, :-8])


@given(scenes, st.sampled_from([("left", "right"), ("top", "bottom")]))
def test_twins_look_alike(spec, places):
    both = tuple(replace(spec.objects[0], place=place) for place in places)
    picture = render(replace(spec, objects=both, word=None))
    one, other = (picture[SQUARE.square(place, False)] for place in places)
    assert np.array_equal(one, other)


@pytest.mark.parametrize("background", set(BACKGROUNDS) - {"stone"})
def test_a_word_raises_an_object_and_changes_it_in_nothing_else(background):
    low, high = render(alone(background)), render(alone(background, word="cat"))
    assert np.array_equal(low[SQUARE.square("centre", False)], high[SQUARE.square("centre", True)])


def test_backgrounds_differ_and_repeat():
    for name in BACKGROUNDS:
        picture = render(Scene(name, ()))
        assert np.array_equal(picture, backdrop(name))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 2
        period = 16 if name == "stone" else 8
        for axis in (0, 1):
            assert np.array_equal(picture, np.roll(picture, period, axis))
    assert len({backdrop(b).tobytes() for b in BACKGROUNDS}) == len(BACKGROUNDS)
    with pytest.raises(ValueError, match="read-only"):
        backdrop("snow")[0] = 0  # the next picture would show it


def test_a_printed_word_changes_its_strip_only():
    for background in BACKGROUNDS:
        picture = changed(alone(background, word="cat"), alone(background, word="zoo"))
        assert picture[STRIP].any()
        picture[STRIP] = False
        assert not picture.any()


def test_letters_stand_in_their_squares():
    assert [list(SQUARE.letter_columns(n)) for n in (2, 3, 4)] == [
        [16, 32],
        [8, 24, 40],
        [0, 16, 32, 48],
    ]
    picture = changed(alone(word="cat"), alone(word="hat"))
    assert picture[STRIP, 8:24].any()
    picture[STRIP, 8:24] = False
    assert not picture.any()


def test_letters_differ():
    used = sorted(set("".join(WORDS)))
    assert used == list("abcdefghijklmnopqrstuvwxyz")
    inks = [letter(character) for character in used]
    for ink in inks:
        assert ink.shape == (LETTER, LETTER, 1) and ink.min() == 0 and ink.max() == 1
    for a, b in combinations(inks, 2):
        assert abs(a - b).sum() > 5  # pixels of ink


def test_words_are_legible_on_every_background():
    for background in BACKGROUNDS:
        strip = render(alone(background, word="zoo"))[STRIP, 8:24].astype(float)
        ink, around = (strip[letter("z")[..., 0] == share] for share in (1, 0))
        assert abs(ink.mean() - np.median(around)) > 80  # grey levels of contrast
        assert abs(ink - (OUTLINE if background != "night" else WHITE)).max() <= 1


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


def test_another_wording_of_the_same_scene():
    world = World("train", 100)
    said, again = ([world.captions(i, wording) for i in range(100)] for wording in ("", "/again"))
    assert said == [(r.alt, r.short, r.descriptive) for r in world]
    assert sum(a[2] != b[2] for a, b in zip(said, again, strict=True)) > 80
    for record, (_, _, descriptive) in zip(world, again, strict=True):
        assert set(caption_facts.stated(descriptive, record.facts).values()) == {1}


# ---- canvases ------------------------------------------------------------------------------------


@given(scenes, st.sampled_from(CANVASES), st.sampled_from([1, 2, 3]))
def test_squares_of_a_canvas_lie_inside_and_apart(spec, canvas, scale):
    if not canvas.holds(spec):
        return
    assert render(spec, canvas, scale).shape == (canvas.height * scale, canvas.width * scale, 3)
    drawn = np.zeros((canvas.height, canvas.width), int)
    for thing in spec.objects:
        rows, columns = canvas.square(thing.place, spec.word is not None)
        assert rows.start >= 0 and columns.start >= 0
        assert rows.start % 8 == columns.start % 8 == 0  # in step with the latents
        drawn[rows, columns] += 1
    assert drawn.sum() == len(spec.objects) * (2 * HALF) ** 2
    drawn[canvas.word_top :] += spec.word is not None
    assert drawn.max() <= 1
    columns = canvas.letter_columns(len(spec.word or ""))
    assert not columns or (columns[0] >= 0 and columns[-1] + LETTER <= canvas.width)


def test_what_a_canvas_holds():
    left, top = alone(place="left"), alone(place="top")
    assert LANDSCAPE.holds(left) and not LANDSCAPE.holds(top)
    assert PORTRAIT.holds(top) and not PORTRAIT.holds(left)
    assert PORTRAIT.holds(alone(word="cat")) and not PORTRAIT.holds(alone(word="bird"))
    assert all(SQUARE.holds(scene("train", i, counts=(1, 2, 3))) for i in range(50))


def test_a_finer_drawing_is_the_same_picture():
    """Averaged down it differs at edges only, and it is no enlargement: it has finer edges."""
    for i in range(20):
        spec = scene("train", i)
        coarse, fine = render(spec).astype(float), render(spec, scale=2)
        down = fine.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert abs(down - coarse).mean() < 4
        assert (fine != coarse.repeat(2, 0).repeat(2, 1)).any()
    empty = Scene("stone", ())
    assert np.array_equal(render(empty, scale=2), render(empty).repeat(2, 0).repeat(2, 1))


def test_a_world_on_several_canvases_draws_the_same_scenes():
    plain, world = World("dev", 60), World("dev", 60, canvases=CANVASES, scale=2)
    names = set()
    for one, other, i in zip(plain, world, range(60), strict=True):
        canvas = world.canvas(i)
        names.add(canvas.name)
        assert (one.facts, one.alt, one.descriptive) == (other.facts, other.alt, other.descriptive)
        assert np.array_equal(other.image, render(world.scene(i), canvas, 2))
    assert names == {"square", "landscape", "portrait"}
    with pytest.raises(UserError, match="none of the canvases"):
        [r for r in World("dev", 60, canvases=(LANDSCAPE,))]
