"""The records of a split: of the world, of a folder of photographs, of tars or tables.

A split depends on the hash of a record's key alone (in the world: of its facts), so adding
photographs never moves one from test to train.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

from dalle3lib import UserError, coco, sources, world
from dalle3lib.images import MAX_BYTES, PHOTOGRAPHS, Record, decode, list_files, pictures

SPLITS = ("train", "dev", "test")
TRAIN, DEV = 0.80, 0.85  # hash below 0.80: train; below 0.85: dev; the rest: test


def open_source(
    data: str, split: str, count: int, size: int = 64, noise: float = 0.5
) -> Sequence[Record]:
    """The first ``count`` records of a split (fewer if the source is smaller).

    ``data`` is "world", the path of a folder that ``Folder`` can read (of one larger than the
    memory, only these records are decoded), or one of tars or tables with alt-text
    (``with_alt``). Images are uint8 [size, size, 3]; ``noise`` is the noise level of the world's
    alt-text. Raises UserError if it is none of these, or if the folder has problems.
    """
    if data == "world":
        if size != 64:
            raise UserError(f"the world draws images of 64 pixels, not {size}: use size 64.")
        return world.World(split, count, noise)
    if not Path(data).expanduser().is_dir():
        raise UserError(
            f'data "{data}" is neither "world" nor an existing folder: give "world" or the path '
            "of a folder that holds images and one COCO-format captions JSON."
        )
    names = _names(data)
    if _packed(names):
        return with_alt(data, split, count, size)
    if len(pictures(names)) * size * size * 3 > MAX_BYTES:
        return first_of_folder(data, count, size, split)
    return Folder(data, split, size)[:count]


def split_names(data: str) -> tuple[str, ...]:
    """The splits that ``open_source`` knows of a source: the world also has "foundation"."""
    return tuple(world.SPLITS) if data == "world" else SPLITS


def packed(data: str) -> bool:
    """Whether a folder holds tars or tables, and no image files."""
    return _packed(_names(data))


def _names(folder: str | Path) -> list[str]:
    return [name for name, _, _ in list_files(Path(folder).expanduser())]


def _packed(names: list[str]) -> bool:
    endings = (".tar", *sources.TABLES)
    return not pictures(names) and any(name.lower().endswith(endings) for name in names)


def overlap(some: Sequence[Record], others: Sequence[Record]) -> dict[str, int]:
    """How many keys, pictures (every pixel equal) and, where held, facts two sets share."""

    def contents(records: Sequence[Record]) -> dict[str, set]:
        found = {"keys": {r.key for r in records}, "pictures": {r.image.tobytes() for r in records}}
        if all(r.facts for r in records):
            found["facts"] = {json.dumps(r.facts, sort_keys=True) for r in records}
        return found

    first, second = contents(some), contents(others)
    return {kind: len(first[kind] & second[kind]) for kind in first if kind in second}


# --- by the hash of a key ------------------------------------------------------------------------


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


# --- a folder of photographs ---------------------------------------------------------------------


class Folder(Sequence[Record]):
    """A split of a folder of images with captions in the COCO format.

    The folder holds images (jpg, jpeg, png, webp; at any depth) and exactly one captions file: a
    JSON with "images" and "annotations" that have a "caption", in the folder or in its
    ``annotations/``. An image is found by its file name, wherever it lies below the folder. A
    record's key is that file name, ``alt`` is the caption with the lowest annotation id, and
    ``short``, ``descriptive`` and ``facts`` are None.

    Of the images 80 % are in split ``train``, 5 % in ``dev``, 15 % in ``test`` (``split_keys``).
    Records come in the order of their keys' hash, so that the first hundred are a random hundred.

    All images, of every split, are read when the first split is opened: only reading every pixel
    finds a truncated JPEG, and a bad file should stop a run in its first minute, not in its
    second hour. The small images are then kept (50,000 at 64 px are 0.6 GB), because training
    visits them in random order many times. Raises one UserError that counts and lists all
    problems.
    """

    def __init__(self, path: str | Path, split: str, size: int = 64) -> None:
        folder = _existing(path)
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


def _existing(path: str | Path) -> Path:
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"{path} is not a folder: give the path of a folder of images.")
    return folder


@lru_cache(maxsize=1)  # the splits of one folder share one reading; a changed file makes a new one
def _read_folder(
    folder: Path, size: int, files: tuple[tuple[str, int, int], ...]
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Caption and image by key; UserError listing every problem of the folder."""
    names = [name for name, _, _ in files]
    count = len(pictures(names))
    if not count:
        raise UserError(f"{folder} holds no images: put jpg, jpeg, png or webp files into it.")
    if count * size * size * 3 > MAX_BYTES:
        raise UserError(
            f"{count:,} images of {size} px need more than {MAX_BYTES >> 30} GB of memory: "
            "choose a smaller size or fewer images."
        )
    return _decode_captioned(folder, names, size)


def _decode_captioned(
    folder: Path,
    names: list[str],
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
    located = coco.locate(captions, pictures(names), problems)
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
    folder = _existing(path)
    captions, images = _decode_captioned(folder, _names(folder), size, count, split)
    return [Record(key, pixels, captions[key]) for key, pixels in images.items()]


# --- tars and tables -----------------------------------------------------------------------------


def with_alt(data: str, split: str, count: int, size: int) -> list[Record]:
    """The first ``count`` records of a split of tars or tables, read until there are as many.

    The split follows from the key alone (``split_of``). What has no alt-text or cannot be
    decoded is left out, counted and printed. Raises UserError if nothing is left.
    """
    records: list[Record] = []
    bad: Counter[str] = Counter()
    for item in (item for part in sources.list_shards(data) for item in part.read()):
        if len(records) == count:
            break
        if split_of(item.key or "") != split:
            continue
        try:
            if item.problem or not item.alt:
                raise ValueError(item.problem or "it has no alt-text")
            records.append(Record(item.key, decode(item.image, size, PHOTOGRAPHS), item.alt))
        except ValueError as error:
            bad[str(error)] += 1
    if bad:
        told = "; ".join(f"{reason} × {n}" for reason, n in bad.most_common(5))
        print(f"{sum(bad.values()):,} images of split {split} left out: {told}")
    if count and not records:
        raise UserError(
            f"{data} has no usable image with alt-text in its split {split}: a twentieth of the "
            "images is dev, three twentieths are test, so give more images."
        )
    return records
