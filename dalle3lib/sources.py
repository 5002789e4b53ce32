"""Where images to be captioned come from, cut into shards: a folder, tars, ``datasets``, the world.

``list_shards`` is cheap and gives the same list every time: it looks at names and sizes only. A
shard's ``read`` then gives its images one after another, wherever it is called: it is a plain
function with its arguments and can be sent to another process or machine.
"""

import glob
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from dalle3lib import UserError, coco, files
from dalle3lib.images import EXTENSIONS, list_files
from dalle3lib.tars import MAX_BYTES, Item, printable, read_tar
from dalle3lib.world import SPLITS, World

UNREADABLE = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".jp2", ".jfif")  # listed as bad
TABLES = (".parquet", ".arrow")
TEXT_COLUMNS = ("caption", "text", "alt", "alt_text", "txt")


@dataclass(frozen=True)
class Shard:
    """A part of a source: what one worker captions in one go.

    ``name`` is its number in the source, ``source`` says what it is, ``identity`` changes when its
    content does (judged by names and sizes), ``images`` is how many it holds (None: not known
    before reading), and ``read()`` gives them as ``Item``.
    """

    name: str
    source: str
    identity: str
    images: int | None
    read: Callable[[], Iterator[Item]] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what; None: found by their type or their usual names."""

    image: str | None = None
    text: str | None = None
    key: str | None = None


ANY_COLUMNS = Columns()


def list_shards(address: str, size: int = 1000, columns: Columns = ANY_COLUMNS) -> list[Shard]:
    """The shards of a source, in order; UserError if there is no such source, or nothing in it.

    ``address`` is one of: a folder of images, with or without COCO-format captions; a tar file, a
    folder of tars, or a pattern such as ``train-{000..127}.tar`` (one shard a tar); a folder of
    parquet files or one written by ``save_to_disk``; ``hf:NAME@REVISION:SPLIT`` for a data set of
    the Hugging Face hub, streamed (one shard a file); ``world:SPLIT:COUNT``. Folders of images
    and the world are cut into shards of ``size`` images.
    """
    if size < 1:
        raise UserError(f"A shard needs at least 1 image, not {size}.")
    if address.strip().startswith("pipe:"):
        raise UserError(
            f"{address!r} would run a program to get data, which is refused: give files."
        )
    if "://" in address:
        raise UserError(f"{address!r} is not on this machine: download it and give its path.")
    if address.startswith("world:"):
        return _world_shards(address, size)
    if address.startswith("hf:"):
        return _dataset_shards(address.removeprefix("hf:"), size, columns)
    if "{" in address or address.endswith(".tar"):
        return _tar_shards(expand_braces(address))
    folder = Path(address).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {address}: give a folder, tars, world:SPLIT:COUNT, or "
            "hf:NAME@REVISION:SPLIT for a Hugging Face dataset."
        )
    names = [(name, size) for name, size, _ in list_files(folder)]
    endings = {"images": EXTENSIONS + UNREADABLE, "tars": (".tar",), "tables": TABLES}
    found = {k: [n for n in names if n[0].lower().endswith(ends)] for k, ends in endings.items()}
    kinds = [kind for kind, some in found.items() if some]
    if len(kinds) != 1:
        held = " and ".join(kinds) or "no images, tars or tables"
        raise UserError(f"{folder} holds {held}: give a folder that holds one kind of them.")
    if kinds == ["tars"]:
        return _tar_shards(str(folder / name) for name, _ in found["tars"])
    if kinds == ["tables"]:
        return _dataset_shards(str(folder), size, columns)
    return _folder_shards(folder, [name for name, _ in names], dict(found["images"]), size)


def _shard(number: int, source: str, content: object, images: int | None, read) -> Shard:
    """A shard whose identity is the digest of ``content``."""
    return Shard(f"{number:05d}", source, files.digest([source, content]), images, read)


# ---- the world -----------------------------------------------------------------------------------


def _world_shards(address: str, size: int) -> list[Shard]:
    """The shards of ``world:SPLIT:COUNT``."""
    _, split, count = [*address.split(":"), "", ""][:3]
    if split not in SPLITS or not re.fullmatch(r"[1-9]\d*", count):
        raise UserError(f"{address!r} is no part of the world: write world:SPLIT:COUNT, with SPLIT "
                        f"one of {', '.join(SPLITS)}.")  # fmt: skip
    starts = range(0, int(count), size)
    ranges = [range(start, min(start + size, int(count))) for start in starts]
    return [
        _shard(i, f"scenes {r[0]} to {r[-1]}", split, len(r), partial(read_world, split, r))
        for i, r in enumerate(ranges)
    ]


def read_world(split: str, scenes: range) -> Iterator[Item]:
    """The pictures of some scenes, with their alt-text."""
    world = World(split, scenes.stop)
    for index in scenes:
        record = world[index]
        yield Item(record.key, record.image, record.alt, record.key)


# ---- a folder of images --------------------------------------------------------------------------


def _folder_shards(
    folder: Path, names: list[str], images: dict[str, int], size: int
) -> list[Shard]:
    """The shards of a folder; ``images`` maps the names of its images to their sizes in bytes."""
    keys, captions = {name: name for name in images}, {}
    found = coco.captions_file(folder, names, required=False)
    if found:
        problems: coco.Problems = defaultdict(list)
        captions = coco.first_captions(found[1], problems)
        located = coco.locate(captions, list(images), problems)
        missing = problems.pop("image file missing", [])
        problems.pop("image without a caption", None)  # it will get one
        if problems:
            raise coco.BadFolder(folder, found[0], problems)
        keys |= {path: key for key, path in located.items()}
        images |= dict.fromkeys(missing, 0)  # reading them will say that they are not there
        keys |= {name: name for name in missing}
    entries = [
        (printable(keys[name]), name, printable(captions.get(keys[name]) or ""), images[name])
        for name in sorted(images)
    ]
    shards = []
    for start in range(0, len(entries), size):
        part = entries[start : start + size]
        content = [(key, printable(name), alt, length) for key, name, alt, length in part]
        told = f"{content[0][1]} to {content[-1][1]}"
        read = partial(read_files, folder, part)
        shards.append(_shard(len(shards), told, content, len(part), read))
    return shards


def read_files(folder: Path, entries: Sequence[tuple[str, str, str, int]]) -> Iterator[Item]:
    """The files of a folder; an entry is (key, name below the folder, caption or "", bytes)."""
    for key, name, alt, size in entries:
        file = printable(name)
        if size > MAX_BYTES:
            yield Item(key, file=file, problem=f"refused: it has {size:,} bytes")
            continue
        try:
            yield Item(key, (folder / name).read_bytes(), alt or None, file)
        except OSError as error:
            yield Item(key, file=file, problem=f"it cannot be read: {error.strerror}")


# ---- tars ----------------------------------------------------------------------------------------


def expand_braces(pattern: str) -> Iterator[str]:
    """The names that a pattern means, as in a shell: ``a{00..11}.tar``, ``{x,y}.tar``."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*))\}", pattern)
    if not match:
        yield pattern
        return
    first, last, names = match.groups()
    if first:
        chosen = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    else:
        chosen = names.split(",")
    for choice in chosen:
        yield from expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def _tar_shards(names: Iterator[str]) -> list[Shard]:
    """One shard for each archive."""
    shards = []
    for number, name in enumerate(names):
        path = Path(name).expanduser().absolute()
        if not path.is_file():
            raise UserError(f"There is no archive {name}: correct the pattern, or download it.")
        size = path.stat().st_size
        shards.append(_shard(number, path.name, size, None, partial(read_tar, path)))
    if not shards:
        raise UserError("The pattern names no archive: the first number must not exceed the last.")
    return shards


