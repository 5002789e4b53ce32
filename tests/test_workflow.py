"""The graph: what runs again after which change, what a failure stops, and kill -9 at any time.

The real Snakefile and command line work here on a small copy of the repository: tiny notebooks,
and modules of a few lines in the place of ``latents``, ``book``, ``explorer`` and what the
notebooks use.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_folder, write_tiny

from dalle3lib import config, paths, which_chapters

PRESET = "common:\n  data: world\n  arms: [dsc-95-0]\n"
TEACHING = 'kind: str = "dsc"  # kind\nlong_captions: str = "world"  # folder\n'
ARM = 'kind: str = "dsc"  # kind\nratio: int = 95  # percent\nseed: int = 0  # seed\n'
CAPTIONS = 'captions_from: str = None  # folder\nprompt_captions: str = "written"  # folder\n'
WRITER = """\
from dalle3lib import files, paths
def write(cfg, captioners):
    manifest = paths.folder(cfg.captions_from) / "manifest.json"
    if not manifest.is_file():
        manifest.parent.mkdir()
        files.write_atomic(manifest, b"{}")
        print("captions are written", flush=True)
    return {cfg.captions_from: files.sha256(manifest)}
"""
BOOK = """\
from dalle3lib.paths import ROOT
def build(root, preset, data, out=None):
    page = ROOT / "book" / "_build" / root.name / "html" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("book of " + preset)
    return page
"""
EXPLORER = """\
def make(root, preset):
    (root / "explorer").mkdir(parents=True, exist_ok=True)
    (root / "explorer" / "explorer.json").write_text("{}")
"""
# Writes the number of each step to a file once, and goes on from there when it is started again.
TRAIN = """\
import time
steps = run.path / "checkpoints" / "steps"
steps.parent.mkdir(exist_ok=True)
done = steps.read_text().split() if steps.exists() else []
for step in range(len(done), 40):
    time.sleep(0.1)
    with steps.open("a") as file:
        file.write(f"{step} ")
"""


class Project:
    """A small copy of the repository in which ``make book`` can be tried."""

    def __init__(self, root: Path) -> None:
        """Copy the command line and the graph, and write tiny notebooks and stand-in modules."""
        self.root = root
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(paths.ROOT / "dalle3lib", root / "dalle3lib", ignore=ignored)
        shutil.copytree(paths.ROOT / "workflow", root / "workflow")
        (root / "dalle3lib" / "latents.py").write_text("def build(cfg):\n    pass\n")
        (root / "dalle3lib" / "book.py").write_text(BOOK)
        (root / "dalle3lib" / "explorer.py").write_text(EXPLORER)
        for name in ("used", "unused"):
            (root / "dalle3lib" / f"{name}.py").write_text("def f():\n    return 1\n")
        (root / "book").mkdir()
        for stem in (
            *("00_foundations", "01_world", "02_captioning", "03_ssc_dsc"),
            *(
                "05_mixing_ratio",
                "06_upsampling",
                "07_consistency_decoder",
                "08_recipe",
                "09_human_evaluation",
                "10_automatic_evaluation",
                *("06a_photographs", "07a_photographs", "10a_photographs"),
                "11_released_verdicts",
                "12_limitations",
                "13_playground",
            ),
        ):
            self.notebook(stem)
        self.notebook("99_ledger")
        self.notebook("02a_fine_tune", TEACHING, names=', "kind"')
        self.notebook("04a_train_arm", ARM, names=', "kind", "ratio", "seed"')
        self.notebook("04_caption_kind", "arms: list = None  # arms\n")
        self.preset(PRESET)

    def preset(self, text: str) -> None:
        """Write the preset ``smoke``."""
        (self.root / "notebooks" / "presets").mkdir(exist_ok=True)
        (self.root / "notebooks" / "presets" / "smoke.yaml").write_text(text)

    def notebook(self, stem: str, parameters: str = "", body: str = "", names: str = "") -> None:
        """Write a notebook that opens its run, does ``body``, and finishes the run."""
        cells = [
            "from dalle3lib import UserError, config, runs\n"
            f'cfg = config.resolve("{stem}", globals())\nrun = runs.open_run(cfg{names})',
            body or "pass",
            "run.finish({})",
        ]
        if stem == "01_world":
            cells[0] += "\nfrom dalle3lib import used"
        write_tiny(self.root / "notebooks", stem, parameters, *cells)

    def runs(self, photos: str) -> Path:
        """The directory of the runs on a folder of images."""
        return self.root / "runs" / config.root("smoke", photos).name

    def start(self, data: str = "world") -> subprocess.Popen:
        """Start what ``make book PRESET=smoke`` starts, in a session of its own."""
        hidden = ("DALLE3_RUNS", "DALLE3_NOTEBOOKS", "DALLE3_FOUNDATION")
        environment = {k: v for k, v in os.environ.items() if k not in hidden}
        return subprocess.Popen(
            [sys.executable, "-m", "dalle3lib", "graph", "--preset", "smoke", "--data", data],
            cwd=self.root,
            env=environment | {"PYTHONPATH": str(self.root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def make(self, data: str = "world") -> tuple[int, list[str], str]:
        """Run the graph; return the exit code, the sorted names of what ran, and all it said.

        Jobs say things at the same time, so a line need not begin with what one of them says.
        """
        process = self.start(data)
        said, _ = process.communicate()
        return process.returncode, sorted(re.findall(r"(\d\d[a-z]?_[\w.-]+): started", said)), said

    def edit(self, name: str, text: str) -> None:
        """Append a text to a module of the copy."""
        with (self.root / "dalle3lib" / name).open("a") as file:
            file.write(text)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh copy of the repository in small."""
    return Project(tmp_path / "project")


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """A folder of three images with captions: what the command line looks at before it starts."""
    write_folder(tmp_path / "my photos", ["a dog", "a cat", "a bird"])
    return str(tmp_path / "my photos")


