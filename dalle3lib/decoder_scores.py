"""What a decoder keeps of a picture: pixels, strokes and textures, facts, sharpness.

All measures take pictures uint8 [N, 64, 64, 3] of known scenes; the same latents are decoded by
each decoder. "Redrawn" is the bound: what the latents carry at least, since a decoder that knew
the world's rules could draw it from them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from dalle3lib import consistency, stats, vae
from dalle3lib.evals import clip_score, instruments, letter_probe
from dalle3lib.images import to_tensor, to_uint8
from dalle3lib.quality import held_out_scenes
from dalle3lib.randomness import rng
from dalle3lib.world import Scene, reader
from dalle3lib.world.canvas import LETTER, SQUARE
from dalle3lib.world.render import render

CLEAN = 16  # grey levels: a pixel is right if no channel is further off
EXACT = 60.0  # dB: the PSNR that an exact picture is given, so that means stay finite
UNITS = {"psnr": "dB", "ssim": "index", "distance": "100 (1 - cosine)"}  # others are shares


def test_scenes(count: int) -> list[Scene]:
    """Held-out scenes with room for a word, each with one: from the first ``count`` of dev."""
    return letter_probe.worded(held_out_scenes(count))


test_scenes.__test__ = False  # a name that pytest would collect


def latents_of(images: np.ndarray, autoencoder, noise: float = 0.0, seed: int = 0) -> Tensor:
    """Latents of pictures (``vae.encode``), with noise of a deviation added."""
    z = vae.encode(autoencoder, images, batch=100)
    added = rng(seed, "decoder/test").standard_normal(tuple(z.shape), dtype="float32")
    return z + noise * torch.from_numpy(added)


def start(count: int, step: int = 0, seed: int = 0) -> Tensor:
    """Standard normal noise [N, 3, 64, 64] for a decoder's step, the same for all decoders."""
    shape = count, 3, SQUARE.height, SQUARE.width
    return torch.from_numpy(rng(seed, "decoder/start", step).standard_normal(shape, "float32"))


def decode(latents: Tensor, how: Callable[[Tensor, Callable], Tensor], batch: int = 50):
    """Pictures uint8 [N, 64, 64, 3] by ``how(latents, noise)``, a few at a time.

    ``noise(step)`` gives the noise of these pictures, as ``consistency_sample`` takes it.
    """
    pictures = []
    for first in range(0, len(latents), batch):
        part = latents[first : first + batch]
        rows = slice(first, first + len(part))
        pictures.append(to_uint8(how(part, lambda step, r=rows: start(len(latents), step)[r])))
    return np.concatenate(pictures)


def decoders(autoencoder, teacher: nn.Module, student: nn.Module) -> dict[str, Callable]:
    """Every way to decode that the chapter compares, by name, for ``decode``."""

    @torch.no_grad()
    def plain(z, noise):
        return autoencoder.decode(z / autoencoder.config.scaling_factor).sample

    def teach(steps):
        return lambda z, noise: consistency.diffusion_sample(teacher, z, noise(0), steps)

    def jump(steps):
        grid = consistency.TIMES[steps]
        return lambda z, noise: consistency.consistency_sample(student, z, noise, grid)

    ways = {f"consistency, {s} step{'s' * (s > 1)}": jump(s) for s in consistency.TIMES}
    ways |= {f"teacher, {s} step{'s' * (s > 1)}": teach(s) for s in (1, 2, 4, 16)}
    return {"VAE decoder": plain, **ways}


def sharpened(images: np.ndarray, amount: float = 0.7) -> np.ndarray:
    """Pictures with their difference to a blur of one pixel added: crisper, and no truer."""
    soft = gaussian_filter(images.astype(np.float32), (0, 1, 1, 0))
    return (images + amount * (images - soft)).round().clip(0, 255).astype(np.uint8)


def redrawn(images: np.ndarray) -> np.ndarray:
    """The scenes that the reader finds in pictures, drawn anew: uint8 [N, 64, 64, 3].

    Each object is put where within a pixel it fits the picture best. Where the latents are enough
    for this to be the true picture, nothing of it was lost on the way there.
    """
    drawn = []
    for image, facts in zip(images, reader.read(images), strict=True):
        spec = Scene.from_facts({k: facts[k] for k in ("background", "objects", "word")})
        for i, thing in enumerate(spec.objects):
            moved = [replace(thing, dx=dx, dy=dy) for dx, dy in product((-1, 0, 1), repeat=2)]
            others = spec.objects[:i], spec.objects[i + 1 :]
            tried = [replace(spec, objects=(*others[0], m, *others[1])) for m in moved]
            spec = min(tried, key=lambda s: np.square(render(s) - image.astype(float)).sum())
        drawn.append(render(spec))
    return np.stack(drawn)


