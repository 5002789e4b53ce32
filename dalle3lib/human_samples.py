"""The pictures that people are to compare: read from run directories or from folders of images.

Two systems are compared on the prompts that both have drawn, so pictures carry the name of their
prompt: its number in a run, the file's name in a folder.
"""

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dalle3lib import UserError, runs
from dalle3lib.config import Parameters
from dalle3lib.images import EXTENSIONS, centre_square, list_files, read_rgb, stack

CAPTIONS = ("text", "caption", "prompt")  # columns of a metadata file, as Hugging Face names them
# The kinds of prompt of a run that stand for the paper's: long ones, and captions of COCO (§4.2).
KINDS = {"prompt following": "descriptive", "style": "descriptive", "coherence": "original"}


@dataclass(frozen=True, eq=False)
class Samples:
    """A system's pictures by the name of their prompt, and the prompts where they are known.

    A picture is uint8 [H, W, 3] or the path of an image file; ``captions`` has the same names or
    none at all.
    """

    pictures: dict[str, np.ndarray | Path]
    captions: dict[str, str]


def read(path: str | Path) -> dict[str, Samples]:
    """The samples of one system for each question that they can be asked about.

    ``path`` is a run of chapter 04a or a folder of images. Of a run, each question takes the kind
    of prompt in ``KINDS`` that stands for the paper's, or the only kind there is. A folder serves
    all questions, and prompt following only if it has captions (``from_folder``). Raises UserError
    if it is neither.
    """
    path = Path(path).expanduser()
    if (path / "manifest.json").is_file():
        return from_run(path)
    found = from_folder(path)
    return {q: found for q in KINDS if found.captions or q != "prompt following"}


def read_all(paths: Sequence[str | Path]) -> dict[str, dict[str, Samples]]:
    """``read`` for each path, by the last part of the path; UserError if two have the same."""
    names = [Path(path).expanduser().resolve().name for path in paths]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"Two systems are called {twice[0]!r}: rename one of the folders.")
    return {name: read(path) for name, path in zip(names, paths, strict=True)}


def from_arrays(pictures: np.ndarray, captions: Sequence[str]) -> Samples:
    """Samples of pictures uint8 [N, H, W, 3] and their N captions, named by their number."""
    if len(pictures) != len(captions):
        raise UserError(f"There are {len(pictures)} pictures and {len(captions)} captions.")
    names = [f"{i:05d}" for i in range(len(captions))]
    return Samples(dict(zip(names, pictures, strict=True)), dict(zip(names, captions, strict=True)))


def from_run(run: Path) -> dict[str, Samples]:
    """``by_question`` of a finished run of chapter 04a; UserError for a run without pictures."""
    runs.load(run)
    try:
        scores = pd.read_parquet(run / "scores.parquet")
        kinds = scores.kind[scores.step == scores.step.max()].unique()
        pictures = {k: np.load(run / f"pictures-{k}.npy", allow_pickle=False) for k in kinds}
    except FileNotFoundError:
        raise UserError(f"{run} has no pictures to compare: give runs of 04a_train_arm.") from None
    return by_question(scores, pictures)


def by_question(scores: pd.DataFrame, pictures: dict[str, np.ndarray]) -> dict[str, Samples]:
    """An arm's last pictures as samples for each question.

    ``scores`` and ``pictures`` [N, H, W, 3] by kind of prompt are what ``arm.score_snapshots`` and
    ``trained_arms.outcome`` give. Each question takes the kind in ``KINDS``, or else the last one
    there is.
    """
    last = scores[scores.step == scores.step.max()]
    found = {k: from_arrays(p, last.prompt[last.kind == k].tolist()) for k, p in pictures.items()}
    return {q: found.get(kind, list(found.values())[-1]) for q, kind in KINDS.items()}


