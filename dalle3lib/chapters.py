"""A chapter of the book: its executed notebook, or what went wrong, and how it is shown.

A notebook that papermill finished is published as it ran, but for progress bars; one that failed
is not published at all.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from dalle3lib import figure_data, pages
from dalle3lib.paths import ROOT, notebooks_dir

CHAPTER = re.compile(r"(\d\d)([a-z]?)_\w+")  # the number orders; a letter nests under its number
PROGRESS = re.compile(r"\d+%\|.*\||\d+(it|\w*) \[\d+:\d+")  # a line drawn by tqdm
FIGURE = re.compile(r"^# Figure: (.+(?:\n# .+)*)\n?", re.MULTILINE)


@dataclass
class Chapter:
    """A chapter of this build: its finished notebook, or what went wrong."""

    stem: str
    title: str
    notebook: nbformat.NotebookNode | None = None
    state: pages.RunState | None = None
    copies: int = 1
    problems: list[str] = field(default_factory=list)


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


def tidy(chapter: Chapter) -> tuple[nbformat.NotebookNode, dict[str, str]]:
    """Return a copy of a chapter's notebook for reading, and the tables behind its figures by name.

    Progress bars are left out. A comment ``# Figure: …`` in a code cell gives its picture that
    caption and the same text for those who cannot see it; the comment itself is left out. Below
    each figure stand the command that makes it and, where it draws numbers, their table.
    """
    notebook = nbformat.from_dict(chapter.notebook)
    tables: dict[str, str] = {}
    cells, figure = [], 0
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
        _caption(cell)
        drawn = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        numbers: dict[str, str] = {}
        for output in drawn:
            figure += 1
            if text := output.data.pop(figure_data.MIME, ""):
                numbers[f"figure-{figure:02d}.csv"] = text
        if drawn:
            cells.append(_below(chapter, cell.id, list(numbers)))
        tables |= numbers
    notebook.cells = cells
    return notebook, tables


def _below(chapter: Chapter, cell: str, names: list[str]) -> nbformat.NotebookNode:
    """Return the line below a cell's figures: the tables of their numbers, the command."""
    text = pages.figure_source(chapter.state, names)
    return nbformat.v4.new_markdown_cell(text, id=f"{cell[:50]}-source")


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
