"""Prose holds no typed results: a number in it is a setting, a definition, or somebody else's.

``typed_numbers.yaml`` lists every one that stands in a page or a notebook, with its reason. A
number that is not listed fails here, and so does a listed one that is gone. Results are inserted
from runs, or shown by the cell below the text.
"""

import re

import nbformat
import pytest
import yaml

from dalle3lib import config, paths

BOOK = paths.ROOT / "book"
LISTED = yaml.safe_load((paths.ROOT / "tests" / "typed_numbers.yaml").read_text("utf-8"))
REASONS = {"setting", "definition", "paper", "published"}
NUMBER = re.compile(r"\d+(?:,\d{3})*\.\d+|\d+(?:,\d{3})*\s?%|\d{1,3}(?:,\d{3})+|\d{3,}")
# What holds digits and is no number of anything.
NAMES = re.compile(
    r"""```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$       # code, formulas
    |\{cite(?::[pt])?\}|\]\([^)]*\)                   # citations, addresses
    |(?:§|Section\s)\d+(?:\.\d+)*|SHA-256           # sections, an algorithm
    |\b(?:DSC|SSC)\s+\d+\s%|\b(?:19|20)\d\d\b      # names of arms, years
    |95\s%\sintervals?                              # the level of every interval
    """,
    re.DOTALL | re.VERBOSE,
)
PAGES = {path.stem: path.read_text("utf-8") for path in sorted(BOOK.glob("*.md"))}


def prose() -> dict[str, str]:
    """The text of every page and of every notebook's text cells, by stem."""
    texts = dict(PAGES)
    for stem in config.notebook_stems():
        cells = nbformat.read(config.notebook_path(stem), 4).cells
        texts[stem] = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
    return texts


def numbers(text: str) -> set[str]:
    """The numbers in a text that could be results: decimals, percentages, three digits or more."""
    return {" ".join(found.split()) for found in NUMBER.findall(NAMES.sub(" ", text))}


@pytest.mark.parametrize("stem", prose())
def test_numbers_in_prose_are_no_results(stem):
    listed = LISTED.get(stem, {})
    assert set(listed) <= REASONS
    known = {str(number) for group in listed.values() for number in group}
    found = numbers(prose()[stem])
    assert not found - known, "list it in tests/typed_numbers.yaml, or insert it from a run"
    assert not known - found, "no longer in the text"


def test_a_typed_result_would_be_found():
    assert numbers("It kept 82 % of them, 0.37 points, and 1,024 or 300 of each.") == {
        *("82 %", "0.37", "1,024", "300")
    }
    assert (
        numbers("§3.4, Figure 4, `seed=1000`, $x=0.5$, DSC 95 %, a 95 % interval, in 2023") == set()
    )


@pytest.mark.parametrize("stem", config.notebook_stems())
def test_a_chapter_tells_its_cost_and_ends_with_what_would_change_our_mind(stem):
    cells = nbformat.read(config.notebook_path(stem), 4).cells
    cost = re.search(r"\| cost \|(.+)\|", cells[0].source)
    assert cost and len(cost[1].split()) > 3
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    headings = re.findall(r"^## (.+)", "\n\n".join(texts), re.MULTILINE)
    assert headings[-1] == "What would change our mind"
