"""The playground: prompts in words, pictures from seeds, readings in words, a panel of buttons."""

import io

import numpy as np
import pytest
import torch
from ipywidgets import Widget
from PIL import Image

from dalle3lib import UserError, chat_model, playground, playground_panel, unet
from dalle3lib.playground import Models, Result, describe, generate, path
from dalle3lib.playground_panel import panel
from dalle3lib.world import Scene, Thing, render, scene, wording
from dalle3lib.world.scene import BACKGROUNDS, COLOURS, HELD_OUT_PAIRS, SHAPES, SIZES, TEXTURES
from dalle3lib.world.wording import hint

torch.set_num_threads(1)
PROMPT = 'a red striped circle above a small star in blue, on snow. it says "cat".'
CIRCLE = {
    "shape": "circle", "colour": "red", "texture": "striped", "size": "large", "place": "left",
}  # fmt: skip
STAR = {
    "shape": "star", "colour": "orange", "texture": "plain", "size": "small", "place": "centre",
}  # fmt: skip


@pytest.fixture
def models(foundations, monkeypatch) -> Models:
    """Untrained arms with guidance 2; the judge answers with the number of its question."""
    networks = {}
    for seed, name in enumerate(playground.ARMS):
        torch.manual_seed(seed)
        networks[name] = unet.build((16, 32, 32)).eval(), 2.0
    monkeypatch.setattr(playground.arms, "load", networks.__getitem__)
    ready = Models()
    ready.judge = ("model", "processor")
    ready.vae.decoder.conv_out.weight *= 8  # untrained pictures are nearly grey

    def answer(model, processor, images, questions, of):
        assert (model, processor) == ready.judge and images.shape == (1, 64, 64, 3)
        assert list(of) == [0] * len(questions)
        return [str(i) for i in range(len(questions))]

    monkeypatch.setattr(playground.vqa, "answer", answer)
    return ready


def facts(*objects: dict, background: str = "snow", word: str | None = None) -> dict:
    return {"background": background, "objects": list(objects), "word": word, "fit": 0.5}


# ---- pictures ------------------------------------------------------------------------------------


def test_a_picture_depends_on_prompt_arm_and_seed_alone(models):
    def draw(prompt=PROMPT, arm="dsc-95", seed=0, **options):
        return generate(models, prompt, arm, seed=seed, steps=2, **options)

    first, again = draw(), draw()
    assert first.image.dtype == np.uint8 and first.image.shape == (64, 64, 3)
    assert np.array_equal(first.image, again.image) and first.facts == again.facts
    assert first.clip_score == again.clip_score and -100 <= first.clip_score <= 100
    others = [draw("a moon."), draw(arm="ssc-95"), draw(seed=1), draw(guidance=9.0)]
    for other in others:
        assert not np.array_equal(first.image, other.image)
    assert [first.guidance, others[-1].guidance] == [2.0, 9.0]
    assert np.array_equal(draw(guidance=2.0).image, first.image)
    assert not np.array_equal(draw(decoder="consistency").image, first.image)
    with pytest.raises(UserError, match="no decoder 'vea'"):
        draw(decoder="vea")


def test_all_arms_start_from_the_same_noise(models, monkeypatch):
    started = []

    def drawn(velocity_of, noise, steps, callback=None):
        started.append(noise)
        return noise

    monkeypatch.setattr(playground.diffusion, "ddim", drawn)
    for arm in playground.ARMS:
        generate(models, PROMPT, arm, seed=3)
    generate(models, "a moon.", seed=3)
    generate(models, PROMPT, seed=4)
    assert all(torch.equal(noise, started[0]) for noise in started[:5])
    assert not torch.equal(started[5], started[0])


def test_the_path_ends_in_the_picture(models):
    steps = path(models, PROMPT, "ssc-95", seed=5, steps=3)
    picture = generate(models, PROMPT, "ssc-95", seed=5, steps=3).image
    assert steps.shape == (3, 64, 64, 3) and steps.dtype == np.uint8
    assert abs(steps[-1].astype(int) - picture).max() <= 1  # decoded in another batch
    assert abs(steps[0].astype(int) - picture).max() > 1


def test_the_judge_is_asked_about_the_prompt(models):
    answers = generate(models, PROMPT, steps=1).answers
    assert answers == {
        "is there a red circle?": "0",
        "is there a blue star?": "1",
        "is the circle above the star?": "2",
        "is the background snow?": "3",
        "how many objects are there?": "4",
        "which word is printed?": "5",
    }
    assert generate(models, "something", steps=1).answers == {}


def test_a_longer_text_is_drawn_and_the_prompt_is_judged(models):
    longer = playground.upsampled(models, "a red star.", seed=3)
    assert longer == playground.upsampled(models, "a red star.", seed=3) != "a red star."
    result = generate(models, "a red star.", steps=1, written="a blue moon on snow.")
    assert np.array_equal(result.image, generate(models, "a blue moon on snow.", steps=1).image)
    assert list(result.answers) == ["is there a red star?", "how many objects are there?"]
    with pytest.raises(UserError, match="no upsampler 'T6'; did you mean 'T5'"):
        playground.upsampled(models, "a red star.", "T6")
    with pytest.raises(UserError, match="prompt is empty"):
        generate(models, "a red star.", written=" ")


