"""The consistency decoder at work: on an arm's own latents; what it costs in time and memory."""

import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm

from dalle3lib import UserError, arm, decoder_scores, paths, pretrained, text, vae
from dalle3lib.config import Parameters
from dalle3lib.decoder import ConsistencyDecoder
from dalle3lib.decoder_scores import decode, decoders
from dalle3lib.images import to_tensor, to_uint8
from dalle3lib.quality import facts_read, held_out
from dalle3lib.sample import draw_latents
from dalle3lib.world import Scene
from dalle3lib.world.render import render

PLAIN, TWO = "VAE decoder", "consistency, 2 steps"


def both_ways(
    count: int, student: nn.Module, *, seed: int, steps: int, name: str = "dsc-95"
) -> tuple[dict[str, np.ndarray], dict[str, pd.DataFrame]]:
    """An arm's latents for ``count`` held-out descriptive prompts, decoded by both decoders.

    Returns the pictures uint8 [N, 64, 64, 3] of each, and which share of each prompt's facts the
    reader finds in them. Prompts with a printed word come first.
    """
    records = sorted(held_out(8 * count), key=lambda r: r.facts["word"] is None)[:count]
    unet, guidance = arm.load(name)
    states = text.encode(*text.load(paths.foundation("t5")), [r.descriptive for r in records])
    latents = draw_latents(unet, states, seed=seed, steps=steps, guidance=guidance)
    autoencoder = vae.load(paths.foundation("vae"))
    ways = decoders(autoencoder, student, student)
    pictures = {way: decode(latents, ways[way]) for way in (PLAIN, TWO)}
    found = {way: facts_read(images, records) for way, images in pictures.items()}
    for table in found.values():
        if "word" not in table:
            table["word"] = np.nan
    return pictures, found


def cost(latents: Tensor, ways: dict[str, Callable]) -> pd.DataFrame:
    """Milliseconds of processor time a picture, and the memory at the peak, of each way, by name.

    "time" and "memory" are ratios to the VAE's decoder. Memory is the sum of what torch has
    allocated beyond the weights and the latents (its profiler's running total).
    """
    rows = {}
    for name, how in ways.items():
        noise = lambda step: decoder_scores.start(len(latents), step)  # noqa: E731
        how(latents, noise)
        start = time.process_time()
        how(latents, noise)
        spent = time.process_time() - start
        rows[name] = {"ms a picture": 1000 * spent / len(latents), "peak MiB": peak(how, latents)}
    table = pd.DataFrame(rows).T
    for column, ratio in {"ms a picture": "time", "peak MiB": "memory"}.items():
        table[ratio] = table[column] / table.loc[PLAIN, column]
    return table


@torch.no_grad()
def peak(how: Callable, latents: Tensor) -> float:
    """The most memory in MiB that torch holds at once while ``how`` decodes latents."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler's messages fill the chapter
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        how(latents, lambda step: decoder_scores.start(len(latents), step))
    held = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def released(scenes: Sequence[Scene], cfg: Parameters, net: str = "alex") -> pd.DataFrame:
    """Scenes drawn at 256 pixels, decoded both ways: the table of ``compared``."""
    true = np.stack([render(spec, scale=4) for spec in scenes])
    return compared(true, cfg, net)[0]


@torch.no_grad()
def compared(
    images: np.ndarray, cfg: Parameters, net: str = "none"
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Pictures uint8 [N, H, W, 3] through an autoencoder, decoded both ways; (table, pictures).

    The table has a row for each picture; columns are pairs (measure, decoder): "PSNR (dB)", "SSIM",
    and, unless ``net`` is "none", "LPIPS", less being nearer, by that trunk of ``lpips``.
    ``cfg`` names the autoencoder (``vae``), the ``decoder`` and the ``device``. UserError if the
    decoder knows latents of another family than the autoencoder's.
    """
    device = pretrained.device(cfg)
    autoencoder = vae.load(pretrained.directory("vae", cfg.vae)).to(device)
    decode_two = ConsistencyDecoder(device, cfg.decoder, vae=autoencoder, at_once=1)
    rows, made = [], {PLAIN: [], TWO: []}
    for picture in tqdm(to_tensor(images).split(1), "decoded both ways"):
        z = autoencoder.encode(picture.to(device)).latent_dist.mean
        ways = {PLAIN: autoencoder.decode(z).sample, TWO: decode_two(z)}
        row, shown = {}, to_uint8(picture)
        for name, drawn in ways.items():
            made[name].append(to_uint8(drawn))
            row["PSNR (dB)", name] = vae.psnr(drawn.cpu(), picture).item()
            row["SSIM", name] = decoder_scores.ssim(made[name][-1], shown).item()
            if net != "none":
                row["LPIPS", name] = lpips(drawn.cpu(), picture, net).item()
        rows.append(row)
    columns = pd.MultiIndex.from_tuples(rows[0], names=["measure", "decoder"])
    table = pd.DataFrame(rows).set_axis(columns, axis=1)
    return table, {name: np.concatenate(parts) for name, parts in made.items()}


def lpips(pictures: Tensor, true: Tensor, net: str = "alex") -> Tensor:
    """LPIPS (Zhang et al. 2018) of pictures [B, 3, H, W] in [-1, 1] to the true ones: [B], >= 0.

    By torchmetrics, with torchvision's trunk ``net``: "alex", "vgg" or "squeeze". Raises UserError
    where either is missing.
    """
    try:
        from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
    except ImportError:
        raise UserError("LPIPS is computed by torchmetrics: pip install torchmetrics.") from None
    ours = [x.clamp(-1, 1) for x in (pictures, true)]
    try:
        return learned_perceptual_image_patch_similarity(*ours, net_type=net, reduction="none")
    except OSError as error:  # the trunk's weights cannot be fetched
        raise UserError(
            f"LPIPS needs torchvision's weights of {net} ({error}): run once where there is a "
            "network, and copy ~/.cache/torch (or set TORCH_HOME) if that is another machine."
        ) from error
