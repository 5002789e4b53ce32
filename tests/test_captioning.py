"""One shard: what is captioned, what is quarantined and why, and the numbers beside a caption."""

import hashlib
import io
import struct
import zlib
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dalle3lib import UserError, captioner, captioning, images, shards
from dalle3lib.captioning import Job, caption_shard
from dalle3lib.images import Limits
from dalle3lib.sources import Shard, list_shards
from dalle3lib.world import World


@pytest.fixture
def job(tiny_foundation, tmp_path):
    """A maker of jobs that caption a shard with untrained captioners into a folder ``out``."""

    def make(shard, kinds=("dsc",), length=6, **options):
        directories = {kind: tiny_foundation / f"coca-{kind}" for kind in kinds}
        lengths = dict.fromkeys(kinds, length)
        return Job(shard, tmp_path / "out", directories, lengths, **{"batch_size": 16} | options)

    return make


def encoded(rng, kind, side=48):
    buffer = io.BytesIO()
    smooth = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(smooth).resize((side, side)).save(buffer, kind)
    return buffer.getvalue()


def rows(directory, name="00000"):
    return pq.read_table(directory / "data" / f"{name}.parquet").to_pylist()


def test_the_rows_of_a_shard(job, tmp_path):
    (shard,) = list_shards("world:test:5")
    mark = caption_shard(job(shard, kinds=("ssc", "dsc"), batch_size=2))
    table = pq.read_table(tmp_path / "out" / "data" / "00000.parquet")
    assert table.schema.equals(shards.SCHEMA)
    found, records = table.to_pylist(), list(World("test", 5))
    assert [row["key"] for row in found] == [r.key for r in records]
    assert [row["alt"] for row in found] == [r.alt for r in records]
    assert [row["sha256"] for row in found] == [
        hashlib.sha256(r.image.tobytes()).hexdigest() for r in records
    ]
    for kind in shards.KINDS:
        model, tokenizer = captioner.load(job(shard, kinds=(kind,)).captioners[kind])
        stacked = np.stack([r.image for r in records])
        expected = captioner.caption(model, tokenizer, stacked, max_len=6)
        assert [row[kind] for row in found] == expected
    assert (mark["rows"], mark["quarantined"], mark["truncated"]) == (5, [], {"ssc": 5, "dsc": 5})


def test_a_kind_not_asked_for_is_null(job, tmp_path):
    (shard,) = list_shards("world:test:2")
    caption_shard(job(shard, kinds=("ssc",)))
    for row in rows(tmp_path / "out"):
        assert row["dsc"] is row["dsc_log_probability"] is row["dsc_truncated"] is None
        assert row["ssc"] and row["ssc_truncated"] is True


def test_again_is_free_and_the_same(job, tmp_path, monkeypatch):
    (shard,) = list_shards("world:test:3")
    first = caption_shard(job(shard))
    before = (tmp_path / "out" / "data" / "00000.parquet").read_bytes()
    monkeypatch.setattr(captioning, "_captioner", None)  # nothing is captioned a second time
    assert caption_shard(job(shard)) == first
    monkeypatch.undo()
    (tmp_path / "out" / "data" / "00000.parquet").write_bytes(before[:-1])
    assert caption_shard(job(shard)) == first  # the damage was noticed
    assert (tmp_path / "out" / "data" / "00000.parquet").read_bytes() == before
    changed = list_shards("world:test:4")[0]
    assert caption_shard(job(changed))["rows"] == 4  # and so is another content


def test_captioners_of_different_sizes(job, monkeypatch):
    with pytest.raises(UserError, match="different sizes: run one kind at a time"):
        model = captioner.load(job(None).captioners["dsc"])[0]
        other = captioner.load(job(None).captioners["dsc"])[0]
        other.visual.image_size = (32, 32)
        captioning._image_size([model, other])


# ---- bad images ----------------------------------------------------------------------------------


