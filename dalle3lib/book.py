"""The book: executed notebooks, prose and generated pages become HTML that opens from disk.

Papermill runs the notebooks, the book renders them: nothing is executed here. The sources are
copied, so that neither ``book/`` nor a notebook is changed by a build.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

from dalle3lib import (
    UserError,
    book_checks,
    checklist,
    explorer_page,
    launch,
    ledger,
    ledger_page,
    model_cards,
    pages,
    status_page,
    which_chapters,
)
from dalle3lib.chapters import CHAPTER, Chapter, find_chapters, tidy
from dalle3lib.files import guard
from dalle3lib.paths import ROOT, python_path

SOURCE = ROOT / "book"
FIRST_RESULT = "99"  # the ledger opens the last part of the book
PROSE = {  # the pages of `book/` by part, and the models' cards; generated ones stand between them
    "start": ("guide", "explorer", "numbers"),
    "results": ("ledger", "untested"),
    "reference": ("checklist", "models", "glossary"),
}


def build(root: Path, preset: str, data: str, out: Path | None = None) -> Path:
    """Build the book of the runs under ``root`` and return its ``index.html``.

    ``root`` is the directory of a preset's and a data source's runs, ``out`` where to build
    (``book/_build/<name of root>`` by default). Chapters whose notebook failed are replaced by a
    page that says so; the book is still built, and then UserError is raised. UserError also for
    any warning of the build and for whatever ``book_checks.problems`` finds.
    """
    out = out or SOURCE / "_build" / root.name
    chapters = find_chapters(root)
    if not chapters:
        raise UserError(f"No executed notebook in {root / 'notebooks'}; run `make book` first.")
    with guard(out):
        stage(root, preset, data, chapters, out / "source")
        index = render(out)
    if problems := book_checks.problems(index.parent):
        raise UserError(f"The book in {index.parent} is not as it must be: {problems[0]}")
    failed = [chapter.stem for chapter in chapters if chapter.problems]
    if failed:
        raise UserError(f"The book says that {', '.join(failed)} failed: see {index}.")
    return index


def stage(root: Path, preset: str, data: str, chapters: list[Chapter], source: Path) -> None:
    """Write the whole source tree of the book: prose, notebooks, generated pages, contents."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    published = {chapter.stem for chapter in chapters}
    failures = {chapter.stem: chapter.problems for chapter in chapters if chapter.problems}
    states = pages.run_states(root)
    folders = [root.parent, ROOT] + ([] if data == "world" else [Path(data).absolute().parent])
    for chapter in chapters:
        _write_chapter(chapter, root, source / "chapters", folders)
    for name, text in pages.api_pages().items():
        _write(source / "api" / f"{name}.md", text)
    _write(source / "parameters.md", pages.parameters())
    _write(source / "models.md", model_cards.page())
    left_out = {k: why for k, why in which_chapters.left_out(data).items() if k not in published}
    _write(source / "status.md", status_page.page(states, failures, published, left_out))
    explorer_page.stage(root, source)
    rows = ledger.rows(root)
    _write(source / "tables" / "ledger.csv", ledger_page.as_csv(rows))
    for name, text in {
        "headlines": ledger_page.summary(rows, published),
        "ledger": ledger_page.whole(rows, published),
        "untested": ledger_page.untested(rows, published),
        "picture": explorer_page.front_picture(root, preset, data),
        "explorer": explorer_page.page(root, preset, data),
        "foundations": checklist.foundations(),
        "recipes": checklist.recipes(),
        "studies": checklist.studies(),
        "presets": pages.presets(),
        "build": pages.provenance(preset, data, states)
        + (f"\n{checklist.progress(preset)}" if data == "world" else ""),
    }.items():
        _write(source / "_generated" / f"{name}.md", text)
    _write(source / "_toc.yml", yaml.safe_dump(contents(published), sort_keys=False))


def _write(path: Path, text: str) -> None:
    """Write a text file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _write_chapter(chapter: Chapter, root: Path, folder: Path, places: list[Path]) -> None:
    """Write a finished chapter's notebook, or the page that says that it failed.

    The tables (CSV) of its run under ``root`` lie beside it, to download. ``places`` are folders
    of this machine, whose names are left out of the notebook.
    """
    if chapter.problems:
        _write(folder / f"{chapter.stem}.md", pages.failure(chapter.title, chapter.problems))
        return
    run = root / chapter.stem / chapter.state.run
    tables = {path.name: path.read_text("utf-8") for path in sorted(run.glob("*.csv"))}
    notebook, behind = tidy(chapter)
    note = pages.made_by(chapter.state, chapter.copies, list(tables))
    note += launch.links(chapter.stem, launch.repository())
    title, _, rest = notebook.cells[0].source.partition("\n")
    notebook.cells[0].source = f"{title}\n\n{note}\n{rest}"
    for name, text in (tables | behind).items():
        _write(folder / "tables" / chapter.stem / name, pages.without(text, *places))
    text = pages.without(nbformat.writes(notebook), *places)
    _write(folder / f"{chapter.stem}.ipynb", text)


def contents(published: set[str]) -> dict:
    """Return the table of contents: prose, chapters in reading order, results, reference."""
    chapters, results = [], []
    for stem in sorted(published):
        digits, letter = CHAPTER.fullmatch(stem).groups()
        entry = {"file": f"chapters/{stem}"}
        above = next((e for e in chapters if letter and f"/{digits}_" in e["file"]), None)
        if above:
            above.setdefault("sections", []).append(entry)
        else:
            (results if digits == FIRST_RESULT else chapters).append(entry)
    chapters.sort(key=lambda entry: entry["file"])
    api = [{"file": f"api/{name}"} for name in pages.api_pages()]
    named = {part: [{"file": name} for name in names] for part, names in PROSE.items()}
    parts = {
        "Start here": named["start"],
        "Chapters": chapters,
        "Results": [*named["results"], *results, {"file": "status"}],
        "Reference": [
            *named["reference"],
            {"file": "parameters"},
            {"file": "api", "sections": api},
            {"file": "bibliography"},
        ],
    }
    listed = [{"caption": name, "chapters": entries} for name, entries in parts.items() if entries]
    return {"format": "jb-book", "root": "index", "parts": listed}


def render(out: Path) -> Path:
    """Run Jupyter Book on ``out/source`` and return ``out/html/index.html``.

    Every warning is an error (UserError with the first of them); the book built before stays
    where it is until the new one is complete.
    """
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    options = ["-n", "-W", "--keep-going", "--path-output", str(work)]
    done = subprocess.run(
        [*command, str(out / "source"), *options],
        env=os.environ | {"PYTHONPATH": python_path(), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    log = out / "build.log"
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        found = re.findall(r"^.*(?:WARNING|ERROR): .*$", done.stderr, re.MULTILINE)
        first = found[0] if found else (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"The book was not built, {len(found)} warnings (see {log}): {first}")
    html = out / "html"
    shutil.rmtree(html, ignore_errors=True)
    (work / "_build" / "html").rename(html)
    shutil.rmtree(work)
    return html / "index.html"
