"""The playground: type a prompt and see what trained arms draw, and how well they followed it.

``generate`` draws one picture and reads it with the book's three instruments (of pictures that are
not the world's, the CLIP score alone can be told); ``path`` shows how it came out of noise.
``playground_panel`` is the same behind buttons.
"""

import textwrap
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from matplotlib.figure import Figure
from torch import Tensor

from dalle3lib import (
    UserError,
    config,
    diffusion,
    paths,
    pretrained,
    text,
    trained_arms,
    upsample,
    vae,
)
from dalle3lib import arm as arms
from dalle3lib.config import Parameters
from dalle3lib.decoder import ConsistencyDecoder
from dalle3lib.evals import clip_score, vqa
from dalle3lib.foundation import ARMS
from dalle3lib.sample import decode as decode_latents
from dalle3lib.sample import sample, start_noise
from dalle3lib.world import Thing, reader
from dalle3lib.world.language import article, full_phrase
from dalle3lib.world.wording import listed, questions_about

DECODERS = ("VAE", "consistency")  # what turns latents into pictures

# --- from a prompt to a picture ------------------------------------------------------------------


class Models:
    """The networks that the playground needs: each is loaded at its first use, then kept.

    ``cfg`` names models, data and ``arms`` (kind-ratio-seed); without it, and for the world, the
    arms are the shipped ones. Reading an attribute raises UserError if the files of that network
    are missing or damaged.
    """

    def __init__(self, cfg: Parameters = pretrained.SHIPPED) -> None:
        self.cfg = cfg
        self.world = cfg.get("data", "world") == "world"  # reader, judge and T5 know nothing else
        self._arms: dict[str, tuple[UNet2DConditionModel, float]] = {}

    @property
    def names(self) -> dict[str, str]:
        """The arms by name, with their labels."""
        live = () if self.world else self.cfg.arms
        return {n: arms.label(n if live else f"{n}-0") for n in live or ARMS}

    @property
    def main(self) -> str:
        """The arm that is asked where one is enough: DSC 95 %, or the last one."""
        found = [name for name in self.names if name.startswith("dsc-95")]
        return (found or list(self.names))[0 if found else -1]

    def _place(self, role: str) -> Path:
        return pretrained.directory(role, self.cfg.get(role, "world"))

    @cached_property
    def vae(self):
        """The autoencoder."""
        return vae.load(self._place("vae")).to(pretrained.device(self.cfg))

    @cached_property
    def two_steps(self) -> ConsistencyDecoder:
        """The consistency decoder, which can take the autoencoder's place."""
        return ConsistencyDecoder(model="world")

    @cached_property
    def text(self):
        """The text encoder and its tokenizer."""
        encoder, tokenizer = text.load(self._place("t5"), pretrained.dtype(self.cfg))
        return encoder.to(pretrained.device(self.cfg)), tokenizer

    @cached_property
    def scorer(self):
        """The CLIP scorer and its tokenizer."""
        scorer, tokenizer = clip_score.load(self._place("clip"))
        return scorer.to(pretrained.device(self.cfg)), tokenizer

    @cached_property
    def judge(self):
        """The visual question answerer and its processor."""
        return vqa.load(paths.foundation("judge"))

    @cached_property
    def upsamplers(self) -> dict[str, dict]:
        """What can write longer prompts here, by name: the options of ``upsample.upsample``."""
        shipped = self.world and (paths.foundation_dir() / "upsampler").is_dir()
        found = {"T5": {"backend": "t5"}} if shipped else {}
        if options := upsample.named("smollm2"):
            found["SmolLM2"] = options | {"prepend": False}
        return found

    def arm(self, name: str) -> tuple[UNet2DConditionModel, float]:
        """An arm's network and its guidance scale; UserError if ``name`` is not in ``names``."""
        if name not in self.names:
            raise UserError(f"There is no arm {name!r}{config.nearest(name, self.names)}")
        if name not in self._arms:
            network = arms.load if self.world else partial(trained_arms.network, self.cfg)
            model, guidance = network(name)
            self._arms[name] = model.to(pretrained.device(self.cfg)), guidance
        return self._arms[name]


