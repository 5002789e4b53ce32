"""The cache: what it holds, what names it, and what an interruption or a full disk leaves."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch

from dalle3lib import UserError, latents, pairs, paths, recaption, text, vae
from dalle3lib.config import Parameters
from dalle3lib.images import to_tensor
from dalle3lib.world import World

torch.set_num_threads(1)
SCENES = 10


@pytest.fixture
def cfg(foundations, tmp_path, monkeypatch):
    """Parameters of a cache of ten scenes in shards of four; their captions are committed."""
    records = list(World("train", SCENES))
    short, descriptive = ([getattr(r, k) for r in records] for k in ("short", "descriptive"))
    recaption.commit_captions(records, {"ssc": short, "dsc": descriptive})
    recaption.committed.cache_clear()
    monkeypatch.setattr(latents, "SHARD", 4)
    return parameters(tmp_path)


def parameters(root, **changes) -> Parameters:
    values = {"data": "world", "scenes": SCENES, "noise": 0.5} | changes
    return Parameters("04_caption_kind", "smoke", values, root=root / "world")


@pytest.fixture
def encoded(monkeypatch) -> list[list[str]]:
    """A list to which every encoding of a shard adds the keys of its records."""
    calls, encode = [], latents.encode_records

    def noted(records, *models):
        calls.append([r.key for r in records])
        return encode(records, *models)

    monkeypatch.setattr(latents, "encode_records", noted)
    return calls


def shards(path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.glob("shard-*"))}


def keys(*numbers: int) -> list[str]:
    return [f"train-{i:06d}" for i in numbers]


# ---- content -------------------------------------------------------------------------------------


def test_latents_are_those_of_the_autoencoder_scaled(cfg):
    cache = latents.load(latents.build(cfg))
    assert cache.latents.shape == (SCENES, 4, 8, 8) and cache.latents.dtype == torch.float32
    autoencoder = vae.load(paths.foundation("vae"))
    images = to_tensor(np.stack([r.image for r in World("train", SCENES)]))
    expected = autoencoder.encode(images).latent_dist.mean * autoencoder.config.scaling_factor
    assert torch.allclose(cache.latents, expected, atol=2e-3)
    assert not torch.allclose(cache.latents[0], expected[1], atol=2e-3)


def test_states_are_those_of_the_captions(cfg):
    cache = latents.load(latents.build(cfg))
    assert list(cache.states) == ["original", "ssc", "dsc"]
    records, t5 = list(World("train", SCENES)), text.load(paths.foundation("t5"))
    for kind, field in (("original", "alt"), ("ssc", "short"), ("dsc", "descriptive")):
        expected = text.encode(*t5, [getattr(r, field) for r in records])
        assert len(cache.states[kind]) == SCENES
        for state, wanted in zip(cache.states[kind], expected, strict=True):
            assert state.dtype == torch.float16 and state.shape == wanted.shape
            assert torch.allclose(state.float(), wanted, rtol=2e-3, atol=2e-3)


def test_shards_do_not_change_the_content(cfg, monkeypatch):
    in_shards = latents.load(latents.build(cfg))
    shutil.rmtree(latents.cache_path(cfg))
    monkeypatch.setattr(latents, "SHARD", 100)
    path = latents.build(cfg)
    assert len(shards(path)) == 1
    at_once = latents.load(path)
    assert torch.allclose(in_shards.latents, at_once.latents, atol=2e-3)
    for kind, states in at_once.states.items():
        for a, b in zip(states, in_shards.states[kind], strict=True):
            assert torch.allclose(a.float(), b.float(), atol=5e-3)


# ---- interruptions -------------------------------------------------------------------------------


def test_a_finished_cache_is_not_built_again(cfg, encoded):
    path = latents.build(cfg)
    assert encoded == [keys(0, 1, 2, 3), keys(4, 5, 6, 7), keys(8, 9)]
    before = shards(path)
    assert latents.build(cfg) == path and len(encoded) == 3
    assert shards(path) == before and len(before) == 3
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["records"] == SCENES and list(manifest["files"]) == list(before)


def test_an_interrupted_build_goes_on(cfg, encoded):
    path = latents.build(cfg)
    before = shards(path)
    encoded.clear()
    (path / "manifest.json").unlink()  # as if killed in the middle of the second shard
    (path / "shard-00001.safetensors").unlink()
    (path / "shard-00002.safetensors").unlink()
    (path / ".shard-00001.safetensors.123.tmp").write_bytes(b"half")
    latents.build(cfg)
    assert encoded == [keys(4, 5, 6, 7), keys(8, 9)]
    assert shards(path) == before


def test_a_build_killed_between_shards_goes_on(cfg, monkeypatch):
    encode, count = latents.encode_records, []

    def killed(*arguments):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(latents, "encode_records", killed)
    with pytest.raises(KeyboardInterrupt):
        latents.build(cfg)
    path = latents.cache_path(cfg)
    assert list(shards(path)) == ["shard-00000.safetensors"]
    assert not (path / "manifest.json").exists()
    with pytest.raises(UserError, match="manifest.json cannot be read"):
        latents.load(path)  # incomplete caches are not read
    latents.build(cfg)
    assert len(count) == 4 and len(latents.load(path).latents) == SCENES


def test_a_full_disk_is_one_sentence_and_keeps_what_is_done(cfg, monkeypatch):
    sync, count = os.fsync, []

    def full(descriptor):
        count.append(1)
        if len(count) > 2:  # the first shard and its directory were written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full.*everything finished so far is kept"):
        latents.build(cfg)
    path = latents.cache_path(cfg)
    files = sorted(p.name for p in path.iterdir())
    assert files == [".lock", "shard-00000.safetensors"]  # no half-written file
    kept = shards(path)
    monkeypatch.setattr(os, "fsync", sync)
    latents.build(cfg)
    assert shards(path).items() > kept.items()


def test_no_permission_is_one_sentence(cfg, monkeypatch):
    monkeypatch.setattr(cfg.root.__class__, "mkdir", refuse)
    with pytest.raises(UserError, match="no permission to write there"):
        latents.build(cfg)


def refuse(*_, **__):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("number", [0, 2])
def test_a_damaged_shard(cfg, flip, number):
    path = latents.build(cfg)
    name = f"shard-{number:05d}.safetensors"
    flip(path / name, 54_321)
    with pytest.raises(UserError, match=f"{name} is damaged.*delete {path} and run again"):
        latents.load(path)
    (path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        latents.load(path)


def test_an_empty_caption_stops_the_build(cfg, monkeypatch):
    monkeypatch.setattr(pairs, "synthetic_captions", lambda records, kind: [" "] * len(records))
    with pytest.raises(UserError, match="Caption number 0 is empty"):
        latents.build(cfg)


# ---- names ---------------------------------------------------------------------------------------


def test_the_name_follows_from_everything_that_determines_the_content(
    cfg, tiny_foundation, tmp_path, monkeypatch
):
    base = latents.cache_path(cfg)
    assert base.parent == cfg.root / "cache" and base == latents.cache_path(parameters(tmp_path))
    others = [parameters(tmp_path, scenes=11), parameters(tmp_path, noise=0.25)]
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "a.jpg").write_bytes(b"a")
    others.append(parameters(tmp_path, data=str(photographs)))
    found = {latents.cache_path(other) for other in others}
    (photographs / "a.jpg").write_bytes(b"ab")
    found.add(latents.cache_path(others[-1]))

    shutil.copytree(tiny_foundation, tmp_path / "other")
    monkeypatch.setenv("DALLE3_FOUNDATION", str(tmp_path / "other"))
    assert latents.cache_path(cfg) == base  # where they lie does not count
    manifest = tmp_path / "other" / "vae" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"steps": 0', '"steps": 1'))
    found.add(latents.cache_path(cfg))
    monkeypatch.setattr(latents, "module_closure", lambda names: {"dalle3lib.latents": "edited"})
    found.add(latents.cache_path(cfg))
    assert len(found | {base}) == 7


def test_another_noise_has_other_originals_and_the_same_pictures(cfg, tmp_path):
    base = latents.load(latents.build(cfg))
    quiet = latents.load(latents.build(parameters(tmp_path, noise=0)))
    assert torch.equal(base.latents, quiet.latents)
    lengths = [[len(s) for s in cache.states["original"]] for cache in (base, quiet)]
    assert lengths[0] != lengths[1]
    for kind in recaption.KINDS:
        for a, b in zip(base.states[kind], quiet.states[kind], strict=True):
            assert torch.equal(a, b)
