"""The book: executed notebooks, prose and generated pages become HTML that opens from disk.

Papermill runs the notebooks, the book renders them: nothing is executed here. The sources are
copied, so that neither ``book/`` nor a notebook is changed by a build.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import yaml

from dalle3lib import UserError, claims, pages, which_chapters
from dalle3lib.files import guard
from dalle3lib.paths import ROOT, notebooks_dir

SOURCE = ROOT / "book"
CHAPTER = re.compile(r"(\d\d)([a-z]?)_\w+")  # the number orders; a letter nests under its number
FIRST_RESULT = "99"  # the ledger opens the last part of the book
PROGRESS = re.compile(r"\d+%\|.*\||\d+(it|\w*) \[\d+:\d+")  # a line drawn by tqdm
FIGURE = re.compile(r"^# Figure: (.+(?:\n# .+)*)\n?", re.MULTILINE)
ADDRESSES = ("src", "srcset", "href", "xlink:href", "data", "poster")


@dataclass
class Chapter:
    """A chapter of this build: its finished notebook, or what went wrong."""

    stem: str
    title: str
    notebook: nbformat.NotebookNode | None = None
    state: pages.RunState | None = None
    copies: int = 1
    problems: list[str] = field(default_factory=list)


def build(root: Path, preset: str, data: str, out: Path | None = None) -> Path:
    """Build the book of the runs under ``root`` and return its ``index.html``.

    ``root`` is the directory of a preset's and a data source's runs, ``out`` where to build
    (``book/_build/<name of root>`` by default). Chapters whose notebook failed are replaced by a
    page that says so; the book is still built, and then UserError is raised. UserError also for
    any warning of the build and for anything a page would load from the network.
    """
    out = out or SOURCE / "_build" / root.name
    chapters = find_chapters(root)
    if not chapters:
        raise UserError(f"No executed notebook in {root / 'notebooks'}; run `make book` first.")
    with guard(out):
        stage(root, preset, data, chapters, out / "source")
        index = render(out)
    loaded = network_assets(index.parent)
    if loaded:
        raise UserError(f"The book would load {loaded[0]} from the network; embed it instead.")
    failed = [chapter.stem for chapter in chapters if chapter.problems]
    if failed:
        raise UserError(f"The book says that {', '.join(failed)} failed: see {index}.")
    return index


def find_chapters(root: Path) -> list[Chapter]:
    """Return the chapters of executed notebooks in ``root/notebooks``, in reading order.

    A notebook executed once per arm (``04a_train_arm--<run id>.ipynb``) is one chapter and shows
    the arm that finished last. A failed execution, or one without a complete run, is a problem.
    """
    executed: dict[str, list[Path]] = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        stem = path.name.removesuffix(".ipynb").removesuffix(".failed").split("--")[0]
        if CHAPTER.fullmatch(stem):
            executed.setdefault(stem, []).append(path)
    states = pages.run_states(root)
    return [
        _chapter(stem, files, [state for state in states if state.notebook == stem])
        for stem, files in sorted(executed.items())
    ]


def _chapter(stem: str, files: list[Path], states: list[pages.RunState]) -> Chapter:
    """Return one chapter from its executed notebooks and the states of its runs.

    Without arms the run is called ``main``, and copies named after another run are explorations.
    """
    files = [path for path in files if "--" not in path.name] or files
    problems = [problem for path in files if (problem := failure(path))]
    if problems:
        return Chapter(stem, title(stem, files[0]), problems=problems)
    by_run = {path.stem.partition("--")[2] or "main": path for path in files}
    finished = [state for state in states if state.manifest and state.run in by_run]
    if not finished:
        problem = f"{stem}: its run is not complete; run it again."
        return Chapter(stem, title(stem, files[0]), problems=[problem])
    latest = max(finished, key=lambda state: str(state.manifest["finished"]))
    path = by_run[latest.run]
    notebook = with_current_prose(nbformat.read(path, as_version=4), stem)
    return Chapter(stem, title(stem, path), notebook, latest, copies=len(finished))


def with_current_prose(notebook: nbformat.NotebookNode, stem: str) -> nbformat.NotebookNode:
    """Return an executed notebook with the text cells that its source has now.

    Editing prose re-runs nothing, so the executed copy may hold an older wording.
    """
    source = notebooks_dir() / f"{stem}.ipynb"
    cells = nbformat.read(source, as_version=4).cells if source.is_file() else []
    prose = {cell.id: cell.source for cell in cells if cell.cell_type == "markdown"}
    for cell in notebook.cells:
        cell.source = prose.get(cell.get("id"), cell.source)
    return notebook


def title(stem: str, path: Path) -> str:
    """Return a notebook's first heading, or its file's name if the file has none to read."""
    try:
        cells = nbformat.read(path, as_version=4).cells
    except (ValueError, OSError):
        cells = []
    found = [re.match("# (.+)", text.source) for text in cells if text.cell_type == "markdown"]
    return found[0][1] if found and found[0] else stem


def failure(path: Path) -> str:
    """Return the last line of what stopped an executed notebook, or "" if nothing did."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, OSError) as error:
        return f"{path.name} cannot be read: {error}"
    stopped = notebook.metadata.get("papermill", {}).get("exception")
    if not stopped and not path.name.endswith(".failed.ipynb"):
        return ""
    errors = [
        f"{output.ename}: {output.evalue}"
        for code in notebook.cells
        for output in code.get("outputs", [])
        if output.output_type == "error"
    ]
    words = errors[-1].strip() if errors else "the kernel died without a word (out of memory?)"
    last = pages.without(words.splitlines()[-1], path.parents[2], ROOT)
    return f"{path.name.split('.')[0]}: {last}"


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
    left_out = {k: why for k, why in which_chapters.left_out(data).items() if k not in published}
    _write(source / "status.md", pages.status(states, failures, published, left_out))
    ledger = pages.ledger_summary(claims.ledger(root), published)
    _write(source / "_generated" / "ledger.md", ledger)
    _write(source / "_generated" / "presets.md", pages.presets())
    _write(source / "_generated" / "build.md", pages.provenance(preset, data, states))
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
    tables = sorted((root / chapter.stem / chapter.state.run).glob("*.csv"))
    for table in tables:
        text = table.read_text("utf-8")
        _write(folder / "tables" / chapter.stem / table.name, pages.without(text, *places))
    note = pages.made_by(chapter.state, chapter.copies, [table.name for table in tables])
    text = pages.without(nbformat.writes(tidy(chapter.notebook, note)), *places)
    _write(folder / f"{chapter.stem}.ipynb", text)


