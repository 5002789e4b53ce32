"""The table that every automatic evaluation of generated images gives: one row for each image."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dalle3lib import UserError


def table(
    prompts: Sequence[str], seed: int | Sequence[int], scores: Sequence[float], reasons: list[str]
) -> pd.DataFrame:
    """One row for each image: ``prompt``, ``seed``, ``image`` (its number), ``score``, ``reason``.

    ``seed`` is that of all images or one for each. Raises UserError unless there are as many
    prompts, and seeds if several, as scores.
    """
    same_number(len(scores), prompts)
    if np.ndim(seed):
        same_number(len(scores), seed, "seeds")
    columns = {
        "prompt": list(prompts),
        "seed": np.broadcast_to(seed, len(scores)),
        "image": np.arange(len(scores)),
        "score": np.asarray(scores, float),
        "reason": reasons,
    }
    return pd.DataFrame(columns)


def same_number(images: int, things: Sequence, what: str = "prompts") -> None:
    """Raises UserError unless there is one thing for each image."""
    if images != len(things):
        raise UserError(f"There are {images} images but {len(things)} {what}: give one each.")


def look_up(asked: dict[str, object], prompts: Sequence[str], what: str) -> list:
    """What a dict says about each prompt; UserError that counts and names prompts it lacks."""
    missing = [p for p in dict.fromkeys(prompts) if p not in asked]
    if missing:
        raise UserError(
            f"{len(missing)} prompts have no {what}, the first is {missing[0]!r}: add it."
        )
    return [asked[p] for p in prompts]
