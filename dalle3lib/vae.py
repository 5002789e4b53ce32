"""The autoencoder between 64 x 64 pixels and 8 x 8 x 4 latents (paper App. A; Rombach et al. 2022).

Everywhere the interface is diffusers' ``AutoencoderKL``: ``encode(x).latent_dist`` and
``decode(z).sample``, so the world's autoencoder and a public one are interchangeable.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor

from dalle3lib.images import to_tensor
from dalle3lib.pretrained import loading
from dalle3lib.randomness import rng

PATCH = 4  # pixels: full-resolution convolutions are slow on a CPU, so the first halvings are free


class PatchAutoencoderKL(AutoencoderKL):
    """An ``AutoencoderKL`` that works on 4 x 4 pixel patches (48 channels) instead of pixels.

    With one more halving inside, images [B, 3, H, W] in [-1, 1] become latents [B, 4, H/8, W/8].
    """

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput:
        """Images [B, 3, H, W] in [-1, 1] to a distribution over latents [B, 4, H/8, W/8]."""
        return super().encode(F.pixel_unshuffle(x, PATCH), return_dict)

    def decode(self, z: Tensor, return_dict: bool = True, generator=None) -> DecoderOutput:
        """Latents [B, 4, h, w] to images [B, 3, 8 h, 8 w], roughly in [-1, 1]."""
        picture = F.pixel_shuffle(super().decode(z, return_dict=False)[0], PATCH)
        return DecoderOutput(sample=picture) if return_dict else (picture,)


def build(channels: tuple[int, int] = (64, 128), layers: int = 1) -> PatchAutoencoderKL:
    """An untrained autoencoder for the world; ``channels`` at 16 x 16 and at 8 x 8."""
    return PatchAutoencoderKL(
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=channels,
        layers_per_block=layers,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=64,
    )


def load(name: str | Path, **options) -> AutoencoderKL:
    """The autoencoder in a local directory or of a public name, ready for inference.

    ``options`` go to diffusers' ``from_pretrained`` (``revision``, ``subfolder``, ...). Raises
    UserError if there is no such model or its files are damaged.
    """
    config = Path(name) / "config.json"
    with loading(f"the autoencoder {name}"):
        kind = json.loads(config.read_text())["_class_name"] if config.is_file() else ""
        ours = kind == PatchAutoencoderKL.__name__
        model = (PatchAutoencoderKL if ours else AutoencoderKL).from_pretrained(name, **options)
    return model.float().eval().requires_grad_(False)


def at_once(batch: int, latent_size: int) -> int:
    """How many pictures to code at a time where ``batch`` of 64 pixels (8 x 8 latents) fit.

    The autoencoder works at full resolution and needs far more memory than the network.
    """
    return max(1, batch * 8**2 // latent_size**2)


@torch.no_grad()
def encode(model: AutoencoderKL, images: np.ndarray, batch: int = 128) -> Tensor:
    """Latents of images uint8 [N, H, W, 3] as diffusion models know them: float32 [N, 4, h, w].

    They are the posteriors' means times the scaling factor, so of about unit variance;
    ``sample.decode`` goes the other way. ``batch`` is as for ``at_once``.
    """
    size = at_once(batch, max(images.shape[1:3]) // 8)
    parts = (to_tensor(images[i : i + size]) for i in range(0, len(images), size))
    means = [model.encode(x.to(model.device)).latent_dist.mean.cpu() for x in parts]
    return torch.cat(means) * model.config.scaling_factor


def loss(model: AutoencoderKL, images: Tensor, noise: Tensor, kl_weight: float = 1e-6) -> dict:
    """Reconstruction and KL losses of one batch.

    ``images`` [B, 3, H, W] in [-1, 1]; ``noise`` [2, B, 4, H/8, W/8] standard normal: the first
    half samples the posterior, the second (scaled by 0.05) makes the decoder forgive the small
    errors a diffusion model leaves. Minimises MSE + 0.2 L1 + ``kl_weight`` KL.
    """
    posterior = model.encode(images).latent_dist
    z = posterior.mean + posterior.std * noise[0] + 0.05 * posterior.mean.std().detach() * noise[1]
    error = model.decode(z).sample - images
    mse, l1, kl = error.square().mean(), error.abs().mean(), posterior.kl().mean()
    return {"loss": mse + 0.2 * l1 + kl_weight * kl, "mse": mse.detach(), "kl": kl.detach()}


def step_loss(
    model: AutoencoderKL, batch_at: Callable[[int], np.ndarray], *, seed: int
) -> Callable[[int], dict[str, Tensor]]:
    """The loss as a function of the step, for ``train.train``.

    ``batch_at(step)`` gives the images of a step: uint8 [B, H, W, 3], of one size.
    """

    def at(step: int) -> dict[str, Tensor]:
        picture = to_tensor(batch_at(step))
        height, width = (side // 8 for side in picture.shape[2:])
        shape = (2, len(picture), model.config.latent_channels, height, width)
        noise = rng(seed, "vae/noise", step).standard_normal(shape, dtype="float32")
        return loss(model, picture, torch.from_numpy(noise))

    return at


@torch.no_grad()
def standardise(model: AutoencoderKL, images: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1 on ``images``, in place.

    A diffusion model adds the same noise to all channels, so a channel of small deviation, however
    much it says, would be lost first. The 1 x 1 convolutions on either side of the latent take the
    change up: reconstructions stay what they were.
    """
    z = model.encode(images).latent_dist.mean
    mean, deviation = z.mean((0, 2, 3)), z.std((0, 2, 3))
    out, back, channels = model.quant_conv, model.post_quant_conv, len(mean)
    back.bias += (back.weight * mean[:, None, None]).sum((1, 2, 3))
    back.weight *= deviation[:, None, None]
    out.bias[:channels] -= mean
    out.bias[:channels] /= deviation
    out.weight[:channels] /= deviation[:, None, None, None]
    out.bias[channels:] -= 2 * deviation.log()  # the second half is the logarithm of the variance
    model.register_to_config(scaling_factor=1.0)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB: [B], for images [B, 3, H, W] in [-1, 1]."""
    mse = (a.clamp(-1, 1) - b.clamp(-1, 1)).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / mse)
