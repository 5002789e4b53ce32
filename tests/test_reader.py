"""The reader: right on every rendered scene, silent where nothing is drawn, hard to disturb."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle3lib import UserError
from dalle3lib.randomness import rng
from dalle3lib.world import Scene, Thing, reader, render, scene, templates
from dalle3lib.world.canvas import CANVASES, SQUARE
from dalle3lib.world.reader import read, recall
from dalle3lib.world.render import ink_colour, letter, sprite
from dalle3lib.world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, WORDS, draw

STAR = Thing("star", "blue", "plain", "large", "left")
MOON = Thing("moon", "red", "dotted", "small", "right")
PLACES = [
    (("centre",), ("left",), ("right",), ("left", "right")),
    (("top",), ("bottom",), ("top", "bottom"), ("top left", "top right", "bottom")),
]


def read_facts(pictures: list[np.ndarray]) -> list[dict]:
    """The readings without ``fit``."""
    return [{k: v for k, v in r.items() if k != "fit"} for r in read(np.stack(pictures))]


def noisy(picture: np.ndarray, level: float, seed: int = 0) -> np.ndarray:
    noise = rng(seed, "noise").normal(0, level, picture.shape)
    return np.clip(picture + noise, 0, 255).round().astype(np.uint8)


# ---- rendered scenes -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_scene_is_read_exactly(count):
    specs = [draw(rng(0, "test", i), (count,)) for i in range(300)]
    readings = read(np.stack([render(s) for s in specs]))
    assert min(r.pop("fit") for r in readings) > 0.99
    wrong = [(r, s) for r, s in zip(readings, specs, strict=True) if r != s.facts()]
    assert wrong == []  # no exceptions
    assert count > 2 or sum(s.word is not None for s in specs) > 30


@given(st.data())
def test_reading_undoes_rendering(data):
    word = data.draw(st.none() | st.sampled_from(WORDS))
    jitter = st.integers(-1, 1)
    objects = tuple(
        Thing(*(data.draw(st.sampled_from(v)) for v in (SHAPES, COLOURS, TEXTURES, SIZES)), place,
              data.draw(jitter), data.draw(jitter))
        for place in data.draw(st.sampled_from(PLACES[0] if word else PLACES[0] + PLACES[1]))
    )  # fmt: skip
    spec = Scene(data.draw(st.sampled_from(BACKGROUNDS)), objects, word)
    assert read_facts([render(spec)]) == [spec.facts()]


def test_every_kind_is_told_from_every_other():
    kinds = list(product(SHAPES, COLOURS, TEXTURES, SIZES))
    specs = [
        Scene(BACKGROUNDS[i % 6], (Thing(*kind, "centre", i % 3 - 1, i // 3 % 3 - 1),))
        for i, kind in enumerate(kinds)
    ]
    assert read_facts([render(s) for s in specs]) == [s.facts() for s in specs]


def test_any_spelling_is_read():
    words = ("qx", "aab", "zzzz", "wmwm", "iji", "oqcd", "efhk")
    specs = [Scene(b, (STAR,), word) for b in BACKGROUNDS for word in words]
    assert read_facts([render(s) for s in specs]) == [s.facts() for s in specs]


def test_arrangements_the_world_never_draws_are_read():
    def laid(picture: np.ndarray, thing: Thing, raised: bool = False) -> np.ndarray:
        paint, through = sprite(thing)
        where = SQUARE.square(thing.place, raised)
        picture[where] = paint + through * picture[where] + 0.5
        return picture

    above = replace(STAR, place="top left")
    picture = laid(laid(render(Scene("sand", ())), above), replace(MOON, place="bottom"))
    picture_with_word = laid(render(Scene("sand", (), "zoo")), MOON)  # not raised for the word
    assert read_facts([picture, picture_with_word]) == [
        Scene("sand", (above, replace(MOON, place="bottom"))).facts(),
        Scene("sand", (MOON,), "zoo").facts(),
    ]


def test_objects_come_in_reading_order():
    trio = tuple(replace(STAR, place=p) for p in ("top left", "top right", "bottom"))
    readings = read(np.stack([render(Scene("snow", trio)), render(Scene("snow", (STAR, MOON)))]))
    assert [[o["place"] for o in r["objects"]] for r in readings] == [
        ["top left", "top right", "bottom"],
        ["left", "right"],
    ]


# ---- disturbed pictures --------------------------------------------------------------------------


def disturbed() -> dict[str, list[np.ndarray]]:
    """The pictures of the first 60 dev scenes: noisy, brighter, darker, at half resolution."""
    pictures = [render(scene("dev", i)) for i in range(60)]
    ones = np.ones((2, 2, 1), np.uint8)
    return {
        "noise": [noisy(p, 12, i) for i, p in enumerate(pictures)],
        "brighter": [np.clip(p + 12.0, 0, 255).astype(np.uint8) for p in pictures],
        "darker": [np.clip(p - 12.0, 0, 255).astype(np.uint8) for p in pictures],
        "half": [
            np.kron(p.reshape(32, 2, 32, 2, 3).mean((1, 3)).astype(np.uint8), ones)
            for p in pictures
        ],
    }


def test_disturbed_pictures_are_read_the_same():
    truth = [scene("dev", i).facts() for i in range(60)]
    for name, pictures in disturbed().items():
        wrong = [t for t, r in zip(truth, read_facts(pictures), strict=True) if t != r]
        assert len(wrong) <= 1, (name, wrong)


def test_a_reading_does_not_depend_on_the_pictures_beside_it(monkeypatch):
    pictures = np.stack([noisy(render(scene("dev", i)), 20) for i in range(7)])
    together = read(pictures)
    monkeypatch.setattr(reader, "CHUNK", 3)
    for apart in (read(pictures), [read(p[None])[0] for p in pictures]):
        fits = [(a.pop("fit"), b["fit"]) for a, b in zip(apart, together, strict=True)]
        assert apart == [{k: v for k, v in r.items() if k != "fit"} for r in together]
        assert all(abs(a - b) < 1e-4 for a, b in fits)


def test_fit_falls_with_what_is_not_explained():
    picture = render(Scene("grass", (STAR,)))
    cluttered = picture.copy()
    cluttered[20:44, 40:60] = rng(0, "clutter").integers(0, 256, (24, 20, 3))
    fits = [r["fit"] for r in read(np.stack([picture, noisy(picture, 25), cluttered]))]
    assert 0.99 < fits[0] <= 1 and fits[0] > fits[1] > fits[2] > 0.1
    assert all(r["objects"][0]["shape"] == "star" for r in read(np.stack([picture, cluttered])))


# ---- nothing to read -----------------------------------------------------------------------------


def test_nothing_is_found_on_empty_backdrops():
    empty = [render(Scene(b, ())) for b in BACKGROUNDS]
    readings = read(np.stack(empty))
    assert [r.pop("fit") for r in readings] == [1] * 6
    nothing = [Scene(b, ()).facts() for b in BACKGROUNDS]
    assert readings == nothing
    assert read_facts([noisy(p, 25) for p in empty]) == nothing


def test_a_word_alone_is_read():
    specs = [Scene(b, (), "lion") for b in BACKGROUNDS]
    assert read_facts([render(s) for s in specs]) == [s.facts() for s in specs]


def test_nothing_is_found_in_noise_and_flat_colour():
    random = rng(0, "pictures")
    noise = random.integers(0, 256, (30, 64, 64, 3), dtype=np.uint8)
    flat = np.broadcast_to(random.integers(0, 256, (30, 1, 1, 3), dtype=np.uint8), noise.shape)
    scenes = [render(scene("dev", i)).reshape(-1, 3) for i in range(30)]
    shuffled = [random.permutation(pixels).reshape(64, 64, 3) for pixels in scenes]
    for pictures in (noise, flat, shuffled):
        for reading in read(np.stack(list(pictures))):
            assert reading["objects"] == [] and reading["word"] is None
            assert reading["fit"] < 0.05


def test_an_object_cut_away_is_not_read():
    spec = Scene("stone", (STAR, MOON), "cat")
    cut = render(spec)
    hole = cut.copy()
    hole[SQUARE.square("left", True)] = 90, 200, 40  # a flat area is no object either
    cut[SQUARE.square("left", True)] = render(Scene("stone", ()))[SQUARE.square("left", True)]
    assert read_facts([cut, hole]) == [Scene("stone", (MOON,), "cat").facts()] * 2
    cut = render(spec)
    cut[48:] = render(Scene("stone", ()))[48:]
    assert read_facts([cut])[0]["word"] is None


# ---- how it reads --------------------------------------------------------------------------------


def test_templates_are_the_differences_that_rendering_makes():
    paint, hidden, squares = templates.templates()
    for template, number, background in ((0, 0, 0), (1234, 4, 5), (4607, 9, 4), (77, 6, 2)):
        place, raised = templates.squares_of(SQUARE)[number]
        behind = templates.backdrops()[background][SQUARE.square(place, raised)]
        over, through = sprite(templates.thing(template, place))
        d = templates.look(over + through * behind - behind)
        found = paint[template] - hidden[number, background, template // len(templates.CLOTHS)]
        assert np.allclose(d, found, atol=1e-2)
        assert np.isclose((d**2).sum(), squares[number, background, template], rtol=1e-3)


def test_letters_are_the_differences_that_printing_makes():
    strip = render(Scene("night", ()))[48:, 8:24].astype(float)
    printed = strip + letter("q") * (ink_colour("night") - strip)
    found = templates.letters("night")[4, ord("q") - ord("a")]  # of 0, 16, 32, 48; 8, 24, 40
    assert np.allclose(found, templates.look(np.float32(printed - strip)), atol=1e-2)


def test_looking_keeps_flat_areas_and_halves_the_side():
    flat = np.full((1, 16, 16, 3), 8, np.float32)
    seen = templates.look(flat).reshape(8, 8, 3)
    assert np.allclose(seen[2:-2, 2:-2], 8)  # outside the patch all is zero, so edges fall
    assert (seen[0] < 8).all()
    point = np.zeros((1, 16, 16, 3), np.float32)
    point[0, 6, 8, 1] = 1024
    # pixel 6 is the third (10 / 32) of the six that half-resolution row 3 looks at, and so on
    expected = np.zeros((8, 8, 3))
    expected[2:5, 3:6, 1] = np.outer((5, 10, 1), (5, 10, 1))
    assert np.allclose(templates.look(point).reshape(8, 8, 3), expected)


def test_squares_read_together_never_overlap():
    sets = templates.arrangements()
    assert len({s.tobytes() for s in sets}) == len(sets)
    for chosen in sets:
        taken = np.zeros((64, 64), int)
        for number in np.flatnonzero(chosen[:-1]):
            taken[SQUARE.square(*templates.squares_of(SQUARE)[number])] += 1
        taken[48:] += chosen[-1]
        assert taken.max() <= 1
    names = [*templates.squares_of(SQUARE), "word"]
    found = [{names[i] for i in np.flatnonzero(s)} for s in sets]
    for places in PLACES[0]:
        assert {(p, False) for p in places} in found
        assert {(p, True) for p in places} | {"word"} in found
    for places in PLACES[1]:
        assert {(p, False) for p in places} in found


# ---- recall --------------------------------------------------------------------------------------

TRUE = Scene("sky", (STAR, MOON), "cat").facts()
PAIRS = ("colour-shape", "texture-shape", "size-shape", "colour-shape-place")


def test_recall_of_the_truth_is_one():
    assert recall(TRUE, TRUE) == dict.fromkeys((*PAIRS, "background", "count", "word"), 1.0)


def test_recall_of_nothing_is_zero():
    nothing = Scene("sand", ()).facts()
    assert recall(nothing, TRUE) == dict.fromkeys((*PAIRS, "background", "count", "word"), 0.0)


def test_recall_counts_facts_one_by_one():
    wrong = Scene("sky", (replace(STAR, colour="red"), replace(MOON, place="top")), "cut").facts()
    assert recall(wrong, TRUE) == {
        "colour-shape": 0.5,  # the moon
        "texture-shape": 1.0,
        "size-shape": 1.0,
        "colour-shape-place": 0.0,  # the moon is elsewhere
        "background": 1.0,
        "count": 1.0,
        "word": 0.0,
    }


def test_attributes_of_different_objects_do_not_make_a_pair():
    swapped = (replace(STAR, colour="red"), replace(MOON, colour="blue"))
    assert recall(Scene("sky", swapped).facts(), TRUE)["colour-shape"] == 0


def test_recall_counts_twins_as_two():
    twins = Scene("sky", (STAR, replace(STAR, place="right"))).facts()
    one = Scene("sky", (STAR,)).facts()
    found = recall(one, twins)
    assert [found[name] for name in PAIRS] == [0.5] * 4 and found["count"] == 0
    found = recall(twins, one)  # one too many: nothing is missing but the count
    assert [found[name] for name in PAIRS] == [1] * 4 and found["count"] == 0


def test_recall_asks_for_a_word_and_for_pairs_only_where_there_are_any():
    assert "word" not in recall(TRUE, Scene("sky", (STAR,)).facts())
    assert set(recall(TRUE, Scene("sky", (), "cat").facts())) == {"background", "count", "word"}


def test_recall_takes_readings():
    spec = scene("dev", 0)
    assert set(recall(read(render(spec)[None])[0], spec.facts()).values()) == {1.0}


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pictures",
    [
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((2, 32, 32, 3), np.uint8),
        np.zeros((2, 64, 64), np.uint8),
        np.zeros((2, 3, 64, 64), np.uint8),
        np.zeros((2, 64, 64, 3), np.float32),
    ],
)
def test_other_arrays_are_refused(pictures):
    wanted = r"uint8 \[N, H, W, 3\] of 64, 64, .*, not .*: resize and convert"
    with pytest.raises(UserError, match=wanted):
        read(pictures)


def test_no_pictures_no_readings():
    assert read(np.zeros((0, 64, 64, 3), np.uint8)) == []


# ---- other canvases ------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("canvas", CANVASES, ids=lambda canvas: canvas.name)
def test_every_canvas_is_read_at_every_scale(canvas, scale):
    """Finer pictures are averaged down, which is not quite what drawing at scale 1 gives."""
    specs = [s for s in (scene("test", i) for i in range(150)) if canvas.holds(s)]
    readings = read(np.stack([render(s, canvas, scale) for s in specs]))
    right = [
        {k: v for k, v in reading.items() if k != "fit"} == spec.facts()
        for reading, spec in zip(readings, specs, strict=True)
    ]
    assert len(specs) > 30 and all(right)


def test_the_size_of_a_picture_tells_its_canvas():
    def told(height: int, width: int):
        found = reader.canvas_of(np.zeros((1, height, width, 3), np.uint8))
        return found and (found[0].name, found[1])

    assert told(64, 64) == ("square", 1) and told(192, 192) == ("square", 3)
    assert told(48, 80) == ("landscape", 1) and told(160, 96) == ("portrait", 2)
    assert told(64, 80) is told(96, 150) is told(8, 8) is None


def test_averaging_by_hand():
    picture = np.zeros((1, 4, 2, 3), np.uint8)
    picture[0, :2, :, 1] = [[10, 20], [30, 41]]
    assert reader.averaged(picture, 2)[0, :, 0, 1].tolist() == [25, 0]
    assert reader.averaged(picture, 1) is picture
