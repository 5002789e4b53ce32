"""Figures of style for our own package: ``python tests/style_figures.py`` prints them as a table.

The measures by which small, readable code bases were compared before this one was written: length
of modules and functions, docstrings, comments, annotations; of notebooks code, prose and cells.
"""

import ast
import io
import json
import statistics
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
LIMITS = {"module": 300, "function": 80}  # lines; the first is an aim, the second is tested


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """All functions and methods of a module, nested ones included."""
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTION)]


def length(node: ast.stmt) -> int:
    """Lines from ``def`` to the last statement, without decorators."""
    return node.end_lineno - node.lineno + 1


def annotated(node: ast.FunctionDef) -> bool:
    """Whether all arguments but ``self`` and ``cls`` and the result have a type."""
    listed = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    typed = all(a.annotation for a in listed if a.arg not in ("self", "cls"))
    return typed and (node.returns is not None or node.name == "__init__")


def lines(source: str, tree: ast.Module) -> tuple[int, int, int]:
    """Numbers of (code, comment, docstring) lines; a comment behind code counts as both."""
    code, comments, doc = set(), set(), set()
    silent = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in silent:
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTION)) and ast.get_docstring(node):
            doc |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(code - doc), len(comments), len(doc)


def percentile(values: list[int], share: float) -> int:
    """The value below which a share of the values lies (nearest rank)."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def figures(paths: list[Path]) -> dict[str, str]:
    """The figures of a set of Python files, as text by name."""
    sources = [path.read_text("utf-8") for path in paths]
    trees = [ast.parse(source) for source in sources]
    sizes = [len(source.splitlines()) for source in sources]
    found = [node for tree in trees for node in functions(tree)]
    spans = [length(node) for node in found]
    public = [node for node in found if not node.name.startswith("_")]
    code, comments, doc = (sum(n) for n in zip(*map(lines, sources, trees), strict=True))
    return {
        "modules": str(len(paths)),
        "lines": f"{sum(sizes):,}",
        "lines a module: median (largest)": f"{statistics.median(sizes):.0f} ({max(sizes)})",
        "lines a function: median / p90 (largest)": f"{statistics.median(spans):g} / "
        f"{percentile(spans, 0.9)} ({max(spans)})",
        "functions with a docstring": share(found, ast.get_docstring),
        "public functions with a docstring": share(public, ast.get_docstring),
        "comment lines to code lines": f"{comments / code:.2f}",
        "docstring lines to code lines": f"{doc / code:.2f}",
        "functions with all types": share(found, annotated),
    }


def share(nodes: list, holds) -> str:
    """The share of nodes of which something holds, with two digits."""
    return f"{sum(bool(holds(node)) for node in nodes) / len(nodes):.2f}"


def notebook_figures(paths: list[Path]) -> dict[str, str]:
    """The figures of a set of notebooks: medians, and the largest where it is a limit."""
    code, words, cells = [], [], []
    for path in paths:
        listed = json.loads(path.read_bytes())["cells"]
        texts = {kind: [] for kind in ("code", "markdown", "raw")}
        for cell in listed:
            texts[cell["cell_type"]].append("".join(cell["source"]))
        sizes = [
            sum(
                bool(line.strip()) and not line.strip().startswith("#") for line in text.split("\n")
            )
            for text in texts["code"]
        ]
        code.append(sum(sizes))
        cells += sizes
        words.append(sum(len(text.split()) for text in texts["markdown"]))
    rates = [said / ran for said, ran in zip(words, code, strict=True)]
    return {
        "notebooks": str(len(paths)),
        "code lines: median (largest)": f"{statistics.median(code):g} ({max(code)})",
        "code lines a cell: median": f"{statistics.median(cells):g}",
        "words of prose: median": f"{statistics.median(words):g}",
        "words to a code line: smallest": f"{min(rates):.1f}",
    }


def long_modules(paths: list[Path]) -> list[str]:
    """The modules above the limit, with their lines."""
    sizes = {path: len(path.read_text("utf-8").splitlines()) for path in paths}
    return [f"{p.relative_to(ROOT)} {n}" for p, n in sizes.items() if n > LIMITS["module"]]


def main() -> None:
    """Print the table that CONTRIBUTING.md shows, and the modules above the limit."""
    parts = {name: sorted((ROOT / name).rglob("*.py")) for name in ("dalle3lib", "tests")}
    columns = {name: figures(paths) for name, paths in parts.items()}
    print("| | `dalle3lib` | `tests` |\n|---|---|---|")
    for name, value in columns["dalle3lib"].items():
        print(f"| {name} | {value} | {columns['tests'][name]} |")
    print("\n| | |\n|---|---|")
    for name, value in notebook_figures(sorted((ROOT / "notebooks").glob("*.ipynb"))).items():
        print(f"| {name} | {value} |")
    print(
        "\nAbove", LIMITS["module"], "lines:", ", ".join(long_modules(parts["dalle3lib"])) or "none"
    )


if __name__ == "__main__":
    main()
