"""DrawBench with a judge: 200 prompts, several pictures each, a verdict on every picture.

DrawBench (Saharia et al. 2022) has its prompts in 11 categories; the paper (§4.1.2) draws four
pictures of each and reports the share that its judge calls correct. ``layout`` lists the pictures,
``judged`` gives each a verdict on its original prompt, ``summary`` the shares by category.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dalle3lib import UserError, paths, released_prompts, stats
from dalle3lib.evals.judge import Judge, Picture
from dalle3lib.randomness import rng
from dalle3lib.world.prompts import Probe

# Prompts of each category, in the order of the file (Saharia et al. 2022, table A.1).
CATEGORIES = {
    "Colors": 25, "Conflicting": 10, "Counting": 19, "DALL-E": 20, "Descriptions": 20,
    "Gary Marcus et al.": 10, "Misspellings": 10, "Positional": 20, "Rare Words": 7,
    "Reddit": 38, "Text": 21,
}  # fmt: skip
IMAGES = 4  # of each prompt and system
COLUMNS = ["category", "prompt", "seed", "image"]


def folder() -> Path | None:
    """The folder of DrawBench among the public benchmark files; None where there is none."""
    benchmarks = paths.benchmarks()
    found = benchmarks and benchmarks / "drawbench"
    return found if found and found.is_dir() else released_prompts.folder()


def load(where: str | Path | None = None) -> pd.DataFrame:
    """DrawBench: columns ``category`` and ``prompt``, 200 rows in the original order.

    ``where`` is a folder with ``drawbench.csv`` (columns ``prompt``, ``category``) or with OpenAI's
    ``drawbench.txt`` (``released_prompts.fetch`` gets it); None: the one among the benchmarks. The
    category comes from the place in the order; one that the csv names must be the same. Raises
    UserError if there is no file, or if it is not the published set.
    """
    where = where or folder()
    if where is None:
        raise UserError(
            f"DrawBench is not here: released_prompts.fetch(folder) gets the prompts from "
            f"{released_prompts.HOME}, or set DALLE3_BENCHMARKS to a folder that has drawbench/."
        )
    path = Path(where).expanduser() / "drawbench.csv"
    if not path.is_file():
        prompts = released_prompts.lines(Path(where).expanduser(), released_prompts.ORIGINAL)
        return pd.DataFrame({"category": categories(), "prompt": prompts})
    table, right = _table(path), categories()
    named = list(table.get("category", right))
    if wrong := [i for i in range(len(right)) if named[i] != right[i]]:
        first = wrong[0]
        raise UserError(
            f"{path}: prompt {first} is {right[first]}, not {named[first]} ({len(wrong)} such)."
        )
    return pd.DataFrame({"category": right, "prompt": table.prompt})


def categories() -> list[str]:
    """The category of each of the 200 prompts, by its place in the file."""
    return [name for name, count in CATEGORIES.items() for _ in range(count)]


def _table(path: Path) -> pd.DataFrame:
    """The csv with the 200 published prompts in their order; UserError for anything else."""
    try:
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
        digest = hashlib.sha256("\n".join(table.prompt).encode()).hexdigest()
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a table with prompts ({error}).") from None
    if digest != released_prompts.ORIGINAL.sha256:
        raise UserError(
            f"{path} does not hold DrawBench's 200 prompts in their order: they are "
            f"{released_prompts.ORIGINAL.url}."
        )
    return table


# ---- pictures and verdicts -----------------------------------------------------------------------


def layout(
    prompts: Sequence[tuple[str, str | Probe]] | pd.DataFrame, images: int = IMAGES
) -> pd.DataFrame:
    """One row for each picture to be drawn: ``category``, ``prompt``, ``seed``, ``image``.

    ``prompts`` is what ``load`` or ``world.drawbench.prompts`` returns. The seeds are 0 to
    ``images`` - 1; ``image`` is the file's name, as "017-3.png" for prompt 17, seed 3. A prompt
    twice is a UserError, for it would count double.
    """
    if isinstance(prompts, pd.DataFrame):
        prompts = list(zip(prompts.category, prompts.prompt, strict=True))
    pairs = [(name, p.prompt if isinstance(p, Probe) else p) for name, p in prompts]
    if len({prompt for _, prompt in pairs}) < len(pairs):
        raise UserError("A prompt occurs twice in the set: its pictures would count double.")
    rows = [
        (name, prompt, seed, f"{i:03d}-{seed}.png")
        for i, (name, prompt) in enumerate(pairs)
        for seed in range(images)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def judged(
    pictures: pd.DataFrame,
    images: str | Path | Sequence[Picture],
    judge: Judge,
    asks: Mapping[str, dict] | None = None,
) -> pd.DataFrame:
    """The pictures of a ``layout`` with their verdicts: one row each, two more columns.

    ``images`` is the folder where they are, or the pictures themselves in the rows' order. The
    judge sees the prompt in the table, so keep the original one there when an upsampled one was
    drawn. ``score`` is 1, 0, or NaN for an answer without a verdict; ``reason`` is the judge's
    text. Raises UserError if pictures are missing, and what the judge raises.
    """
    if isinstance(images, str | Path):
        images = [Path(images).expanduser() / name for name in pictures.image]
        if missing := [path for path in images if not path.is_file()]:
            raise UserError(
                f"{len(missing)} of {len(images)} pictures are missing, the first is {missing[0]}."
            )
    wanted = [asks[prompt] for prompt in pictures.prompt] if asks else None
    verdicts = judge(images, list(pictures.prompt), wanted)
    scores, reasons = zip(*verdicts, strict=True) if verdicts else ((), ())
    table = pictures.assign(score=np.array(scores, np.float64), reason=list(reasons))
    return table[[*COLUMNS, "score", "reason"]]


def summary(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The share of correct pictures by category, and over all in the row "all".

    Columns: ``prompts``, ``images``, ``unparsed`` (of the images), ``correct`` (the share among the
    images with a verdict, 0 to 1) and its bootstrap 95 % interval ``low``, ``high``, for which
    whole prompts are drawn, because pictures of one prompt are right and wrong together. NaN where
    a category has no verdict, intervals also where it has fewer than two prompts.
    """
    rows = {}
    for name in [*dict.fromkeys(table.category), "all"]:
        here = table if name == "all" else table[table.category == name]
        counts = here.groupby("prompt", sort=False).score.agg(["sum", "count", "size"])
        right, known = counts[["sum"]].to_numpy(), counts[["count"]].to_numpy()
        ends = (np.nan, np.nan)
        if len(counts) > 1:
            ends = [float(e[0]) for e in stats.ratio_interval(right, known, rng(seed, name))]
        rows[name] = {
            "prompts": len(counts),
            "images": len(here),
            "unparsed": int(here.score.isna().sum()),
            "correct": float(here.score.mean()),
            "low": ends[0],
            "high": ends[1],
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("category")
