"""The instruments' validation: statements and their truth, degraded pictures, errors by hand,
agreement, and the probe for letters. Readers, judges and scorers are fakes that are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dalle3lib import UserError
from dalle3lib.evals import instruments, letter_probe
from dalle3lib.evals.instruments import QUESTIONS, errors, holds
from dalle3lib.evals.kappa import kappa, kappa_interval
from dalle3lib.randomness import rng
from dalle3lib.world import Scene, Thing, questions, render, scene
from dalle3lib.world.canvas import SQUARE
from dalle3lib.world.questions import VALUES
from dalle3lib.world.render import letter
from dalle3lib.world.scene import BACKGROUNDS, WORDS

torch.set_num_threads(1)
SCENES = [scene("dev", i) for i in range(60)]
FACTS = [spec.facts() for spec in SCENES]
ASKED = instruments.statements(SCENES)
KINDS = [s.kind for s in ASKED]
RED, BLUE = (
    Thing("circle", "red", "plain", "small", "left"),
    Thing("star", "blue", "striped", "large", "right"),
)
TWO = Scene("snow", (RED, BLUE), "cat").facts()


# ---- statements ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "claim", "answer"),
    [
        ("colour-shape", ("red", "circle"), True),
        ("colour-shape", ("blue", "circle"), False),  # both are there, but not together
        ("texture-shape", ("striped", "star"), True),
        ("size-shape", ("large", "circle"), False),
        ("relation", ("circle", "to the left of", "star"), True),
        ("relation", ("star", "to the left of", "circle"), False),
        ("relation", ("circle", "above", "star"), False),
        ("relation", ("circle", "to the left of", "moon"), False),
        ("place", ("star", "right"), True),
        ("place", ("star", "left"), False),
        ("count", ("two",), True),
        ("count", ("one",), False),
        ("background", ("snow",), True),
        ("word", ("cat",), True),
        ("word", ("hat",), False),
    ],
)
def test_what_holds_in_a_scene(kind, claim, answer):
    assert holds(kind, claim, TWO) is answer


def test_more_objects_than_there_are_numbers_for_are_no_error():
    crowd = TWO | {"objects": TWO["objects"] * 3}
    assert not any(holds("count", (number,), crowd) for number in ("one", "two", "three"))


def test_statements_come_in_pairs_of_which_one_is_true():
    assert {s.kind for s in ASKED} == set(QUESTIONS)
    for right, wrong in zip(ASKED[::2], ASKED[1::2], strict=True):
        assert (right.picture, right.kind) == (wrong.picture, wrong.kind)
        assert right.true and holds(right.kind, right.claim, FACTS[right.picture])
        assert not wrong.true and not holds(wrong.kind, wrong.claim, FACTS[wrong.picture])
        assert (right.caption, right.foil) == (wrong.foil, wrong.caption)
        assert right.caption != right.foil


def test_a_changed_scene_makes_the_false_claim_true_and_can_be_drawn():
    for spec in SCENES[:20]:
        for kind in QUESTIONS:
            for right, wrong, other in instruments.alternatives(kind, spec):
                assert holds(kind, right, spec.facts()) and holds(kind, wrong, other.facts())
                assert render(other).shape == (64, 64, 3)


def test_kinds_are_asked_where_a_scene_has_them():
    counted = {kind: KINDS.count(kind) // 2 for kind in QUESTIONS}
    assert counted["background"] == counted["colour-shape"] == counted["count"] == len(SCENES)
    assert counted["word"] == sum(spec.word is not None for spec in SCENES)
    assert counted["place"] == sum(len(spec.objects) == 1 for spec in SCENES)
    assert counted["relation"] == sum(len({o.shape for o in s.objects}) == 2 for s in SCENES)


def test_the_judge_is_asked_in_words_it_was_trained_on():
    values = {v for options in VALUES.values() for v in options} | {*BACKGROUNDS, *WORDS}

    def form(question: str) -> str:
        words = question.removesuffix("?").split()
        return " ".join("#" if w in values else w.replace("an", "a") for w in words)

    known = {
        form(q.text) for i in range(400) for q in questions(scene("foundation", i), rng(0, "q", i))
    }
    assert {form(s.question) for s in ASKED} <= known


def test_statements_are_the_same_every_time_and_others_with_another_seed():
    assert instruments.statements(SCENES[:5]) == [s for s in ASKED if s.picture < 5]
    assert instruments.statements(SCENES[:5], seed=1) != instruments.statements(SCENES[:5])


# ---- pictures ------------------------------------------------------------------------------------


class Identity:
    """An autoencoder that loses nothing."""

    device = "cpu"

    def encode(self, x):
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=x))

    def decode(self, z):
        return SimpleNamespace(sample=z)


@pytest.fixture(scope="module")
def pictures():
    return instruments.degraded(SCENES, Identity())


def test_degraded_pictures(pictures):
    clean = pictures["clean"].astype(float)
    assert all(p.dtype == np.uint8 and p.shape == (60, 64, 64, 3) for p in pictures.values())
    assert np.array_equal(pictures["VAE-decoded"], pictures["clean"])
    grey = (clean > 100) & (clean < 155)  # where noise is not clipped
    assert np.std((pictures["noised"] - clean)[grey]) == pytest.approx(25, rel=0.05)
    assert abs(pictures["blurred"].mean() - clean.mean()) < 1
    steps = [np.abs(np.diff(p.astype(float), axis=1)).mean() for p in (pictures["blurred"], clean)]
    assert steps[0] < steps[1]


def test_a_morph_is_half_of_each_scene(pictures):
    for i, other in enumerate(instruments.partners(SCENES)):
        mixed = (render(SCENES[i]).astype(float) + render(other)) / 2
        assert abs(pictures["morphed"][i] - mixed).max() <= 0.5
        (changed,) = (n for n, o in enumerate(other.objects) if o != SCENES[i].objects[n])
        where = SQUARE.square(other.objects[changed].place, other.word is not None)
        same = pictures["morphed"][i] == pictures["clean"][i]
        same[where] = True
        assert same.all()


def test_of_a_morph_only_what_both_scenes_share_is_true():
    mixed = [spec.facts() for spec in instruments.partners(SCENES)]
    shared = instruments.truth(ASKED, FACTS, mixed)
    assert np.array_equal(instruments.truth(ASKED, FACTS), [s.true for s in ASKED])
    for s, still in zip(ASKED, shared, strict=True):
        twins = SCENES[s.picture].twins()  # the other twin is still there
        if s.kind == "colour-shape":
            assert not still or (twins and s.true)
        elif s.kind in ("background", "word", "count"):
            assert still == s.true


# ---- instruments ---------------------------------------------------------------------------------


def test_the_reader_answers_from_what_it_reads(monkeypatch):
    monkeypatch.setattr(instruments.reader, "read", lambda images: [TWO | {"fit": 1.0}] * 60)
    said = instruments.reader_answers(ASKED, np.zeros((60, 64, 64, 3), np.uint8))
    assert said.tolist() == [holds(s.kind, s.claim, TWO) for s in ASKED]


def test_the_judge_says_yes_or_names_the_value(monkeypatch):
    def p_yes(model, processor, images, asked, of):
        assert len(asked) == len(of) == len(ASKED)
        return np.array([0.5 if "red" in question else 0.49 for question in asked])

    def answer(model, processor, images, asked, of):
        return ["two" if question.startswith("how many") else "left" for question in asked]

    monkeypatch.setattr(instruments.vqa, "p_yes", p_yes)
    monkeypatch.setattr(instruments.vqa, "answer", answer)
    said = instruments.judge_answers(ASKED, np.zeros((60, 64, 64, 3), np.uint8), None, None)
    for s, claimed in zip(ASKED, said, strict=True):
        if s.kind in instruments.OPEN:
            assert claimed == (s.claim[-1] in ("two", "left"))
        else:
            assert claimed == ("red" in s.question)


def test_clip_prefers_the_caption_that_is_nearer(monkeypatch):
    def features(texts):
        return torch.stack([torch.from_numpy(rng(0, t).normal(size=64)) for t in texts])

    near = {s.picture: [] for s in ASKED}
    for s in ASKED[::2]:
        near[s.picture].append(features([s.caption])[0] - features([s.foil])[0])
    image = torch.stack([torch.stack(parts).sum(0) for parts in near.values()])
    monkeypatch.setattr(instruments.clip_score, "image_features", lambda model, images: image)
    monkeypatch.setattr(instruments.clip_score, "text_features", lambda model, t, x: features(x))
    said = instruments.clip_answers(ASKED, np.zeros((60, 64, 64, 3), np.uint8), None, None)
    assert np.array_equal(said[::2], ~said[1::2])
    assert (said == [s.true for s in ASKED]).mean() > 0.9


# ---- errors --------------------------------------------------------------------------------------


def test_errors_by_hand():
    true = np.array([1, 1, 1, 1, 0, 0, 0, 0, 1, 1], bool)
    said = np.array([1, 1, 1, 0, 1, 1, 0, 0, 1, 0], bool)
    table = errors(said, true, ["a"] * 8 + ["b"] * 2)
    assert table.loc["a"].xs("rate", level=1).to_dict() == {
        "accuracy": 5 / 8,
        "false positive rate": 2 / 4,
        "false negative rate": 1 / 4,
    }
    assert table.loc["all", ("accuracy", "rate")] == 6 / 10
    assert table.loc["b", ("false positive rate", "n")] == 0
    assert np.isnan(table.loc["b", ("false positive rate", "rate")])
    p, n, z = 5 / 8, 8, 1.959964  # Wilson (1927)
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    interval = table.loc["a", [("accuracy", "low"), ("accuracy", "high")]].tolist()
    assert interval == pytest.approx([middle - half, middle + half], abs=1e-6)


def test_an_oracle_and_a_yes_sayer(pictures):
    def oracle(asked, images):
        return instruments.truth(asked, FACTS)

    def yes(asked, images):
        return np.full(len(asked), True)

    shown = {name: pictures[name] for name in ("clean", "morphed")}
    table = instruments.validate(SCENES, shown, {"oracle": oracle, "yes": yes, "CLIP": oracle})
    clean = table.xs("clean", level="pictures")
    assert (clean.loc["oracle"].xs("rate", axis=1, level=1)["accuracy"] == 1).all()
    assert (clean.loc["yes"].xs("rate", axis=1, level=1)["false positive rate"] == 1).all()
    assert (clean.loc["yes"].xs("rate", axis=1, level=1)["false negative rate"] == 0).all()
    morphed = table.xs("morphed", level="pictures")["false positive rate"]
    # Who claims the scene's own pair of a morph is wrong; who claims what was never there is too.
    assert 0.4 < morphed.loc[("oracle", "colour-shape"), "rate"] <= 0.5
    assert morphed.loc[("oracle", "background"), "rate"] == 0
    # A forced choice is asked only where one of the two statements holds.
    twins = sum(spec.twins() for spec in SCENES)
    counted = table["accuracy"]["n"]
    assert counted.get(("CLIP", "morphed", "colour-shape"), 0) == 2 * twins
    assert counted["CLIP", "morphed", "background"] == 2 * len(SCENES)


# ---- agreement -----------------------------------------------------------------------------------


def raters(both: int, first: int, second: int, none: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers with these counts of yes-yes, yes-no, no-yes, no-no."""
    cells = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [both, first, second, none], axis=0)
    return cells[:, 0] == 1, cells[:, 1] == 1


