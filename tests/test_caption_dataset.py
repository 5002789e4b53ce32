"""A dataset captioned by many workers that die: each image once, the bytes of a calm run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from test_captioning import solid
from test_tars import write_tar

from dalle3lib import UserError, files, paths, recaption, shards
from dalle3lib.__main__ import main
from dalle3lib.recaption import caption_dataset
from dalle3lib.world import World

SHORT = {"ssc": 5, "dsc": 6}


@pytest.fixture
def caption(foundations):
    """``caption_dataset`` with untrained captioners, short captions and shards of 4."""

    def call(source, destination, kinds=("dsc",), **options):
        lengths = {kind: SHORT[kind] for kind in kinds}
        return caption_dataset(
            str(source), destination, kinds, lengths=lengths, **{"shard_size": 4} | options
        )

    return call


def content(directory):
    """Every file of a folder by its name."""
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def keys(directory):
    return [
        k for p in sorted(directory.glob("data/*")) for k in pq.read_table(p)["key"].to_pylist()
    ]


def bad_entries(directory):
    return [json.loads(line) for line in (directory / "quarantine.jsonl").read_text().splitlines()]


@pytest.fixture
def photos(tmp_path):
    """Twenty images, the third and the tenth of which are damaged."""
    (tmp_path / "photos").mkdir()
    for i in range(20):
        image = solid(40 + i, 40)
        (tmp_path / "photos" / f"{i:02d}.png").write_bytes(image[:50] if i in (3, 10) else image)
    return tmp_path / "photos"


# ---- the whole -----------------------------------------------------------------------------------


def test_a_dataset_from_end_to_end(caption, photos, tmp_path, capsys):
    out = tmp_path / "out"
    manifest = caption(photos, out, ("ssc", "dsc"), max_bad=0.1)
    assert (manifest["captioned"], manifest["quarantined"]) == (18, 2)
    assert manifest["truncated share"] == {"ssc": 1, "dsc": 1}  # they know no end token
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert files.damage(out, manifest["files"]) is None
    assert keys(out) == [f"{i:02d}.png" for i in range(20) if i not in (3, 10)]
    assert [(e["shard"], e["key"]) for e in bad_entries(out)] == [
        ("00000", "03.png"),
        ("00002", "10.png"),
    ]
    assert {p.parts[0] for p in content(out) if ".shards" not in p.parts} == {
        "data", "README.md", "manifest.json", "quarantine.jsonl",
    }  # fmt: skip
    assert " 20/20 [" in capsys.readouterr().err  # bad images are dealt with, too


def test_datasets_reads_what_was_written(caption, tmp_path):
    out = tmp_path / "out"
    caption("world:test:6", out)
    named = datasets.load_dataset(
        "parquet", data_dir=str(out / "data"), split="train", cache_dir=tmp_path / "cache"
    )
    card = datasets.load_dataset(str(out), split="train", cache_dir=tmp_path / "cache")
    streamed = datasets.load_dataset(str(out), split="train", streaming=True)
    expected = [row for p in sorted(out.glob("data/*")) for row in pq.read_table(p).to_pylist()]
    assert named.to_list() == card.to_list() == list(streamed) == expected
    assert [row["key"] for row in expected] == [r.key for r in World("test", 6)]


def test_again_and_with_more_workers_the_bytes_are_the_same(caption, photos, tmp_path):
    caption(photos, tmp_path / "one", max_bad=0.1)
    before = content(tmp_path / "one")
    caption(photos, tmp_path / "one", max_bad=0.1)
    assert content(tmp_path / "one") == before
    caption(photos, tmp_path / "two", max_bad=0.1, workers=2)
    assert content(tmp_path / "two") == before


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_parts_of_a_job_array_make_the_whole(caption, photos, tmp_path, order, capsys):
    caption(photos, tmp_path / "whole", max_bad=0.1)
    for index in order[:2]:
        assert caption(photos, tmp_path / "parts", part=(index, 3), max_bad=0.1) is None
        assert not (tmp_path / "parts" / "manifest.json").exists()
    assert f"{5 - len(range(order[2], 5, 3))} of 5 shards are finished" in capsys.readouterr().out
    assert caption(photos, tmp_path / "parts", part=(order[2], 3), max_bad=0.1)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_a_repaired_source_is_captioned_anew_where_it_changed(
    caption, photos, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    caption(photos, out, max_bad=0.1)
    for i in (3, 10):
        (photos / f"{i:02d}.png").write_bytes(solid(40 + i, 40))
    for i in (18, 19):  # and the last shard becomes shorter
        (photos / f"{i:02d}.png").unlink()
    done = []
    one_shard = recaption.caption_shard
    monkeypatch.setattr(
        recaption, "caption_shard", lambda j: done.append(j.shard.name) or one_shard(j)
    )
    assert caption(photos, out)["captioned"] == 18
    assert done == ["00000", "00002", "00004"]
    for i in range(12, 18):
        (photos / f"{i:02d}.png").unlink()
    caption(photos, out)
    fresh = tmp_path / "fresh"
    caption(photos, fresh)
    assert content(out) == content(fresh)  # shards that the source no longer has are gone


def test_what_killed_writers_leave_behind_is_removed(caption, tmp_path):
    calm, out = tmp_path / "calm", tmp_path / "out"
    caption("world:test:4", calm)
    caption("world:test:4", out)
    (out / "manifest.json").unlink()
    for name in (
        "data/.00000.parquet.77.tmp",
        ".shards/.00000.json.77.tmp",
        ".manifest.json.7.tmp",
    ):
        (out / name).write_bytes(b"half")
    caption("world:test:4", out)
    assert content(out) == content(calm)


# ---- too many bad ones ---------------------------------------------------------------------------


def test_too_many_bad_images_stop_the_run(caption, photos, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught:
        caption(photos, out)
    said = str(caught.value)
    assert said.startswith("1 of 20 images (5.0%) cannot be captioned, more than 1.0% (")
    assert f"{out}/quarantine.jsonl lists them" in said and "--max-bad" in said
    assert not (out / "manifest.json").exists() and len(bad_entries(out)) == 1
    assert len(keys(out)) == 3  # the first shard; what is finished is kept
    with pytest.raises(UserError, match=r"2 of 20 images \(10.0%\)"):
        caption(photos, out, max_bad=0.05)
    assert caption(photos, out, max_bad=0.1)["captioned"] == 18


def test_a_bad_start_is_no_verdict_where_the_number_is_unknown(caption, tmp_path):
    (tmp_path / "t").mkdir()
    for i in range(3):
        members = [(f"{i}{j}.png", solid(32, 32) if i + j else b"") for j in range(40)]
        write_tar(tmp_path / "t" / f"{i}.tar", members)
    assert caption(tmp_path / "t", tmp_path / "out")["quarantined"] == 1  # of 40, in the end of 120


def test_a_damaged_archive_is_judged_among_archives(caption, tmp_path):
    (tmp_path / "t").mkdir()
    for i in range(4):
        write_tar(tmp_path / "t" / f"{i}.tar", [(f"{i}{j}.png", solid(32, 32)) for j in range(3)])
    path = tmp_path / "t" / "2.tar"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"1 of 4 archives \(25.0%\)"):
        caption(tmp_path / "t", tmp_path / "out")
    manifest = caption(tmp_path / "t", tmp_path / "out", max_bad=0.25)
    assert (manifest["captioned"], manifest["damaged archives"]) == (10, 1)
    (entry,) = bad_entries(tmp_path / "out")
    assert (entry["key"], entry["file"]) == (None, "2.tar")


def test_no_image_at_all(caption, tmp_path):
    write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(UserError, match="holds no images"):
        caption(tmp_path / "empty.tar", tmp_path / "out")


# ---- mistakes ------------------------------------------------------------------------------------


def test_a_folder_of_other_settings_is_left_alone(caption, photos, tmp_path):
    out = tmp_path / "out"
    caption("world:test:4", out)
    before = content(out)
    for change in ({"kinds": ("ssc",)}, {"batch_size": 3}, {"source": "world:test:5"}):
        with pytest.raises(UserError, match="made with other settings.*choose another folder"):
            caption(**{"source": "world:test:4", "destination": out} | change)
    with pytest.raises(UserError, match="holds other files: choose a new or empty folder"):
        caption("world:test:4", photos)
    assert content(out) == before and len(list(photos.iterdir())) == 21  # and .shards


def test_mistakes_on_the_command_line(foundations, tmp_path, capsys):
    for arguments, message in (
        ("pipe:ls OUT --kind dsc", "would run a program"),
        ("world:test:2 OUT --kind dsc --shard-index 3 --num-shards 3", "no part 3 of 3"),
        ("world:test:2 OUT --kind dsc --captioner dsc=nowhere", "no captioner in nowhere"),
        ("world:test:2 OUT --kind dsc --captioner alt=nowhere", "no kind of caption 'alt'"),
        ("world:test:2 OUT --kind dsc --max-len dsc=many", "needs a number of tokens"),
        ("world:test:2 OUT --kind dsc --workers 0", "must be at least 1"),
        ("world:test:2 OUT --kind dsc --batch-size 0", "must be at least 1"),
        ("world:test:2 OUT --kind dsc --max-len dsc=99", "context holds 1 to 48"),
    ):
        out = str(tmp_path / "out")
        assert main(["recaption", *arguments.replace("OUT", out).split()]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("error: ") and message in said


def test_a_lock_waits_until_its_holder_dies(tmp_path):
    path = tmp_path / ".shards" / "00000.lock"
    hold = (
        "import pathlib, sys, time; from dalle3lib import shards\n"
        "with shards.lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", hold, str(path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=paths.ROOT)
    assert holder.stdout.readline() == b"held\n"
    began = time.time()
    killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {holder.pid}"])
    with shards.lock(path):
        assert time.time() - began > 0.9
    killer.wait()
    holder.wait()


# ---- killed --------------------------------------------------------------------------------------


def start(source, out, *options, foundation):
    """The command in a process group of its own, with untrained captioners."""
    command = [sys.executable, "-m", "dalle3lib", "recaption", source, str(out), "--kind", "dsc"]
    command += ["--shard-size", "8", *options]
    environment = os.environ | {"DALLE3_FOUNDATION": str(foundation), "PYTHONPATH": str(paths.ROOT)}
    log = open(out.with_suffix(".log"), "ab")  # noqa: SIM115
    return subprocess.Popen(
        command,
        env=environment,
        stderr=log,
        stdout=log,
        cwd=out.parent,
        preexec_fn=heed_interruptions,
    )


def heed_interruptions():
    """What a shell starts in the background ignores SIGINT, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def local_workers(process):
    """The processes that caption: children of the fork server, not the server itself."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if child.ppid() != process.pid]


def ray_workers(process):
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if any("ray::one_thread" in part for part in child.cmdline())]


def kill_at_random(begin, out, workers, kills, seed=0):
    """Begin again and again; kill a worker, or every third time the one who gives the work."""
    rng = np.random.default_rng(seed)
    process, killed = begin(), 0
    while killed < kills:
        before = len(list(out.glob(".shards/0*.json")))
        while process.poll() is None and len(list(out.glob(".shards/0*.json"))) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        if process.poll() is not None:
            break  # finished before all kills were spent
        try:
            if killed % 3 == 1:
                process.send_signal(signal.SIGKILL)
                process.wait()
                process = begin()
            else:
                rng.choice(workers(process)).send_signal(signal.SIGKILL)
            killed += 1
        except (psutil.NoSuchProcess, ValueError):  # no worker at this moment
            continue
    assert process.wait(timeout=300) == 0, out.with_suffix(".log").read_text()[-2000:]
    return killed


def check_killed(out, count, calm):
    """Every image once, and the bytes of an uninterrupted run in one process."""
    assert keys(out) == [r.key for r in World("train", count)]
    assert recaption.caption_dataset(f"world:train:{count}", calm, ["dsc"], shard_size=8)
    assert content(out) == content(calm)


@pytest.mark.parametrize(
    ("count", "kills"),
    [(400, 2), pytest.param(4000, 25, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
def test_killed_workers_lose_nothing(foundations, tmp_path, count, kills):
    out = tmp_path / "out"

    def begin():
        return start(f"world:train:{count}", out, "--workers", "2", foundation=foundations)

    assert kill_at_random(begin, out, local_workers, kills) == kills
    check_killed(out, count, tmp_path / "calm")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("count", "kills"), [(160, 1), pytest.param(400, 3, marks=pytest.mark.soak)]
)
def test_a_ray_cluster_with_killed_workers(foundations, tmp_path, count, kills):
    out = tmp_path / "out"

    def begin():
        return start(f"world:train:{count}", out, "--runner", "ray", foundation=foundations)

    assert kill_at_random(begin, out, ray_workers, kills) == kills
    check_killed(out, count, tmp_path / "calm")


def test_two_calls_at_once_share_the_work(foundations, tmp_path):
    out = tmp_path / "out"
    both = [start("world:train:48", out, foundation=foundations) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    check_killed(out, 48, tmp_path / "calm")


def test_an_interruption_is_one_line(tiny_foundation, tmp_path):
    out = tmp_path / "out"
    process = start("world:train:20000", out, "--workers", "2", foundation=tiny_foundation)
    while not list(out.glob(".shards/0*.json")):
        time.sleep(0.05)
    workers = local_workers(process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    said = out.with_suffix(".log").read_text()
    # Python itself may add a warning about what killed workers held; we add one line, no more.
    told = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and told[0].startswith("error: interrupted; the same command goes on")
    assert "Traceback" not in said
    psutil.wait_procs(workers, timeout=20)
    assert not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers)
    assert "images/s" in said and Path(out / "data").is_dir()
