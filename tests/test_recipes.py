"""The recipes of CONTRIBUTING.md, pasted into a shell in a copy of the repository, in order."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dalle3lib import paths

SLOW = "python -m dalle3lib book"  # a minute or two, and test_book.py builds one


def recipes() -> dict[str, str]:
    """The commands of each recipe: every block for a shell, by the heading it stands under."""
    text = (paths.ROOT / "CONTRIBUTING.md").read_text()
    parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    found = {title: re.findall(r"^```bash\n(.*?)^```", part, re.M | re.S)
             for title, part in parts.items()}  # fmt: skip
    return {title: "".join(blocks) for title, blocks in found.items() if blocks}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """What git holds, in a new directory, as a repository of its own."""
    if not (paths.ROOT / ".git").exists():
        pytest.skip("needs a git checkout, to know which files belong to it")
    where = tmp_path_factory.mktemp("clone") / "project"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=paths.ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (paths.ROOT / name).is_file():
            (where / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(paths.ROOT / name, where / name)
    subprocess.run(["git", "init", "-q"], cwd=where, check=True)
    return where


def test_there_are_four():
    assert list(recipes()) == [
        "Add a chapter", "Add a claim", "Add a metric", "Bring your own images",
    ]  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize("title", list(recipes()))
def test_a_recipe_can_be_pasted(clone, title):
    """A later recipe builds on the chapter of the first."""
    commands = [line for line in recipes()[title].splitlines() if not line.startswith(SLOW)]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(clone),
        "OMP_NUM_THREADS": "1",
    }
    for name in ("DALLE3_RUNS", "DALLE3_NOTEBOOKS", "DALLE3_FOUNDATION"):
        environment.pop(name, None)
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", "\n".join(commands)],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
