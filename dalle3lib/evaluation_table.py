"""Table 1 from the rows of ``automatic_evaluation``: means, what each step adds, and the distances
between pictures that the paper's three metrics do not see.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from dalle3lib import UserError, decoder_scores, stats
from dalle3lib.automatic_evaluation import CEILING
from dalle3lib.evals import clip_score, distribution
from dalle3lib.randomness import rng

UNITS = {"captions": "points"}  # of the others: % points
FINE = 16  # cycles across a picture; the power from there on is called its sharpness


def records(table: pd.DataFrame) -> list[dict]:
    """The rows of a table, index included, as ``results.json`` takes them: NaN is null."""
    return json.loads(table.reset_index().to_json(orient="records", double_precision=15))


def scaled(rows: pd.DataFrame) -> pd.Series:
    """Scores in the unit of the table: points for captions, per cent for the others."""
    return rows.score.where(rows.benchmark == "captions", 100 * rows.score)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % interval over prompts of every system on every benchmark.

    Rows (benchmark, system), in their order; columns mean, low, high, images. Pictures of one
    prompt are averaged first. Ends are NaN where fewer than two prompts have a score.
    """
    found = {}
    for key, group in rows.assign(value=scaled(rows)).groupby(["benchmark", "system"], sort=False):
        means = group.groupby("prompt").value.mean().dropna().to_numpy()
        low = high = np.nan
        if len(means) > 1:
            low, high = stats.mean_interval(means, rng(0, "/".join(key)))
        mean = means.mean() if len(means) else np.nan
        found[key] = {"mean": mean, "low": low, "high": high, "images": len(group)}
    return pd.DataFrame.from_dict(found, orient="index").rename_axis(["benchmark", "system"])


def effect(rows: pd.DataFrame, benchmark: str, first: str, second: str) -> dict:
    """First minus second system on a benchmark, paired by prompt: effect, interval, unit.

    NaN where fewer than two prompts have a score from both.
    """
    here = rows[rows.benchmark == benchmark].assign(value=scaled)
    means = here.pivot_table(index="prompt", columns="system", values="value", sort=False)
    pair = means.reindex(columns=[first, second]).dropna()
    unit = UNITS.get(benchmark, "% points")
    if len(pair) < 2:
        return {"effect": np.nan, "interval": (np.nan, np.nan), "unit": unit}
    random = rng(0, f"{benchmark}/{first}/{second}")
    return stats.paired_effect(pair[first], pair[second], random) | {"unit": unit}


def steps(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """What each system adds to the one before, and the last one over the first: pairs by name."""
    drawn = [name for name in names if name != CEILING]
    pairs = {f"{a} over {b}": (a, b) for b, a in zip(drawn, drawn[1:], strict=False)}
    pairs = {a if a.startswith("+") else name: (a, b) for name, (a, b) in pairs.items()}
    return pairs | ({f"all over {drawn[0]}": (drawn[-1], drawn[0])} if len(drawn) > 2 else {})


def worth(rows: pd.DataFrame, names: Sequence[str], sets: Sequence[str]) -> pd.DataFrame:
    """``effect`` of each of the ``steps`` on each benchmark.

    Rows (step, benchmark), none if there is one system only; columns value, low, high in ``unit``.
    """
    rows_of = []
    for step, pair in steps(names).items():
        for name in sets:
            one = effect(rows, name, *pair)
            rows_of.append((step, name, one["effect"], *one["interval"], one["unit"]))
    columns = ["step", "benchmark", "value", "low", "high", "unit"]
    return pd.DataFrame(rows_of, columns=columns).set_index(["step", "benchmark"])


def features_of(name: str, scorer, device: str = "cpu") -> Callable[[np.ndarray], Tensor]:
    """What gives features of pictures uint8 [N, H, H, 3]: "clip" (the scorer), or "inception"."""
    if name == "clip":
        return lambda images: clip_score.image_features(scorer, images).cpu()
    if name == "inception":
        model = distribution.inception(device)
        return lambda images: distribution.inception_features(model, images)
    raise UserError(f"There are no features {name!r}: choose clip or inception.")


def image_quality(
    pictures: dict[str, np.ndarray],
    reference: np.ndarray,
    features: dict[str, Callable[[np.ndarray], Tensor]],
    seed: int = 0,
) -> pd.DataFrame:
    """What the three metrics do not see: distances of each system's pictures from real ones.

    A row for each system: "KID" (times 1000) and "CMMD" with "low" and "high" to other pictures
    ``reference`` uint8 [M, 64, 64, 3], each by its ``features`` (``features_of``); "sharpness", the
    power of its pictures from 16 cycles on over that of the reference: 1 is as sharp as those.
    """
    measures = {"KID": (distribution.kid, 1000), "CMMD": (distribution.cmmd, 1)}
    real = {name: features[name](reference) for name in measures}
    crisp, rows = decoder_scores.spectrum(reference)[FINE - 1 :].sum(), {}
    for system, images in pictures.items():
        row = {}
        for name, (distance, factor) in measures.items():
            pair, random = (features[name](images), real[name]), rng(seed, f"{name}/{system}")
            low, high = distribution.interval(*pair, distance, random)
            values = {name: distance(*pair), f"{name} low": low, f"{name} high": high}
            row |= {key: factor * value for key, value in values.items()}
        power = decoder_scores.spectrum(images)[FINE - 1 :].sum()
        rows[system] = row | {"sharpness": power / crisp}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")
