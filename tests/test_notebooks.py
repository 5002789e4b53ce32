"""The notebooks: what every one of them must look like, and the whole book through papermill."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import write_folder

from dalle3lib import claims, config, ledger, paths, runs, which_chapters
from dalle3lib.evals import published_files as public

STEMS = config.notebook_stems()
PRESETS = [path.stem for path in paths.presets_dir().glob("*.yaml")]


def notebook(stem: str) -> nbformat.NotebookNode:
    return nbformat.read(config.notebook_path(stem), 4)


def code_lines(stem: str) -> list[str]:
    cells = [cell.source for cell in notebook(stem).cells if cell.cell_type == "code"]
    lines = [line.strip() for source in cells for line in source.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("stem", STEMS)
def test_a_notebook_tells_a_story_around_little_code(stem):
    cells, lines = notebook(stem).cells, code_lines(stem)
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    assert len(lines) <= 150
    assert words >= 4 * len(lines)
    assert not any(line.startswith("class ") for line in lines)
    assert sum(line.startswith("def ") for line in lines) <= 2
    assert not any(cell.get("outputs") for cell in cells)


@pytest.mark.parametrize("stem", STEMS)
def test_a_notebook_opens_with_its_question_and_its_parameters(stem):
    first, second = notebook(stem).cells[:2]
    for word in ("**Question.**", "| paper |", "| claims tested |", "| cost |"):
        assert word in first.source
    assert second.metadata.tags == ["parameters"]
    assert list(config.notebook_parameters(config.notebook_path(stem)))[:2] == ["preset", "data"]
    assert "open_run(cfg" in notebook(stem).cells[3].source
    assert "run.finish(" in notebook(stem).cells[-1].source


@pytest.mark.parametrize("stem", STEMS)
def test_the_claims_that_a_notebook_names_are_its_own(stem):
    named = notebook(stem).cells[0].source.split("claims tested |")[1].split("|")[0]
    known = {claim.id: claim.chapter for claim in claims.load()}
    for name in named.split("`")[1::2]:
        assert known[name] == stem


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stem", STEMS)
def test_every_preset_gives_every_parameter(stem, preset):
    assert None not in config.from_preset(stem, preset=preset).values.values()


def dalle3(*words: str, runs_in: Path, **options) -> subprocess.Popen:
    """Start the command line with its runs in a directory of the test."""
    environment = os.environ | {"DALLE3_RUNS": str(runs_in), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "dalle3lib", *words],
        cwd=paths.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def finished(process: subprocess.Popen) -> tuple[int, str]:
    said = process.communicate()[0]
    return process.returncode, said


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[Path, str]:
    """The whole book at preset smoke, made once for this module: (directory of runs, output)."""
    where = tmp_path_factory.mktemp("smoke")
    code, said = finished(dalle3("graph", "--preset", "smoke", runs_in=where))
    assert code == 0, said
    return where, said


@pytest.mark.timeout(1500)
def test_the_whole_book_runs(smoke):
    where, said = smoke
    page = paths.ROOT / "book" / "_build" / "smoke" / "html" / "index.html"
    assert str(page) in said and page.is_file()
    chapters = [path.read_text("utf-8") for path in (page.parent / "chapters").glob("*.html")]
    assert not any(
        'alt="Figure made by the code above."' in chapter for chapter in chapters
    )  # every figure has its own
    for stem in STEMS:
        made = list((where / "smoke" / stem).glob("*/manifest.json"))
        expected = {"02a_fine_tune": 2, "04a_train_arm": 4}.get(stem, stem in which_chapters.WORLD)
        assert len(made) == expected
        if not expected:
            continue
        for manifest in made:
            assert runs.load(manifest.parent)["wall_seconds"] > 0
            assert stem in said  # in the table of times


@pytest.mark.timeout(1500)
def test_nothing_changed_means_nothing_done(smoke):
    where, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in where.rglob("manifest.json")}
    code, said = finished(dalle3("graph", "--preset", "smoke", runs_in=where))
    assert code == 0, said
    assert {path: path.stat().st_mtime_ns for path in where.rglob("manifest.json")} == before


@pytest.mark.timeout(1500)
def test_one_seed_gives_no_verdict(smoke):
    where, _ = smoke
    untrained = {claim.id for claim in claims.load() if not claim.min_seeds}
    rows = {row["id"]: row for row in ledger.rows(where / "smoke")}
    counted = {row["chapter"] for name, row in rows.items() if row["run"] and name in untrained}
    assert counted == ({"11_released_verdicts"} if public.folder("benchmarks") else set())
    rows = {name: row for name, row in rows.items() if name not in untrained}
    assert {row["chapter"] for row in rows.values() if row["run"]} == {
        "03_ssc_dsc",
        "04_caption_kind",
        "06_upsampling",
        "07_consistency_decoder",
        "08_recipe",
        "10_automatic_evaluation",
        "12_limitations",
    }
    for row in rows.values():
        wanted = "no verdict (1 of 10 seeds" if row["run"] else "not tested (needs"
        assert row["verdict"].startswith(wanted)


@pytest.mark.timeout(600)
def test_a_row_of_table_1_is_made_again_by_its_command(smoke, tmp_path):
    name = "+ upsampling"
    words = ("run", "10_automatic_evaluation", "-p", "systems", f"['{name}']")
    code, said = finished(dalle3(*words, runs_in=tmp_path))
    assert code == 0, said
    (again,) = tmp_path.glob("smoke/10_automatic_evaluation/*/images.csv")
    whole = smoke[0] / "smoke" / "10_automatic_evaluation" / "main" / "images.csv"
    rows, every = pd.read_csv(again), pd.read_csv(whole)
    assert set(rows.system) == {name} and len(set(every.system)) == 6
    columns = ["benchmark", "prompt", "seed", "score", "reason", "drawn_from"]
    same = every[every.system == name].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows[columns], same[columns])


@pytest.mark.parametrize("there", [True, False])
def test_the_released_verdicts_count_where_they_are_and_are_missed_where_not(
    benchmarks, tmp_path, monkeypatch, there
):
    if not there:
        monkeypatch.delenv("DALLE3_BENCHMARKS")
    code, said = finished(dalle3("run", "11_released_verdicts", runs_in=tmp_path))
    assert code == 0, said
    run = tmp_path / "smoke" / "11_released_verdicts" / "main"
    family = [c.id for c in claims.load() if c.family == "table-1-recount"]
    assert list(runs.results(run)["claims"]) == (family if there else [])
    rows = {row["id"]: row["verdict"] for row in ledger.rows(tmp_path / "smoke")}
    said = {claims.word(rows[name]) for name in family}
    assert said == {"not tested"} if not there else "not tested" not in said
    tables = {path.stem for path in run.glob("*.csv")}
    always = {"win_rates"}
    assert tables == (
        always
        if not there
        else always | {*("recount", "differences", "categories", "answers", "prompt_lists")}
    )


@pytest.mark.timeout(1500)
def test_an_arm_killed_in_its_notebook_ends_with_the_same_weights(smoke, tmp_path):
    arm = ["run", "04a_train_arm", "-p", "kind", "dsc", "-p", "ratio", "95", "-p", "seed", "0"]
    trained = tmp_path / "smoke" / "04a_train_arm" / "dsc-95-0"
    moment = random.Random(0)
    for _ in range(2):
        process = dalle3(*arm, runs_in=tmp_path, start_new_session=True)
        while not list((trained / "checkpoints").glob("step-*")) and process.poll() is None:
            time.sleep(0.1)
        time.sleep(moment.uniform(0, 2))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    code, said = finished(dalle3(*arm, runs_in=tmp_path))
    assert code == 0, said
    reference = smoke[0] / "smoke" / "04a_train_arm" / "dsc-95-0"
    weights = [path.name for path in reference.glob("ema-*.safetensors")]
    assert len(weights) == 2
    for name in weights:
        assert (trained / name).read_bytes() == (reference / name).read_bytes()


@pytest.mark.timeout(1500)
def test_the_book_of_a_folder_of_photographs(benchmarks, tmp_path):
    folder = str(benchmarks / "coco-mini")
    code, said = finished(dalle3("graph", "--preset", "smoke", "--data", folder, runs_in=tmp_path))
    assert code == 0, said
    (root,) = (path for path in tmp_path.iterdir() if path.name.startswith("smoke-coco-mini"))
    made = {path.parent.parent.name for path in root.glob("*/*/manifest.json")}
    assert made == {*which_chapters.IMAGES, "04a_train_arm", "cache"}


@pytest.mark.parametrize("problem", ["image", "caption"])
def test_a_bad_folder_is_one_sentence(tmp_path, problem):
    folder = tmp_path / "photographs"
    write_folder(folder, ["a dog", "a cat", " " if problem == "caption" else "a bird", "a cow"])
    if problem == "image":
        (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    code, said = finished(dalle3("run", "01_world", "-p", "data", str(folder), runs_in=tmp_path))
    assert code == 1
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert "2.png" in line and "Traceback" not in said
