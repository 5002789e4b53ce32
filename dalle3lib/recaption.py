"""Synthetic captions for a dataset: every image captioned by the SSC and the DSC captioner.

``caption_dataset`` captions any dataset (see ``sources``), a shard at a time, into parquet files
(see ``shards``). A shard can be done again without harm, so any number of processes and machines
can share the work, and any of them may die.

Captioning the world's training images takes minutes, and everybody should train on the same
text, so those captions are committed in ``data/captions``. They are found by the picture itself;
any other picture is captioned on the spot by the shipped captioners.
"""

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from dalle3lib import UserError, captioner, files, paths, runners, shards, sources
from dalle3lib.caption_decoding import context_length
from dalle3lib.captioning import Job, caption_shard
from dalle3lib.images import PHOTOGRAPHS, Limits, Record, stack
from dalle3lib.shards import KINDS

LENGTH = {"ssc": 16, "dsc": 48}  # tokens: the longest caption written
FILE = "world-train.parquet"
FEW = 1000  # images: no share of bad ones is judged from fewer, unless these are all


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


def find_captioner(kind: str, where: str = "shipped") -> tuple[object, object, int]:
    """A captioner, its tokenizer, and the greatest length of its captions in tokens.

    ``kind`` is "base", "ssc" or "dsc". ``where`` is "shipped", a directory made by
    ``captioner.save`` (``paths.folder``), or the name of a public model with the tag of its
    weights, "name:tag"; one that is not shipped may use its whole context. Raises UserError as
    ``captioner.load``.
    """
    if where == "shipped":
        length = LENGTH.get(kind, LENGTH["dsc"])
        return *captioner.load(paths.foundation(f"coca-{kind}")), length
    local = paths.folder(where)
    model, tokenizer = captioner.load(*([local] if local.is_dir() else where.split(":", 1)))
    return model, tokenizer, context_length(model)


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


# ---- captioning any dataset ----------------------------------------------------------------------


def caption_dataset(
    source: str,
    destination: str | Path,
    kinds: Sequence[str] = KINDS,
    *,
    captioners: dict[str, Path] | None = None,
    lengths: dict[str, int] | None = None,
    columns: sources.Columns = sources.ANY_COLUMNS,
    limits: Limits = PHOTOGRAPHS,
    shard_size: int = 1000,
    batch_size: int = 64,
    device: str = "cpu",
    runner: str = "local",
    workers: int = 1,
    ray_address: str | None = None,
    part: tuple[int, int] = (0, 1),
    max_bad: float = 0.01,
) -> dict[str, Any] | None:
    """Caption a dataset (``sources.list_shards``) into a folder; returns its manifest.

    Finished shards are kept, so the same call goes on after any interruption. ``runner`` is
    "local" (``workers`` processes) or "ray". ``part`` (i, n) does every n-th shard from the i-th,
    for n calls side by side: whichever finishes last writes the manifest, the others return None.
    ``captioners`` (kind to a directory made by ``captioner.save``) replace the shipped ones.

    Raises UserError when more than the share ``max_bad`` of the images (or of the archives) is
    bad, and for a source, destination or captioner that cannot be used.
    """
    index, parts = part
    if not 0 <= index < parts:
        raise UserError(f"There is no part {index} of {parts}: count from 0 to {parts - 1}.")
    if min(workers, batch_size) < 1:
        raise UserError("The number of workers and the batch size must be at least 1.")
    listed = sources.list_shards(source, shard_size, columns)
    chosen, lengths = _captioners(kinds, captioners or {}, lengths or {})
    destination = Path(destination).expanduser().absolute()
    settings = {
        "format": 1,
        "source": source,
        "captioners": {kind: _digest(path) for kind, path in chosen.items()},
        "lengths": lengths,
        "columns": asdict(columns),
        "limits": asdict(limits),
        "shard size": shard_size,
        "batch size": batch_size,
        "device": device,
    }
    shards.claim(destination, settings)
    marks = {s.name: mark for s in listed if (mark := shards.finished(destination, s))}
    jobs = [
        Job(shard, destination, chosen, lengths, batch_size, limits, device)
        for shard in listed[index::parts]
    ]
    todo = [job for job in jobs if job.shard.name not in marks]
    if runner == "ray":
        results = runners.run_ray(caption_shard, todo, ray_address, gpus=float(device == "cuda"))
    else:
        results = runners.run_local(caption_shard, todo, workers)
    with contextlib.closing(results):
        _collect(results, destination, listed, jobs, marks, max_bad)
    for shard in listed:  # other calls may have worked on their parts meanwhile
        if shard.name not in marks and (mark := shards.finished(destination, shard)):
            marks[shard.name] = mark
    if len(marks) < len(listed):
        print(
            f"{len(marks)} of {len(listed)} shards are finished; the call that finishes the last "
            "of the others writes the manifest."
        )
        return None
    counts = shards.counts(marks.values())
    check_bad(destination, marks, counts, sum(map(_images, marks.values())), len(listed), max_bad)
    if not any(counts.values()):
        raise UserError(f"{source} holds no images: give a folder or archives with some.")
    return shards.finish(destination, settings, [marks[shard.name] for shard in listed])


