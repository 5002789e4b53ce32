"""The playground: type a prompt and see what the shipped arms draw, and how well they followed it.

``generate`` draws one picture and reads it with the book's three instruments; ``path`` shows how
it came out of noise; ``panel`` is the same behind buttons, for a notebook with a live kernel.
"""

import html
import io
import itertools
import textwrap
from dataclasses import dataclass
from functools import cached_property

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from dalle3lib import UserError, chat_model, config, diffusion, paths, text, upsample, vae
from dalle3lib import arm as arms
from dalle3lib.decoder import ConsistencyDecoder
from dalle3lib.evals import clip_score, vqa
from dalle3lib.foundation import ARMS
from dalle3lib.images import to_uint8
from dalle3lib.randomness import rng
from dalle3lib.sample import sample, start_noise
from dalle3lib.world import Thing, descriptive_caption, reader, scene
from dalle3lib.world.language import article, full_phrase
from dalle3lib.world.wording import hint, listed, questions_about

DECODERS = ("VAE", "consistency")  # what turns latents into pictures
EXAMPLE = "a large striped red circle above a small blue star, on snow."

# --- from a prompt to a picture ------------------------------------------------------------------


class Models:
    """The shipped networks that the playground needs: each is loaded at its first use, then kept.

    Reading an attribute raises UserError if the files of that network are missing or damaged.
    """

    @cached_property
    def vae(self):
        """The autoencoder."""
        return vae.load(paths.foundation("vae"))

    @cached_property
    def two_steps(self) -> ConsistencyDecoder:
        """The consistency decoder, which can take the autoencoder's place."""
        return ConsistencyDecoder(model="world")

    @cached_property
    def text(self):
        """The text encoder and its tokenizer."""
        return text.load(paths.foundation("t5"))

    @cached_property
    def scorer(self):
        """The CLIP scorer and its tokenizer."""
        return clip_score.load(paths.foundation("clip"))

    @cached_property
    def judge(self):
        """The visual question answerer and its processor."""
        return vqa.load(paths.foundation("judge"))

    @cached_property
    def upsamplers(self) -> dict[str, dict]:
        """What can write longer prompts here, by name: the options of ``upsample.upsample``."""
        shipped = (paths.foundation_dir() / "upsampler").is_dir()
        found = {"T5": {"backend": "t5"}} if shipped else {}
        if there := chat_model.smollm2():
            found["SmolLM2"] = {"backend": "chat", "model": there, "prepend": False}
        return found

    @cached_property
    def _arms(self) -> dict[str, tuple[UNet2DConditionModel, float]]:
        return {}

    def arm(self, name: str) -> tuple[UNet2DConditionModel, float]:
        """An arm's network and its guidance scale; UserError if ``name`` is not in ``ARMS``."""
        if name not in ARMS:
            raise UserError(f"There is no arm {name!r}{config.nearest(name, ARMS)}")
        if name not in self._arms:
            self._arms[name] = arms.load(name)
        return self._arms[name]


@dataclass(frozen=True, eq=False)
class Result:
    """One drawn picture and what the three instruments say of it.

    ``image`` is uint8 [64, 64, 3]; ``facts`` come from ``reader.read``; ``clip_score`` is 100
    times the cosine of picture and prompt; ``answers`` maps each of ``questions_about`` the
    prompt to the judge's answer; ``guidance`` is the scale that was used.
    """

    image: np.ndarray
    facts: dict
    clip_score: float
    answers: dict[str, str]
    guidance: float


