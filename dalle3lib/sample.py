"""From prompts to pictures: text states, guided DDIM, decoder."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from dalle3lib import UserError, diffusion, text
from dalle3lib.decoder import ConsistencyDecoder
from dalle3lib.images import to_uint8
from dalle3lib.randomness import rng
from dalle3lib.vae import at_once


def start_noise(seed: int, rows: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """The noise [B, ...] of the given shape from which prompts number ``rows`` start.

    It depends on seed and prompt only, so all arms start the same prompt from the same noise.
    """
    noise = [rng(seed, "sample", i).standard_normal(shape, dtype="float32") for i in rows]
    return torch.from_numpy(np.stack(noise))


@torch.no_grad()
def draw_latents(
    unet: UNet2DConditionModel,
    states: Sequence[Tensor],
    *,
    seed: int,
    steps: int = 20,
    guidance: float = 3.0,
    batch: int = 64,
    dtype: torch.dtype = torch.float32,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """One latent [4, h, w] of unit variance for each prompt's states [L, d]: [N, 4, h, w].

    Arguments are those of ``sample``, which decodes them.
    """
    wanted, given = unet.config.cross_attention_dim, states[0].shape[1]
    if wanted != given:
        raise UserError(
            f"This network reads text states of width {wanted}, and the text encoder makes them "
            f"{given} wide: choose the t5 that it was trained with."
        )
    unet.eval()
    device = unet.device
    height, width = size or (unet.config.sample_size, unet.config.sample_size)
    drawn = []
    for first in range(0, len(states), batch):
        rows = range(first, min(first + batch, len(states)))
        noise = start_noise(seed, rows, (unet.config.in_channels, height, width))
        told = diffusion.guided(unet, *text.pad([states[i] for i in rows], device), guidance)
        with diffusion.autocast(device, dtype):
            drawn.append(diffusion.ddim(told, noise.to(device), steps))
    return torch.cat(drawn)


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL | ConsistencyDecoder,
    states: Sequence[Tensor],
    *,
    batch: int = 64,
    **options,
) -> np.ndarray:
    """One picture for each prompt's states [L, d]: uint8 [N, H, W, 3].

    ``vae`` decodes: an autoencoder, or a ``decoder.ConsistencyDecoder`` of the same latents.
    ``options`` are those of ``draw_latents``: ``seed``, the ``steps`` of DDIM, the ``guidance``
    scale of classifier-free guidance, on the device where the U-Net is. With ``dtype`` bfloat16
    the U-Net multiplies matrices in that precision. ``size`` is the height and width of the latents
    where they are not the square that the network is built for.
    """
    return decode(draw_latents(unet, states, batch=batch, **options), vae, batch)


@torch.no_grad()
def decode(latents: Tensor, vae: AutoencoderKL | ConsistencyDecoder, batch: int = 64) -> np.ndarray:
    """Latents [N, 4, h, w] of unit variance, as ``draw_latents`` gives them, as pictures uint8."""
    parts = (latents / vae.config.scaling_factor).split(at_once(batch, max(latents.shape[2:])))
    return np.concatenate([to_uint8(vae.decode(part.float()).sample) for part in parts])