# ---- tables, through the datasets library --------------------------------------------------------


def _dataset_shards(address: str, size: int, columns: Columns) -> list[Shard]:
    """One shard for each file of ``NAME@REVISION:SPLIT``, or of a local folder."""
    name, revision, split = re.fullmatch(r"(.+?)(?:@([\w.-]+))?(?::(\w+))?", address).groups()
    if Path(address).expanduser().exists():  # a folder's name may hold any sign
        name, revision, split = address, None, None
    local = Path(name).expanduser().exists()
    if not local and not revision:
        raise UserError(f"hf:{name} can change from day to day: pin it as hf:{name}@REVISION, with "
                        "the commit that its page shows.")  # fmt: skip
    if local:
        name = str(Path(name).expanduser().absolute())
    split = split or "train"
    table = open_table(name, revision, split, size)
    columns = _find_columns(columns, table, name)
    content = [revision, split, table.num_shards, repr(columns)]
    if local:
        content += [entry[:2] for entry in list_files(Path(name))]
    return [
        _shard(i, f"{split} {i + 1} of {table.num_shards}", content, None,
               partial(read_table, (name, revision, split, size), columns, i))
        for i in range(table.num_shards)
    ]  # fmt: skip


@lru_cache(maxsize=2)
def open_table(name: str, revision: str | None, split: str, size: int):
    """A streamed ``datasets.IterableDataset`` of the hub or a folder; UserError if there is none.

    A folder written by ``save_to_disk`` is cut into shards of ``size`` rows.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            "Tables need the library datasets: pip install 'dalle3lib[data]'."
        ) from None
    try:
        if glob.glob("**/state.json", root_dir=name, recursive=True):  # written by save_to_disk
            stored = datasets.load_from_disk(name)
            stored = stored[split] if isinstance(stored, datasets.DatasetDict) else stored
            return stored.to_iterable_dataset(num_shards=max(1, -(-len(stored) // size)))
        return datasets.load_dataset(name, split=split, revision=revision, streaming=True)
    except Exception as error:  # the hub, fsspec and arrow raise dozens of kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"The dataset {name} cannot be opened: {reason}") from error


def _find_columns(columns: Columns, table, name: str) -> Columns:
    """The given columns after checking that they are there; the others found by type or name."""
    features = table.features or {}
    for given in filter(None, (columns.image, columns.text, columns.key)):
        if given not in features:
            raise UserError(f"{name} has no column {given!r}, only {', '.join(features)}.")
    images = [n for n, feature in features.items() if type(feature).__name__ == "Image"]
    if not columns.image and len(images) != 1:
        raise UserError(f"{name} has {len(images)} image columns among {', '.join(features)}: name "
                        "one with --image-column.")  # fmt: skip
    texts = [n for n in TEXT_COLUMNS if n in features]
    return Columns(columns.image or images[0], columns.text or next(iter(texts), None), columns.key)


def read_table(
    place: tuple[str, str | None, str, int], columns: Columns, index: int
) -> Iterator[Item]:
    """The images of one shard of ``open_table(*place)``; its key is a column, or ``shard-row``."""
    import datasets

    table, (name, _, split, _) = open_table(*place), place
    table = table.cast_column(columns.image, datasets.Image(decode=False))
    seen: set[str] = set()
    rows = enumerate(iter(table.shard(num_shards=table.num_shards, index=index)))
    while True:
        try:
            number, row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            if not Path(name).exists():
                raise UserError(
                    f"Lost the connection to {name} ({error}); run it again."
                ) from error
            reason = f"this part of the dataset is damaged, the rest is lost: {error}"
            yield Item(None, file=f"{split} {index + 1}", problem=printable(reason))
            return
        item = _row_item(row, columns, f"{index:05d}-{number:06d}")
        again = "its key was used before in this part of the dataset"
        yield Item(item.key, file=item.file, problem=again) if item.key in seen else item
        seen.add(item.key)


def _row_item(row: dict, columns: Columns, place: str) -> Item:
    """One row of a table as an item; ``place`` is its key where no column is."""
    key = printable(str(row[columns.key])) if columns.key else place
    alt = row.get(columns.text)
    alt = alt[0] if isinstance(alt, list) and alt else alt  # five captions a picture: the first
    alt = printable(" ".join(alt.split())) or None if isinstance(alt, str) else None
    data = (row[columns.image] or {}).get("bytes")
    if data is None:  # a path instead: it could name any file of this machine
        return Item(key, file=place, problem="the row holds no image, only a path or nothing")
    if len(data) > MAX_BYTES:
        return Item(key, file=place, problem=f"refused: it has {len(data):,} bytes")
    return Item(key, data, alt, place)