def _captioners(
    kinds: Sequence[str], captioners: dict[str, Path], lengths: dict[str, int]
) -> tuple[dict[str, Path], dict[str, int]]:
    """The directory of each kind's captioner and its greatest length, defaults filled in."""
    for kind in (*kinds, *captioners, *lengths):
        if kind not in KINDS:
            raise UserError(f"There is no kind of caption {kind!r}: choose {' or '.join(KINDS)}.")
    chosen = {}
    for kind in kinds:
        path = Path(captioners.get(kind) or paths.foundation(f"coca-{kind}"))
        chosen[kind] = path.expanduser().absolute()
        if not chosen[kind].is_dir():
            raise UserError(f"There is no captioner in {path}: give what captioner.save wrote.")
    return chosen, {kind: lengths.get(kind, LENGTH[kind]) for kind in kinds}


def _digest(directory: Path) -> str:
    """What tells one captioner from another: a digest of all its files."""
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return files.digest(files.listing(directory, found))


def _collect(
    results: Iterable[dict[str, Any]],
    destination: Path,
    listed: Sequence[sources.Shard],
    jobs: Sequence[Job],
    marks: dict[str, dict],
    max_bad: float,
) -> None:
    """Add the marks of ``jobs`` to ``marks`` as they come; show progress; stop if many are bad.

    Where only reading tells how many images there are, the bar extrapolates from those read, and
    no share is judged from fewer than ``FEW``.
    """
    every = None if any(s.images is None for s in listed) else sum(s.images for s in listed)
    own = None if every is None else sum(job.shard.images for job in jobs)
    counts = Counter(shards.counts(marks.values()))
    finished = [marks[job.shard.name] for job in jobs if job.shard.name in marks]
    done, before = len(finished), sum(map(_images, finished))
    with tqdm(desc="captions", unit=" images", initial=before, total=own, mininterval=1) as bar:
        for mark in results:
            marks[mark["shard"]] = mark
            counts.update(shards.counts([mark]))
            done += 1
            if own is None:
                bar.total = round((bar.n + _images(mark)) / done * len(jobs))
            bar.set_postfix(shards=f"{done}/{len(jobs)}", refresh=False)
            bar.update(_images(mark))
            images = every or max(FEW, counts["captioned"] + counts["quarantined"])
            check_bad(destination, marks, counts, images, len(listed), max_bad)


def check_bad(
    directory: Path,
    marks: dict[str, dict],
    counts: dict[str, int],
    images: int,
    archives: int,
    max_bad: float,
) -> None:
    """Raise UserError if over ``max_bad`` of the images, or of the archives, are bad; list them."""
    for what, bad, whole in (
        ("images", counts["quarantined"], images),
        ("archives", counts["damaged archives"], archives),
    ):
        if bad <= max_bad * whole:
            continue
        listed = [marks[name] for name in sorted(marks)]
        path = shards.write_quarantine(directory, listed)
        reasons = Counter(entry["reason"] for mark in listed for entry in mark["quarantined"])
        first = "; ".join(f"{reason} × {n}" for reason, n in reasons.most_common(3))
        enough = math.ceil(100 * bad / whole + 1) / 100
        raise UserError(
            f"{bad:,} of {whole:,} {what} ({bad / whole:.1%}) cannot be captioned, more than "
            f"{max_bad:.1%} ({first}); {path} lists them: repair or remove them, or go on with "
            f"--max-bad {min(1, enough):.2f} (finished shards are kept)."
        )


def _images(mark: dict[str, Any]) -> int:
    """How many images of a shard are dealt with."""
    return mark["rows"] + sum(entry["key"] is not None for entry in mark["quarantined"])
