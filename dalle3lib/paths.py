"""Where things are: the repository, the presets, the runs, and the shipped foundations.

Four environment variables move them: ``DALLE3_RUNS`` (results), ``DALLE3_FOUNDATION`` (shipped
weights), ``DALLE3_NOTEBOOKS`` (notebooks and presets) and ``DALLE3_BENCHMARKS`` (public benchmark
files used by some tests).
"""

import json
import os
from pathlib import Path

from dalle3lib import UserError
from dalle3lib.files import damage

ROOT: Path = Path(__file__).resolve().parents[1]


def _from_environment(variable: str, default: Path) -> Path:
    """Return the absolute directory named by an environment variable, or the default."""
    return Path(os.environ.get(variable) or default).expanduser().absolute()


def runs_dir() -> Path:
    """Return the directory that holds every run: ``DALLE3_RUNS``, or ``runs`` in the repository."""
    return _from_environment("DALLE3_RUNS", ROOT / "runs")


def notebooks_dir() -> Path:
    """Return the directory of the notebooks: ``DALLE3_NOTEBOOKS``, or ``notebooks`` here."""
    return _from_environment("DALLE3_NOTEBOOKS", ROOT / "notebooks")


def presets_dir() -> Path:
    """Return the directory of the preset files, ``presets`` beside the notebooks."""
    return notebooks_dir() / "presets"


def foundation_dir() -> Path:
    """Return the directory of all foundations: ``DALLE3_FOUNDATION``, or ``data/foundation``."""
    return _from_environment("DALLE3_FOUNDATION", ROOT / "data" / "foundation")


def folder(name: str | Path) -> Path:
    """Return a folder that a parameter names: a relative one is looked for in the repository.

    So a name in a preset means the same in Jupyter, in papermill and in the graph.
    """
    return ROOT / Path(name).expanduser()


def python_path() -> str:
    """Return the PYTHONPATH with which a child process finds this package too."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def benchmarks() -> Path | None:
    """Return the directory of public benchmark files, or None where there is none."""
    named = os.environ.get("DALLE3_BENCHMARKS")
    return Path(named).expanduser().absolute() if named else None


def foundation(name: str) -> Path:
    """Return the directory of one foundation (``"vae"``, ``"t5"``, …) after checking every file.

    Raises UserError naming the file and the cure when anything is missing or damaged: weights
    with one flipped bit load without complaint, so this check is the only one there is.
    """
    directory = foundation_dir() / name
    cure = "restore it with `git checkout data/foundation` or train it with notebook 00_foundations"
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
        problem = damage(directory, manifest["files"])
    except FileNotFoundError:
        problem = f"{directory / 'manifest.json'} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        problem = f"{directory / 'manifest.json'} is damaged"
    if problem:
        raise UserError(f"Foundation {name!r} cannot be used: {problem}; {cure}.")
    return directory
