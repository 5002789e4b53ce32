"""Records: an image with its captions, the same from the world and from a folder of photographs.

Everything downstream (captioner, latents, training, figures) reads ``Record`` and looks at what a
record holds, never at where it came from.
"""

import glob
import hashlib
import io
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dalle3lib import UserError, coco

if TYPE_CHECKING:
    import torch

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
PACKED = (".tar", ".parquet", ".arrow")
FORMATS = ("JPEG", "PNG", "WEBP")  # no other decoder of Pillow ever sees the user's bytes
SPLITS = ("train", "dev", "test")
TRAIN, DEV = 0.80, 0.85  # hash below 0.80: train; below 0.85: dev; the rest: test
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


def open_source(
    data: str, split: str, count: int, size: int = 64, noise: float = 0.5
) -> Sequence[Record]:
    """The first ``count`` records of a split (fewer if the source is smaller).

    ``data`` is "world", the path of a folder that ``Folder`` can read (of one larger than the
    memory, only these records are decoded), or one of tars or tables with alt-text
    (``pairs.with_alt``). Images are uint8 [size, size, 3]; ``noise`` is the noise level of the
    world's alt-text. Raises UserError if it is none of these, or if the folder has problems.
    """
    if data == "world":
        from dalle3lib.world import World  # here, because the world itself imports Record

        if size != 64:
            raise UserError(f"the world draws images of 64 pixels, not {size}: use size 64.")
        return World(split, count, noise)
    if not Path(data).expanduser().is_dir():
        raise UserError(
            f'data "{data}" is neither "world" nor an existing folder: give "world" or the path '
            "of a folder that holds images and one COCO-format captions JSON."
        )
    names = [name for name, _, _ in list_files(Path(data).expanduser())]
    pictures = sum(name.lower().endswith(EXTENSIONS) for name in names)
    if not pictures and any(
        name.lower().endswith((".tar", ".parquet", ".arrow")) for name in names
    ):
        from dalle3lib import pairs  # which imports this module

        return pairs.with_alt(data, split, count, size)
    if pictures * size * size * 3 > MAX_BYTES:
        return first_of_folder(data, count, size, split)
    return Folder(data, split, size)[:count]


def packed(data: str) -> bool:
    """Whether a folder holds tars or tables, and no image files."""
    names = [name.lower() for name, _, _ in list_files(Path(data).expanduser())]
    return any(n.endswith(PACKED) for n in names) and not any(n.endswith(EXTENSIONS) for n in names)


def split_names(data: str) -> tuple[str, ...]:
    """The splits that ``open_source`` knows of a source: the world also has "foundation"."""
    if data != "world":
        return SPLITS
    from dalle3lib.world import SPLITS as WORLD_SPLITS

    return tuple(WORLD_SPLITS)


def overlap(some: Sequence[Record], others: Sequence[Record]) -> dict[str, int]:
    """How many keys, pictures (every pixel equal) and, where held, facts two sets share."""

    def contents(records: Sequence[Record]) -> dict[str, set]:
        found = {"keys": {r.key for r in records}, "pictures": {r.image.tobytes() for r in records}}
        if all(r.facts for r in records):
            found["facts"] = {json.dumps(r.facts, sort_keys=True) for r in records}
        return found

    first, second = contents(some), contents(others)
    return {kind: len(first[kind] & second[kind]) for kind in first if kind in second}


class Folder(Sequence[Record]):
    """A split of a folder of images with captions in the COCO format.

    The folder holds images (jpg, jpeg, png, webp; at any depth) and exactly one captions file: a
    JSON with "images" and "annotations" that have a "caption", in the folder or in its
    ``annotations/``. An image is found by its file name, wherever it lies below the folder. A
    record's key is that file name, ``alt`` is the caption with the lowest annotation id, and
    ``short``, ``descriptive`` and ``facts`` are None.

    Splits depend on the hash of the key alone, so adding photographs never moves one from test to
    train: 80 % ``train``, 5 % ``dev``, 15 % ``test`` (see ``split_keys`` for small folders).
    Records come in the order of that hash, so that the first hundred are a random hundred.

    All images, of every split, are read when the first split is opened: only reading every pixel
    finds a truncated JPEG, and a bad file should stop a run in its first minute, not in its
    second hour. The small images are then kept (50,000 at 64 px are 0.6 GB), because training
    visits them in random order many times. Raises one UserError that counts and lists all
    problems.
    """

    def __init__(self, path: str | Path, split: str, size: int = 64) -> None:
        folder = Path(path).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"{path} is not a folder: give the path of a folder of images.")
        if split not in SPLITS:
            raise UserError(f'a folder has the splits {", ".join(SPLITS)}, not "{split}".')
        if size < 1:
            raise UserError(f"images need a size of at least 1 pixel, not {size}.")
        self._captions, self._images = _read_folder(folder, size, list_files(folder))
        self._keys = split_keys(self._captions)[split]

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index):  # an integer gives a Record, a slice a list of them
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        key = self._keys[index]
        return Record(key, self._images[key], self._captions[key])


