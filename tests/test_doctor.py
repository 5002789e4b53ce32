"""The doctor: each line in the presence and in the absence of what it looks for."""

import builtins
import json
import shutil
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from dalle3lib import UserError, doctor, files, paths, plan


def states(findings) -> dict[str, str]:
    return {finding.what: finding.state for finding in findings}


@pytest.fixture
def one_foundation(tmp_path, monkeypatch):
    """A single whole foundation in the place of all: the file with its weights."""
    from dalle3lib import foundation

    weights = tmp_path / "vae" / "weights"
    weights.parent.mkdir()
    weights.write_bytes(b"abc")
    listed = {"files": files.listing(weights.parent, [weights])}
    (weights.parent / "manifest.json").write_text(json.dumps(listed))
    monkeypatch.setenv("DALLE3_FOUNDATION", str(tmp_path))
    monkeypatch.setattr(foundation, "NAMES", ("vae",))
    return weights


# ---- Python and packages -------------------------------------------------------------------------


def test_the_version_of_python_that_the_package_asks_for_and_the_one_below():
    assert doctor.python((3, 11, 0)).state == doctor.python((3, 14, 1)).state == "ok"
    old = doctor.python((3, 10, 9))
    assert old.state == "lacks" and "3.10.9, older than 3.11" in old.said
    assert "make book PYTHON=python3.11" in old.cure


def test_packages_here_absent_and_of_another_version(monkeypatch):
    assert states(doctor.packages(["numpy", "pyyaml>=6,<7"])) == {"packages": "ok"}
    (lacking,) = doctor.packages(["numpy>=2", "no-such-package==1"])
    assert lacking.state == "lacks" and lacking.said == "not installed: no-such-package"
    assert "make book" in lacking.cure
    monkeypatch.setattr(metadata, "version", lambda name: "0.1+cpu")
    (other,) = doctor.packages(["numpy"])
    assert other.state == "note" and "numpy 0.1 (tested: " in other.said


def test_a_build_for_the_cpu_is_the_tested_version(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: doctor.pins()[name] + "+cpu")
    assert states(doctor.packages(["torch==2.14.1"])) == {"packages": "ok"}


def test_every_dependency_is_looked_for():
    (finding,) = (f for f in doctor.packages() if f.state != "note")
    wanted = len(doctor._project()["dependencies"])
    assert finding.state == "ok" and f"all {wanted} " in finding.said


def test_a_python_without_packages_gets_an_answer_too():
    """Whatever is asked: ``-S`` and ``-I`` hide everything that is installed."""
    script = f"import sys; sys.path.insert(0, {str(paths.ROOT)!r}); sys.argv[1:] = ['run', 'x']\n"
    script += "import runpy; runpy.run_module('dalle3lib', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "lacks packages          not installed: torch, torchvision" in done.stdout
    assert "cannot run here yet: packages." in done.stdout and "Traceback" not in done.stderr


# ---- the machine ---------------------------------------------------------------------------------


def test_a_torch_that_breaks_on_import_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # then the import raises
    broken = doctor.device()
    assert broken.state == "lacks" and broken.said.startswith("cannot be imported (")


def test_gpus_are_named_with_their_memory(monkeypatch):
    card = SimpleNamespace(name="A card", total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: card)
    assert doctor.device().said.endswith("A card with 80 GB, A card with 80 GB")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "no GPU" in doctor.device().said and doctor.device().state == "ok"


def test_memory_of_the_machine_and_of_a_container(tmp_path):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    cgroup.mkdir()
    (proc / "meminfo").write_text("MemTotal:  8000 kB\nMemFree:  10 kB\nMemAvailable:  6000 kB\n")
    assert doctor.free_memory(proc, cgroup) == (6000 * 1024, 8000 * 1024)
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("1024\n")
    assert doctor.free_memory(proc, cgroup) == (6000 * 1024, 8000 * 1024)
    (cgroup / "memory.max").write_text("4096\n")
    assert doctor.free_memory(proc, cgroup) == (3072, 4096)