def test_kappa_by_hand():
    # 35 of 50 agree; at random (.5 x .6 + .5 x .4) = .5 would: (.7 - .5) / (1 - .5)
    assert kappa(*raters(20, 5, 10, 15)) == pytest.approx(0.4)
    assert kappa(*raters(10, 0, 0, 10)) == 1
    assert kappa(*raters(0, 10, 10, 0)) == -1
    assert kappa(*raters(4, 4, 4, 4)) == 0


def test_two_who_always_say_the_same_show_nothing():
    assert kappa(*raters(7, 0, 0, 0)) == kappa(*raters(0, 0, 0, 7)) == 0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_kappa_is_symmetric_and_bounded(answers):
    a, b = np.array(answers).T
    assert -1 <= kappa(a, b) <= 1
    assert kappa(a, b) == pytest.approx(kappa(b, a)) == pytest.approx(kappa(~a, ~b))


@pytest.mark.parametrize(("a", "b"), [([True], [True, False]), ([], [])])
def test_kappa_needs_pairs(a, b):
    with pytest.raises(UserError, match="as many answers"):
        kappa(a, b)


def test_answers_about_one_picture_are_drawn_together():
    a, b = raters(20, 5, 10, 15)
    interval = kappa_interval(a, b, range(50), rng(0, "k"))
    low, high = interval
    assert low < kappa(a, b) < high
    # Four answers a picture that are all the same tell no more than one.
    many = [np.repeat(x, 4) for x in (a, b, np.arange(50))]
    assert kappa_interval(*many, rng(0, "k")) == pytest.approx(interval)
    alone = kappa_interval(*many[:2], range(200), rng(0, "k"))
    assert alone[1] - alone[0] < 0.7 * (high - low)


