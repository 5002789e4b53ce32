"""Web images with their alt-text, joined with the synthetic captions that ``recaption`` wrote.

The images stay where they are (tars, a folder, tables: whatever ``sources`` reads) and are decoded
when they are needed; the captions come from ``recaption``'s folder and are found by the image's
key. What lacks one of the two is left out, counted and listed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dalle3lib import UserError, coco, files, paths, sources
from dalle3lib.captioning import image_sha256
from dalle3lib.captions import HUMAN
from dalle3lib.config import Parameters
from dalle3lib.images import PHOTOGRAPHS, Record, decode
from dalle3lib.recaption import synthetic_captions
from dalle3lib.shards import KINDS
from dalle3lib.splits import first_of_folder, open_source, packed, split_keys, split_of
from dalle3lib.tars import Item

WRITTEN = "written"  # the captions are the committed ones, or written now by the shipped captioners
TRUTH = "truth"  # they are what the data itself says, short and descriptive: no captioner errs
HELD_OUT = ("dev", "test")  # splits of which prompts are made; the study takes test
AT_ONCE = 256  # images that are decoded side by side


@dataclass(frozen=True)
class Captions:
    """The captions that ``recaption`` wrote into ``directory``; ``manifest`` is its manifest."""

    directory: Path
    manifest: dict[str, Any]

    def of(self, source: str) -> dict[str, dict[str, Any]]:
        """The rows (``shards.SCHEMA``) of one archive or part of a source by key; {}: none."""
        return self._rows(s["shard"] for s in self.manifest["shards"] if s["source"] == source)

    def all(self) -> dict[str, dict[str, Any]]:
        """The rows of the whole source by key; keys that occur in several archives: the last."""
        return self._rows(s["shard"] for s in self.manifest["shards"])

    def _rows(self, shards: Iterable[str]) -> dict[str, dict[str, Any]]:
        tables = (pq.read_table(self.directory / "data" / f"{name}.parquet") for name in shards)
        return {row["key"]: row for table in tables for row in table.to_pylist()}


def open_captions(directory: str, kinds: Sequence[str] = KINDS) -> Captions:
    """The finished captions in a folder; UserError if it has none, or lacks one of ``kinds``."""
    path = paths.folder(directory)
    make = f"python -m dalle3lib recaption DATA {directory} --kind both"
    if not path.is_dir():
        raise UserError(f"There is no folder of captions {directory}: make it with `{make}`.")
    if not (path / "manifest.json").is_file():
        raise UserError(f"The captions in {directory} are not finished: go on with `{make}`.")
    manifest = files.read_json(path / "manifest.json")
    lacking = [kind for kind in kinds if kind not in manifest["settings"]["captioners"]]
    if lacking:
        raise UserError(
            f"{directory} holds no {' and '.join(lacking)} captions: make them with `{make}`."
        )
    if problem := files.damage(path, manifest["files"]):
        raise UserError(f"The captions cannot be used: {problem}; go on with `{make}`.")
    return Captions(path, manifest)


def of_records(records: Sequence[Record], where: str) -> dict[str, list[str]]:
    """The synthetic captions of records by kind ("ssc", "dsc"), one each.

    ``where`` is ``WRITTEN``, ``TRUTH``, or a folder that ``recaption`` made of the same images.
    UserError for a record that has none there, or is another image than the captioned one.
    """
    if where == WRITTEN:
        return {kind: synthetic_captions(records, kind) for kind in KINDS}
    if where == TRUTH:
        told = {kind: [getattr(r, HUMAN[kind]) for r in records] for kind in KINDS}
    else:
        rows = open_captions(where).all()
        found = [rows.get(r.key, dict.fromkeys((*KINDS, "sha256"))) for r in records]
        for record, row in zip(records, found, strict=True):
            if row["sha256"] not in (None, image_sha256(record.image)):
                raise UserError(f"{record.key} is not the image that was captioned in {where}.")
        told = {kind: [row[kind] for row in found] for kind in KINDS}
    for kind, texts in told.items():
        if lacking := [r.key for r, t in zip(records, texts, strict=True) if not (t or "").strip()]:
            raise UserError(
                f"{len(lacking)} of {len(records)} images ({lacking[0]}, …) have no {kind} caption "
                f"in {where}: set captions_from to {WRITTEN!r}, or caption all of them."
            )
    return told


def list_parts(data: str, captions: Captions) -> list[sources.Shard]:
    """The archives (or parts) of a source, cut as they were when it was captioned."""
    return sources.list_shards(data, captions.manifest["settings"]["shard size"])


def read(
    part: sources.Shard,
    captions: Captions,
    size: int,
    left_out: list[dict[str, Any]],
    wanted: Callable[[str], bool] = bool,
) -> Iterator[tuple[Record, dict[str, str]]]:
    """The usable images of a part, uint8 [size, size, 3], each with its captions by kind.

    For each of the others, key, file and reason are added to ``left_out``. Images whose key is not
    ``wanted`` (``for_training``) are passed over.
    """
    rows = captions.of(part.source)
    items = (item for item in part.read() if item.key is None or wanted(item.key))
    with ThreadPoolExecutor() as pool:  # Pillow decodes on all cores
        while batch := list(islice(items, AT_ONCE)):
            waiting = [pool.submit(_record, i, rows.get(i.key), size) for i in batch]
            for item, decoding in zip(batch, waiting, strict=True):
                try:
                    yield decoding.result(), {kind: rows[item.key][kind] for kind in KINDS}
                except ValueError as error:
                    left_out.append({"key": item.key, "file": item.file, "reason": str(error)})


def _record(item: Item, row: dict[str, Any] | None, size: int) -> Record:
    """An image with its alt-text as a record; ValueError with the reason why it cannot be used."""
    if item.problem:
        raise ValueError(item.problem)
    if not item.alt:
        raise ValueError("it has no alt-text")
    if row is None:
        raise ValueError("it has no synthetic caption")
    if empty := [kind for kind in KINDS if not (row[kind] or "").strip()]:
        raise ValueError(f"its {' and '.join(empty)} caption is empty")
    if row["sha256"] != image_sha256(item.image):
        raise ValueError("it is not the image that was captioned")
    return Record(item.key, decode(item.image, size, PHOTOGRAPHS), item.alt)


def first(
    data: str,
    captions: Captions,
    count: int,
    size: int,
    wanted: Callable[[str], bool] = bool,
) -> list[tuple[Record, dict]]:
    """The first ``count`` usable images with their captions; UserError if there is none."""
    found: list[tuple[Record, dict]] = []
    for part in list_parts(data, captions):
        found += islice(read(part, captions, size, [], wanted=wanted), count - len(found))
        if len(found) == count:
            break
    if not found:
        raise UserError(
            f"No image of {data} has both alt-text and captions in {captions.directory}: were the "
            "captions made from another source?"
        )
    return found


def for_training(cfg: Parameters) -> Callable[[str], bool]:
    """Which keys of the data arms may train on: where prompts come from it, its train split alone.

    Those are the splits that ``splits.open_source`` gives. Prompts of another folder leave all.
    """
    if cfg.get("prompts_from", "") not in HELD_OUT:
        return bool
    if packed(cfg.data):
        return lambda key: split_of(key) == "train"
    return set(split_keys(coco.references(cfg.data))["train"]).__contains__


def held_out(cfg: Parameters, count: int) -> list[Record]:
    """The first ``count`` records that no arm trains on (fewer if there are no more).

    They are the split of the data that ``cfg.prompts_from`` names (``HELD_OUT``), or, where it
    names a folder, its images. Their descriptive captions are then those in
    ``cfg.prompt_captions`` if it names a folder made by ``recaption``. Raises UserError for an
    image that has none there.
    """
    size, folder = cfg.get("size", 64), cfg.get("prompts_from", "dev")
    if folder in HELD_OUT:
        return list(open_source(cfg.data, folder, count, size, cfg.noise))
    records = first_of_folder(paths.folder(folder), count, size)
    if cfg.prompt_captions == WRITTEN:
        return records
    rows = open_captions(cfg.prompt_captions, ["dsc"]).all()
    if lacking := [r.key for r in records if not (rows.get(r.key, {}).get("dsc") or "").strip()]:
        raise UserError(
            f"{len(lacking)} of {len(records)} images of {folder} have no descriptive caption in "
            f"{cfg.prompt_captions} ({', '.join(lacking[:3])}, …): caption that folder again."
        )
    return [replace(r, descriptive=rows[r.key]["dsc"]) for r in records]
