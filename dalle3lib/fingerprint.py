"""What a run depends on: the code it executes and the inputs it reads, each as one digest.

Comments, docstrings, prose and layout never count, so editing them re-runs nothing; editing a
module re-runs the notebooks that import it, directly or through others, and no more.
"""

import ast
import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dalle3lib import config, paths
from dalle3lib.files import digest, sha256


def without_docstrings(tree: ast.Module) -> str:
    """Return a syntax tree as text that neither comments, layout nor docstrings can change."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(getattr(body[0].value, "value", None), str):
                del body[0]
    return ast.dump(tree)


@functools.cache
def _module(name: str) -> tuple[str, frozenset[str]] | None:
    """Return a dalle3lib module's normalised code and the dalle3lib names it imports."""
    base = paths.ROOT.joinpath(*name.split("."))
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if not file.is_file():
        return None
    tree = ast.parse(file.read_bytes())
    package = name if base.is_dir() else name.rpartition(".")[0]
    imported = frozenset(_imported(tree, package))
    return without_docstrings(tree), imported


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield every dotted dalle3lib name that a piece of code may import as a module."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = package.split(".")
            parents = here[: len(here) - node.level + 1] if node.level else []
            stem = ".".join([*parents, *filter(None, [node.module])])
            names = [stem, *(f"{stem}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            if parts[0] == "dalle3lib":
                yield from (".".join(parts[:n]) for n in range(2, len(parts) + 1))


def module_closure(names: set[str]) -> dict[str, str]:
    """Return the normalised code of dalle3lib modules and of all they import, by module name."""
    code, waiting = {}, set(names)
    while waiting:
        name = waiting.pop()
        module = _module(name)
        if module and name not in code:
            code[name] = module[0]
            waiting |= module[1]
    return dict(sorted(code.items()))


def code_fingerprint(notebook: str) -> str:
    """Return a digest of a notebook's code cells and of every dalle3lib module they import.

    Comments, docstrings, prose and layout do not count; the parameters cell does.
    """
    cells, names = [], set()
    for cell in config.code_cells(config.notebook_path(notebook)):
        try:
            tree = ast.parse(re.sub(r"^\s*[%!].*$", "", cell["source"], flags=re.MULTILINE))
        except SyntaxError:
            cells.append(cell["source"])
            continue
        names |= set(_imported(tree, ""))
        cells.append(ast.dump(tree))
    return digest([cells, module_closure(names)])


def inputs_fingerprint(data: str, uses: Sequence[dict] = (), values: dict | None = None) -> str:
    """Return a digest of what a run reads: foundations, captions, a data folder, other runs.

    ``data`` is ``"world"`` or a folder; ``uses`` are the ``files`` tables of the manifests of the
    runs it reads; ``values`` its parameters, of which some may name a folder with a manifest;
    chapters with a parameter ``evidence`` read the committed study.
    """
    manifests = sorted(paths.foundation_dir().glob("*/manifest.json"))
    captions = paths.ROOT / "data" / "captions" / "manifest.json"
    manifests += [captions] if captions.is_file() else []
    seen = [[path.parent.name, sha256(path)] for path in manifests]
    if data != "world":
        images = sorted(path for path in Path(data).rglob("*") if path.is_file())
        seen += [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in images]
    named = {v for v in (values or {}).values() if isinstance(v, str) and v != data}
    manifests = [paths.folder(v) / "manifest.json" for v in sorted(named)]
    # A text may be no path at all: longer than a file's name may be, say.
    seen += [[str(path), sha256(path)] for path in manifests if os.path.isfile(path)]
    if "evidence" in (values or {}):
        seen += study_files()
    return digest([seen, list(uses)])


def study_files() -> list[list[str]]:
    """Name and SHA-256 of every file of the committed study."""
    study = (paths.ROOT / "data" / "study").rglob("*.*")
    return [[path.name, sha256(path)] for path in sorted(study)]


def identity_names(notebook: str) -> tuple[str, ...]:
    """Return the parameters that name a notebook's runs, as its own ``open_run`` call says."""
    for cell in config.code_cells(config.notebook_path(notebook)):
        if "open_run(" in cell["source"]:
            for node in ast.walk(ast.parse(cell["source"])):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("open_run"):
                    return tuple(ast.literal_eval(argument) for argument in node.args[1:])
    return ()


def page_fingerprint() -> str:
    """Return a digest of what the book prints of the repository: prose, code, docstrings, claims.

    Comments in the package do not count; the cells of notebooks do, prose included.
    """
    modules = sorted((paths.ROOT / "dalle3lib").rglob("*.py"))
    book = paths.ROOT / "book"
    built = (book / "_build").as_posix()
    texts = [p for p in book.rglob("*") if p.is_file() and not p.as_posix().startswith(built)]
    texts += paths.notebooks_dir().glob("*.ipynb")
    texts += [p for p in (paths.ROOT / "data").glob("*") if p.is_file()]
    texts += paths.ROOT.glob("CITATION.cff")  # whose address makes launch links
    texts += paths.foundation_dir().glob("README.md")  # the models' cards
    return digest(
        [
            [ast.dump(ast.parse(path.read_bytes())) for path in modules],
            [[path.name, sha256(path)] for path in sorted(texts)],
        ]
    )
