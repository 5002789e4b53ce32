"""Records: an image with its captions, the same from the world and from a folder of photographs.

Everything downstream (captioner, latents, training, figures) reads ``Record`` and looks at what a
record holds, never at where it came from (``splits`` reads them).
"""

import glob
import io
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dalle3lib import UserError

if TYPE_CHECKING:
    import torch

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP")  # no other decoder of Pillow ever sees the user's bytes
MAX_BYTES = 8 * 2**30  # decoded images are kept in memory: 650,000 at 64 px, 40,000 at 256 px


@dataclass(frozen=True)
class Limits:
    """Which sizes of images are decoded at all, judged by what the file's header claims.

    ``max_pixels`` guards the memory, and cannot exceed twice its default, where Pillow itself
    stops; ``min_side`` is in pixels, ``max_aspect`` the longer side divided by the shorter one.
    """

    max_pixels: int = Image.MAX_IMAGE_PIXELS
    min_side: int = 1
    max_aspect: float = math.inf

    def __post_init__(self) -> None:
        if self.max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
            raise UserError(
                f"Images of over {2 * Image.MAX_IMAGE_PIXELS:,} pixels cannot be read, so the "
                f"limit cannot be {self.max_pixels:,}: choose a lower one."
            )

    def check(self, width: int, height: int) -> None:
        """Raises ValueError with the reason if an image of this size is not to be decoded."""
        short, long = sorted((width, height))
        if width * height > self.max_pixels:
            raise ValueError(f"its header claims over {self.max_pixels:,} pixels")
        if short < self.min_side:
            raise ValueError(f"{width} x {height} pixels are too few: a side is < {self.min_side}")
        if long > self.max_aspect * short:
            raise ValueError(f"{width} x {height} pixels: longer than {self.max_aspect:g} to 1")


ANY_SIZE = Limits()
PHOTOGRAPHS = Limits(min_side=16, max_aspect=10)  # a centre square of less shows nothing


@dataclass(frozen=True, eq=False)
class Record:
    """One image and what is said about it.

    ``image`` is uint8 [H, W, 3], RGB. ``alt`` is the caption found with the image; ``short`` and
    ``descriptive`` are captions of its main subject and of everything in it, or None; ``facts``
    holds the exact truth about the image, or None where nobody knows it.
    """

    key: str
    image: np.ndarray
    alt: str
    short: str | None = None
    descriptive: str | None = None
    facts: dict | None = None


# --- from files to pixels ------------------------------------------------------------------------


def decode(
    source: str | Path | bytes | np.ndarray, size: int, limits: Limits = ANY_SIZE
) -> np.ndarray:
    """The centre square of an image scaled to uint8 [size, size, 3].

    ``source`` is a file, its bytes, or an RGB image uint8 [H, W, 3] that never was a file.

    The rotation that a camera noted in EXIF is applied; see ``to_rgb`` for other than RGB images.
    Of an animation the first picture is taken. Raises ValueError with the reason if the file is
    no JPEG, PNG or WebP, is damaged, or its header claims a size outside ``limits`` (checked
    before any memory is spent on the pixels).
    """
    if isinstance(source, np.ndarray):
        limits.check(source.shape[1], source.shape[0])
        same = source.shape[:2] == (size, size)
        return source if same else centre_square(Image.fromarray(source), size)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file, formats=FORMATS) as image:
            limits.check(image.width, image.height)
            # JPEG can be decoded at a half, a quarter … of its size, which is much faster; at
            # twice the size we need, the filter below still does the last step
            image.draft(None, (2 * size, 2 * size))
            upright = to_rgb(ImageOps.exif_transpose(image))
        return centre_square(upright, size)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"its header claims over {limits.max_pixels:,} pixels") from None
    except UnidentifiedImageError:
        empty = not (len(source) if isinstance(source, bytes) else os.path.getsize(source))
        reason = "the file is empty" if empty else "no JPEG, PNG or WebP, or its header is damaged"
        raise ValueError(reason) from None
    except Exception as error:  # damaged files make Pillow's decoders raise almost anything
        raise ValueError(str(error) or type(error).__name__) from error


def read_rgb(path: str | Path) -> Image.Image:
    """An image file in RGB (``to_rgb``), turned as the camera noted; UserError if there is none."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # damaged files make Pillow's decoders raise almost anything
        raise UserError(f"The picture {path} cannot be read ({error}): replace it.") from error


def centre_square(image: Image.Image, size: int) -> np.ndarray:
    """The largest centred square of an RGB image, scaled to uint8 [size, size, 3]."""
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))  # antialiased


def to_rgb(image: Image.Image) -> Image.Image:
    """An RGB copy: grey, palette and CMYK converted, 16 bits scaled to 8, alpha put on white."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def stack(records: Iterable[Record]) -> np.ndarray:
    """The images of records as one array: uint8 [N, H, W, 3]."""
    return np.stack([record.image for record in records])


def to_tensor(images: np.ndarray) -> "torch.Tensor":
    """Images uint8 [B, H, W, 3] as float32 [B, 3, H, W] in [-1, 1]."""
    import torch  # here, because whoever only looks at records need not wait for it

    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def to_uint8(tensor: "torch.Tensor") -> np.ndarray:
    """The inverse of ``to_tensor``: uint8 [B, H, W, 3], values outside [-1, 1] clipped."""
    pixels = (tensor.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return pixels.round().permute(0, 2, 3, 1).contiguous().numpy().astype(np.uint8)


# --- files of images -----------------------------------------------------------------------------


def list_files(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Every visible file: (path relative to the folder, bytes, time of change), links followed."""
    names = sorted(glob.glob("**/*", root_dir=folder, recursive=True))
    stats = [(name, os.stat(folder / name)) for name in names if os.path.isfile(folder / name)]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def pictures(names: Iterable[str]) -> list[str]:
    """Those of some file names that are images' by their ending."""
    return [name for name in names if name.lower().endswith(EXTENSIONS)]
