"""The consistency decoder as one uses it: latents in, pictures out, in place of the VAE's decoder.

``ConsistencyDecoder``, ``load_image`` and ``save_image`` are called as those of OpenAI's package
``consistencydecoder``. Latents of Stable Diffusion's autoencoder are decoded by the released
network through diffusers, the world's by the one that this book trained (``decoder_training``).
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import ConsistencyDecoderVAE
from diffusers.models.autoencoders.vae import DecoderOutput
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle3lib import UserError, consistency, decoder_network, paths, pretrained
from dalle3lib.images import centre_square, read_rgb, to_tensor, to_uint8
from dalle3lib.randomness import rng

RELEASED = "openai/consistency-decoder"  # its revision and size: pretrained.MODELS
SD_SCALE = 0.18215  # the scaling factor of the only public latents that the released one knows
OVERLAP = 4  # latents that neighbouring tiles share, blended into each other


def load_image(path: str | Path, size: tuple[int, int], center_crop: bool = False) -> Tensor:
    """A picture file as float32 [1, 3, height, width] in [-1, 1]; ``size`` is (width, height).

    With ``center_crop`` its largest centred square is scaled to the (then equal) sides, else the
    whole picture is. UserError if the file is no picture or ``size`` is no square to crop to.
    """
    image = read_rgb(path)
    if center_crop and size[0] != size[1]:
        raise UserError(f"A centred square cannot be {size[0]} x {size[1]}: give equal sides.")
    if center_crop:
        return to_tensor(centre_square(image, size[0])[None])
    return to_tensor(np.asarray(image.resize(size, Image.Resampling.BICUBIC))[None])


def save_image(image: Tensor, path: str | Path) -> None:
    """Write the first picture of [B, 3, H, W] in [-1, 1] to a file; its name gives the format."""
    Image.fromarray(to_uint8(image[:1])[0]).save(path)


class ConsistencyDecoder:
    """Decodes latents in two steps: ``ConsistencyDecoder(device)(latent)`` gives pictures.

    ``model`` is the released decoder's name (for latents of Stable Diffusion 1 and 2), "world" (for
    this book's), or a directory of either kind. If ``vae``, the autoencoder that made the latents,
    is given, its family is checked: those of SDXL would be decoded to garbage and are a UserError.

    Memory: the network sees at most ``at_once`` tiles of ``tile`` x ``tile`` latents (8 x 8 pixels
    each) at a time, however many and large the pictures are; the rest is the pictures themselves.
    Larger pictures are cut into tiles that overlap by 4 latents and are blended there.
    ``steps`` 1, 2 or 4 are those of the world's; the released one takes 2.
    """

    def __init__(
        self,
        device: str = "cpu",
        model: str | Path = RELEASED,
        dtype: torch.dtype = torch.float32,
        *,
        vae=None,
        at_once: int = 16,
        tile: int = 64,
        steps: int = 2,
    ):
        self.device, self.dtype = torch.device(device), dtype
        self.at_once, self.tile, self.steps = at_once, tile, steps
        place = paths.foundation("decoder") if model == "world" else Path(model)
        self.ours = (place / "config.json").is_file() and "Patch" in (
            place / "config.json"
        ).read_text()
        check(self.ours, steps, tile, vae)
        self.network = decoder_network.load(place) if self.ours else _released(model)
        self.network.to(self.device)
        if self.network.dtype != dtype:  # diffusers warns of every cast, needed or not
            self.network.to(dtype)
        self.config = SimpleNamespace(scaling_factor=1.0 if self.ours else SD_SCALE)

    def __call__(self, latent: Tensor, seed: int = 0) -> Tensor:
        """Latents [B, 4, h, w], as the autoencoder gives them, to float32 [B, 3, 8 h, 8 w].

        Values are in [-1, 1]. The same latents and ``seed`` give the same pictures.
        """
        if latent.dim() != 4 or latent.shape[1] != 4:
            raise UserError(f"Latents are [B, 4, h, w], not {list(latent.shape)}.")
        height, width = latent.shape[2:]
        whole = latent.to(self.device, torch.float32)
        if self.ours:  # it halves once inside, so an odd side is made even, and cut again
            whole = F.pad(whole, (0, width % 2, 0, height % 2), mode="replicate")
        firsts, parts = range(0, len(whole), self.at_once), whole.split(self.at_once)
        made = [self._tiled(z, seed, i) for i, z in zip(firsts, parts, strict=True)]
        return torch.cat(made)[:, :, : 8 * height, : 8 * width]

    def decode(self, z: Tensor) -> DecoderOutput:
        """The same with the interface of an autoencoder, so that ``sample.sample`` takes it."""
        return DecoderOutput(sample=self(z))

    def _tiled(self, latent: Tensor, seed: int, first: int) -> Tensor:
        """Decode tile by tile and blend; picture number ``first`` is the first of these."""
        rows, columns = (spans(side, self.tile) for side in latent.shape[2:])
        height, width = (8 * side for side in latent.shape[2:])
        total = torch.zeros(len(latent), 3, height, width)
        weight = torch.zeros(height, width)
        for top, bottom in rows:
            for left, right in columns:
                part = latent[:, :, top:bottom, left:right]
                picture = self._decode(part, (seed, first, top, left)).cpu()
                ramp = _ramp(bottom - top)[:, None] * _ramp(right - left)
                here = slice(8 * top, 8 * bottom), slice(8 * left, 8 * right)
                total[:, :, *here] += ramp * picture
                weight[here] += ramp
        return (total / weight).to(self.device)

    @torch.no_grad()
    def _decode(self, z: Tensor, place: tuple[int, ...]) -> Tensor:
        """Decode one tile of a few pictures; its noise depends on seed, picture and place alone."""
        seed, first, *corner = place
        if not self.ours:
            number = rng(seed, f"decode/{first}/{corner}").integers(2**31)
            generator = torch.Generator(self.device).manual_seed(int(number))
            picture = self.network.decode(z.to(self.dtype), generator=generator).sample
            return picture.float().clamp(-1, 1)

        def noise(step: int) -> Tensor:
            shape = 3, 8 * z.shape[2], 8 * z.shape[3]
            drawn = [
                rng(seed, f"decode/{first + i}/{corner}", step).standard_normal(shape, "float32")
                for i in range(len(z))
            ]
            return torch.stack([torch.from_numpy(d) for d in drawn]).to(self.device)

        return consistency.consistency_sample(self.network, z, noise, consistency.TIMES[self.steps])


def check(ours: bool, steps: int, tile: int, vae) -> None:
    """UserError for what a decoder cannot do: steps, tiles, latents of another family."""
    known = tuple(consistency.TIMES) if ours else (2,)
    if steps not in known:
        raise UserError(f"This decoder takes {' or '.join(map(str, known))} steps, not {steps}.")
    if tile <= 2 * OVERLAP or tile % 2:
        raise UserError(f"Tiles have an even side of more than {2 * OVERLAP} latents, not {tile}.")
    scale = 1.0 if ours else SD_SCALE
    if vae is not None and abs(found := vae.config.scaling_factor - scale) > 1e-4:
        raise UserError(
            f"This decoder knows latents of scaling factor {scale}, and this autoencoder has "
            f"{found + scale:g}: latents of SDXL (0.13025) or others need the decoder that they "
            "were made with."
        )


def _released(model: str | Path) -> ConsistencyDecoderVAE:
    """The released decoder from a directory or at its fixed revision from the hub (or its cache).

    UserError, with the command that fetches it, if it is not here, and if it is damaged.
    """
    place = pretrained.directory("decoder", str(model))
    with pretrained.loading(f"the decoder in {place}"):
        return ConsistencyDecoderVAE.from_pretrained(place).eval().requires_grad_(False)


def spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Where tiles begin and end on a side of ``length`` latents: neighbours share 4 or more."""
    if length <= tile:
        return [(0, length)]
    starts = [*range(0, length - tile, tile - OVERLAP), length - tile]
    return [(start, start + tile) for start in starts]


def _ramp(length: int) -> Tensor:
    """The weight of each pixel along a tile of ``length`` latents: rising from both edges to 1."""
    place = torch.arange(8 * length) + 0.5
    return (torch.minimum(place, 8 * length - place) / (8 * OVERLAP)).clamp(max=1)
