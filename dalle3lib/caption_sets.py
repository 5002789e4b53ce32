"""Public photographs with human captions, to fine-tune real captioners on (paper section 2.1).

Short captions come from COCO, long ones from DOCCI, whose descriptions have 136 words on average.
People wrote both, and both sets of captions are CC BY 4.0; DOCCI's photographs are too, COCO's have
the licences of their photographers, some of them for non-commercial use. (DCI, the other public set
of long captions, is CC BY-NC.) Nothing is downloaded here: whoever has no copy is told what to
fetch. Any other folder of images with COCO-format captions does as well.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from dalle3lib import UserError, coco, files, images, paths, splits

DESCRIPTIONS = "docci_descriptions.jsonlines"


class Download(NamedTuple):
    """A file to fetch: where it is, its bytes, its SHA-256 where one is published."""

    url: str
    size: int
    sha256: str | None = None


class PublicSet(NamedTuple):
    """A public set of captioned photographs, and the folder that it should become."""

    name: str
    licence: str
    revision: str
    downloads: tuple[Download, ...]
    layout: str


# The train split of 2014: that of 2017 holds most of val 2014, whose captions the generated images
# are evaluated on (paper table 1).
COCO = PublicSet(
    "COCO 2014 train (82,783 photographs, five captions each)",
    "captions CC BY 4.0; photographs under their Flickr licences",
    "2014",
    (
        Download("http://images.cocodataset.org/zips/train2014.zip", 13 * 10**9),
        Download(
            "http://images.cocodataset.org/annotations/annotations_trainval2014.zip", 241 * 2**20
        ),
    ),
    "train2014/*.jpg, and of the annotations captions_train2014.json alone",
)
DOCCI = PublicSet(
    "DOCCI (14,847 photographs, one description each)",
    "CC BY 4.0",
    # of huggingface.co/datasets/google/docci, whose files are those of the addresses below
    "98dbd7790404c34f1776c502f0e528fec4b5c8d3",
    (
        Download(
            f"https://storage.googleapis.com/docci/data/{DESCRIPTIONS}",
            11_000_214,
            "c9df4819963883af35ddd2cf257949892fd8c6d88b33a012094352df60719800",
        ),
        Download(
            "https://storage.googleapis.com/docci/data/docci_images.tar.gz",
            7_592_938_768,
            "c1b1aee00856757d71cfe2cc6ab641089284276a791bfb82146b4742c59a0a1d",
        ),
    ),
    f"{DESCRIPTIONS}, and images/*.jpg from the archive",
)
SETS = {"ssc": COCO, "dsc": DOCCI}  # which set teaches which kind of caption
DOCCI_SPLITS = {"train": "train", "dev": "qual_dev", "test": "test"}


class Pairs(NamedTuple):
    """Photographs and their captions, one for one; one with five captions comes five times."""

    paths: list[Path]
    captions: list[str]


def pairs(folder: Path | str, split: str, kind: str, every: bool = True) -> Pairs:
    """The photographs and captions of a split ("train", "dev" or "test") of a local folder.

    The folder is DOCCI's if it holds its descriptions (its own splits: 9,647, 100 and 5,000), else
    images with COCO-format captions (``splits.split_keys``; ``every`` caption of an image, or its
    first). ``kind`` ("ssc" or "dsc") says which set to name where there is none. Raises UserError
    for a missing folder and for one with problems, all of which are listed.
    """
    folder = _found(folder, kind)
    if split not in DOCCI_SPLITS:
        raise UserError(f"the splits are {', '.join(DOCCI_SPLITS)}, not {split!r}.")
    docci = (folder / DESCRIPTIONS).is_file()
    return _docci(folder, split) if docci else _coco(folder, split, every)


def _found(folder: Path | str, kind: str) -> Path:
    """The folder, if there are captions in it; UserError that names the set to download if not."""
    if kind not in SETS:
        raise UserError(f"There are captions of kind {' or '.join(SETS)}, not {kind!r}.")
    folder = paths.folder(folder)
    captions = (DESCRIPTIONS, "*.json", "annotations/*.json")
    if not any(path for pattern in captions for path in folder.glob(pattern)):
        raise UserError(missing(SETS[kind], folder))
    return folder


def missing(wanted: PublicSet, folder: Path) -> str:
    """One sentence: which set is not there, what to download, how large it is, where to put it."""
    fetch = " and ".join(f"{d.url} ({_bytes(d.size)})" for d in wanted.downloads)
    return (
        f"{folder} holds no captioned photographs: for {wanted.name}, {wanted.licence}, download "
        f"{fetch}, and unpack them there as {wanted.layout}."
    )


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _docci(folder: Path, split: str) -> Pairs:
    """A split of DOCCI, chosen by the names of its photographs (train_00000, qual_dev_00000, …)."""
    found, problems = Pairs([], []), defaultdict(list)
    for number, line in enumerate((folder / DESCRIPTIONS).read_text("utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            name, path = entry["example_id"], folder / "images" / Path(entry["image_file"]).name
            own, text = name.rpartition("_")[0], " ".join(entry["description"].split())
        except (ValueError, KeyError, TypeError, AttributeError):
            problems["line without example_id, image_file and description"].append(f"{number}")
            continue
        if own != DOCCI_SPLITS[split]:
            continue
        if not text:
            problems["empty description"].append(name)
        elif not path.is_file():
            problems["image file missing"].append(path.name)
        else:
            found.paths.append(path)
            found.captions.append(text)
    if problems:
        raise UserError(coco.report(folder, DESCRIPTIONS, problems))
    if not found.paths:
        raise UserError(f"{folder / DESCRIPTIONS} has no {DOCCI_SPLITS[split]} photographs.")
    return found


def _coco(folder: Path, split: str, every: bool) -> Pairs:
    """A split of a folder with COCO-format captions, in the order of ``splits.Folder``."""
    names = [name for name, _, _ in images.list_files(folder)]
    file, content = coco.captions_file(folder, names)
    problems: coco.Problems = defaultdict(list)
    found = coco.all_captions(content, problems)
    located = coco.locate(found, images.pictures(names), problems)
    if problems:
        raise UserError(coco.report(folder, file, problems))
    texts = {name: captions if every else captions[:1] for name, captions in found.items()}
    chosen = [(k, text) for k in splits.split_keys(located)[split] for text in texts[k]]
    return Pairs([folder / located[k] for k, _ in chosen], [text for _, text in chosen])


def provenance(folder: Path | str, kind: str) -> dict[str, Any]:
    """What a manifest says of the captions in a folder: set, licence, revision, SHA-256.

    The name, licence and revision of a public set are given only where the file says that it is
    that set: DOCCI's by its SHA-256, COCO's by its own header. UserError as ``pairs``.
    """
    folder = _found(folder, kind)
    if (folder / DESCRIPTIONS).is_file():
        digest = files.sha256(folder / DESCRIPTIONS)
        known = DOCCI if digest == DOCCI.downloads[0].sha256 else None
        unknown = f"a set in DOCCI's format, not revision {DOCCI.revision}"
    else:
        names = [name for name, _, _ in images.list_files(folder)]
        file, content = coco.captions_file(folder, names)
        digest = files.sha256(folder / file)
        header = content.get("info")
        name = str(header.get("description", "")) if isinstance(header, dict) else ""
        known = COCO if name.startswith(f"COCO {COCO.revision}") else None
        unknown = name or "a folder with COCO-format captions"
    said = {"set": unknown, "licence": "unknown", "revision": "unknown"}
    if known:
        said = {"set": known.name, "licence": known.licence, "revision": known.revision}
    return said | {"captions_sha256": digest}


class Photographs:
    """Photographs as uint8 arrays: ``photographs[rows]`` is [B, size, size, 3].

    ``rows`` is a slice or a sequence of numbers. Every file is decoded once at the start, so that
    a damaged one stops a run in its first minutes (UserError, all of them listed); the pictures
    are kept if they need no more than ``keep`` bytes, and decoded again for each batch if they
    need more (COCO at 224 pixels: 12 GB). Preparation is that of ``images.decode``.
    """

    def __init__(self, paths: Sequence[Path], size: int, keep: int = images.MAX_BYTES) -> None:
        self.paths, self.size, self._kept = list(paths), size, {}
        self._pool = ThreadPoolExecutor()  # Pillow decodes on all cores
        distinct, problems = list(dict.fromkeys(self.paths)), []
        keeping = len(distinct) * size * size * 3 <= keep
        read = tqdm(self._pool.map(self._try, distinct), "photographs", len(distinct))
        for path, picture in zip(distinct, read, strict=True):
            if isinstance(picture, ValueError):
                problems.append(f"{path}: {picture}")
            elif keeping:
                self._kept[path] = picture
        if problems:
            raise UserError(
                f"{len(problems)} of {len(distinct)} photographs cannot be read "
                f"({'; '.join(problems[:3])}{'; …' if len(problems) > 3 else ''}): replace them, "
                "or remove them and their captions."
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        chosen = self.paths[rows] if isinstance(rows, slice) else [self.paths[i] for i in rows]
        pictures = list(self._pool.map(self._try, chosen))
        for path, picture in zip(chosen, pictures, strict=True):
            if isinstance(picture, ValueError):
                raise UserError(f"{path} can no longer be read: {picture}.")
        return np.stack(pictures)

    def _try(self, path: Path) -> np.ndarray | ValueError:
        """The picture, or why there is none."""
        if path in self._kept:
            return self._kept[path]
        try:
            return images.decode(path, self.size)
        except ValueError as error:
            return error
