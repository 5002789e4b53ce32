"""Run directories: complete or not there, resumed or cleared, and never half-written."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dalle3lib import UserError, config, files, fingerprint, paths, runs

ARM = 'kind: str = "dsc"  # caption kind\nseed: int = 0  # training seed\nsteps: int = 5  # steps\n'
OPEN = (
    "from dalle3lib import config, runs\n"
    'cfg = config.resolve("04a_train_arm", globals())\n'
    'run = runs.open_run(cfg, "kind", "seed")'
)


@pytest.fixture
def arm(tiny):
    """The parameters of a tiny notebook whose runs are named by kind and seed."""
    tiny("04a_train_arm", ARM, OPEN)
    return lambda **explicit: config.from_preset("04a_train_arm", **explicit)


@pytest.fixture
def finished(arm):
    """The directory of a complete run with two payload files and a checkpoint."""
    run = runs.open_run(arm(), "kind", "seed")
    (run.path / "samples").mkdir()
    (run.path / "samples" / "a.npy").write_bytes(bytes(range(200)))
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "step-5").write_bytes(b"weights")
    run.log(step=1, loss=0.5)
    run.finish({"score": 21.5})
    return run.path


@pytest.fixture
def base(arm):
    """The parameters of the arm as the notebook and the preset set them."""
    return arm()


# --- names ---------------------------------------------------------------------------------------


def test_a_run_is_named_by_its_identity_and_its_overrides(arm):
    assert runs.run_id(arm(), "kind", "seed") == "dsc-0"
    assert runs.run_id(arm(kind="ssc", seed=3), "kind", "seed") == "ssc-3"
    assert runs.run_id(arm()) == "main"
    other = runs.run_id(arm(seed=3, steps=6), "kind", "seed")
    assert other == f"dsc-3-{files.digest({'steps': 6})[:8]}"
    assert fingerprint.identity_names("04a_train_arm") == ("kind", "seed")


@given(kind=st.text(alphabet="a/.-_0é\0", max_size=5), seed=st.integers())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_never_leaves_its_directory(base, kind, seed):
    cfg = replace(base, values=base.values | {"kind": kind, "seed": seed})
    try:
        path = runs.run_path(cfg, "04a_train_arm", kind, seed)
    except UserError as error:
        assert "A run cannot be called" in str(error)
    else:
        assert path.resolve().parent == cfg.root / "04a_train_arm"
        assert path.name == runs.run_id(cfg, "kind", "seed")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=3), VALUES), st.randoms())
def test_a_digest_ignores_order_and_nothing_else(table, random):
    shuffled = list(table.items())
    random.shuffle(shuffled)
    assert files.digest(dict(shuffled)) == files.digest(table)
    assert files.digest(table | {"another name": 1}) != files.digest(table)


# --- complete or not -----------------------------------------------------------------------------


def test_a_manifest_tells_how_the_run_was_made(finished, arm):
    manifest = runs.load(finished)
    assert manifest["run"] == "dsc-0" and manifest["notebook"] == "04a_train_arm"
    assert manifest["parameters"] == arm().values and manifest["seed"] == 0
    assert sorted(manifest["files"]) == ["metrics.jsonl", "results.json", "samples/a.npy"]
    assert manifest["files"]["samples/a.npy"]["size"] == 200
    assert manifest["started"] <= manifest["finished"] and manifest["finished"].endswith("+00:00")
    assert manifest["wall_seconds"] >= 0 and manifest["peak_memory_bytes"] > 2**20
    assert manifest["packages"]["numpy"] == np.__version__ and manifest["threads"] >= 1
    assert manifest["cpu"]["model"] and manifest["resumed"] is False
    assert runs.results(finished) == {"score": 21.5}
    assert json.loads((finished / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5}
    assert runs.find(arm(), "04a_train_arm", "dsc", 0) == finished


def test_results_hold_numpy_values_but_no_nan(arm):
    run = runs.open_run(arm(), "kind", "seed")
    run.finish({"mean": np.float32(0.5), "curve": np.arange(3), "path": Path("a/b")})
    assert runs.results(run.path) == {"mean": 0.5, "curve": [0, 1, 2], "path": "a/b"}
    run = runs.open_run(arm(), "kind", "seed")
    with pytest.raises(UserError, match="NaN or infinite"):
        run.finish({"mean": np.nan})
    with pytest.raises(UserError, match="no manifest.json"):
        runs.load(run.path)


def test_a_missing_run_names_the_command_that_makes_it(arm):
    command = "run 04a_train_arm -p preset smoke -p data world -p kind ssc -p seed 2`"
    with pytest.raises(UserError, match=command):
        runs.find(arm(), "04a_train_arm", "ssc", 2)
    with pytest.raises(UserError, match="No complete run"):
        runs.load(arm().root / "04a_train_arm" / "ssc-2")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bit=st.integers(0, 2**16),
    name=st.sampled_from(["manifest.json", "results.json", "samples/a.npy", "metrics.jsonl"]),
)
def test_one_flipped_bit_is_noticed(finished, flip, bit, name):
    whole = runs.load(finished)
    flip(finished / name, bit)
    try:
        read = runs.load(finished)
    except UserError as error:
        assert str(finished) in str(error) and "damaged" in str(error)
    else:  # the flip of a case bit in 1e-05 changes the spelling of a number, not its value
        assert name == "manifest.json" and read == whole
    flip(finished / name, bit)
    assert runs.load(finished) == whole


def test_a_missing_or_short_payload_is_noticed(finished):
    payload = finished / "samples" / "a.npy"
    payload.write_bytes(payload.read_bytes()[:-1])
    with pytest.raises(UserError, match="a.npy has 199 bytes instead of 200; delete it and run it"):
        runs.load(finished)
    payload.unlink()
    with pytest.raises(UserError, match="a.npy is missing"):
        runs.load(finished)


# --- resumed or cleared --------------------------------------------------------------------------


def test_the_same_fingerprint_keeps_the_checkpoints(finished, arm, capsys):
    run = runs.open_run(arm(), "kind", "seed")
    assert run.reused and run.path == finished
    assert (finished / "checkpoints" / "step-5").read_bytes() == b"weights"
    assert not (finished / "manifest.json").exists()  # not complete until it finishes again
    assert not (finished / "metrics.jsonl").exists()  # a resumed loop returns its whole history
    run.finish({"score": 21.5})
    assert runs.load(finished)["resumed"] is True
    assert f"Run 04a_train_arm/dsc-0 is complete: {finished}" in capsys.readouterr().out


def test_changed_parameters_code_or_inputs_clear_the_payload(finished, arm, tiny, monkeypatch):
    def reopened():
        (finished / "checkpoints").mkdir(exist_ok=True)
        (finished / "left.tmp").touch()
        run = runs.open_run(arm(), "kind", "seed")
        assert not (finished / "left.tmp").exists()
        return run.reused and (finished / "checkpoints").exists()

    assert reopened()
    tiny("04a_train_arm", ARM.replace("= 5", "= 6"), OPEN)  # another default
    assert not reopened() and reopened()
    tiny("04a_train_arm", ARM, OPEN + "\nx = 1")  # another statement
    assert not reopened() and reopened()
    tiny("04a_train_arm", ARM, OPEN + "\nx = 1  # a comment")
    assert reopened()
    monkeypatch.setenv("DALLE3_FOUNDATION", str(finished.parent / "foundation"))
    (finished.parent / "foundation" / "vae").mkdir(parents=True)
    (finished.parent / "foundation" / "vae" / "manifest.json").write_text("{}")
    assert not reopened() and reopened()


def test_a_run_depends_on_the_runs_it_uses(finished, arm):
    (finished / "samples" / "a.npy").read_bytes()
    first = runs.open_run(arm(seed=1), "kind", "seed", uses=[finished])
    assert runs.open_run(arm(seed=1), "kind", "seed", uses=[finished]).reused
    run = runs.open_run(arm(), "kind", "seed")
    run.finish({"score": 99})
    assert not runs.open_run(arm(seed=1), "kind", "seed", uses=[finished]).reused
    assert first.path.is_dir()


def test_a_folder_of_images_is_an_input(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    before = fingerprint.inputs_fingerprint(str(tmp_path))
    assert fingerprint.inputs_fingerprint(str(tmp_path)) == before
    (tmp_path / "b.jpg").write_bytes(b"2")
    assert fingerprint.inputs_fingerprint(str(tmp_path)) != before


def test_the_study_is_an_input_of_chapters_that_take_evidence_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    file = tmp_path / "data" / "study" / "main" / "dsc-95-100.parquet"
    file.parent.mkdir(parents=True)
    before = [fingerprint.inputs_fingerprint("world", values=v) for v in ({"evidence": "none"}, {})]
    file.write_bytes(b"1")
    after = [fingerprint.inputs_fingerprint("world", values=v) for v in ({"evidence": "none"}, {})]
    assert before[0] != after[0] and before[1] == after[1]


def test_a_folder_that_a_parameter_names_is_an_input(tmp_path):
    named = {"captions_from": str(tmp_path), "steps": 3, "vae": "world"}
    before = fingerprint.inputs_fingerprint("world", values=named)
    assert before == fingerprint.inputs_fingerprint("world")  # nothing is there yet
    (tmp_path / "manifest.json").write_text("{}")
    after = fingerprint.inputs_fingerprint("world", values=named)
    (tmp_path / "manifest.json").write_text("[]")
    assert len({before, after, fingerprint.inputs_fingerprint("world", values=named)}) == 3


def test_a_text_that_no_file_could_be_called_names_no_folder():
    values = {"prompt": "a red star above a blue moon and " * 20}
    assert fingerprint.inputs_fingerprint("world", values=values) == (
        fingerprint.inputs_fingerprint("world")
    )


# --- code fingerprints ---------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, tiny, monkeypatch):
    """A tiny package: ``a`` imports ``b`` lazily, ``sub`` imports ``c``, ``d`` is alone."""
    texts = {
        "a.py": "def f():\n    from dalle3lib.b import g\n    return g()\n",
        "b.py": '"""Doc."""\n\n\ndef g():\n    """Doc."""\n    return 1\n',
        "c.py": "x = 1\n",
        "d.py": "x = 1\n",
        "sub/__init__.py": "from .part import y\n",
        "sub/part.py": "from .. import c\n\ny = c.x\n",
    }
    folder = tmp_path / "dalle3lib"
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    tiny("01_world", "", "%matplotlib inline\nfrom dalle3lib import a", "import dalle3lib.sub.part")

    def edited(name: str, old: str, new: str) -> bool:
        fingerprint._module.cache_clear()
        before = fingerprint.code_fingerprint("01_world")
        (folder / name).write_text((folder / name).read_text().replace(old, new))
        fingerprint._module.cache_clear()
        return fingerprint.code_fingerprint("01_world") != before

    yield edited
    fingerprint._module.cache_clear()


def test_only_code_that_is_used_changes_a_fingerprint(package):
    assert package("a.py", "return g()", "return g() + 1")
    assert package("b.py", "return 1", "return 2")
    assert package("c.py", "x = 1", "x = 2")
    assert package("sub/part.py", "y = c.x", "y = c.x + 1")
    assert package("sub/__init__.py", "import y", "import y as z")
    assert not package("d.py", "x = 1", "x = 2")
    assert not package("b.py", "return 2", "# a comment\n    return 2  # another")
    assert not package("b.py", '"""Doc."""', '"""Another text."""')
    assert package("b.py", "def g():", "def g(x=1):")


def test_prose_of_a_notebook_changes_no_fingerprint(tiny):
    path = tiny("01_world", "", "x = 1")
    before = fingerprint.code_fingerprint("01_world")
    path.write_text(path.read_text().replace("# 01_world", "# Another title"))
    assert fingerprint.code_fingerprint("01_world") == before
    path.write_text(path.read_text().replace("x = 1", "x = 2"))
    assert fingerprint.code_fingerprint("01_world") != before


# --- full disks, missing permission, killed writers, locks ---------------------------------------


def failing(number: int):
    """Return a function that fails as the operating system does."""

    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "cause"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"),
     (errno.EACCES, "no permission"), (errno.EROFS, "no permission")],
)  # fmt: skip
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch, number, cause, call):
    path = tmp_path / "results.json"
    files.write_atomic(path, b"old")
    monkeypatch.setattr(os, call, failing(number))
    with pytest.raises(UserError, match=f"Cannot write {path}: .*{cause}.*DALLE3_RUNS.*is kept"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["results.json"]


def test_other_errors_are_not_disguised(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.write_atomic(tmp_path / "a", b"new")
    with pytest.raises(UserError, match="^The cause$"), files.guard(tmp_path):
        raise UserError("The cause")


def test_a_rust_library_out_of_space_is_understood(tmp_path):
    with pytest.raises(UserError, match="the disk is full"), files.guard(tmp_path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    code = (
        "import resource, sys; from dalle3lib import files, UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: files.write_atomic(sys.argv[1], bytes(10**6))\n"
        "except UserError as error: sys.exit(str(error))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, cwd=paths.ROOT
    )
    assert done.returncode == 1 and "the disk is full" in done.stderr
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["weights"]


def test_a_runs_directory_that_cannot_be_made_is_named(arm, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DALLE3_RUNS", str(tmp_path / "file" / "runs"))
    with pytest.raises(UserError, match="no permission to write there.*DALLE3_RUNS"):
        runs.open_run(arm(), "kind", "seed")


def test_a_full_disk_at_the_end_leaves_no_complete_run_but_its_payload(arm, monkeypatch):
    run = runs.open_run(arm(), "kind", "seed")
    (run.path / "checkpoints").mkdir()
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", failing(errno.ENOSPC))
        with pytest.raises(UserError, match="the disk is full"):
            run.finish({})
    assert not (run.path / "manifest.json").exists()
    again = runs.open_run(arm(), "kind", "seed")
    assert again.reused and (run.path / "checkpoints").is_dir()
    again.finish({})
    assert runs.load(run.path)


def test_a_killed_writer_leaves_one_whole_file(tmp_path):
    path = tmp_path / "weights"
    contents = [bytes([value]) * 300_000 for value in (1, 2)]
    path.write_bytes(contents[0])
    for delay in np.random.default_rng(0).uniform(0, 0.05, 20):
        writer = os.fork()
        while writer == 0:  # the child writes until it is killed
            for content in contents:
                files.write_atomic(path, content)
        time.sleep(delay)
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        assert path.read_bytes() in contents


HOLD = (
    "import sys, time\nfrom dalle3lib import config, runs\n"
    'run = runs.open_run(config.from_preset("04a_train_arm"), "kind", "seed")\n'
    "print('held', flush=True)\nsys.stdin.readline()\nrun.finish({'by': sys.argv[1]})\n"
)


def start(name: str) -> subprocess.Popen:
    """Start a process that opens the run, says so, and finishes it when told."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", HOLD, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=paths.ROOT,
    )


