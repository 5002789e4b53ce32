"""Caches: every image and every caption is encoded once, then training reads from memory.

A cache is a directory of safetensors shards, each complete or absent, with a manifest written
last. It is keyed by everything that went into it, so a changed encoder, caption or data source
makes a new cache and never reads an old one. A cache that is larger than the memory stays on disk,
and training reads from there what a step needs.
"""

import fcntl
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm.auto import tqdm

from dalle3lib import UserError, files, pairs, paths, pretrained, recaption, text, vae
from dalle3lib.config import Parameters
from dalle3lib.fingerprint import inputs_fingerprint, module_closure
from dalle3lib.images import Record, stack
from dalle3lib.pairs import TRUTH, WRITTEN
from dalle3lib.recaption import KINDS
from dalle3lib.splits import open_source
from dalle3lib.stored import StoredLatents, StoredStates

SHARD = 2000  # records
MEMORY = 16 * 2**30  # bytes: a larger cache is read from disk


@dataclass(frozen=True)
class Cache:
    """What training reads: ``latents`` float32 [N, 4, h, w] of unit variance, and for each kind of
    caption ("original", "ssc", "dsc") its N ragged text states, fp16 or bf16 [L, d] each."""

    latents: Tensor | StoredLatents
    states: dict[str, Sequence[Tensor]]

    def mean_tokens(self) -> dict[str, float]:
        """The mean number of tokens of a caption, by kind."""
        return {
            kind: float(np.mean(getattr(states, "lengths", None) or [len(s) for s in states]))
            for kind, states in self.states.items()
        }


def cache_path(cfg: Parameters) -> Path:
    """Where the cache of a notebook's data lies: named after all that determines its content.

    ``cfg`` holds ``data``, ``scenes`` (how many training images) and ``noise`` (of the alt-text);
    it may name models, a folder of captions, a size and a precision (see notebook 04a).
    """
    key = files.digest(
        {
            "inputs": inputs_fingerprint(cfg.data),
            "scenes": cfg.scenes,
            "noise": cfg.noise,
            "size": cfg.get("size", 64),
            "precision": cfg.get("precision", "float32"),
            "models": [_identity(name) for name in pretrained.chosen(cfg).values()],
            "captions": _identity(cfg.get("captions_from", WRITTEN)),
            "code": module_closure({"dalle3lib.latents"}),
            **({"held out": "of the data"} if _holds_out(cfg) else {}),
        }
    )
    return cfg.root / "cache" / key[:16]


def _holds_out(cfg: Parameters) -> bool:
    """Whether images with captions from elsewhere are held out of the data for prompts."""
    return not is_source(cfg) and cfg.get("prompts_from", "") in pairs.HELD_OUT


def _identity(name: str) -> list:
    """What tells one directory from another: names, sizes and times of its files; or the name."""
    found = sorted(p for p in paths.folder(name).glob("*") if p.is_file())
    stats = [path.stat() for path in found]
    return [[p.name, s.st_size, s.st_mtime_ns] for p, s in zip(found, stats, strict=True)] or [name]


@torch.no_grad()
def encode_records(
    records: Sequence[Record],
    autoencoder,
    encoder,
    tokenizer,
    captions: dict[str, list[str]],
) -> dict[str, Tensor]:
    """Latents and caption states of a few records as flat tensors, ready for a shard.

    ``captions`` are the synthetic ones by kind.
    """
    tensors = {"latents": vae.encode(autoencoder, stack(records)).half().contiguous()}
    # the states of bfloat16 encoders can exceed the range of fp16
    stored = torch.bfloat16 if encoder.dtype == torch.bfloat16 else torch.float16
    for kind, texts in {"original": [r.alt for r in records], **captions}.items():
        states = text.encode(encoder, tokenizer, texts)
        tensors[f"states.{kind}"] = torch.cat(states).to(stored)
        tensors[f"lengths.{kind}"] = torch.tensor([len(s) for s in states], dtype=torch.int32)
    return tensors


def build(cfg: Parameters) -> Path:
    """Make the cache unless it is complete; return its directory.

    Shards that are already there are kept, so an interrupted build continues; a second process
    waits for the first. Raises UserError for models, captions or a device that are not there, and
    if the disk is too small.
    """
    path = cache_path(cfg)
    with files.guard(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "a")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path / "manifest.json").is_file():
            models = _models(cfg)
            if is_source(cfg):
                _build_shards(cfg, path, models)
            else:
                _build_from_pairs(cfg, path, models)
    return path


