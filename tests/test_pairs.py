"""Images joined with captions: what is used, what is left out and why, a cache built from it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from public_models import write_tar

from dalle3lib import UserError, diffusion, latents, pairs, shards, sources
from dalle3lib.config import Parameters

torch.set_num_threads(1)


def jpeg(path: Path, colour: int) -> bytes:
    picture = np.random.default_rng(colour).integers(256, size=(40, 60, 3), dtype=np.uint8)
    Image.fromarray(picture).save(path / "a.jpg", quality=90)
    return (path / "a.jpg").read_bytes()


def caption_tars(where: Path, skip: str = "") -> Path:
    """What ``recaption`` leaves for the tars in ``where``, with captions that say the key."""
    from dalle3lib.captioning import image_sha256

    marks, out = [], where / "captions"
    settings = {"captioners": {"ssc": "a", "dsc": "b"}, "shard size": 1000}
    shards.claim(out, settings)
    for shard in sources.list_shards(str(where / "tars")):
        rows = [
            {"key": i.key, "alt": i.alt, "ssc": f"{i.key} short", "dsc": f"{i.key} described",
             "sha256": image_sha256(i.image)}
            for i in shard.read() if i.image and i.key != skip
        ]  # fmt: skip
        marks.append(shards.write(out, shard, rows, []))
    shards.finish(out, settings, marks)
    return out


@pytest.fixture
def web(tmp_path) -> Path:
    """Two tars of seven images; one caption each is missing or about another image."""
    (tmp_path / "tars").mkdir()
    images = [jpeg(tmp_path, i) for i in range(7)]
    samples = [(f"k{i}", {"jpg": x, "txt": f"alt {i}".encode()}) for i, x in enumerate(images)]
    write_tar(tmp_path / "tars" / "a.tar", samples[:4] + [("x0", {"jpg": images[0]})])
    write_tar(tmp_path / "tars" / "b.tar", samples[4:] + [("x1", {"txt": b"alone"})])
    caption_tars(tmp_path, skip="k2")
    return tmp_path


def read_all(web: Path, size: int = 16) -> tuple[list, list]:
    captions, left_out = pairs.open_captions(str(web / "captions")), []
    parts = pairs.list_parts(str(web / "tars"), captions)
    return [p for part in parts for p in pairs.read(part, captions, size, left_out)], left_out


def test_pairs_by_hand(web):
    found, left_out = read_all(web)
    assert [r.key for r, _ in found] == ["k0", "k1", "k3", "k4", "k5", "k6"]
    for record, said in found:
        assert record.alt == f"alt {record.key[1]}" and record.image.shape == (16, 16, 3)
        assert said == {"ssc": f"{record.key} short", "dsc": f"{record.key} described"}
    assert {e["key"]: e["reason"] for e in left_out} == {
        "k2": "it has no synthetic caption",
        "x0": "it has no alt-text",
        "x1": "no jpg, png or webp image among its txt",
    }


def test_another_image_under_the_same_key_is_left_out(web):
    other = jpeg(web, 99)
    write_tar(web / "tars" / "b.tar", [("k4", {"jpg": other, "txt": b"alt 4"})])
    found, left_out = read_all(web)
    assert [r.key for r, _ in found] == ["k0", "k1", "k3"]
    assert left_out[-1]["reason"] == "it is not the image that was captioned"


def test_the_first_ones(web):
    captions = pairs.open_captions(str(web / "captions"))
    found = pairs.first(str(web / "tars"), captions, 4, 16)
    assert [r.key for r, _ in found] == ["k0", "k1", "k3", "k4"]
    assert len(pairs.first(str(web / "tars"), captions, 100, 16)) == 6
    (web / "others").mkdir()
    write_tar(web / "others" / "c.tar", [("k0", {"jpg": jpeg(web, 0), "txt": b"alt"})])
    with pytest.raises(UserError, match="were the captions made from another source"):
        pairs.first(str(web / "others"), captions, 4, 16)


def test_captions_that_cannot_be_used(web, flip):
    path = web / "captions"
    with pytest.raises(UserError, match="no folder of captions.*make it with `python -m dalle3lib"):
        pairs.open_captions(str(web / "nothing"))
    flip(path / "data" / "00000.parquet", 999)
    with pytest.raises(UserError, match="00000.parquet is damaged"):
        pairs.open_captions(str(path))
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["settings"]["captioners"]["ssc"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="holds no ssc captions"):
        pairs.open_captions(str(path))
    (path / "manifest.json").unlink()
    with pytest.raises(UserError, match="not finished: go on with"):
        pairs.open_captions(str(path))


# ---- the cache that is built from them -----------------------------------------------------------


@pytest.fixture
def cfg(web, foundations, monkeypatch) -> Parameters:
    """Parameters of a cache of five of the images, in shards of two, with the world's models."""
    monkeypatch.setattr(latents, "SHARD", 2)
    return parameters(web)


def parameters(web: Path, **changes) -> Parameters:
    values = {"data": str(web / "tars"), "scenes": 5, "noise": 0.5, "size": 64}
    values |= {"captions_from": str(web / "captions"), "precision": "float32"} | changes
    return Parameters("04a_train_arm", "gpu", values, root=web / "runs")


