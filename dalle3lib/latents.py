"""Caches: every image and every caption is encoded once, then training reads from memory.

A cache is a directory of safetensors shards, each complete or absent, with a manifest written
last. It is keyed by everything that went into it, so a changed encoder, caption or data source
makes a new cache and never reads an old one.
"""

import fcntl
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm.auto import tqdm

from dalle3lib import UserError, files, paths, text, vae
from dalle3lib.config import Parameters
from dalle3lib.fingerprint import inputs_fingerprint, module_closure
from dalle3lib.images import Record, open_source, stack, to_tensor
from dalle3lib.recaption import KINDS, synthetic_captions

SHARD = 2000  # records


@dataclass(frozen=True)
class Cache:
    """What training reads: ``latents`` float32 [N, 4, h, w] of unit variance, and for each kind of
    caption ("original", "ssc", "dsc") its N ragged text states, fp16 [L, d] each."""

    latents: Tensor
    states: dict[str, list[Tensor]]


def cache_path(cfg: Parameters) -> Path:
    """Where the cache of a notebook's data lies: named after all that determines its content.

    ``cfg`` holds ``data``, ``scenes`` (how many training images) and ``noise`` (of the alt-text).
    """
    key = files.digest(
        {
            "inputs": inputs_fingerprint(cfg.data),
            "scenes": cfg.scenes,
            "noise": cfg.noise,
            "code": module_closure({"dalle3lib.latents"}),
        }
    )
    return cfg.root / "cache" / key[:16]


@torch.no_grad()
def encode_records(records: list[Record], autoencoder, encoder, tokenizer) -> dict[str, Tensor]:
    """Latents and caption states of a few records as flat tensors, ready for a shard."""
    pictures = to_tensor(stack(records))
    means = [autoencoder.encode(x).latent_dist.mean for x in pictures.split(128)]
    tensors = {
        "latents": (torch.cat(means) * autoencoder.config.scaling_factor).half().contiguous()
    }
    captions = {"original": [r.alt for r in records]}
    captions |= {kind: synthetic_captions(records, kind) for kind in KINDS}
    for kind, texts in captions.items():
        states = text.encode(encoder, tokenizer, texts)
        tensors[f"states.{kind}"] = torch.cat(states).half()
        tensors[f"lengths.{kind}"] = torch.tensor([len(s) for s in states], dtype=torch.int32)
    return tensors


def build(cfg: Parameters) -> Path:
    """Make the cache unless it is complete; return its directory.

    Shards that are already there are kept, so an interrupted build continues; a second process
    waits for the first.
    """
    path = cache_path(cfg)
    with files.guard(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "a")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path / "manifest.json").is_file():
            _build_shards(cfg, path)
    return path


def _build_shards(cfg: Parameters, path: Path) -> None:
    source = open_source(cfg.data, "train", cfg.scenes, noise=cfg.noise)
    autoencoder = vae.load(paths.foundation("vae"))
    encoder, tokenizer = text.load(paths.foundation("t5"))
    starts = range(0, len(source), SHARD)
    for number, start in enumerate(tqdm(starts, desc="encoding images and captions")):
        shard = path / f"shard-{number:05d}.safetensors"
        if not shard.is_file():
            records = source[start : start + SHARD]
            tensors = encode_records(records, autoencoder, encoder, tokenizer)
            files.write_atomic(shard, save(tensors))
    shards = sorted(path.glob("shard-*.safetensors"))
    manifest = {"records": len(source), "files": files.listing(path, shards)}
    files.write_atomic(path / "manifest.json", files.to_json(manifest).encode())


def load(path: Path) -> Cache:
    """Read a complete cache into memory; a damaged shard is a UserError that says what to do."""
    manifest = files.read_json(path / "manifest.json")
    problem = files.damage(path, manifest["files"])
    if problem:
        raise UserError(f"The cache cannot be used: {problem}; delete {path} and run again.")
    shards = [load_file(path / name) for name in sorted(manifest["files"])]
    states: dict[str, list[Tensor]] = {}
    for kind in ("original", *KINDS):
        states[kind] = [
            state
            for shard in shards
            for state in shard[f"states.{kind}"].split(shard[f"lengths.{kind}"].tolist())
        ]
    return Cache(torch.cat([s["latents"] for s in shards]).float(), states)
