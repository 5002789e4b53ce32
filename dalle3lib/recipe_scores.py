"""The recipe's second stage, judged: its pictures at every aspect, and their scores."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from dalle3lib import files, paths, quality, recipe, stats, text, vae
from dalle3lib.evals import clip_score
from dalle3lib.images import Record, stack, to_tensor, to_uint8
from dalle3lib.randomness import rng
from dalle3lib.sample import sample
from dalle3lib.world import CANVASES, Canvas, World

BATCH = 32  # pictures sampled at once
MEASURES = ("score", "colour-shape", "texture-shape", "colour-shape-place")  # on the curve


def held_out(canvas: Canvas, count: int, scale: int = recipe.SCALE) -> list[Record]:
    """The first ``count`` records of the dev split that are drawn on a canvas."""
    world = World("dev", 100 * count + 100, canvases=CANVASES, scale=scale)
    rows = (i for i in range(len(world)) if world.canvas(i) is canvas)
    return [world[i] for i in islice(rows, count)]


@dataclass(frozen=True)
class Studio:
    """What turns prompts into scored pictures: the models, and by canvas the held-out records
    whose descriptive captions are the prompts, and the prompts' states."""

    autoencoder: AutoencoderKL
    scorer: tuple
    records: dict[str, list[Record]]
    states: dict[str, list[Tensor]]


def studio(count: int, autoencoder: AutoencoderKL | None = None) -> Studio:
    """The models, as shipped (or another ``autoencoder``), and ``count`` prompts a canvas."""
    records = {canvas.name: held_out(canvas, count) for canvas in CANVASES}
    prompts = {name: [r.descriptive for r in group] for name, group in records.items()}
    states = encode(prompts)
    scorer = clip_score.load(paths.foundation("clip"))
    return Studio(autoencoder or recipe.autoencoder(), scorer, records, states)


def encode(prompts: dict[str, Sequence[str]]) -> dict[str, list[Tensor]]:
    """The text encoder's states of several lists of prompts."""
    encoder, tokenizer = text.load(paths.foundation("t5"))
    return {name: text.encode(encoder, tokenizer, texts) for name, texts in prompts.items()}


def draw(
    model: UNet2DConditionModel,
    autoencoder: AutoencoderKL,
    states: Sequence[Tensor],
    canvas: Canvas,
    **options,
) -> np.ndarray:
    """A picture on a canvas for each prompt's states: uint8 [N, 2 height, 2 width, 3].

    ``options`` (seed, steps, guidance) go to ``sample.sample``.
    """
    height, width = (side * recipe.SCALE // 8 for side in (canvas.height, canvas.width))
    return sample(model, autoencoder, states, size=(height, width), batch=BATCH, **options)


def score(
    model: UNet2DConditionModel, on: Studio, **options
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Draw every canvas's prompts and score the pictures; (table, pictures by canvas).

    The table has one row for each prompt: its canvas, the CLIP score (100 x cosine) of what
    ``recipe.view`` shows of the picture, and the share of the facts that the reader finds.
    ``options`` as of ``draw``.
    """
    pictures = {
        canvas.name: draw(model, on.autoencoder, on.states[canvas.name], canvas, **options)
        for canvas in CANVASES
    }
    return measure(pictures, on), pictures


def measure(pictures: dict[str, np.ndarray], on: Studio) -> pd.DataFrame:
    """The table of ``score`` for pictures that are already there, by canvas."""
    tables = []
    for name, images in pictures.items():
        records = on.records[name]
        prompts = [r.descriptive for r in records]
        views = np.stack([recipe.view(image) for image in images])
        clip = clip_score.clip_scores(*on.scorer, views, prompts)
        table = pd.DataFrame({"canvas": name, "prompt": prompts, "score": clip})
        tables.append(table.join(quality.facts_read(images, records)))
    return pd.concat(tables, ignore_index=True)


def decoded(on: Studio) -> dict[str, np.ndarray]:
    """The true pictures after one pass through the autoencoder: no arm can do better."""
    return {
        name: to_uint8(quality.reconstruct(on.autoencoder, stack(records), 25))
        for name, records in on.records.items()
    }


def summarise(table: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Mean and 95 % interval over prompts of each measure, by canvas and over all canvases.

    Columns canvas, measure, mean, low, high.
    """
    rows = []
    for canvas, group in [("all", table), *table.groupby("canvas", sort=False)]:
        for name in measures:
            values = group[name].dropna().to_numpy()
            interval = stats.mean_interval(values, rng(0, f"recipe/{canvas}/{name}"))
            rows.append((canvas, name, values.mean(), *interval))
    return pd.DataFrame(rows, columns=["canvas", "measure", "mean", "low", "high"])


def differences(first: pd.DataFrame, second: pd.DataFrame, measures: Sequence[str]) -> dict:
    """First minus second, two tables of ``score`` for the same prompts, by measure.

    Each has its mean ``effect`` and 95 % ``interval`` over prompts; CLIP scores in points, shares
    of facts in per cent.
    """
    found = {}
    for name in measures:
        unit = 1 if name == "score" else 100
        a, b = (unit * table[name].to_numpy() for table in (first, second))
        label = "CLIP score (points)" if name == "score" else f"{name} (% points)"
        found[label] = stats.paired_effect(a, b, rng(0, f"recipe/{name}"))
    return found


def reconstruction(
    model: AutoencoderKL, canvas: Canvas, count: int, scale: int = recipe.SCALE
) -> dict[str, float]:
    """Mean PSNR (dB) of held-out pictures on a canvas, and the shares of facts the reader finds
    before ("clean") and after decoding ("decoded")."""
    records = held_out(canvas, count, scale=scale)
    after = quality.reconstruct(model, stack(records), 25)
    psnr = vae.psnr(after, to_tensor(stack(records))).mean().item()
    measured = {"psnr_db": psnr}
    for name, images in {"clean": stack(records), "decoded": to_uint8(after)}.items():
        shares = quality.facts_read(images, records).mean()
        measured |= {f"{name} {kind}": share for kind, share in shares.items()}
    return measured


def score_snapshots(
    model: UNet2DConditionModel, on: Studio, directory: Path, **options
) -> pd.DataFrame:
    """``summarise`` of every snapshot in ``directory``, with a column ``step``."""
    model, tables = copy.deepcopy(model), []
    for path in sorted(directory.glob("ema-*.safetensors")):
        model.load_state_dict(load_file(path))
        scored, _ = score(model, on, **options)
        tables.append(summarise(scored, MEASURES).assign(step=int(path.stem.split("-")[1])))
    return pd.concat(tables, ignore_index=True)


def guidance(first: Path | None = None) -> float:
    """The guidance scale of every second stage: the one chosen for the first stage.

    ``first`` is as for ``recipe.first_stage``.
    """
    where = first or paths.foundation(f"unet-{recipe.FIRST}")
    return files.read_json(where / "manifest.json")["quality"]["guidance"]


@torch.no_grad()
def latents_in_common(first: AutoencoderKL, second: AutoencoderKL, count: int) -> np.ndarray:
    """The correlation of two autoencoders' latents of held-out squares at scale 1, by channel.

    The first stage learned one's latents; what differs in the other's, a progressive start must
    learn anew.
    """
    images = to_tensor(stack(held_out(CANVASES[0], count, scale=1)))
    pairs = zip(
        *(m.encode(images).latent_dist.mean.unbind(1) for m in (first, second)), strict=True
    )
    return np.array([np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in pairs])