@dataclass(frozen=True, eq=False)
class Result:
    """One drawn picture and what the three instruments say of it.

    ``image`` is uint8 [H, W, 3]; ``facts`` come from ``reader.read`` (None outside the world);
    ``clip_score`` is 100 times the cosine of picture and prompt; ``answers`` maps each of
    ``questions_about`` the prompt to the judge's answer; ``guidance`` is the scale that was used.
    """

    image: np.ndarray
    facts: dict | None
    clip_score: float
    answers: dict[str, str]
    guidance: float


def generate(
    models: Models,
    prompt: str,
    arm: str = "",
    *,
    seed: int = 0,
    guidance: float | None = None,
    steps: int = 20,
    written: str | None = None,
    decoder: str = DECODERS[0],
) -> Result:
    """Draw one picture and read it: the same for the same prompt, arm, seed and options.

    Without a name the arm is ``models.main``. The starting noise depends on ``seed`` alone, so all
    arms (and all prompts) start alike. ``guidance`` None is the arm's own, chosen on development
    prompts; ``steps`` are of DDIM.
    ``written`` is a text to draw in the place of the prompt (``upsampled``); the instruments are
    asked about the prompt all the same. ``decoder`` is one of ``DECODERS``. Raises UserError for an
    empty prompt or text, an unknown arm or decoder, or less than one step.
    """
    told = prompt if written is None else written
    network, state, scale = _prepare(models, told, arm, guidance, steps)
    if decoder not in DECODERS:
        raise UserError(f"There is no decoder {decoder!r}{config.nearest(decoder, DECODERS)}")
    decode = models.vae if decoder == DECODERS[0] else models.two_steps
    options = {"seed": seed, "steps": steps, "dtype": pretrained.dtype(models.cfg)}
    images = sample(network, decode, [state], guidance=scale, **options)
    score = float(clip_score.clip_scores(*models.scorer, images, [prompt])[0])
    if not models.world:
        return Result(images[0], None, score, {}, scale)
    asked = questions_about(prompt)
    answers = vqa.answer(*models.judge, images, asked, of=[0] * len(asked))
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
    arm: str = "",
    *,
    seed: int = 0,
    guidance: float | None = None,
    steps: int = 20,
) -> np.ndarray:
    """What the network takes the clean picture to be at each step: uint8 [steps, H, W, 3].

    Arguments and errors are those of ``generate``, whose picture is the last one here.
    """
    network, state, scale = _prepare(models, prompt, arm, guidance, steps)
    size = network.config.sample_size
    noise = start_noise(seed, [0], (network.config.in_channels, size, size)).to(network.device)
    estimates: list[Tensor] = []
    told = diffusion.guided(network.eval(), *text.pad([state], network.device), scale)
    with diffusion.autocast(network.device, pretrained.dtype(models.cfg)):
        diffusion.ddim(told, noise, steps, lambda _, clean: estimates.append(clean))
    return decode_latents(torch.cat(estimates), models.vae)


def _prepare(
    models: Models, prompt: str, arm: str, guidance: float | None, steps: int
) -> tuple[UNet2DConditionModel, Tensor, float]:
    """The arm's network, the prompt's text states [L, d] and the guidance scale to use."""
    if not prompt.strip():
        raise UserError('The prompt is empty: describe a picture, such as "a red circle on snow".')
    if steps < 1:
        raise UserError(f"{steps} DDIM steps draw nothing: take at least 1.")
    network, own = models.arm(arm or models.main)
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
    """What the instruments say of a picture: one line each, the judge one per question."""
    read = []
    if result.facts:
        explained = f"{100 * result.facts['fit']:.0f}\N{NO-BREAK SPACE}%"
        read = [f"reader: {describe(result.facts)} (explains {explained})"]
    return [
        *read,
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