def bomb(width, height):
    """A PNG whose header claims many pixels, with hardly any data behind it."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def solid(width, height, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "no JPEG, PNG or WebP"),
        (solid(50, 50, "GIF"), "no JPEG, PNG or WebP"),
        (solid(50, 50)[:60], ""),
        (solid(50, 50, "JPEG")[:400], ""),
        (bomb(9_500, 9_500), "header claims over 89,478,485 pixels"),
        (bomb(50_000, 50_000), "header claims over 89,478,485 pixels"),
        (solid(1, 1), "1 x 1 pixels are too few"),
        (solid(15, 200), "15 x 200 pixels are too few"),
        (solid(20, 201), "20 x 201 pixels: longer than 10 to 1"),
    ],
)
def test_bad_images_are_quarantined_with_the_reason(job, tmp_path, content, reason):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_bytes(content)
    (tmp_path / "in" / "good.png").write_bytes(solid(50, 50))
    (shard,) = list_shards(str(tmp_path / "in"))
    mark = caption_shard(job(shard))
    (bad,) = mark["quarantined"]
    assert (bad["shard"], bad["key"], bad["file"]) == ("00000", "bad.png", "bad.png")
    assert reason in bad["reason"] and bad["reason"]
    assert [row["key"] for row in rows(tmp_path / "out")] == ["good.png"]


def test_a_bomb_is_judged_by_its_header_alone(job, tmp_path, monkeypatch):
    """No pixel of an image over the limit is decoded; the limit is the job's."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "large.png").write_bytes(solid(200, 200))

    def never(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(images, "to_rgb", never)
    monkeypatch.setattr(Image.Image, "load", never)
    (shard,) = list_shards(str(tmp_path / "in"))
    mark = caption_shard(job(shard, limits=Limits(max_pixels=39_999)))
    assert mark["quarantined"][0]["reason"] == "its header claims over 39,999 pixels"


def test_a_limit_beyond_what_pillow_reads():
    with pytest.raises(UserError, match="cannot be 999,999,999: choose a lower one"):
        Limits(max_pixels=999_999_999)


def decodes(content):
    """Whether Pillow, asked plainly, gives all pixels of an image."""
    try:
        with Image.open(io.BytesIO(content), formats=images.FORMATS) as image:
            image.convert("RGB")
            return min(image.size) >= 16 and max(image.size) <= 10 * min(image.size)
    except Exception:
        return False


def damaged(content, rng):
    """A cut copy of an image file, or one with a few flipped bits; and whether it was cut."""
    data = bytearray(content)
    if rng.random() < 0.5:
        return bytes(data[: rng.integers(int(0.95 * len(data)))]), True
    for bit in rng.integers(0, 8 * len(data), rng.integers(1, 6)):
        data[bit // 8] ^= 1 << bit % 8
    return bytes(data), False


@pytest.mark.filterwarnings("ignore")  # Pillow warns about damaged metadata
@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.soak)])
def test_the_quarantine_of_fuzzed_images_is_exact(job, tmp_path, count):
    (tmp_path / "in").mkdir()
    good, cut = set(), set()
    for seed in range(count):
        rng = np.random.default_rng(seed)
        content = encoded(rng, ("PNG", "JPEG", "WEBP")[seed % 3])
        if seed % 4:
            content, was_cut = damaged(content, rng)
            cut |= {f"{seed:03d}"} if was_cut else set()
        if decodes(content):
            good.add(f"{seed:03d}")
        (tmp_path / "in" / f"{seed:03d}.png").write_bytes(content)
    (shard,) = list_shards(str(tmp_path / "in"))
    mark = caption_shard(job(shard, batch_size=64))
    captioned = [row["key"].removesuffix(".png") for row in rows(tmp_path / "out")]
    bad = [entry["key"].removesuffix(".png") for entry in mark["quarantined"]]
    assert sorted(captioned + bad) == [f"{seed:03d}" for seed in range(count)]  # each once
    assert set(captioned) == good and cut <= set(bad)
    assert bad == sorted(bad) and all(entry["reason"] for entry in mark["quarantined"])
    assert len(bad) > count / 5


def test_the_photographs_are_captioned(job, benchmarks, tmp_path):
    (shard,) = list_shards(str(benchmarks / "coco-mini"))
    mark = caption_shard(job(shard, kinds=("ssc", "dsc")))
    assert mark["rows"] == 26 and mark["quarantined"] == []
    for row in rows(tmp_path / "out"):
        (file,) = (benchmarks / "coco-mini").rglob(row["key"])
        assert row["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert row["alt"] and row["ssc"] and row["dsc"]


def test_pictures_of_another_size_are_resized():
    picture = np.zeros((32, 96, 3), np.uint8)
    picture[:, 32:64] = 255  # the centre square is white
    assert (images.decode(picture, 64) == 255).mean() > 0.9
    assert images.decode(picture[:, :32], 32).shape == (32, 32, 3)


def nothing():
    return iter(())


def test_an_empty_shard_is_a_table_without_rows(job, tmp_path):
    mark = caption_shard(job(Shard("00000", "empty.tar", "x", None, partial(nothing))))
    assert mark["rows"] == 0 and rows(tmp_path / "out") == []