def tidy(notebook: nbformat.NotebookNode, note: str) -> nbformat.NotebookNode:
    """Return a copy for reading: a note under the title, captions on figures, no progress bars.

    A comment ``# Figure: …`` in a code cell gives its picture that caption and the same text for
    those who cannot see it; the comment itself is left out.
    """
    notebook = nbformat.from_dict(notebook)
    notebook.metadata.pop("widgets", None)
    for code in (c for c in notebook.cells if c.cell_type == "code"):
        code.outputs = [output for output in code.outputs if not _is_progress(output)]
        _caption(code)
    first = notebook.cells[0]
    title, _, rest = first.source.partition("\n")
    first.source = f"{title}\n\n{note}\n{rest}"
    return notebook


def _is_progress(output: nbformat.NotebookNode) -> bool:
    """Whether nothing is left of an output without tqdm's lines (which are taken out of it)."""
    if output.output_type != "stream":
        return "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    kept = [line for line in re.split(r"[\r\n]+", output.text) if not PROGRESS.search(line)]
    output.text = "\n".join(kept).strip("\n") + "\n"
    return not output.text.strip()


def _caption(code: nbformat.NotebookNode) -> None:
    """Move a cell's figure comment into the picture's caption and alternative text."""
    found = FIGURE.search(code.source)
    text = found[1].replace("\n# ", " ") if found else ""
    code.source = FIGURE.sub("", code.source, count=1)
    rendering = {"image": {"alt": text or "Figure made by the code above."}}
    if text:
        rendering["figure"] = {"caption": text}
    code.metadata["mystnb"] = rendering | code.metadata.get("mystnb", {})


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
    parts = {
        "Start here": [{"file": "guide"}, {"file": "parameters"}],
        "Chapters": chapters,
        "Results": [*results, {"file": "status"}],
        "Reference": [{"file": "api", "sections": api}, {"file": "bibliography"}],
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
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(out / "source"), *options],
        env=os.environ | {"PYTHONPATH": python_path, "NO_COLOR": "1"},
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


class _Loads(HTMLParser):
    """Collects what a page loads by itself: scripts, styles, images, frames (not plain links)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses that a browser fetches for an element."""
        for name, value in attrs:
            if name == "style":
                self.found += style_addresses(value or "")
            elif name in ADDRESSES and tag not in ("a", "area"):
                self.found += re.split(r"[\s,]+", value or "")

    def handle_data(self, data: str) -> None:
        """Note the addresses in a style element."""
        if self.lasttag == "style":
            self.found += style_addresses(data)


def style_addresses(css: str) -> list[str]:
    """Return the addresses in a style sheet's ``url(…)`` and ``@import``."""
    return re.findall(r"""(?:url\(\s*|@import\s+)["']?([^"')\s;]+)""", css)


def network_assets(html: Path) -> list[str]:
    """Return every address outside the book that a page or a style sheet would load."""
    found = []
    for path in sorted(html.rglob("*")):
        if path.suffix == ".html":
            parser = _Loads()
            parser.feed(path.read_text(encoding="utf-8"))
            found += parser.found
        elif path.suffix == ".css":
            found += style_addresses(path.read_text(encoding="utf-8"))
    return sorted({address for address in found if re.match(r"(\w+:)?//", address)})