@pytest.mark.parametrize("how", ["finished", "killed"])
def test_a_second_process_waits_for_the_first(arm, how):
    first = start("first")
    assert first.stdout.readline() == "held\n"
    path = runs.run_path(arm(), "04a_train_arm", "dsc", 0)
    assert runs.busy(path)
    second = start("second")
    assert "Another process is working on" in second.stdout.readline()
    if how == "killed":
        first.send_signal(signal.SIGKILL)
    else:
        first.communicate("go\n")
    assert second.stdout.readline() == "held\n"
    first.wait()
    second.communicate("go\n")
    assert second.returncode == 0 and not runs.busy(path)
    assert runs.results(runs.find(arm(), "04a_train_arm", "dsc", 0)) == {"by": "second"}


def test_a_cell_run_twice_does_not_wait_for_itself(arm):
    runs.open_run(arm(), "kind", "seed")
    runs.open_run(arm(), "kind", "seed").finish({})


def test_reading_runs_needs_no_heavy_library():
    code = "import sys, dalle3lib.__main__, dalle3lib.pages; print({*sys.argv} & {*sys.modules})"
    heavy = ["torch", "pandas", "papermill", "transformers", "diffusers", "nbformat"]
    command = [sys.executable, "-c", code, *heavy]
    done = subprocess.run(command, capture_output=True, text=True, cwd=paths.ROOT)
    assert done.stdout == "set()\n"
