"""How far a judge can be trusted: its errors where the truth is known, and whether it repeats them.

Every prompt of a world set comes with a scene that satisfies it. Rendered, that scene should be
judged correct; rendered with exactly one of the facts changed that the prompt asks for, incorrect.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from dalle3lib import UserError
from dalle3lib.evals import instruments
from dalle3lib.evals.judge import Judge, Picture, Verdict
from dalle3lib.randomness import rng
from dalle3lib.world.prompts import Probe, satisfied
from dalle3lib.world.render import render
from dalle3lib.world.scene import Scene

KINDS = tuple(instruments.QUESTIONS)  # of facts


class Case(NamedTuple):
    """A picture of which the truth is known: the rendered ``scene``, judged for ``prompt``.

    ``changed`` is the kind of fact in which the scene differs from the prompt's; "" for none.
    """

    category: str
    prompt: str
    ask: dict
    scene: Scene
    changed: str
    truth: bool


def changes(probe: Probe) -> dict[str, list[Scene]]:
    """Every scene that fails the probe in one asked fact, by the kind of the fact.

    The changes are those of ``instruments.alternatives``, and of three objects one taken away.
    """
    spec = probe.scene
    found = {kind: [s for _, _, s in instruments.alternatives(kind, spec)] for kind in KINDS}
    if len(spec.objects) == 3:
        found["count"] = [replace(spec, objects=spec.objects[:2])]
    failing = {
        kind: [scene for scene in scenes if not satisfied(probe.ask, scene.facts())]
        for kind, scenes in found.items()
    }
    return {kind: scenes for kind, scenes in failing.items() if scenes}


def cases(prompts: Sequence[tuple[str, Probe]], seed: int = 0) -> list[Case]:
    """Two cases for each prompt of ``world.drawbench.prompts``: the right picture and a wrong one.

    The kind of fact that is changed is drawn first, then the change, so that kinds with many
    values do not crowd out the others.
    """
    made = []
    for i, (category, probe) in enumerate(prompts):
        random, by_kind = rng(seed, "judge/changed", i), changes(probe)
        kind = list(by_kind)[int(random.integers(len(by_kind)))]
        other = by_kind[kind][int(random.integers(len(by_kind[kind])))]
        same = category, probe.prompt, probe.ask
        made += [Case(*same, probe.scene, "", True), Case(*same, other, kind, False)]
    return made


def pictures(found: Sequence[Case], scale: int = 1) -> np.ndarray:
    """The cases' pictures, uint8 [N, 64 s, 64 s, 3] at scale s."""
    return np.stack([render(case.scene, scale=scale) for case in found])


def asked(judge: Judge, found: Sequence[Case], images: Sequence[Picture]) -> list[Verdict]:
    """The judge's verdicts on pictures of cases, each for its case's prompt."""
    return judge(images, [case.prompt for case in found], [case.ask for case in found])


def calibrate(
    judge: Judge, found: Sequence[Case], images: Sequence[Picture] | None = None
) -> pd.DataFrame:
    """Verdicts beside the truth: one row per case, in their order.

    Columns ``category``, ``prompt``, ``changed``, ``truth``, ``score`` (1, 0, NaN), ``reason``.
    ``images`` are the cases' pictures as they are shown (None: as rendered).
    """
    verdicts = asked(judge, found, pictures(found) if images is None else images)
    columns = ["category", "prompt", "changed", "truth", "score", "reason"]
    return pd.DataFrame(
        [
            (case.category, case.prompt, case.changed, case.truth, *verdict)
            for case, verdict in zip(found, verdicts, strict=True)
        ],
        columns=columns,
    )


def errors(table: pd.DataFrame, by: str = "category") -> pd.DataFrame:
    """Both kinds of error of ``calibrate`` by category, or by the kind of fact ``changed``.

    Columns as ``instruments.errors``: accuracy, false positive rate (judged correct among the wrong
    pictures), false negative rate, each with n and a Wilson 95 % interval; and ("unparsed", "n"),
    the pictures without a verdict, which are in no rate. UserError if there is no verdict at all.
    """
    known = table[table.score.notna()]
    if known.empty:
        raise UserError(f"None of the judge's {len(table)} answers holds a verdict.")
    rates = instruments.errors(known.score == 1, known.truth, list(known[by]))
    silent = table[table.score.isna()][by].value_counts()
    silent["all"] = silent.sum()
    rates = rates.reindex([*dict.fromkeys(table[by]), "all"])
    rates["unparsed", "n"] = silent.reindex(rates.index, fill_value=0)
    return rates.rename_axis(by)


def consistency(
    judge: Judge,
    found: Sequence[Case],
    again: Judge | None = None,
    scale: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """How often a judge says the same of the same picture a second time.

    Row "repeat": all pictures once more; row "order": in another order, the second half first and
    on its own. Columns: ``n`` pictures, ``agreement`` (share of equal verdicts; two without one are
    equal) and its Wilson 95 % interval ``low``, ``high``. ``again`` judges the second time; a judge
    whose answers are cached needs one, such as ``by_chat`` with another seed in its options.
    """
    again, images = again or judge, pictures(found, scale)
    first = _scores(asked(judge, found, images))
    order = rng(seed, "judge/order").permutation(len(found))
    shuffled = np.empty(len(found))
    for half in np.array_split(order, 2)[::-1]:
        shuffled[half] = _scores(asked(again, [found[i] for i in half], images[half]))
    runs = {"repeat": _scores(asked(again, found, images)), "order": shuffled}
    rows = {}
    for name, other in runs.items():
        same = (first == other) | (np.isnan(first) & np.isnan(other))
        ends = binomtest(int(same.sum()), len(same)).proportion_ci(method="wilson")
        rows[name] = {"n": len(same), "agreement": same.mean(), "low": ends.low, "high": ends.high}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("again")


def _scores(verdicts: Sequence[Verdict]) -> np.ndarray:
    return np.array([verdict.score for verdict in verdicts])
