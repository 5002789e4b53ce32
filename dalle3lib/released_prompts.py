"""The upsampled prompts that OpenAI released: 200 of DrawBench (paper section 4.1).

They are the only upsampled captions of the paper that are public, so they show what its appendix C
does not say: that the description stands behind the original prompt, how long it is, how it is
written. ``pairs`` compares the two files line by line.
"""

import hashlib
import urllib.request
from pathlib import Path

import pandas as pd

from dalle3lib import UserError, files, paths
from dalle3lib.caption_sets import Download
from dalle3lib.upsample import LONGEST, SHORTEST

HOME = "https://github.com/openai/dalle3-eval-samples"  # MIT; the prompts are those of Imagen
REVISION = "d7c88c07b492ad7b9fd3003126d00719a2edabb1"
RAW = f"https://raw.githubusercontent.com/openai/dalle3-eval-samples/{REVISION}"
ORIGINAL = Download(
    f"{RAW}/prompts/drawbench.txt",
    12_977,
    "3d4f4b2db7520208ee056d470202c07fd77766b96d133ea9f4ab00a323381e9a",
)
UPSAMPLED = Download(
    f"{RAW}/prompts/drawbench_upsampled.txt",
    72_916,
    "8405d5e1318c8bc9f5bc8c3e41fdfaab5587170a9f4fa6d8c3e2f2d0ba8ed18e",
)


def folder() -> Path | None:
    """The folder of the prompts among the public benchmark files; None where there is none."""
    benchmarks = paths.benchmarks()
    found = benchmarks and benchmarks / "dalle3-eval-samples" / "prompts"
    return found if found and found.is_dir() else None


def download(file: Download, path: Path) -> None:
    """Download one file to ``path``, unless it is there already.

    Raises UserError without a network, and if what comes is not what was published; then nothing
    is written.
    """
    if path.is_file() and files.sha256(path) == file.sha256:
        return
    try:
        with urllib.request.urlopen(file.url, timeout=30) as reply:
            data = reply.read()
    except OSError as error:
        raise UserError(
            f"{file.url} cannot be fetched ({error}): download it yourself as {path}."
        ) from None
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise UserError(f"{file.url} is not the file of its revision any more.")
    with files.guard(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, data)


def checked(path: Path, file: Download) -> bytes:
    """The bytes of a published file; UserError if it is missing or another one."""
    if not path.is_file() or files.sha256(path) != file.sha256:
        raise UserError(f"{path} is missing or altered: it is {file.url} ({file.size:,} bytes).")
    return path.read_bytes()


def fetch(where: str | Path) -> Path:
    """Download the two files into a folder, unless they are there, and return the folder.

    Raises UserError as ``download`` does.
    """
    where = Path(where).expanduser()
    for file in (ORIGINAL, UPSAMPLED):
        download(file, where / file.url.rpartition("/")[2])
    return where


def lines(where: Path, file: Download) -> list[str]:
    """The lines of one of the files in a folder; UserError if it is missing or another one."""
    return checked(Path(where) / file.url.rpartition("/")[2], file).decode("utf-8").splitlines()


def pairs(where: str | Path | None = None) -> pd.DataFrame:
    """Each prompt and its upsampled form; rows are numbered from 0, as OpenAI numbers its pictures.

    ``where`` is the folder of the two files (None: the one among the benchmarks). Columns as
    ``compare``. Raises UserError if the files are not there.
    """
    where = where or folder()
    if where is None:
        raise UserError(
            f"OpenAI's released prompts are not here: released_prompts.fetch(folder) gets them "
            f"from {HOME}, or set DALLE3_BENCHMARKS to a folder that has them."
        )
    return compare(lines(Path(where), ORIGINAL), lines(Path(where), UPSAMPLED))


def compare(originals: list[str], released: list[str]) -> pd.DataFrame:
    """What upsampling made of prompts, one row for each.

    ``original`` and ``released`` are the lines; ``prepended`` is the prompt that stands before the
    description (the original, or what was made of it) and ``description`` the rest, empty where
    nothing was added; ``kind`` is "upsampled", "edited" (the prompt before it is another than the
    original) or "unchanged"; ``words`` counts those of the description; ``in_range``: 15 to 80 of
    them; ``lower_case``: it has no capital letter.
    """
    rows = []
    for original, line in zip(originals, released, strict=True):
        before, description, kind = original, line.removeprefix(f"{original}. "), "upsampled"
        if line == original:
            description, kind = "", "unchanged"
        elif description == line:  # the prompt ends in a point itself, so two stand together
            before, _, description = line.partition(". ")
            kind = "edited"
        rows.append((original, line, before, description, kind))
    table = pd.DataFrame(rows, columns="original released prepended description kind".split())
    table["words"] = table.description.str.split().str.len()
    table["in_range"] = table.words.between(SHORTEST, LONGEST)
    table["lower_case"] = table.description == table.description.str.lower()
    return table


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The facts about ``pairs`` in numbers: columns ``fact`` and ``value``, one fact a row."""
    written = table[table.kind != "unchanged"]
    facts = {
        "prompts": len(table),
        "original prompt, then a description": int((table.kind == "upsampled").sum()),
        "prompt edited, then a description": int((table.kind == "edited").sum()),
        "left as it was": int((table.kind == "unchanged").sum()),
        "words of a description, mean": written.words.mean(),
        "words of a description, median": written.words.median(),
        "words of a description, fewest": int(written.words.min()),
        "words of a description, most": int(written.words.max()),
        "descriptions of 15 to 80 words": int(written.in_range.sum()),
        "descriptions in lower case": int(written.lower_case.sum()),
        "words of an original prompt, mean": table.original.str.split().str.len().mean(),
    }
    return pd.DataFrame(facts.items(), columns=["fact", "value"])