def generate(
    models: Models,
    prompt: str,
    arm: str = "dsc-95",
    *,
    seed: int = 0,
    guidance: float | None = None,
    steps: int = 20,
    written: str | None = None,
    decoder: str = DECODERS[0],
) -> Result:
    """Draw one picture and read it: the same for the same prompt, arm, seed and options.

    The starting noise depends on ``seed`` alone, so all arms (and all prompts) start alike.
    ``guidance`` None is the arm's own, chosen on development prompts; ``steps`` are of DDIM.
    ``written`` is a text to draw in the place of the prompt (``upsampled``); the instruments are
    asked about the prompt all the same. ``decoder`` is one of ``DECODERS``. Raises UserError for an
    empty prompt or text, an unknown arm or decoder, or less than one step.
    """
    told = prompt if written is None else written
    network, state, scale = _prepare(models, told, arm, guidance, steps)
    if decoder not in DECODERS:
        raise UserError(f"There is no decoder {decoder!r}{config.nearest(decoder, DECODERS)}")
    decode = models.vae if decoder == DECODERS[0] else models.two_steps
    images = sample(network, decode, [state], seed=seed, steps=steps, guidance=scale)
    asked = questions_about(prompt)
    answers = vqa.answer(*models.judge, images, asked, of=[0] * len(asked))
    score = float(clip_score.clip_scores(*models.scorer, images, [prompt])[0])
    facts = reader.read(images)[0]
    return Result(images[0], facts, score, dict(zip(asked, answers, strict=True)), scale)


def upsampled(models: Models, prompt: str, name: str = "T5", seed: int = 0) -> str:
    """A longer text made from a prompt (paper §3.5) by one of the ``models.upsamplers``.

    Raises UserError for an empty prompt or an unknown name.
    """
    if name not in models.upsamplers:
        raise UserError(f"There is no upsampler {name!r}{config.nearest(name, models.upsamplers)}")
    (answer,) = upsample.upsample([prompt], seed=seed, **models.upsamplers[name])
    return answer.text


@torch.no_grad()
def path(
    models: Models,
    prompt: str,
    arm: str = "dsc-95",
    *,
    seed: int = 0,
    guidance: float | None = None,
    steps: int = 20,
) -> np.ndarray:
    """What the network takes the clean picture to be at each step: uint8 [steps, 64, 64, 3].

    Arguments and errors are those of ``generate``, whose picture is the last one here.
    """
    network, state, scale = _prepare(models, prompt, arm, guidance, steps)
    size = network.config.sample_size
    noise = start_noise(seed, [0], (network.config.in_channels, size, size))
    estimates: list[Tensor] = []
    told = diffusion.guided(network.eval(), *text.pad([state]), scale)
    diffusion.ddim(told, noise, steps, lambda _, clean: estimates.append(clean))
    latents = torch.cat(estimates) / models.vae.config.scaling_factor
    return to_uint8(models.vae.decode(latents).sample)


def _prepare(
    models: Models, prompt: str, arm: str, guidance: float | None, steps: int
) -> tuple[UNet2DConditionModel, Tensor, float]:
    """The arm's network, the prompt's text states [L, d] and the guidance scale to use."""
    if not prompt.strip():
        raise UserError('The prompt is empty: describe a picture, such as "a red circle on snow".')
    if steps < 1:
        raise UserError(f"{steps} DDIM steps draw nothing: take at least 1.")
    network, own = models.arm(arm)
    (state,) = text.encode(*models.text, [prompt])
    return network, state, own if guidance is None else float(guidance)


# --- what a picture shows ------------------------------------------------------------------------


def describe(facts: dict) -> str:
    """The facts that ``reader.read`` found in a picture as an English sentence without period.

    Without any object and any word it says "nothing recognisable".
    """
    things = [
        f"{article(full_phrase(Thing(**thing)))} "
        f"{'in' if thing['place'] == 'centre' else 'at'} the {thing['place']}"
        for thing in facts["objects"]
    ]
    if facts["word"]:
        things.append(f'the printed word "{facts["word"]}"')
    what = listed(things) or "nothing recognisable"
    return f"{what}, in front of {facts['background']}" if facts["background"] else what


def report(result: Result) -> list[str]:
    """What the three instruments say of a picture: one line each, the judge one per question."""
    explained = f"{100 * result.facts['fit']:.0f}\N{NO-BREAK SPACE}%"
    return [
        f"reader: {describe(result.facts)} (explains {explained})",
        f"CLIP score: {result.clip_score:.1f}",
        *(f"judge: {question} {answer}" for question, answer in result.answers.items()),
    ]