def split_keys(keys: Iterable[str]) -> dict[str, list[str]]:
    """Divides keys into train, dev and test by their hash: disjoint lists, in hash order.

    A key's hash is a number in [0, 1): below 0.80 is train, below 0.85 dev, the rest test. Where
    that leaves a split of a small folder empty, the neighbour in hash order moves into it; at
    least three keys are needed.
    """
    place = {key: _hash(key) for key in keys}
    ordered = sorted(place, key=place.get)
    n = len(ordered)
    if n < len(SPLITS):
        raise UserError(
            f"{n} captioned images cannot fill the splits train, dev and test: add images until "
            "there are at least 3."
        )
    train = min(max(sum(p < TRAIN for p in place.values()), 1), n - 2)
    dev = min(max(sum(p < DEV for p in place.values()), train + 1), n - 1)
    return {"train": ordered[:train], "dev": ordered[train:dev], "test": ordered[dev:]}


def split_of(key: str) -> str:
    """The split that a key belongs to by its hash, in a source too large to list all keys first."""
    place = _hash(key)
    return "train" if place < TRAIN else "dev" if place < DEV else "test"


def _hash(key: str) -> float:
    """A number in [0, 1) that depends on the key alone, the same on every machine."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


# --- from files to pixels ------------------------------------------------------------------------


def decode(source: str | Path | bytes, size: int, limits: Limits = ANY_SIZE) -> np.ndarray:
    """The centre square of an image file, or of its bytes, scaled to uint8 [size, size, 3].

    The rotation that a camera noted in EXIF is applied; see ``to_rgb`` for other than RGB images.
    Of an animation the first picture is taken. Raises ValueError with the reason if the file is
    no JPEG, PNG or WebP, is damaged, or its header claims a size outside ``limits`` (checked
    before any memory is spent on the pixels).
    """
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


# --- from a folder to captions and images --------------------------------------------------------


def list_files(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Every visible file: (path relative to the folder, bytes, time of change), links followed."""
    names = sorted(glob.glob("**/*", root_dir=folder, recursive=True))
    stats = [(name, os.stat(folder / name)) for name in names if os.path.isfile(folder / name)]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@lru_cache(maxsize=1)  # the splits of one folder share one reading; a changed file makes a new one
def _read_folder(
    folder: Path, size: int, files: tuple[tuple[str, int, int], ...]
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Caption and image by key; UserError listing every problem of the folder."""
    paths = [name for name, _, _ in files if name.lower().endswith(EXTENSIONS)]
    if not paths:
        raise UserError(f"{folder} holds no images: put jpg, jpeg, png or webp files into it.")
    if len(paths) * size * size * 3 > MAX_BYTES:
        raise UserError(
            f"{len(paths):,} images of {size} px need more than {MAX_BYTES >> 30} GB of memory: "
            "choose a smaller size or fewer images."
        )
    return _decode_captioned(folder, [name for name, _, _ in files], paths, size)


def _decode_captioned(
    folder: Path,
    names: list[str],
    paths: list[str],
    size: int,
    count: int | None = None,
    split: str | None = None,
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Caption of every image, and the first ``count`` images in hash order (None: all), by key.

    With a ``split`` only images of that one count.
    """
    problems: coco.Problems = defaultdict(list)
    file, content = coco.captions_file(folder, names)
    captions = coco.first_captions(content, problems)
    located = coco.locate(captions, paths, problems)
    wanted = split_keys(located)[split] if split else sorted(located, key=_hash)
    wanted = located if count is None else wanted[:count]
    images = {}
    with ThreadPoolExecutor() as pool:  # Pillow decodes on all cores
        decoding = {key: pool.submit(decode, folder / located[key], size) for key in wanted}
        for key, pixels in decoding.items():
            try:
                images[key] = pixels.result()
            except ValueError as error:
                problems["unreadable image"].append(f"{located[key]}: {error}")
    if problems:
        raise coco.BadFolder(folder, file, problems)
    return captions, images


def first_of_folder(
    path: str | Path, count: int, size: int, split: str | None = None
) -> list[Record]:
    """The first ``count`` records of a folder in hash order, of a split or whatever their split.

    For a folder that is used for nothing but evaluation, such as COCO's validation images: it may
    be larger than the memory, as no other image is decoded. Raises UserError as ``Folder`` does.
    """
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"{path} is not a folder: give the path of a folder of images.")
    names = [name for name, _, _ in list_files(folder)]
    paths = [name for name in names if name.lower().endswith(EXTENSIONS)]
    captions, images = _decode_captioned(folder, names, paths, size, count, split)
    return [Record(key, pixels, captions[key]) for key, pixels in images.items()]