@pytest.mark.parametrize(
    ("free", "total", "state"), [(9, 9, "ok"), (1, 9, "note"), (1, 3, "lacks")]
)
def test_too_little_memory_is_a_lack_and_a_busy_machine_a_note(monkeypatch, free, total, state):
    monkeypatch.setattr(doctor, "free_memory", lambda: (free * 1e9, total * 1e9))
    assert doctor.memory(4e9).state == state


def test_disk_where_runs_go(runs_root):
    assert doctor.disk(1).state == "ok" and str(runs_root) in doctor.disk(1).said
    full = doctor.disk(1e18)
    assert full.state == "lacks" and "DALLE3_RUNS" in full.cure
    runs_root.write_text("a file")
    assert doctor.disk(1).state == "lacks"


def test_programs_found_and_not(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert set(states(doctor.programs()).values()) == {"ok"}
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = list(doctor.programs())
    assert states(found) == {"git": "note", "make": "note", "browser": "note"}
    assert all("apt-get install" in finding.cure for finding in found)


# ---- what comes with the repository --------------------------------------------------------------


def test_foundations_whole_damaged_and_absent(one_foundation, flip):
    assert doctor.foundations().said.startswith("1 models, all intact")
    flip(one_foundation, 3)
    damaged = doctor.foundations()
    assert damaged.state == "lacks" and "weights is damaged" in damaged.said
    assert "git checkout data/foundation" in damaged.cure
    shutil.rmtree(one_foundation.parent)
    assert "manifest.json is missing" in doctor.foundations().said


def test_committed_captions(monkeypatch, tmp_path):
    assert doctor.captions().state == "ok"
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert doctor.captions().state == "lacks"


# ---- presets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smoke", "cpu", "study"])
def test_presets_of_the_world_need_nothing(foundations, runs_root, name):
    """No folder either: prompts may be a split of the world."""
    fits = doctor.preset(name)
    assert fits.state == "ok" and "fits; downloads nothing" in fits.said


def test_a_preset_says_what_it_would_need(foundations, runs_root, monkeypatch):
    monkeypatch.setattr(doctor, "_free", lambda folder: 0)
    said = doctor.preset("gpu").said
    for part in ("models", "the folder coco2014", "GB more disk"):
        assert part in said
    cfg = plan.config.from_preset("04a_train_arm", preset="gpu", data="world")
    roles = [model.role for model in doctor.models(cfg)]
    assert sorted(roles) == ["clip", "coca", "decoder", "t5", "vae"]
    assert doctor.preset("cpu").state == "lacks"


def test_a_preset_that_cannot_be_read_is_its_own_line():
    def broken(name):
        raise UserError("no such file")

    found = states(doctor.presets(broken))
    assert found["preset cpu"] == "lacks" and found["preset gpu"] == "note"


# ---- the whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("note", 0), ("lacks", 1)])
def test_only_a_lack_is_a_failure(monkeypatch, capsys, state, code):
    finding = doctor.Finding("disk", state, "1 GB free", "buy a disk")
    monkeypatch.setattr(doctor, "examine", lambda: iter([finding]))
    assert doctor.command() == code
    said = capsys.readouterr().out
    assert f"{state:<6}disk              1 GB free; buy a disk" in said
    assert ("cannot run here yet: disk" in said) == bool(code)


def test_without_torch_the_rest_is_still_looked_at(monkeypatch, one_foundation):
    real = builtins.__import__

    def importing(name, *words, **more):
        if name.split(".")[0] == "torch":
            raise ImportError(name)
        return real(name, *words, **more)

    monkeypatch.setattr(doctor, "_tries", lambda *modules: False)
    monkeypatch.setattr(builtins, "__import__", importing)
    found = states(doctor.examine())
    assert {"torch"}.isdisjoint(found) and found["foundations"] == "ok"
    assert found["presets"] == "note"
