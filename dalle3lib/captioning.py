"""Captioning one shard of a dataset: from files of strangers to captions, or to the reason why not.

``caption_shard`` is a pure function of its job: the same job writes the same bytes, whoever does it
and however often it was interrupted.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dalle3lib import UserError, captioner, shards, sources
from dalle3lib.images import PHOTOGRAPHS, Limits, decode
from dalle3lib.tars import Item, printable


@dataclass(frozen=True)
class Job:
    """Everything that captioning one shard needs, and nothing that changes where it is done.

    ``captioners`` maps each kind asked for to a directory made by ``captioner.save``, ``lengths``
    to the greatest number of tokens (start and end included).
    """

    shard: sources.Shard
    directory: Path
    captioners: dict[str, Path]
    lengths: dict[str, int]
    batch_size: int = 64
    limits: Limits = PHOTOGRAPHS
    device: str = "cpu"

    def __str__(self) -> str:
        return f"shard {self.shard.name} ({self.shard.source})"


def caption_shard(job: Job) -> dict[str, Any]:
    """Caption the images of a shard, write its files, and return its mark (``shards.write``).

    If the shard is finished already, only its mark is returned; if another process is at it, this
    one waits. The same job writes the same bytes, whoever does it and however often it was
    interrupted. Images that cannot be captioned are listed with the reason.
    """
    with shards.lock(job.directory / ".shards" / f"{job.shard.name}.lock"), _quiet():
        mark = shards.finished(job.directory, job.shard)
        if mark:
            return mark
        models = {kind: _captioner(path, job.device) for kind, path in job.captioners.items()}
        size = _image_size([model for model, _ in models.values()])
        rows, quarantined = [], []
        readable = _decoded(job.shard.read(), size, job.limits, quarantined)
        while batch := list(islice(readable, job.batch_size)):
            items, images = zip(*batch, strict=True)
            written = [{"key": i.key, "alt": i.alt, "sha256": image_sha256(i.image)} for i in items]
            for kind, (model, tokenizer) in models.items():
                options = {"max_len": job.lengths[kind], "progress": False}
                captions = captioner.write(model, tokenizer, np.stack(images), **options)
                for row, text, likelihood, cut in zip(written, *captions, strict=True):
                    row |= {kind: text, f"{kind}_log_probability": float(likelihood)}
                    row |= {f"{kind}_truncated": bool(cut)}
            rows += written
        return shards.write(job.directory, job.shard, rows, quarantined)


def image_sha256(image: bytes | np.ndarray) -> str:
    """SHA-256 of an image file's bytes, or of the pixels of an image that never was a file."""
    content = image if isinstance(image, bytes) else np.ascontiguousarray(image)
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings about damaged files off the screen: what is bad is listed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def _decoded(
    items: Iterable[Item], size: int, limits: Limits, quarantined: list[dict[str, Any]]
) -> Iterator[tuple[Item, np.ndarray]]:
    """The items that can be captioned with their pixels uint8 [size, size, 3]; lists the others."""
    for item in items:
        problem = item.problem
        if not problem:
            try:
                yield item, decode(item.image, size, limits)
            except ValueError as error:
                problem = str(error)
        if problem:
            reason = printable(problem)
            quarantined.append({"key": item.key, "file": item.file, "reason": reason})


@lru_cache(maxsize=2)
def _captioner(directory: Path, device: str):
    """The captioner in a directory, on a device: (model, tokenizer)."""
    model, tokenizer = captioner.load(directory)
    return model.to(device), tokenizer


def _image_size(models: list) -> int:
    """The side in pixels of the images that captioners read; UserError if they differ."""
    sizes = {tuple(model.visual.image_size) for model in models}
    if len(sizes) != 1 or len(set(next(iter(sizes)))) != 1:
        raise UserError(
            "The two captioners read images of different sizes: run one kind at a time."
        )
    return sizes.pop()[0]