# ---- letters -------------------------------------------------------------------------------------


def test_words_stand_only_where_there_is_room():
    made = letter_probe.worded(SCENES)
    assert 10 < len(made) < len(SCENES) and all(spec.word in WORDS for spec in made)
    assert not any({"top", "bottom"} & {o.place for o in spec.objects} for spec in made)
    assert len({spec.word for spec in made}) > 5


def test_letter_squares_hold_the_letters_pixels():
    spec = Scene("stone", (RED,), "cat")
    ink = torch.zeros(1, 1, 64, 64)
    for character, left in zip("cat", SQUARE.letter_columns(3), strict=True):
        ink[0, 0, 48:, left : left + 16] = torch.from_numpy(letter(character)[..., 0])
    features, letters, picture = letter_probe.letter_squares(ink, [spec])
    assert letters.tolist() == [2, 0, 19] and picture.tolist() == [0, 0, 0]
    for row, character in zip(features, "cat", strict=True):
        assert torch.equal(row[:256], torch.from_numpy(letter(character).flatten()))
        assert row[256] == 1 and not row[257:].any()
    night, _, _ = letter_probe.letter_squares(ink, [Scene("night", (RED,), "cat")])
    assert torch.equal(night, features.roll(257, 1))


def test_the_probe_finds_what_is_there_and_nothing_where_nothing_is():
    made = letter_probe.worded([scene("dev", i) for i in range(300)])
    noise = torch.from_numpy(rng(0, "maps").standard_normal((len(made), 8, 8, 8), np.float32))
    written = 0.1 * noise
    for i, spec in enumerate(made):
        for character, left in zip(spec.word, SQUARE.letter_columns(len(spec.word)), strict=True):
            code = torch.from_numpy(rng(0, character).standard_normal((8, 2, 2), np.float32))
            written[i, :, 6:, left // 8 : left // 8 + 2] += code
    half = len(made) // 2

    def probe(maps):
        return letter_probe.letter_probe(maps[:half], made[:half], maps[half:], made[half:])

    assert probe(written)["letters"] > 0.95 and probe(written)["words"] > 0.85
    assert probe(noise)["letters"] < 0.2 and probe(noise)["words"] < 0.1
