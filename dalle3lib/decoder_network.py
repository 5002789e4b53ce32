"""The decoder's network (paper App. B): a convolutional U-Net on pixels, given the latent.

As in OpenAI's released decoder it takes 7 channels, the noisy picture and the latent repeated to
its size. Inside, the world's works on patches, like the world's autoencoder: full-resolution
convolutions are slow on a CPU.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor
from torch.nn import functional as F

from dalle3lib.consistency import SIGMA_DATA
from dalle3lib.diffusion import alpha_bar

KNOWN = 0.08  # the deviation that is left to pixels once the latent is known (27.5 dB)
SEEN, GIVEN = 7, 3  # channels: picture and latent, and the answer


def noise_share(t: Tensor) -> Tensor:
    """How much of the scaled noisy picture belongs in the network's answer at times t [B]: same.

    The latent says nearly all of a picture, so what remains for the network is to take noise out
    again exactly, and that must not have to pass through all its layers. With this share added
    outside, a network that says no more than the mean picture x gives the best linear denoiser,
    D = (1 - w) x + w z / sqrt(a) with w = k² / (k² + s²), where k is ``KNOWN`` and s the noise.
    """
    s2, d2 = (1 / alpha_bar(t.double()) - 1).clamp(min=1e-8), SIGMA_DATA**2
    w = KNOWN**2 / (KNOWN**2 + s2)
    return ((w * (s2 + d2) - d2) / (s2 * d2).sqrt()).to(t.dtype)


class PatchUNet2DModel(UNet2DModel):
    """A ``UNet2DModel`` on patches: [B, 7, H, W] and times [B] to [B, 3, H, W].

    Its ``in_channels`` are 7 times the pixels of a patch.
    """

    @property
    def patch(self) -> int:
        """The side of a patch in pixels."""
        return int((self.config.in_channels // SEEN) ** 0.5)

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        """The network's answer; ``timestep`` [B] is 1024 times the time."""
        answer = super().forward(F.pixel_unshuffle(sample, self.patch), timestep).sample
        noise = noise_share(timestep.float() / 1024).view(-1, 1, 1, 1) * sample[:, :GIVEN]
        return UNet2DOutput(sample=F.pixel_shuffle(answer, self.patch) + noise)


def build(channels: tuple[int, ...] = (64, 128), patch: int = 4, layers: int = 1, seed: int = 0):
    """An untrained network; ``channels`` at H / patch, H / (2 patch), ...; multiples of 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchUNet2DModel(
            sample_size=64,
            in_channels=SEEN * patch**2,
            out_channels=GIVEN * patch**2,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            norm_num_groups=16,
            resnet_time_scale_shift="scale_shift",
            add_attention=False,
        )


@torch.no_grad()
def start_from(autoencoder: AutoencoderKL, model: PatchUNet2DModel) -> PatchUNet2DModel:
    """Give the network what an autoencoder's decoder has learned; returns ``model``, changed.

    Middle, way up and output of both are built alike. Where the U-Net also reads what it kept on
    its way down, the decoder's weights go to the channels that come first, those from below, and
    the others start at a tenth. A block without a shortcut passes its input on: so do these.
    At first the time changes nothing, and the answer is the decoder's over ``SIGMA_DATA``, as the
    frame multiplies it where all is noise.
    """
    own, given = model.state_dict(), autoencoder.decoder.state_dict()
    for name, weights in own.items():
        if "time_emb_proj" in name and not name.startswith("down"):
            weights.zero_()
        elif "conv_shortcut" in name and name.startswith("up") and name not in given:
            weights.zero_()
            if weights.dim() == 4:
                weights[:, : len(weights), 0, 0] = torch.eye(len(weights))
        elif name in given and not name.startswith("conv_in"):
            first = tuple(slice(n) for n in given[name].shape)
            if weights.dim() == 4:
                weights *= 0.1
            weights[first] = given[name]
    model.conv_out.weight /= SIGMA_DATA
    model.conv_out.bias /= SIGMA_DATA
    return model


def load(directory: Path) -> PatchUNet2DModel:
    """A saved network in single precision, ready for inference."""
    model = PatchUNet2DModel.from_pretrained(directory).float().eval().requires_grad_(False)
    return model.to(memory_format=torch.channels_last)