def is_source(cfg: Parameters) -> bool:
    """Whether records are read as the data has them, and not archive by archive with the captions
    that ``recaption`` wrote: then images without captions are left out, and listed."""
    return cfg.data == "world" or cfg.get("captions_from", WRITTEN) in (WRITTEN, TRUTH)


def _models(cfg: Parameters) -> tuple:
    """Autoencoder, text encoder and its tokenizer, on the device."""
    device, names = pretrained.device(cfg), pretrained.chosen(cfg)
    pretrained.require(pretrained.public(cfg))
    autoencoder = vae.load(pretrained.directory("vae", names["vae"])).to(device)
    precision = pretrained.dtype(cfg)
    encoder, tokenizer = text.load(pretrained.directory("t5", names["t5"]), precision)
    return autoencoder, encoder.to(device), tokenizer


def _build_shards(cfg: Parameters, path: Path, models: tuple) -> None:
    source = open_source(cfg.data, "train", cfg.scenes, cfg.get("size", 64), cfg.noise)
    where = cfg.get("captions_from", WRITTEN)
    if where == WRITTEN and (device := pretrained.device(cfg)) != "cpu":
        for kind in KINDS:  # fresh captions are written there too
            recaption.load_captioner(kind)[0].to(device)
    starts = range(0, len(source), SHARD)
    for number, start in enumerate(tqdm(starts, desc="encoding images and captions")):
        shard = path / f"shard-{number:05d}.safetensors"
        if not shard.is_file():
            records = source[start : start + SHARD]
            tensors = encode_records(records, *models, pairs.of_records(records, where))
            files.write_atomic(shard, save(tensors))
    shards = sorted(path.glob("shard-*.safetensors"))
    manifest = {"records": len(source), "files": files.listing(path, shards)}
    files.write_atomic(path / "manifest.json", files.to_json(manifest).encode())


def load(path: Path) -> Cache:
    """Read a complete cache into memory, or open it on disk if it is larger than ``MEMORY``.

    A damaged shard is a UserError that says what to do; on disk only the sizes are checked, as
    reading hundreds of gigabytes for their checksums would take as long as a training.
    """
    manifest = files.read_json(path / "manifest.json")
    in_memory = sum(entry["size"] for entry in manifest["files"].values()) <= MEMORY
    problem = files.damage(path, manifest["files"], content=in_memory)
    if problem:
        raise UserError(f"The cache cannot be used: {problem}; delete {path} and run again.")
    names = sorted(manifest["files"])
    if not in_memory:
        shards = [safe_open(path / name, "pt") for name in names]
        stored = {kind: StoredStates(shards, kind) for kind in ("original", *KINDS)}
        return Cache(StoredLatents(shards), stored)
    shards = [load_file(path / name) for name in names]
    states: dict[str, list[Tensor]] = {}
    for kind in ("original", *KINDS):
        states[kind] = [
            state
            for shard in shards
            for state in shard[f"states.{kind}"].split(shard[f"lengths.{kind}"].tolist())
        ]
    return Cache(torch.cat([s["latents"] for s in shards]).float(), states)


# ---- images with captions from elsewhere ---------------------------------------------------------


def first_records(cfg: Parameters, count: int) -> tuple[list[Record], dict[str, list[str]]]:
    """The first ``count`` training images, and their captions by kind ("original", "ssc", ...)."""
    if is_source(cfg):
        source = open_source(cfg.data, "train", cfg.scenes, cfg.get("size", 64), cfg.noise)
        records = list(source[:count])
        captions = pairs.of_records(records, cfg.get("captions_from", WRITTEN))
    else:
        captions = pairs.open_captions(cfg.captions_from)
        found = pairs.first(cfg.data, captions, count, cfg.size, pairs.for_training(cfg))
        records = [record for record, _ in found]
        captions = {kind: [written[kind] for _, written in found] for kind in KINDS}
    return records, {"original": [r.alt for r in records], **captions}


def bytes_of(records: int, tokens: dict[str, float], width: int, latent_size: int) -> int:
    """How large a cache is: latents in fp16, and as many states of two-byte numbers as tokens.

    ``tokens`` is the mean number of tokens of a caption by kind, ``width`` that of a state.
    """
    return round(records * 2 * (4 * latent_size**2 + sum(tokens.values()) * width))


