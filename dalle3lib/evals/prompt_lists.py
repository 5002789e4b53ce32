"""An audit of the prompt lists that OpenAI released: blank, repeated and missing lines.

A line of these files is a prompt, and its number is the number in the names of its pictures, so a
blank line is a picture without a prompt, and a repeated one weighs double.
"""

from collections import Counter
from pathlib import Path

import pandas as pd

from dalle3lib.evals import published_files as public

FOLDER = "prompts/t2i compbench/"


def prompts(text: str) -> list[str]:
    """The lines of a list, spaces at their ends taken off; blank lines stay, as empty texts."""
    return [line.strip() for line in text.splitlines()]


def count(lines: list[str]) -> dict[str, int]:
    """Lines, blank ones, distinct prompts, and repeated lines (each beyond a prompt's first)."""
    written = [line for line in lines if line]
    distinct = len(set(written))
    return {
        "lines": len(lines),
        "blank": len(lines) - len(written),
        "distinct": distinct,
        "repeated": len(written) - distinct,
    }


def compare(lines: list[str], own: list[str]) -> dict[str, list[str]]:
    """The prompts of a benchmark's own list that a released one lacks, and those it has besides."""
    ours, theirs = ({line for line in some if line} for some in (lines, own))
    return {"missing": sorted(theirs - ours), "added": sorted(ours - theirs)}


def audit(released: str | Path, compbench: str | Path | None = None) -> pd.DataFrame:
    """Every released list in numbers, a row each: columns as ``count``, then missing and added.

    ``released`` and ``compbench`` are folders (see ``published_files.folder``). The last two
    columns compare a list of T2I-CompBench with the benchmark's own of today; they are missing
    (<NA>) for other lists and without ``compbench``. Raises UserError for a file that is not there.
    """
    rows = {}
    for name in public.RELEASED.files:
        if name.endswith(".txt"):
            short = name.removeprefix("prompts/")
            rows[short] = count(prompts(public.read(released, name)))
            if compbench and name.startswith(FOLDER):
                apart = differences(released, compbench, name)
                rows[short] |= {side: len(found) for side, found in apart.items()}
    columns = [*count([]), "missing", "added"]
    return pd.DataFrame.from_dict(rows, "index").reindex(columns=columns).astype("Int64")


def differences(released: str | Path, compbench: str | Path, name: str) -> dict[str, list[str]]:
    """``compare`` of one released list of T2I-CompBench with the benchmark's own."""
    own = name.removeprefix(FOLDER).replace("non-spatial", "non_spatial")  # as it is called there
    texts = public.read(released, name), public.read(compbench, own, public.COMPBENCH)
    return compare(*map(prompts, texts))


def repeated(lines: list[str]) -> pd.DataFrame:
    """The prompts that stand on several lines, most often first: columns prompt and times."""
    often = [(line, times) for line, times in Counter(filter(None, lines)).most_common()]
    return pd.DataFrame([row for row in often if row[1] > 1], columns=["prompt", "times"])
