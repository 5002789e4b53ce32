"""Parameters of a notebook: its own cell first, then the preset file, and never a silent guess.

A notebook's cell tagged ``parameters`` declares one parameter a line::

    steps: int = None  # training steps

``None`` means "the preset's value", found in ``notebooks/presets/<preset>.yaml``: the section
named after the notebook, else the section ``common``. In a text there, ``{data}`` stands for the
data's own path, so that ``{data}-captions`` lies beside it. A preset file may begin with
``extends: cpu``: it then changes that preset's values and keeps the rest; ``jobs: 8`` says how many
notebooks run at a time. An unknown name, a wrong type, or a value set nowhere is a UserError that
names the nearest valid name (papermill itself only warns).
"""

import ast
import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dalle3lib import UserError, paths

TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list}
CHOICES = {"evidence": ("study", "runs", "none")}  # parameters that are read at a notebook's end


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: its type, the value written there, and what it means."""

    type: type
    default: Any
    meaning: str


@dataclass(frozen=True)
class Parameters:
    """The resolved parameters of one notebook; each is also an attribute (``cfg.steps``).

    ``values`` holds all of them, ``overrides`` the explicit ones that differ from the preset's
    (without ``preset`` and ``data``), ``root`` the directory of this preset's and data's runs.
    """

    notebook: str
    preset: str
    values: dict[str, Any]
    overrides: dict[str, Any] = field(default_factory=dict)
    root: Path = Path()

    def __getattr__(self, name: str) -> Any:
        """Return a parameter by name; AttributeError with the nearest name if there is none."""
        values = object.__getattribute__(self, "values")
        if name in values:
            return values[name]
        raise AttributeError(f"{self.notebook} has no parameter {name!r}{nearest(name, values)}")

    def get(self, name: str, default: Any) -> Any:
        """Return a parameter that not every notebook has, or the default."""
        return self.values.get(name, default)


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'steps'?"`` for the closest valid name, else the list of all."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(valid))}."


def notebook_path(notebook: str) -> Path:
    """Return the file of a notebook given by its stem; UserError if there is none."""
    path = paths.notebooks_dir() / f"{notebook}.ipynb"
    if not path.is_file():
        raise UserError(f"Unknown notebook {notebook!r}{nearest(notebook, notebook_stems())}")
    return path


def notebook_stems() -> list[str]:
    """Return the stems of all notebooks, in reading order."""
    return sorted(path.stem for path in paths.notebooks_dir().glob("*.ipynb"))


def code_cells(path: Path) -> list[dict]:
    """Return the code cells of a notebook file, their sources joined into one string each."""
    try:
        cells = json.loads(path.read_bytes())["cells"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is not a readable notebook ({error}).") from None
    return [
        cell | {"source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"
    ]


def notebook_parameters(path: str | Path) -> dict[str, Parameter]:
    """Return the parameters a notebook declares in its cell tagged ``parameters``, in order.

    Raises UserError unless there is exactly one such cell and each of its lines reads
    ``name: type = value  # meaning, unit``.
    """
    path = Path(path)
    tagged = [c for c in code_cells(path) if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise UserError(f"{path} needs one cell tagged 'parameters', not {len(tagged)}.")
    lines = tagged[0]["source"].encode().splitlines()  # ast counts columns in bytes
    declared = {}
    try:
        for node in ast.parse(tagged[0]["source"]).body:
            comment = lines[node.end_lineno - 1][node.end_col_offset :].decode()
            declared[node.target.id] = _declaration(node, comment)
    except (SyntaxError, KeyError, ValueError, AttributeError):
        raise UserError(
            f"{path}: each line of the parameters cell must read `name: type = value  # meaning`."
        ) from None
    return declared


def _declaration(node: ast.stmt, comment: str) -> Parameter:
    """Return one declared parameter from its syntax node and the comment that follows it."""
    declared = TYPES[node.annotation.id]
    default = ast.literal_eval(node.value)
    if default is not None:
        default = _checked(node.target.id, declared, default)
    meaning = comment.strip().removeprefix("#").strip()
    if not meaning:
        raise ValueError("a parameter without a meaning")
    return Parameter(declared, default, meaning)


def _checked(name: str, declared: type, value: Any, source: str = "") -> Any:
    """Return a value of the declared type (an int becomes a float where one is asked for)."""
    if declared is float and type(value) is int:
        return float(value)
    if type(value) is not declared:
        hint = " (in YAML write 1.0e-3)" if declared is float and isinstance(value, str) else ""
        raise UserError(
            f"Parameter {name!r} must be of type {declared.__name__}, "
            f"not {type(value).__name__} {value!r}{source}{hint}."
        )
    if value not in CHOICES.get(name, [value]):
        raise UserError(f"Unknown {name} {value!r}{source}{nearest(value, CHOICES[name])}")
    return value


def parse(name: str, declared: type, text: str) -> Any:
    """Return a command-line text as a value of the declared type; UserError if it is none."""
    try:
        value = text if declared is str else yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"Parameter {name!r} cannot be read: {text!r} is not YAML.") from None
    if declared is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            pass
    return _checked(name, declared, value)


def preset_file(preset: str) -> Path:
    """Return the file of a preset; UserError naming the nearest preset if there is none."""
    names = sorted(path.stem for path in paths.presets_dir().glob("*.yaml"))
    if preset not in names:
        missing = paths.presets_dir() / f"{preset}.yaml"
        raise UserError(f"Unknown preset {preset!r} (no file {missing}){nearest(preset, names)}")
    return paths.presets_dir() / f"{preset}.yaml"


def jobs(preset: str) -> int:
    """Return how many notebooks of a preset run at a time: 2 unless a file says otherwise.

    The file is the preset's own, or that of a preset which it extends.
    """
    file = preset_file(preset)
    _sections(file)  # says what is wrong with it
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    if "jobs" not in content:
        return jobs(content["extends"]) if "extends" in content else 2
    if type(content["jobs"]) is not int or content["jobs"] < 1:
        raise UserError(
            f"{file}: jobs must be a whole number of at least 1, not {content['jobs']!r}."
        )
    return content["jobs"]


def preset_values(preset: str, notebook: str) -> dict[str, Any]:
    """Return the values a preset gives to a notebook: its own section over ``common``.

    The whole file is checked: every section is a notebook, every key of a section a parameter of
    that notebook, every key of ``common`` a parameter of at least one notebook; else UserError.
    """
    file = preset_file(preset)
    sections = _sections(file)
    stems = notebook_stems()
    declared = {stem: notebook_parameters(notebook_path(stem)) for stem in stems}
    everywhere = {name for parameters in declared.values() for name in parameters}
    for section, values in sections.items():
        if section != "common" and section not in stems:
            raise UserError(f"{file}: no notebook {section!r}{nearest(section, stems)}")
        known = everywhere if section == "common" else declared[section]
        for name in values:
            if name not in known:
                where = f"{file}, section {section!r}"
                raise UserError(f"{where}: unknown parameter {name!r}{nearest(name, known)}")
    merged = sections.get("common", {}) | sections.get(notebook, {})
    own = declared[notebook_path(notebook).stem]
    source = f" in {file}"
    return {
        name: _checked(name, own[name].type, value, source)
        for name, value in merged.items()
        if name in own and value is not None
    }


def _sections(file: Path, above: tuple[Path, ...] = ()) -> dict[str, dict]:
    """Return the sections of a preset file over those of the preset that it extends.

    ``above`` are the files that extend it. Raises UserError if it is not a table of flat tables,
    or extends itself.
    """
    try:
        sections = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        extended, _ = sections.pop("extends", None), sections.pop("jobs", None)
        own = {name: dict(values or {}) for name, values in sections.items()}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not a readable preset file ({reason}).") from None
    if extended is None:
        return own
    base = preset_file(str(extended))
    if base in (*above, file):
        raise UserError(f"{file}: the preset {extended!r} extends itself.")
    lower = _sections(base, (*above, file))
    return {name: lower.get(name, {}) | own.get(name, {}) for name in lower | own}


def resolve(notebook: str, scope: dict[str, Any]) -> Parameters:
    """Return the parameters of a notebook, read from its variables (``globals()``) and the preset.

    A variable that is not None beats the preset. Raises UserError for an unknown preset, a name
    papermill injected that the notebook does not have, a wrong type, or a value set nowhere.
    """
    declared = notebook_parameters(notebook_path(notebook))
    reject_unknown(notebook, _injected_names(scope.get("In", [])), declared)
    missing = [name for name in declared if name not in scope]
    if missing:
        raise UserError(f"{notebook}: {missing[0]!r} is not set; run the parameters cell first.")
    return _resolved(notebook, declared, {name: scope[name] for name in declared})


def from_preset(notebook: str, **explicit: Any) -> Parameters:
    """Return the parameters a notebook would resolve to, without running it.

    ``explicit`` are the values to set (``preset="cpu"``, ``seed=3``); the others keep what the
    notebook's parameters cell says. Raises UserError as ``resolve`` does.
    """
    declared = notebook_parameters(notebook_path(notebook))
    reject_unknown(notebook, explicit, declared)
    given = {name: parameter.default for name, parameter in declared.items()}
    return _resolved(notebook, declared, given | explicit)


def _resolved(notebook: str, declared: dict[str, Parameter], given: dict[str, Any]) -> Parameters:
    """Return explicit values over the preset's, checked, with the runs' root directory."""
    preset = _checked("preset", str, given.get("preset"))
    base = {name: p.default for name, p in declared.items()} | preset_values(preset, notebook)
    named = given.get("data") or base.get("data") or "world"
    data = data_source(_checked("data", str, named))
    base = {n: v.replace("{data}", data) if type(v) is str else v for n, v in base.items()}
    values = {}
    for name, parameter in declared.items():
        value = base[name] if given[name] is None else given[name]
        if value is None:
            raise UserError(
                f"{notebook}: parameter {name!r} is set neither in the notebook nor in preset "
                f"{preset!r}; give it a value in the parameters cell or in {preset_file(preset)}."
            )
        values[name] = _checked(name, parameter.type, value, f" in {notebook}")
    overrides = {
        name: value
        for name, value in values.items()
        if name not in ("preset", "data") and value != base[name]
    }
    values["data"] = data
    return Parameters(notebook, preset, values, overrides, root(preset, data))


def reject_unknown(notebook: str, names: Iterable[str], declared: dict[str, Parameter]) -> None:
    """Raise UserError for the first name that the notebook does not declare."""
    for name in names:
        if name not in declared:
            raise UserError(f"{notebook} has no parameter {name!r}{nearest(name, declared)}")


def _injected_names(inputs: list[str]) -> list[str]:
    """Return the names assigned in papermill's injected cell, found in IPython's input history."""
    names = []
    for source in inputs:
        if source.startswith("# Parameters\n"):
            targets = [t for n in ast.parse(source).body for t in getattr(n, "targets", [])]
            names += [target.id for target in targets]
    return names


def data_source(data: str) -> str:
    """Return ``"world"`` or the absolute path of a folder of images; UserError if it is neither.

    A relative folder is looked for from the current directory, then from the repository.
    """
    if data == "world":
        return data
    folder = Path(data).expanduser()
    for candidate in (Path.cwd() / folder, paths.ROOT / folder):
        if candidate.is_dir():
            return str(candidate.resolve())
    raise UserError(f"No data folder {data!r}; give 'world' or a folder of images with captions.")


def root(preset: str, data: str) -> Path:
    """Return the directory of all runs of a preset on a data source (see ``data_source``)."""
    if data == "world":
        return paths.runs_dir() / preset
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(data).name)
    return paths.runs_dir() / f"{preset}-{name}-{hashlib.sha256(data.encode()).hexdigest()[:6]}"