def test_only_what_changed_runs_again(project):
    code, ran, said = project.make()
    assert code == 0, said
    everything = ["00_foundations", "01_world", "02_captioning", "02a_fine_tune--dsc",
                  "02a_fine_tune--ssc", "03_ssc_dsc", "04_caption_kind", "04a_train_arm--dsc-95-0",
                  "05_mixing_ratio", "06_upsampling", "07_consistency_decoder", "08_recipe",
                  "09_human_evaluation", "10_automatic_evaluation", "11_released_verdicts",
                  "12_limitations",
                  "13_playground", "99_ledger"]  # fmt: skip
    assert ran == everything
    index = project.root / "book" / "_build" / "smoke" / "html" / "index.html"
    assert said.splitlines()[-1] == f"Open {index}" and index.read_text() == "book of smoke"
    assert [line.split()[0] for line in said.splitlines() if "MiB" in line] == [
        name.split("--")[0] for name in everything
    ]

    def ran_after(change: str) -> list[str]:
        code, ran, said = project.make()
        assert code == 0, f"{change}: {said}"
        return ran

    assert ran_after("nothing") == []
    project.edit("used.py", "# a comment\n")
    (project.root / "notebooks" / "01_world.ipynb").touch()
    assert ran_after("a comment, and a notebook saved unchanged") == []
    project.edit("unused.py", "def g():\n    return 2\n")
    assert ran_after("a module that no notebook imports") == []
    project.edit("used.py", "def g():\n    return 2\n")
    assert ran_after("a module that chapter 01 imports") == ["01_world", "99_ledger"]
    project.preset(PRESET.replace("dsc-95-0", "dsc-95-0, ssc-95-0"))
    expected = ["04_caption_kind", "04a_train_arm--ssc-95-0", "99_ledger"]
    assert ran_after("one more arm") == expected


def test_a_failed_chapter_stops_only_what_reads_it(project):
    project.notebook("02_captioning", body='raise UserError("The cause; the cure.")')
    code, ran, said = project.make()
    assert code != 0 and "error: The cause; the cure.\n" in said
    assert "04_caption_kind" in ran and "01_world" in ran and "99_ledger" not in ran
    kept = project.root / "runs" / "smoke" / "notebooks" / "02_captioning.failed.ipynb"
    assert kept.exists() and f"failed: {kept}" in said.splitlines()[-2]
    project.notebook("02_captioning")
    code, ran, said = project.make()
    assert code == 0 and ran == ["02_captioning", "99_ledger"] and not kept.exists()


