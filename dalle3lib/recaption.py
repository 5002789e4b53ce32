"""Synthetic captions for a dataset: every image captioned by the SSC and the DSC captioner.

Captioning the world's training images takes minutes, and everybody should train on the same
text, so those captions are committed in ``data/captions``. They are found by the picture itself;
any other picture is captioned on the spot by the shipped captioners.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dalle3lib import UserError, captioner, files, paths
from dalle3lib.images import Record, stack

KINDS = ("ssc", "dsc")
LENGTH = {"ssc": 16, "dsc": 48}  # tokens: the longest caption written
FILE = "world-train.parquet"


def captions_dir() -> Path:
    """Where the committed captions lie."""
    return paths.ROOT / "data" / "captions"


def picture_id(image: np.ndarray) -> str:
    """A name for a picture's pixels: 16 hexadecimal digits."""
    return hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).hexdigest()


@lru_cache(maxsize=1)
def committed() -> dict[str, dict[str, str]]:
    """The committed captions: for each kind a mapping from picture id to caption.

    Raises UserError if the file differs from its manifest; empty if there is none.
    """
    directory = captions_dir()
    if not (directory / "manifest.json").is_file():
        return {kind: {} for kind in KINDS}
    problem = files.damage(directory, files.read_json(directory / "manifest.json")["files"])
    if problem:
        raise UserError(f"The committed captions cannot be used: {problem}; restore data/captions.")
    table = pq.read_table(directory / FILE).to_pydict()
    return {kind: dict(zip(table["picture"], table[kind], strict=True)) for kind in KINDS}


@lru_cache(maxsize=2)
def load_captioner(kind: str):
    """The shipped captioner of a kind ("ssc" or "dsc"): (model, tokenizer)."""
    if kind not in KINDS:
        raise UserError(f"There is no captioner of kind {kind!r}: choose {' or '.join(KINDS)}.")
    return captioner.load(paths.foundation(f"coca-{kind}"))


def write_captions(records: Sequence[Record], kind: str) -> list[str]:
    """Captions of records by the shipped captioner of a kind, one each."""
    return captioner.caption(*load_captioner(kind), stack(records), max_len=LENGTH[kind])


def synthetic_captions(records: Sequence[Record], kind: str) -> list[str]:
    """The caption of each record: the committed one if there is one, a fresh one otherwise."""
    known = committed()[kind]
    captions = [known.get(picture_id(r.image)) for r in records]
    missing = [i for i, caption in enumerate(captions) if caption is None]
    if missing:
        fresh = write_captions([records[i] for i in missing], kind)
        for i, caption in zip(missing, fresh, strict=True):
            captions[i] = caption
    return captions


def commit_captions(records: Sequence[Record], captions: dict[str, list[str]]) -> Path:
    """Write captions of both kinds to ``data/captions`` with the manifest last; its directory.

    The manifest names the captioners (digests of their manifests) that wrote them.
    """
    directory = captions_dir()
    table = pa.table(
        {
            "key": [r.key for r in records],
            "picture": [picture_id(r.image) for r in records],
            "alt": [r.alt for r in records],
            **{kind: captions[kind] for kind in KINDS},
        }
    )
    with files.guard(directory / FILE):
        directory.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, directory / FILE, compression="zstd", compression_level=19)
    manifest = {
        "rows": len(records),
        "captioners": {
            kind: files.sha256(paths.foundation(f"coca-{kind}") / "manifest.json") for kind in KINDS
        },
        "files": files.listing(directory, [directory / FILE]),
    }
    files.write_atomic(directory / "manifest.json", files.to_json(manifest).encode())
    committed.cache_clear()
    return directory
