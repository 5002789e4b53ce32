"""Citation and launch links: CITATION.cff is complete, and its address reaches the chapters."""

import re
from urllib.parse import unquote

import nbformat
import pytest
import yaml

from dalle3lib import UserError, __version__, book, config, launch, paths
from dalle3lib.pages import RunState

CITATION = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text("utf-8"))
GITHUB = "https://github.com/someone/better-captions"


def test_the_citation_has_what_cff_1_2_requires():
    assert CITATION["cff-version"] == "1.2.0" and CITATION["type"] == "software"
    assert CITATION["message"] and CITATION["title"] and CITATION["authors"]
    for author in [*CITATION["authors"], *CITATION["references"][0]["authors"]]:
        assert set(author) in ({"name"}, {"family-names", "given-names"})
    (paper,) = CITATION["references"]
    assert {"type", "title", "authors"} <= set(paper) and len(paper["authors"]) == 15


def test_the_citation_agrees_with_the_package_and_the_licence():
    assert str(CITATION["version"]) == __version__
    assert CITATION["license"] == "MIT"
    assert (paths.ROOT / "LICENSE").read_text().startswith("MIT License")
    assert 'license = "MIT"' in (paths.ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("", None),
        (f"repository-code: {GITHUB}", GITHUB),
        (f"repository-code: {GITHUB}.git", GITHUB),
        (f'repository-code: "{GITHUB}/"', GITHUB),
    ],
)
def test_the_address_is_the_one_in_the_file(tmp_path, line, address):
    (tmp_path / "CITATION.cff").write_text(f"cff-version: 1.2.0\n{line}\n")
    assert launch.repository(tmp_path / "CITATION.cff") == address


def test_without_a_file_there_is_no_address(tmp_path):
    assert launch.repository(tmp_path / "CITATION.cff") is None


@pytest.mark.parametrize("text", ["repository-code: git@host:me/it", "a: [", "- a list"])
def test_a_bad_file_is_one_sentence(tmp_path, text):
    (tmp_path / "CITATION.cff").write_text(text)
    with pytest.raises(UserError, match="CITATION.cff"):
        launch.repository(tmp_path / "CITATION.cff")


def addresses(line: str) -> list[str]:
    return re.findall(r"\]\((https://[^)]+)\)", line)


def test_links_lead_to_notebooks_of_the_repository():
    for stem in config.notebook_stems():
        binder, colab = addresses(launch.links(stem, GITHUB))
        assert (paths.ROOT / unquote(binder.partition("labpath=")[2])).is_file()
        assert (paths.ROOT / colab.partition("/blob/main/")[2]).is_file()
    assert binder.startswith("https://mybinder.org/v2/gh/someone/better-captions/main?")
    assert colab.startswith(f"{launch.COLAB}/github/someone/better-captions/blob/main/notebooks/")


def test_colab_opens_repositories_on_github_only():
    (binder,) = addresses(launch.links("01_world", "https://codeberg.org/someone/it"))
    assert "/git/https%3A%2F%2Fcodeberg.org%2Fsomeone%2Fit/main?" in binder


@pytest.mark.parametrize("address", [None, GITHUB])
def test_chapters_have_links_when_there_is_an_address(tmp_path, monkeypatch, address):
    monkeypatch.setattr(launch, "repository", lambda: address)
    made = {"preset": "smoke", "parameters": {"preset": "smoke"}, "wall_seconds": 1.0}
    cells = [nbformat.v4.new_markdown_cell("# The world\n\nA question.")]
    chapter = book.Chapter(
        "01_world",
        "The world",
        nbformat.v4.new_notebook(cells=cells),
        RunState("01_world", "main", made | {"commit": "0123456"}),
    )
    book._write_chapter(chapter, tmp_path, tmp_path / "chapters", [tmp_path])
    text = nbformat.read(tmp_path / "chapters" / "01_world.ipynb", 4).cells[0].source
    assert text.startswith("# The world\n") and text.endswith("A question.")
    assert ("mybinder.org" in text) == ("colab.research" in text) == (address is not None)


def test_what_binder_installs_is_the_lock_with_a_smaller_torch():
    lines = (paths.ROOT / ".binder" / "requirements.txt").read_text().splitlines()
    locked = (paths.ROOT / "requirements.lock").read_text().splitlines()
    own = [line for line in lines if line.startswith("torch")]
    assert len(own) == 2 and all(line.removesuffix("+cpu") in locked for line in own)
    assert "-r ../requirements.lock" in lines and "-e ." in lines
    assert (paths.ROOT / ".binder" / "runtime.txt").read_text().strip() == "python-3.11"