def test_upsamplers_are_offered_where_they_are(models, monkeypatch, tmp_path):
    monkeypatch.setattr(chat_model, "smollm2", lambda: None)
    assert list(Models().upsamplers) == ["T5"]
    monkeypatch.setattr(chat_model, "smollm2", lambda: tmp_path / "model.gguf")
    assert Models().upsamplers["SmolLM2"]["model"] == tmp_path / "model.gguf"
    monkeypatch.setenv("DALLE3_FOUNDATION", str(tmp_path))
    assert list(Models().upsamplers) == ["SmolLM2"]


@pytest.mark.parametrize("draw", [generate, path])
def test_mistakes_are_said_in_one_sentence(models, draw):
    with pytest.raises(UserError, match="prompt is empty"):
        draw(models, "  ")
    with pytest.raises(UserError, match="no arm 'dsc-90'; did you mean 'dsc-95'"):
        draw(models, PROMPT, "dsc-90")
    with pytest.raises(UserError, match="0 DDIM steps"):
        draw(models, PROMPT, steps=0)


def test_networks_are_loaded_once_and_only_when_used(foundations, monkeypatch):
    asked = []
    whole = playground.paths.foundation
    monkeypatch.setattr(playground.paths, "foundation", lambda n: (asked.append(n), whole(n))[1])
    networks = Models()
    assert asked == []
    assert networks.vae is networks.vae and networks.text is networks.text
    assert asked == ["vae", "t5"]
    network = torch.nn.Linear(1, 1)
    monkeypatch.setattr(playground.arms, "load", lambda n: (asked.append(n), (network, 1.0))[1])
    assert networks.arm("ssc-95") is networks.arm("ssc-95") and asked[2:] == ["ssc-95"]


# ---- words ---------------------------------------------------------------------------------------


def test_facts_in_words_by_hand():
    one = describe(facts(CIRCLE))
    assert one == "a large striped red circle at the left, in front of snow"
    assert describe(facts(STAR, word="cat", background="sand")) == (
        'a small plain orange star in the centre and the printed word "cat", in front of sand'
    )
    three = [STAR | {"place": place} for place in ("top left", "top right", "bottom")]
    assert describe(facts(*three)).count("star at the ") == 3
    assert describe(facts(*three)).count(", a ") == describe(facts(*three)).count(" and a ") == 1
    assert describe(facts()) == "nothing recognisable, in front of snow"
    assert describe(facts(background=None)) == "nothing recognisable"


def test_what_the_reader_finds_can_be_said():
    shown = [
        Scene("sand", ()),
        Scene("snow", (Thing(**CIRCLE), Thing(**STAR | {"place": "right"}))),
    ]
    bare, two = (describe(f) for f in playground.reader.read(np.stack([*map(render, shown)])))
    assert bare == "nothing recognisable, in front of sand"
    assert two == (
        "a large striped red circle at the left and a small plain orange star at the right, "
        "in front of snow"
    )


@pytest.mark.parametrize(
    ("prompt", "pairs"),
    [
        ("two red circles", [("red", "circle")]),
        ("a Red Checkered small Cross", [("red", "cross")]),
        ("a heart in pink and a brown moon", [("pink", "heart"), ("brown", "moon")]),
        ('the words "red circle" and a red heart', [("red", "heart")]),
        ("a red, round circle; a circle of red; infrared circle", []),
    ],
)
def test_coloured_shapes(prompt, pairs):
    assert wording.coloured_shapes(prompt) == pairs


def test_a_note_on_a_printed_word_is_no_relation():
    asked = wording.questions_about('a red circle and a blue star. below, it says "no".')
    assert asked[2:] == ["how many objects are there?", "which word is printed?"]


def test_unknown_words_are_pointed_out():
    said = hint('An elephant and a squar, like my elephant\'s cat: "zebra"')
    assert said.startswith('The world knows no "elephant", "squar", "like", "my", "elephant\'s"')
    for value in (*SHAPES, *COLOURS, *TEXTURES, *SIZES, *BACKGROUNDS):
        assert value in said
    assert 'Did you mean "square"?' in said and 'In quotes, "cat" would be printed' in said
    assert "zebra" not in said
    assert "In quotes" not in hint("no circle")  # who says "no" does not want it printed


def test_what_the_world_says_itself_raises_no_hint():
    for index in range(50):
        spec = scene("dev", index)
        random = np.random.default_rng(index)
        for caption in (wording.descriptive_caption, wording.short_caption):
            assert hint(caption(spec, random)) == ""


def test_what_no_training_picture_shows_is_pointed_out():
    colour, shape = HELD_OUT_PAIRS[0]
    assert f"No training picture shows an {colour} {shape}" in hint(f"an {colour} {shape}.")
    three = "a red circle, a blue star and a green square on sand."
    assert hint(three) == "No training picture shows more than two objects."
    assert hint(three.removeprefix("a red circle, ")) == ""


# ---- figures and the panel -----------------------------------------------------------------------