# ---- measures ------------------------------------------------------------------------------------


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The structural similarity of pictures uint8 [N, H, W, 3]: [N], at most 1.

    Wang et al. (2004, equation 13): Gaussian windows of 1.5 pixels, mean over pixels and channels.
    """

    def mean(x):
        return gaussian_filter(x, (0, 1.5, 1.5, 0), truncate=3.5)

    x, y = (pictures.astype(np.float64) for pictures in (a, b))
    mx, my, c1, c2 = mean(x), mean(y), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    vx, vy, both = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    index = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return index.mean((1, 2, 3))


def strokes(spec: Scene) -> np.ndarray:
    """Which pixels lie in a printed letter's square: bool [64, 64]."""
    mask = np.zeros((SQUARE.height, SQUARE.width), bool)
    for left in SQUARE.letter_columns(len(spec.word or "")):
        mask[SQUARE.word_top : SQUARE.word_top + LETTER, left : left + LETTER] = True
    return mask


def textured(spec: Scene) -> np.ndarray:
    """Which pixels belong to an object that is not plain: bool [64, 64]."""
    bare = replace(spec, objects=tuple(o for o in spec.objects if o.texture == "plain"))
    return (render(spec) != render(bare)).any(-1)


def measure(images: np.ndarray, scenes: Sequence[Scene]) -> pd.DataFrame:
    """How near pictures are to their scenes: a row each.

    "psnr" in dB and "ssim"; "letter pixels" and "texture pixels", the shares of these pixels that
    are right to 16 grey levels; "words" and "textures", what the reader finds of them. NaN where a
    scene has none.
    """
    true = np.stack([render(spec) for spec in scenes])
    right = np.abs(images.astype(int) - true).max(-1) <= CLEAN
    rows = []
    for good, facts, spec in zip(right, reader.read(images), scenes, strict=True):
        found = reader.recall(facts, spec.facts())
        masks = {"letter pixels": strokes(spec), "texture pixels": textured(spec)}
        shares = {name: good[m].mean() if m.any() else np.nan for name, m in masks.items()}
        rows.append(shares | {"words": found.get("word"), "textures": found["texture-shape"]})
    table = pd.DataFrame(rows).astype(float)
    psnr = vae.psnr(to_tensor(images), to_tensor(true)).clamp(max=EXACT).numpy()
    return table.assign(psnr=psnr, ssim=ssim(images, true))


def judged(images: np.ndarray, scenes: Sequence[Scene], model, processor) -> pd.DataFrame:
    """The judge's answers about words and textures, one true and one false statement each.

    Columns "judge: words" and "judge: textures", the share of the picture's answers that are
    right; NaN where nothing was asked.
    """
    kinds = {"word": "judge: words", "texture-shape": "judge: textures"}
    asked = [s for s in instruments.statements(scenes) if s.kind in kinds]
    right = instruments.judge_answers(asked, images, model, processor) == [s.true for s in asked]
    table = pd.DataFrame({"row": [s.picture for s in asked], "right": right.astype(float)})
    table["kind"] = [kinds[s.kind] for s in asked]
    return table.pivot_table(index="row", columns="kind", values="right").reindex(
        range(len(images))
    )


def perceptual(images: np.ndarray, true: np.ndarray, model) -> np.ndarray:
    """100 times 1 - the cosine of the scorer's image features of pictures and truth: [N]."""
    pairs = (clip_score.image_features(model, x) for x in (images, true))
    return 100 * (1 - torch.cosine_similarity(*pairs)).cpu().numpy()


def spectrum(images: np.ndarray) -> np.ndarray:
    """The mean power of grey pictures at 1, 2, ... 31 cycles across them: [31].

    Rings of the two-dimensional spectrum; a blurred picture lacks power at the high end.
    """
    grey = images.mean(-1)
    power = np.abs(np.fft.fft2(grey - grey.mean((1, 2), keepdims=True))) ** 2
    cycles = np.fft.fftfreq(grey.shape[1], 1 / grey.shape[1])
    ring = np.hypot(*np.meshgrid(cycles, cycles)).round().astype(int)
    means = power.mean(0)
    return np.array([means[ring == r].mean() for r in range(1, grey.shape[1] // 2)])


def summarise(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Means and 95 % intervals over pictures: rows (decoder, measure), columns mean, low, high."""
    rows = {}
    for name, table in tables.items():
        for measure_name in table:
            values = table[measure_name].dropna().to_numpy()
            low, high = stats.mean_interval(values, rng(0, measure_name))
            rows[name, measure_name] = {"mean": values.mean(), "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["decoder", "measure"])


def effect(tables: dict[str, pd.DataFrame], a: str, b: str, names: Sequence[str]) -> dict:
    """Decoder ``a`` minus ``b`` on the mean of some measures, paired by picture, with interval.

    Shares are in % points. As ``plots.differences`` and the ledger take it.
    """
    x, y = (tables[n][list(names)].mean(axis=1) for n in (a, b))
    kept = x.notna() & y.notna()
    scale = 1 if set(names) <= set(UNITS) else 100
    return stats.paired_effect(scale * x[kept], scale * y[kept], rng(0, f"decoder/{a}/{b}/{names}"))


def gap_closed(summary: pd.DataFrame, decoder: str, measure_name: str) -> float:
    """Which share of the way from the VAE's decoder to the redrawn bound a decoder goes.

    Negative if it goes the other way; NaN where there is no gap.
    """
    at = summary["mean"].xs(measure_name, level="measure")
    gap = at["redrawn"] - at["VAE decoder"]
    return float((at[decoder] - at["VAE decoder"]) / gap) if gap > 1e-9 else float("nan")