def of_arms(
    cfg: Parameters, arms: dict[str, Path | None]
) -> tuple[dict[str, dict[str, Samples]], Samples]:
    """Samples of arms (kind-ratio-seed) by label and question, and the true pictures.

    ``arms`` gives each arm's finished run, or None: then the shipped arm draws now
    (``trained_arms.outcome``). The true pictures are the images that the prompts describe.
    """
    from dalle3lib import arm, trained_arms  # here, because whoever rates folders needs no networks

    outcomes = {arm.label(name): trained_arms.outcome(cfg, name, run) for name, run in arms.items()}
    records = arm.evaluation_records(cfg)
    true = from_arrays(stack(records), [record.alt for record in records])
    return {name: by_question(o.scores, o.pictures) for name, o in outcomes.items()}, true


def from_folder(folder: str | Path) -> Samples:
    """All images below a folder, by their path in it without the ending.

    Captions come from ``metadata.csv`` or ``metadata.jsonl`` (``file_name`` and ``text``), else
    from ``prompts.txt`` (a line for each image, in the order of their names); without these there
    are none. Raises UserError if there is no image, if two have one name, or if captions do not
    fit the images.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: give a run, or a folder of images.")
    files = [n for n, _, _ in list_files(folder) if n.lower().endswith(EXTENSIONS)]
    if not files:
        raise UserError(f"{folder} holds no images: give a folder of jpg, png or webp files.")
    names = [Path(file).with_suffix("").as_posix() for file in files]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{folder} has two images called {twice[0]}: keep one of them.")
    pictures = {name: folder / file for name, file in zip(names, files, strict=True)}
    return Samples(pictures, _captions(folder, dict(zip(files, names, strict=True))))


def _captions(folder: Path, names: dict[str, str]) -> dict[str, str]:
    """The captions of a folder's images by name; ``names`` are by file, in order."""
    said = _metadata(folder)
    lines = folder / "prompts.txt"
    if not said and lines.is_file():
        try:
            given = lines.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{lines} is not UTF-8 ({error}): save it as that.") from None
        if len(given) != len(names):
            raise UserError(
                f"{lines} has {len(given)} lines for {len(names)} images: write one line for each "
                "image, in the order of their names."
            )
        said = dict(zip(names, given, strict=True))
    if said and (without := [file for file in names if not said.get(file, "").strip()]):
        raise UserError(
            f"{folder}: {len(without)} images have no caption, such as {without[0]}: add them, or "
            "remove the captions to compare pictures without."
        )
    return {name: said[file].strip() for file, name in names.items()} if said else {}


def _metadata(folder: Path) -> dict[str, str]:
    """Captions by file name from a metadata file as Hugging Face's image folders have it."""
    rows: list[dict] = []
    try:
        if (file := folder / "metadata.jsonl").is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
        elif (file := folder / "metadata.csv").is_file():
            rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
        column = next((name for name in CAPTIONS if rows and name in rows[0]), None)
        if rows and column is None:
            raise KeyError(f"no column {' or '.join(CAPTIONS)}")
        return {row["file_name"]: str(row[column]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}): mend it or remove it.") from None


def pixels(picture: np.ndarray | Path, size: int | None = None) -> np.ndarray:
    """A picture as uint8 [H, W, 3]; with ``size``, its centre square at that many pixels a side.

    Raises UserError for a file that cannot be read.
    """
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else read_rgb(picture)
    return np.asarray(image) if size is None else centre_square(image, size)


def save_blinded(image: np.ndarray, folder: Path, secret: str) -> str:
    """Write a picture as PNG under a name that tells nothing of it; the name.

    The name is a hash keyed by ``secret``, so whoever has the pictures cannot look it up. The file
    holds pixels only: what a camera or a program noted in the original is gone.
    """
    told = f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()
    key = hashlib.blake2b(secret.encode()).digest()
    name = hashlib.blake2b(told, key=key, digest_size=8).hexdigest() + ".png"
    if not (folder / name).is_file():
        part = folder / f".{name}.part"
        Image.fromarray(image).save(part, "png")
        part.replace(folder / name)
    return name