def test_a_gallery_shows_each_picture_unsmoothed_with_its_report():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    result = Result(image, facts(CIRCLE), 23.44, {"is it?": "yes"}, 3.0)
    figure = playground.gallery({"costs $5 or $6": result, "b": result})
    figure.canvas.draw()
    shown = figure.axes[0]
    assert (
        shown.get_title() == "costs $5 or $6" and shown.images[0].get_interpolation() == "nearest"
    )
    said = " ".join(shown.texts[0].get_text().split())
    assert said == (
        "reader: a large striped red circle at the left, in front of snow (explains 50 %) "
        "CLIP score: 23.4 judge: is it? yes"
    )


def test_a_png_repeats_each_pixel():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    shown = np.asarray(Image.open(io.BytesIO(playground_panel.png(image, 3))))
    assert np.array_equal(shown, image.repeat(3, 0).repeat(3, 1))


class Hand:
    """What a reader does with a panel: type into widgets by their label, press buttons."""

    def __init__(self, top: Widget) -> None:
        self.top = top

    def every(self, kind: str, under: Widget | None = None) -> list[Widget]:
        below = getattr(under or self.top, "children", ())
        found = [child for child in below if type(child).__name__ == kind]
        return found + [widget for child in below for widget in self.every(kind, child)]

    def labelled(self, label: str) -> Widget:
        kinds = ("Textarea", "Dropdown", "Checkbox", "FloatSlider", "IntSlider", "BoundedIntText")
        widgets = [w for kind in (*kinds, "Button") for w in self.every(kind)]
        return next(w for w in widgets if w.description.startswith(label))

    def draw(self, **values) -> str:
        """Set the widgets, press the button, return all text that is shown then."""
        for label, value in values.items():
            self.labelled(label).value = value
        self.labelled("Draw").click()
        return " ".join(widget.value for widget in self.every("HTML"))

    def pictures(self) -> list[np.ndarray]:
        return [np.asarray(Image.open(io.BytesIO(w.value))) for w in self.every("Image")]


def test_the_panel_draws_what_it_says(models):
    hand = Hand(panel(models))
    assert hand.pictures() == []
    said = hand.draw(prompt="a <b>pink</b> elephant.", arm=("ssc-95",), DDIM=2, seed=7)
    (picture,) = hand.pictures()
    expected = generate(models, "a <b>pink</b> elephant.", "ssc-95", seed=7, steps=2)
    assert np.array_equal(picture[::4, ::4], expected.image)
    assert "SSC 95 %, guidance 2" in said and f"CLIP score: {expected.clip_score:.1f}" in said
    assert "no &quot;b&quot; or &quot;elephant&quot;" in said
    assert not hand.labelled("Draw").disabled


def test_the_panel_shows_all_arms_side_by_side(models):
    hand = Hand(panel(models))
    said = hand.draw(DDIM=1)
    assert [said.count(a) for a in ("original only", "SSC 95 %", "DSC 80 %", "DSC 95 %")] == [1] * 4
    assert len({picture.tobytes() for picture in hand.pictures()}) == 4


def test_the_panel_uses_the_guidance_asked_for(models):
    hand = Hand(panel(models))
    assert hand.labelled("guidance").disabled
    hand.labelled("the guidance").value = False
    assert not hand.labelled("guidance").disabled
    assert "DSC 95 %, guidance 4.5" in hand.draw(arm=("dsc-95",), guidance=4.5, DDIM=1)


def test_the_panel_draws_a_longer_text_when_asked(models, monkeypatch):
    monkeypatch.setattr(
        playground_panel, "upsampled", lambda _, p, name, seed: f"{name} {seed}, on snow"
    )
    hand = Hand(panel(models))
    options = {"prompt": "a red star.", "arm": ("dsc-95",), "DDIM": 1, "seed": 4}
    assert "Drawn: T5 4, on snow" in hand.draw(**options, **{"made longer": "T5"})
    (picture,) = hand.pictures()
    expected = generate(models, "T5 4, on snow", "dsc-95", seed=4, steps=1)
    assert np.array_equal(picture[::4, ::4], expected.image)
    assert "Drawn" not in hand.draw(**options, **{"made longer": ""})


def test_the_panel_says_what_is_wrong_and_goes_on(models, monkeypatch):
    hand = Hand(panel(models))
    hand.draw(arm=("dsc-95",), DDIM=1)
    assert "<b>The prompt is empty" in hand.draw(prompt=" ") and hand.pictures() == []
    with monkeypatch.context() as patch:
        patch.setenv("DALLE3_FOUNDATION", "/nowhere")
        broken = Hand(panel(Models()))
        assert "Foundation &#x27;t5&#x27; cannot be used" in broken.draw()
    hand.draw(prompt="a red circle.")
    assert len(hand.pictures()) == 1


def test_another_prompt_is_a_sentence_of_the_world(models):
    hand = Hand(panel(models))
    texts = [hand.labelled("prompt").value]
    for _ in range(3):
        hand.labelled("Another").click()
        texts.append(hand.labelled("prompt").value)
    assert len(set(texts)) == 4 and [hint(text) for text in texts] == [""] * 4