def test_a_cache_of_pairs(cfg, capsys):
    path = latents.build(cfg)
    said = capsys.readouterr().out
    assert "The cache takes about" in said and "5 of 5 images encoded, 3 left out" not in said
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["records"] == 5
    assert sorted(manifest["files"]) == [
        "shard-00000-000.safetensors", "shard-00000-001.safetensors", "shard-00001-000.safetensors",
    ]  # fmt: skip
    listed = (path / "left-out.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"] for line in listed} >= {"k2", "x0"}
    cache, (records, said) = latents.load(path), latents.first_records(cfg, 5)
    again = latents.encode_records(records, *latents._models(cfg), said_by(said))
    assert torch.allclose(cache.latents, again["latents"].float(), atol=2e-3)
    ends = again["lengths.dsc"].tolist()
    for one, other in zip(cache.states["dsc"], again["states.dsc"].split(ends), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=5e-3)
    assert cache.mean_tokens()["dsc"] == pytest.approx(np.mean(ends))


def said_by(said: dict) -> dict:
    return {kind: texts for kind, texts in said.items() if kind != "original"}


def test_an_interrupted_cache_goes_on_with_the_archive(cfg, monkeypatch):
    whole = {p.name: p.read_bytes() for p in latents.build(cfg).glob("shard-*")}
    path = latents.cache_path(cfg)
    for name in ("manifest.json", "done-00001.json", "shard-00001-000.safetensors"):
        (path / name).unlink()
    calls, encode = [], latents.encode_records

    def noted(records, *rest):
        calls.append([r.key for r in records])
        return encode(records, *rest)

    monkeypatch.setattr(latents, "encode_records", noted)
    latents.build(cfg)
    assert calls == [["k4", "k5"]]
    assert {p.name: p.read_bytes() for p in path.glob("shard-*")} == whole


def test_a_cache_on_disk_gives_what_the_one_in_memory_gives(cfg, monkeypatch):
    path = latents.build(cfg)
    memory = latents.load(path)
    monkeypatch.setattr(latents, "MEMORY", 0)
    disk = latents.load(path)
    assert isinstance(disk.latents, latents.StoredLatents)
    assert tuple(disk.latents.shape) == tuple(memory.latents.shape) and len(disk.latents) == 5
    rows = [4, 0, 3, 3]
    assert torch.equal(disk.latents[rows], memory.latents[rows])
    for kind, states in memory.states.items():
        assert len(disk.states[kind]) == 5
        assert all(torch.equal(a, b) for a, b in zip(disk.states[kind], states, strict=True))
    assert disk.mean_tokens() == memory.mean_tokens()
    (path / "shard-00001-000.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="has 5 bytes instead of"):
        latents.load(path)


def test_training_reads_the_same_batches_from_disk(cfg, monkeypatch):
    path, seen = latents.build(cfg), []

    def noted(model, *batch, min_snr):
        seen.append(batch)
        return torch.zeros((), requires_grad=True)

    monkeypatch.setattr(diffusion, "loss", noted)
    for memory in (0, 10**9):
        monkeypatch.setattr(latents, "MEMORY", memory)
        cache = latents.load(path)
        options = {"seed": 0, "batch": 4, "ratio": 50, "dropout": 0.1}
        states = cache.states["original"], cache.states["dsc"]
        diffusion.step_loss(None, cache.latents, *states, **options)(3)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(cfg, monkeypatch):
    usage = latents.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(latents.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="0.0 GB free, and the cache needs"):
        latents.build(cfg)
    assert not list(latents.cache_path(cfg).glob("shard-*"))


def test_captions_and_sizes_name_the_cache(web, cfg):
    base = latents.cache_path(cfg)
    assert latents.cache_path(parameters(web, size=128)) != base
    assert latents.cache_path(parameters(web, t5="google/t5-v1_1-xxl")) != base
    assert latents.cache_path(parameters(web, precision="bfloat16")) != base
    (web / "captions" / "manifest.json").write_text("{}")
    assert latents.cache_path(cfg) != base


def test_bytes_by_hand():
    tokens = {"original": 10.0, "ssc": 10.0, "dsc": 60.0}
    assert latents.bytes_of(1000, tokens, 1024, 32) == 1000 * (2 * 4096 + 80 * 1024 * 2)


# ---- images for evaluation only ------------------------------------------------------------------


def test_held_out_images_from_a_folder_with_captions_of_their_own(web):
    (web / "coco").mkdir()
    for i in range(4):
        (web / "coco" / f"{i}.jpg").write_bytes(jpeg(web, i))
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)],
        "annotations": [{"id": i, "image_id": i, "caption": f"human {i}"} for i in range(4)],
    }
    (web / "coco" / "captions.json").write_text(json.dumps(content))
    cfg = parameters(web, prompts_from=str(web / "coco"), prompt_captions="written")
    assert {r.alt for r in pairs.held_out(cfg, 10)} == {f"human {i}" for i in range(4)}
    assert all(r.descriptive is None for r in pairs.held_out(cfg, 2))
    parts = sources.list_shards(str(web / "coco"))
    rows = [{"key": i.key, "dsc": f"long {i.key}", "alt": i.alt} for i in parts[0].read()]
    out = web / "coco-captions"
    settings = {"captioners": {"dsc": "b"}, "shard size": 1000}
    shards.claim(out, settings)
    shards.finish(out, settings, [shards.write(out, parts[0], rows, [])])
    told = parameters(web, prompts_from=str(web / "coco"), prompt_captions=str(out))
    for record in pairs.held_out(told, 3):
        assert record.descriptive == f"long {record.key}" and record.image.shape == (64, 64, 3)
    shards.finish(out, settings, [shards.write(out, parts[0], rows[1:], [])])
    with pytest.raises(UserError, match="1 of 4 images of .* have no descriptive caption"):
        pairs.held_out(told, 10)
