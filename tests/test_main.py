"""The command line: one clear sentence and exit code 1 for each mistake, and nothing published."""

import json
import os
import subprocess
import sys

import nbformat
import papermill
import pytest

from dalle3lib import paths, runs
from dalle3lib.__main__ import main

ARM = 'kind: str = "dsc"  # caption kind\nsteps: int = None  # training steps\n'
OPEN = (
    "from dalle3lib import UserError, config, runs\n"
    'cfg = config.resolve("04a_train_arm", globals())\n'
    'run = runs.open_run(cfg, "kind")'
)
FINISH = 'run.finish({"steps": cfg.steps})'


@pytest.fixture
def arm(tiny):
    """A writer of the notebook 04a_train_arm with a given statement between open and finish."""

    def write(statement="print('training')"):
        tiny("04a_train_arm", ARM, OPEN, statement, FINISH)
        (paths.presets_dir() / "smoke.yaml").write_text("common: {data: world, steps: 3}\n")
        return paths.runs_dir() / "smoke"

    return write


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run 04a_train_amr", "Unknown notebook '04a_train_amr'; did you mean '04a_train_arm'"),
        ("run 04a_train_arm -p stepz 3", "no parameter 'stepz'; did you mean 'steps'"),
        ("run 04a_train_arm -p steps many", "'steps' must be of type int, not str 'many'"),
        ("run 04a_train_arm -p preset cpuu", "Unknown preset 'cpuu'"),
        ("graph --preset smokee", "Unknown preset 'smokee' (no file"),
        ("graph --preset study", "study.yaml); "),
        ("graph --preset smoke --data nowhere", "No data folder 'nowhere'; give 'world' or"),
        ("times --preset smoek", "did you mean 'smoke'"),
        ("book --preset smoke", "No executed notebook in"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(arm, capsys, arguments, message):
    root = arm()
    assert main(arguments.split()) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert not root.exists()


def test_a_preset_mistake_stops_the_graph_before_it_starts(arm, capsys):
    root = arm()
    (paths.presets_dir() / "smoke.yaml").write_text("common: {stpes: 3}\n")
    assert main(["graph", "--preset", "smoke"]) == 1
    assert "unknown parameter 'stpes'; did you mean 'steps'" in capsys.readouterr().err
    assert not root.exists()


def test_a_notebook_runs_and_resumes_under_its_run_id(arm, capsys):
    root = arm()
    assert main("run 04a_train_arm -p kind ssc -p steps 4".split()) == 0
    (run,) = (root / "04a_train_arm").iterdir()
    assert run.name.startswith("ssc-") and runs.results(run) == {"steps": 4}
    executed = root / "notebooks" / f"04a_train_arm--{run.name}.ipynb"
    assert os.listdir(root / "notebooks") == [executed.name]
    outputs = [o for c in nbformat.read(executed, 4).cells for o in c.get("outputs", [])]
    assert "training" in str(outputs) and str(run) in str(outputs)
    assert main(["times", "--preset", "smoke"]) == 0
    said = capsys.readouterr().out
    assert "finished in" in said
    assert [line.split()[:2] for line in said.splitlines() if "MiB" in line] == [
        ["04a_train_arm", run.name]
    ]
    manifest = json.loads((run / "manifest.json").read_text())
    assert 0 < manifest["cpu_seconds"] and 0.1 < manifest["wall_seconds"]  # start-up included


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ('raise UserError("The cause; the cure.")', "error: The cause; the cure.\n"),
        ("1 / 0", "error: ZeroDivisionError in notebook 04a_train_arm: division by zero\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
         "error: The kernel of 04a_train_arm died (out of memory?).\n"),
        ("import sys; sys.exit()",
         "error: Notebook 04a_train_arm ended before its run was finished.\n"),
    ],
)  # fmt: skip
def test_a_failed_notebook_is_kept_apart(arm, capfd, statement, message):
    root = arm()
    out = root / "notebooks" / "04a_train_arm--dsc.ipynb"
    out.parent.mkdir(parents=True)
    out.write_text("an older success")
    arm(statement)
    assert main(["run", "04a_train_arm"]) == 1
    assert capfd.readouterr().err.endswith(message)
    assert os.listdir(out.parent) == ["04a_train_arm--dsc.failed.ipynb"]
    assert not (root / "04a_train_arm" / "dsc" / "manifest.json").exists()
    assert (root / "04a_train_arm" / "dsc" / "run.json").exists()


def test_bare_papermill_is_told_of_an_unknown_name_too(arm, tmp_path):
    arm()
    source = paths.notebooks_dir() / "04a_train_arm.ipynb"
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean 'steps'"):
        papermill.execute_notebook(
            source, tmp_path / "out.ipynb", {"stepz": 3}, progress_bar=False, cwd=paths.ROOT
        )


def test_success_clears_an_older_failure(arm, tmp_path):
    arm()
    out = tmp_path / "out.ipynb"
    (tmp_path / "out.failed.ipynb").touch()
    assert main(["run", "04a_train_arm", "-o", str(out)]) == 0
    assert [name for name in os.listdir(tmp_path) if name.startswith("out")] == ["out.ipynb"]


def test_a_directory_that_cannot_be_written_is_named(arm, tmp_path, monkeypatch, capsys):
    arm()
    (tmp_path / "file").touch()
    monkeypatch.setenv("DALLE3_RUNS", str(tmp_path / "file"))
    assert main(["run", "04a_train_arm"]) == 1
    assert "there is no permission to write there" in capsys.readouterr().err


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(
        f"    {name} " in said for name in "run graph cache book times claims doctor cards".split()
    )


def test_no_command_waits_for_the_libraries_of_another():
    code = "import sys, dalle3lib.__main__; print({'torch', 'pandas', 'fastapi'} & {*sys.modules})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