def gallery(results: dict[str, Result], width: int = 35) -> Figure:
    """Pictures side by side, a name above and the report below each, wrapped at ``width``."""
    figure, axes = plt.subplots(
        1, len(results), figsize=(2.4 * len(results), 4.4), squeeze=False, dpi=110
    )
    style = {"va": "top", "fontsize": 7, "linespacing": 1.3, "parse_math": False}
    for axis, (name, result) in zip(axes.flat, results.items(), strict=True):
        axis.imshow(result.image, interpolation="nearest")
        axis.set_anchor("N")
        axis.set_axis_off()
        axis.set_title(name, fontsize=9, parse_math=False)
        lines = [part for line in report(result) for part in textwrap.wrap(line, width)]
        axis.text(0, -0.04, "\n".join(lines), transform=axis.transAxes, **style)
    return figure


def png(image: np.ndarray, scale: int = 4) -> bytes:
    """A picture uint8 [H, W, 3] as a PNG file, each pixel a square of ``scale`` pixels."""
    size = (image.shape[1] * scale, image.shape[0] * scale)
    file = io.BytesIO()
    Image.fromarray(image).resize(size, Image.Resampling.NEAREST).save(file, "png")
    return file.getvalue()


# --- the panel -----------------------------------------------------------------------------------


def panel(models: Models) -> widgets.VBox:
    """A widget to play with: prompt, upsampler, arm, guidance …; "Draw" shows the pictures.

    A mistake is shown in the panel as one sentence. The networks are loaded at the first "Draw".
    """
    wide = {"style": {"description_width": "initial"}}
    labels = {name: arms.label(f"{name}-0") for name in ARMS}
    prompt = widgets.Textarea(EXAMPLE, description="prompt", rows=2, layout={"width": "40em"})
    arm = widgets.Dropdown(
        options=[("all, side by side", ARMS), *((labels[name], (name,)) for name in ARMS)],
        description="arm",
    )
    writer = widgets.Dropdown(
        options=[("nobody", ""), *((name, name) for name in models.upsamplers)],
        description="made longer by",
        **wide,
    )
    own = widgets.Checkbox(True, description="the guidance chosen for the arm", **wide)
    guidance = widgets.FloatSlider(
        3, min=1, max=10, step=0.5, description="guidance", disabled=True
    )
    decoder = widgets.Dropdown(options=DECODERS, description="decoder")
    steps = widgets.IntSlider(20, min=1, max=50, description="DDIM steps", **wide)
    seed = widgets.BoundedIntText(0, min=0, max=999_999, description="seed")
    draw = widgets.Button(description="Draw", button_style="primary")
    another = widgets.Button(description="Another prompt")
    message, pictures = widgets.HTML(), widgets.Box(layout={"flex_flow": "row wrap"})
    own.observe(lambda change: setattr(guidance, "disabled", change["new"]), "value")
    numbers = itertools.count()

    def suggest(_) -> None:
        index = next(numbers)
        random = rng(0, "playground/prompt", index)
        prompt.value = descriptive_caption(scene("dev", index), random)

    def show(_) -> None:
        options = {"seed": seed.value, "steps": steps.value, "decoder": decoder.value}
        options["guidance"] = None if own.value else guidance.value
        draw.disabled, message.value, pictures.children = True, "Drawing …", ()
        try:
            if writer.value:
                options["written"] = upsampled(models, prompt.value, writer.value, seed.value)
            for name in arm.value:
                result = generate(models, prompt.value, name, **options)
                title = f"{labels[name]}, guidance {result.guidance:g}"
                pictures.children += (_card(title, result),)
            told = [f"Drawn: {options['written']}"] if writer.value else []
            message.value = "<br>".join(map(html.escape, [*told, hint(prompt.value)]))
        except UserError as error:
            message.value = f"<b>{html.escape(str(error))}</b>"
        finally:
            draw.disabled = False

    another.on_click(suggest)
    draw.on_click(show)
    rows = [[arm, seed, steps], [own, guidance], [writer, decoder], [draw, another]]
    return widgets.VBox([prompt, *map(widgets.HBox, rows), message, pictures])


def _card(title: str, result: Result) -> widgets.VBox:
    """One enlarged picture with its title above and its report below."""
    lines = "<br>".join(map(html.escape, report(result)))
    picture = widgets.Image(value=png(result.image), format="png", width=256, height=256)
    below = widgets.HTML(f'<div style="line-height: 1.4">{lines}</div>')
    heading = widgets.HTML(f"<b>{html.escape(title)}</b>")
    return widgets.VBox([heading, picture, below], layout={"width": "266px"})