def _build_from_pairs(cfg: Parameters, path: Path, models: tuple) -> None:
    """Encode archive after archive until there are ``cfg.scenes`` images; list what is left out.

    An archive whose mark is there is finished; an interrupted one is encoded again.
    """
    captions = pairs.open_captions(cfg.captions_from)
    parts, wanted = pairs.list_parts(cfg.data, captions), pairs.for_training(cfg)
    _tell_size(cfg, path, models, captions, parts[0].source)
    marks: list[dict] = []
    with tqdm(desc="encoding images and captions", total=cfg.scenes, unit=" images") as bar:
        for part in parts:
            mark = path / f"done-{part.name}.json"
            if not mark.is_file():
                limit = cfg.scenes - sum(m["records"] for m in marks)
                done = _encode_part(part, captions, cfg.size, limit, path, models, wanted)
                files.write_atomic(mark, files.to_json(done).encode())
            marks.append(files.read_json(mark))
            bar.update(marks[-1]["records"])
            if bar.n >= cfg.scenes:
                break
    records, left_out = sum(m["records"] for m in marks), [x for m in marks for x in m["left out"]]
    if not records:
        raise UserError(
            f"No image of {cfg.data} has both alt-text and captions in {cfg.captions_from}: were "
            "the captions made from another source?"
        )
    reasons = Counter(entry["reason"] for entry in left_out)
    told = "".join(f"; {reason} × {n:,}" for reason, n in reasons.most_common(5))
    print(f"{records:,} of {cfg.scenes:,} images encoded, {len(left_out):,} left out{told}")
    lines = "".join(files.to_json(entry).replace("\n", "") + "\n" for entry in left_out)
    files.write_atomic(path / "left-out.jsonl", lines.encode())
    shards = {name: entry for m in marks for name, entry in m["files"].items()}
    manifest = {"records": records, "left out": dict(reasons), "files": shards}
    files.write_atomic(path / "manifest.json", files.to_json(manifest).encode())


def _tell_size(cfg: Parameters, path: Path, models: tuple, captions: pairs.Captions, source: str):
    """Print how large the cache will be; UserError if the disk has not that much left."""
    encoder, tokenizer = models[1:]
    rows = list(captions.of(source).values())[:1000]
    columns = {kind: [r[name] or "" for r in rows] for kind, name in
               (("original", "alt"), *((k, k) for k in KINDS))}  # fmt: skip
    tokens = {k: text.mean_tokens(tokenizer, texts) for k, texts in columns.items()}
    width, side = encoder.config.d_model, cfg.size // 8
    needed = bytes_of(cfg.scenes, tokens, width, side)
    written = sum(p.stat().st_size for p in path.glob("shard-*"))
    free = shutil.disk_usage(path).free + written
    told = " + ".join(f"{n:.0f} ({kind})" for kind, n in tokens.items())
    print(
        f"The cache takes about {needed / 1e9:,.1f} GB: {cfg.scenes:,} images × 2 bytes × "
        f"(4 × {side} × {side} latents + [{told}] tokens × {width}). Free: {free / 1e9:,.1f} GB."
    )
    if needed > free:
        raise UserError(
            f"{path} has {free / 1e9:,.1f} GB free, and the cache needs {needed / 1e9:,.1f} GB: "
            "take fewer scenes or a narrower text encoder, or set DALLE3_RUNS to a larger disk."
        )


def _encode_part(
    part, captions, size: int, limit: int, path: Path, models: tuple, wanted: Callable[[str], bool]
) -> dict:
    """Encode up to ``limit`` images of an archive into shards; what its mark says."""
    left_out: list[dict] = []
    usable = islice(pairs.read(part, captions, size, left_out, wanted=wanted), limit)
    written, records = [], 0
    while batch := list(islice(usable, SHARD)):
        shard = path / f"shard-{part.name}-{len(written):03d}.safetensors"
        texts = {kind: [said[kind] for _, said in batch] for kind in KINDS}
        tensors = encode_records([record for record, _ in batch], *models, texts)
        files.write_atomic(shard, save(tensors))
        written.append(shard)
        records += len(batch)
    return {"records": records, "left out": left_out, "files": files.listing(path, written)}