def test_a_folder_of_images_gets_the_chapters_that_can_use_it(project, photos):
    code, ran, said = project.make(photos)
    assert code == 0, said
    expected = sorted([*which_chapters.IMAGES, "04a_train_arm--dsc-95-0"])
    assert ran == expected and "06_upsampling" not in ran
    for stem, reason in which_chapters.left_out(photos).items():
        assert f"{stem}: {reason}" in said
    assert sorted(os.listdir(project.root / "runs")) == [".cache", project.runs(photos).name]
    assert project.make(photos)[1] == []
    os.utime(Path(photos) / "0.png", (1, 1))
    assert project.make(photos)[1] == expected


def test_captions_are_written_before_what_reads_them_and_noticed_when_they_change(project, photos):
    """A stand-in writes them; the arms wait for it, and run again when the folder is another."""
    project.preset(PRESET + "  captions_from: '{data}-captions'\n")
    project.notebook("04a_train_arm", ARM + CAPTIONS, names=', "kind", "ratio", "seed"')
    (project.root / "dalle3lib" / "training_captions.py").write_text(WRITER)
    code, ran, said = project.make(photos)
    assert code == 0, said
    order = re.findall(r"^(?:(\S+): started|captions are written)$", said, re.M)
    assert order.index("") < order.index("04a_train_arm--dsc-95-0")
    assert project.make(photos)[1] == []
    Path(photos + "-captions", "manifest.json").write_text('{"other": 1}')
    again = project.make(photos)[1]
    assert "04a_train_arm--dsc-95-0" in again and "02_captioning" in again
    assert "01_world" not in again
    assert project.make(photos)[1] == []


@pytest.mark.parametrize("killed", ["the driver", "everything", "the kernel"])
def test_after_kill_9_the_arm_goes_on_and_no_step_is_done_twice(project, photos, killed):
    project.notebook("04a_train_arm", ARM, TRAIN, names=', "kind", "ratio", "seed"')
    arm = project.runs(photos) / "04a_train_arm" / "dsc-95-0"
    process = project.start(photos)
    while not (arm / "checkpoints" / "steps").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    time.sleep(0.5)
    if killed == "the kernel":
        os.kill(kernel_of(arm), signal.SIGKILL)
        assert process.wait() != 0
    elif killed == "everything":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    done = (arm / "checkpoints" / "steps").read_text().split()
    assert 0 < len(done) < 40 and not (arm / "manifest.json").exists()
    code, _, said = project.make(photos)
    assert code == 0, said
    steps = (arm / "checkpoints" / "steps").read_text().split()
    assert [int(step) for step in steps] == list(range(40))
    assert (arm / "manifest.json").exists()


def kernel_of(arm: Path) -> int:
    """The process that holds the lock of a run directory, found through /proc."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) == str(arm / ".lock"):
                return int(descriptor.parts[2])
        except OSError:  # a process that ended in between
            continue
    raise AssertionError(f"no process holds {arm}")


def test_two_calls_at_once_do_not_mix(project, photos):
    first, second = project.start(photos), project.start(photos)
    said = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    ran = re.findall(r"^(\S+): started$", "".join(said), re.M)
    assert len(ran) == len(set(ran)) == len(which_chapters.IMAGES) + 1
    assert sum("Another `make book` is working" in text for text in said) == 1


def test_a_cluster_gets_the_same_graph(tmp_path):
    """The SLURM profile, as far as a machine without SLURM can tell: what would be submitted."""
    command = "-m snakemake --snakefile workflow/Snakefile --profile workflow/profiles/slurm"
    command += " --config preset=smoke data=world --dry-run"
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=paths.ROOT,
        env=os.environ | {"DALLE3_RUNS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    counts = dict(re.findall(r"^(\w+) +(\d+)$", said, re.M))
    assert counts["arm"] == "4" and counts["fine_tune"] == "2" and counts["book"] == "1"
    arms = [part for part in said.split("\nrule ") if part.startswith("arm:")]
    assert len(arms) == 4 and all("gres=gpu:1" in arm and "runtime=2880" in arm for arm in arms)
