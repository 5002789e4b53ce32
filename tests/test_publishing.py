"""Publishing: the workflows call targets that exist, may do little, and agree with the Makefile."""

import re

import pytest
import yaml

from dalle3lib import config, paths

GITHUB = paths.ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
MAKEFILE = (paths.ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.M))


def read(path) -> dict:
    content = yaml.safe_load(path.read_text())
    content["on"] = content.pop(True, None)  # YAML 1.1 reads the key "on" as true
    return content


def jobs() -> list[tuple[str, dict]]:
    return [(path.stem, job) for path in WORKFLOWS for job in read(path)["jobs"].values()]


def steps() -> list[dict]:
    action = read(GITHUB / "actions" / "python" / "action.yml")["runs"]["steps"]
    return [step for _, job in jobs() for step in job["steps"]] + action


def test_there_are_a_workflow_for_tests_for_the_book_and_for_pages():
    assert [path.stem for path in WORKFLOWS] == ["book", "pages", "test"]
    called = {path.stem: re.findall(r"make (\w+)", path.read_text()) for path in WORKFLOWS}
    assert called == {"test": ["lint", "test"], "book": ["book"], "pages": ["book"]}


def test_every_target_called_is_in_the_makefile():
    called = [name for step in steps() for name in re.findall(r"make (\w+)", step.get("run", ""))]
    assert len(called) == 4 and set(called) <= TARGETS


def test_every_preset_named_is_there_and_its_pages_are_where_the_book_is_built():
    names = {path.stem for path in paths.presets_dir().glob("*.yaml")}
    book, pages = (read(GITHUB / "workflows" / f"{name}.yml") for name in ("book", "pages"))
    offered = book["on"]["workflow_dispatch"]["inputs"]["preset"]
    assert set(offered["options"]) <= names and offered["default"] in offered["options"]
    text = str(pages["jobs"]["build"]["steps"])
    (preset,) = re.findall(r"PRESET=(\w+)", text)
    assert preset in names and f"book/_build/{config.root(preset, 'world').name}/html" in text


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_only_the_deployment_more(path):
    content = read(path)
    assert content["permissions"] == {"contents": "read"}
    for name, job in content["jobs"].items():
        wanted = {"pages": "write", "id-token": "write"} if name == "deploy" else None
        assert job.get("permissions") == wanted
        assert job["timeout-minutes"] <= 180
    assert "pull_request_target" not in content["on"] and "secrets." not in path.read_text()


def test_actions_are_official_ones_at_a_version_or_our_own():
    used = [step["uses"] for step in steps() if "uses" in step]
    for name in used:
        own = name.startswith("./") and (paths.ROOT / name / "action.yml").is_file()
        assert own or re.fullmatch(r"actions/[\w-]+@(v\d+(\.\d+)*|[0-9a-f]{40})", name), name
    assert {"actions/upload-pages-artifact", "actions/deploy-pages"} <= {
        name.partition("@")[0] for name in used
    }


def test_no_input_is_pasted_into_a_command():
    for step in steps():
        assert "${{" not in step.get("run", "")


def test_every_job_installs_what_the_lock_says():
    (setup, torch) = read(GITHUB / "actions" / "python" / "action.yml")["runs"]["steps"]
    assert setup["with"]["cache"] == "pip" and setup["with"]["python-version"] == "3.11"
    locks = sorted(p.name for p in paths.ROOT.glob(setup["with"]["cache-dependency-path"]))
    assert locks == ["requirements-extras.lock", "requirements.lock"]
    locked = (paths.ROOT / "requirements.lock").read_text().splitlines()
    assert all(pin in locked for pin in re.findall(r"torch\w*==\S+", torch["run"]))
    for _, job in jobs():
        used = [step.get("uses") for step in job["steps"]]
        called = any("make" in step.get("run", "") for step in job["steps"])
        assert ("./.github/actions/python" in used) == called


def test_hooks_before_a_commit_do_what_make_lint_checks():
    hooks = yaml.safe_load((paths.ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = {hook["id"]: hook["entry"] for repo in hooks for hook in repo["hooks"]}
    assert [repo["repo"] for repo in hooks] == ["local"]  # the tools of the lock, no download
    assert entries["ruff"] == ".venv/bin/ruff check --fix"
    assert entries["ruff-format"] == ".venv/bin/ruff format"
    (strip,) = re.findall(r"^STRIP := \$\(BIN\)/(nbstripout .*?[^\\])$", MAKEFILE, re.M | re.S)
    assert entries["nbstripout"] == ".venv/bin/" + " ".join(strip.replace("\\", " ").split())


# ---- the first page ------------------------------------------------------------------------------


def test_the_first_screen_has_the_question_two_commands_and_a_tree():
    lines = (paths.ROOT / "README.md").read_text().splitlines()[:40]
    text = "\n".join(lines)
    assert "?**" in text and "\nmake book " in text and "\nmake test " in text
    tree = re.findall(r"\b(\w+)/   ", text)
    assert {"notebooks", "dalle3lib", "data", "book", "workflow", "tests", "runs"} == set(tree)
    assert all((paths.ROOT / name).is_dir() for name in set(tree) - {"runs"})


def test_files_that_the_prose_links_are_there():
    for name in ("README.md", "CONTRIBUTING.md", "RELEASING.md", "data/README.md"):
        page = paths.ROOT / name
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_module_and_notebook_has_its_place_in_the_tree():
    tree = (paths.ROOT / "README.md").read_text().partition("## Where things are")[2]
    words = set(re.findall(r"[\w.]+", tree))
    modules = {path.stem for path in (paths.ROOT / "dalle3lib").glob("[a-z]*.py")}
    assert modules - words == set()
    assert {path.name for path in paths.notebooks_dir().glob("*.ipynb")} - words == set()
