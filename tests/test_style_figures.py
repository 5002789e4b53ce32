"""The figures of style, counted by hand on a small module; and the hard limits of our own code."""

import ast

import style_figures as style

MODULE = '''\
"""A module.

Of three lines.
"""

X = 1  # a comment behind code


# a comment line
def f(a: int) -> int:
    """Doc."""
    return a


class C:
    def g(self, b):
        c = (
            b
        )
        return c
'''


def test_figures_of_a_module_by_hand(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(MODULE)
    found = style.figures([path])
    assert found["lines"] == "20"
    assert found["lines a function: median / p90 (largest)"] == "4 / 5 (5)"  # 3 and 5
    assert found["functions with a docstring"] == found["functions with all types"] == "0.50"
    code, comments, doc = style.lines(MODULE, ast.parse(MODULE))
    assert (code, comments, doc) == (9, 2, 5)  # X, def, return; class, def, c over 3, return


def test_figures_of_a_notebook_by_hand(tmp_path):
    path = tmp_path / "n.ipynb"
    path.write_text(
        '{"cells": [{"cell_type": "markdown", "source": ["one two ", "three"]},'
        ' {"cell_type": "code", "source": ["# no\\n", "x = 1\\n", "\\n", "y = 2"]}]}'
    )
    found = style.notebook_figures([path])
    assert found["code lines: median (largest)"] == "2 (2)"
    assert found["words of prose: median"] == "3"
    assert found["words to a code line: smallest"] == "1.5"


def test_no_function_is_longer_than_a_screen():
    for path in (style.ROOT / "dalle3lib").rglob("*.py"):
        for node in style.functions(ast.parse(path.read_text("utf-8"))):
            assert style.length(node) <= style.LIMITS["function"], f"{path}: {node.name}"


def test_every_module_begins_with_what_it_is_for():
    for folder in ("dalle3lib", "tests"):
        for path in (style.ROOT / folder).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path
