"""A captioned dataset on disk: one parquet file a shard, and a manifest that is written last.

::

    DST/data/00000.parquet …   captions, one row an image (``SCHEMA``)
    DST/quarantine.jsonl       images without a caption: shard, key, file, reason
    DST/manifest.json          settings, counts, checksums; there only when everything is
    DST/README.md              lets ``datasets.load_dataset(DST)`` find the parquet files
    DST/.shards/00000.json …   what is finished: checksum of the parquet file, quarantined images

A shard is finished when its mark in ``.shards`` is there and fits: the mark is written after the
parquet file. Nothing here holds a date or a path of temporary files, so an interrupted run ends
with the same bytes as any other. Workers keep out of each other's way by a lock for each shard,
which the kernel frees when its holder dies.
"""

import contextlib
import errno
import fcntl
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dalle3lib import UserError, files
from dalle3lib.sources import Shard

KINDS = ("ssc", "dsc")
SCHEMA = pa.schema(
    [("key", pa.string()), ("alt", pa.string())]
    + [(kind, pa.string()) for kind in KINDS]
    + [(f"{kind}_log_probability", pa.float32()) for kind in KINDS]  # nats, end token included
    + [(f"{kind}_truncated", pa.bool_()) for kind in KINDS]  # no end token within the length
    + [("sha256", pa.string())]  # of the image file's bytes (of the pixels where there is no file)
)
CARD = """---
configs:
- config_name: default
  data_files: data/*.parquet
---
# Captions

One row an image: `key`, `alt` (the caption found with it), `ssc` and `dsc` (short and descriptive
synthetic captions; null if not asked for), for each its `_log_probability` (nats, end token
included) and `_truncated` (cut at the greatest length), and the image's `sha256`.
`quarantine.jsonl` lists the images that have no caption, `manifest.json` how all this was made.
"""


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock file; if another process holds it, wait until it lets go or dies.

    On a file system without locks nothing is held: two workers may then do the same shard, which
    costs time and harms nothing, because each file is written whole and with the same bytes.
    """
    with files.guard(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115 - closed below, after what the caller does
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
        yield


def claim(directory: Path, settings: dict[str, Any]) -> None:
    """Say whose folder this is; UserError if it holds captions made with other settings."""
    path = directory / ".shards" / "settings.json"
    with lock(directory / ".shards" / ".lock"):
        if path.is_file():
            before = files.read_json(path)
            other = [f"{name}: {before.get(name)}, now {value}" for name, value in settings.items()
                     if before.get(name) != value]  # fmt: skip
            if other:
                raise UserError(
                    f"{directory} holds captions made with other settings ({'; '.join(other)}): "
                    "choose another folder, or delete that one."
                )
        elif directory.is_dir() and any(e.name != ".shards" for e in directory.iterdir()):
            raise UserError(f"{directory} holds other files: choose a new or empty folder.")
        else:
            files.write_atomic(path, files.to_json(settings).encode())


def write(
    directory: Path, shard: Shard, rows: list[dict[str, Any]], quarantined: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write a shard's parquet file, then its mark; returns the mark.

    ``rows`` hold the fields of ``SCHEMA`` (missing ones become null); ``quarantined`` say "key"
    (None: the archive itself is damaged), "file" and "reason".
    """
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, buffer, compression="zstd", row_group_size=10_000)
    path = directory / "data" / f"{shard.name}.parquet"
    with files.guard(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, buffer.getvalue())
    mark = {
        "shard": shard.name,
        "source": shard.source,
        "identity": shard.identity,
        "rows": len(rows),
        "truncated": {k: sum(bool(row.get(f"{k}_truncated")) for row in rows) for k in KINDS},
        "quarantined": [{"shard": shard.name, **bad} for bad in quarantined],
        "files": files.listing(directory, [path]),
    }
    files.write_atomic(_mark_path(directory, shard.name), files.to_json(mark).encode())
    return mark


def finished(directory: Path, shard: Shard) -> dict[str, Any] | None:
    """The mark of a shard if it is whole and made from what the source holds now, else None."""
    path = _mark_path(directory, shard.name)
    if not path.is_file():
        return None
    try:
        mark = json.loads(path.read_bytes())
        same = mark["identity"] == shard.identity
        return mark if same and files.damage(directory, mark["files"]) is None else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def counts(marks: Iterable[dict[str, Any]]) -> dict[str, int]:
    """How many images have a caption, how many are quarantined, how many archives are damaged."""
    marks = list(marks)
    bad = [entry for mark in marks for entry in mark["quarantined"]]
    return {
        "captioned": sum(mark["rows"] for mark in marks),
        "quarantined": sum(entry["key"] is not None for entry in bad),
        "damaged archives": sum(entry["key"] is None for entry in bad),
    }


def write_quarantine(directory: Path, marks: Sequence[dict[str, Any]]) -> Path:
    """Write the list of images without a caption, in the order of the source; its path."""
    path = directory / "quarantine.jsonl"
    lines = [
        json.dumps(entry, ensure_ascii=False) + "\n" for m in marks for entry in m["quarantined"]
    ]
    files.write_atomic(path, "".join(lines).encode())
    return path


def finish(directory: Path, settings: dict[str, Any], marks: Sequence[dict[str, Any]]) -> dict:
    """Write quarantine list, card and, last, the manifest; returns the manifest.

    Removes what killed writers left behind, and shards that the source no longer has.
    """
    with lock(directory / ".shards" / ".lock"):
        names = {mark["shard"] for mark in marks}
        for path in [*directory.glob("data/*.parquet"), *directory.glob(".shards/[0-9]*")]:
            if path.stem not in names or path.suffix == ".lock":
                path.unlink(missing_ok=True)
        for place in (".", "data", ".shards"):
            for path in (directory / place).glob(".*.tmp"):
                path.unlink(missing_ok=True)
        write_quarantine(directory, marks)
        files.write_atomic(directory / "README.md", CARD.encode())
        captioned = max(1, sum(mark["rows"] for mark in marks))
        truncated = {k: sum(mark["truncated"][k] for mark in marks) for k in settings["captioners"]}
        manifest = {
            "settings": settings,
            **counts(marks),
            "truncated share": {k: n / captioned for k, n in truncated.items()},
            "shards": [{k: mark[k] for k in ("shard", "source", "rows")} for mark in marks],
            "files": {name: entry for mark in marks for name, entry in mark["files"].items()},
        }
        files.write_atomic(directory / "manifest.json", files.to_json(manifest).encode())
    return manifest


def _mark_path(directory: Path, name: str) -> Path:
    """Where a shard's mark lies."""
    return directory / ".shards" / f"{name}.json"
