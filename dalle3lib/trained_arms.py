"""Arms that are trained: runs of notebook 04a, and the shipped ones that stand in for them.

The shipped arms are those of the world with seed 0. An arm's name is kind-ratio-seed.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from diffusers import UNet2DConditionModel

from dalle3lib import arm, foundation, paths, pretrained, quality, runs, stats
from dalle3lib.config import Parameters
from dalle3lib.prompt_kinds import FIGURE_4

TRAINING = "04a_train_arm"  # the notebook whose runs are arms


def live_run(cfg: Parameters, name: str, first: bool = False) -> Path | None:
    """The finished run of an arm, or None where the shipped arm stands in.

    Where there are both the shipped arm is taken, or, with ``first``, the run. Raises UserError,
    naming the command that trains it, if there is neither.
    """
    kind, ratio, seed = arm.parts(name)
    shipped = cfg.data == "world" and seed == "0" and f"{kind}-{ratio}" in foundation.ARMS
    path = runs.run_path(cfg, TRAINING, kind, ratio, seed)
    if shipped and not (first and (path / "manifest.json").is_file()):
        return None
    return runs.find(cfg, TRAINING, kind, ratio, seed)


def network(cfg: Parameters, name: str) -> tuple[UNet2DConditionModel, float]:
    """An arm's network (``live_run``, float32, frozen, on the device), and its guidance scale."""
    if run := live_run(cfg, name):
        model = UNet2DConditionModel.from_pretrained(run / "unet").float().requires_grad_(False)
        guidance = runs.results(run)["guidance"]
    else:
        model, guidance = arm.load(name.removesuffix("-0"))
    return model.eval().to(pretrained.device(cfg)), guidance


def ship(run: Path) -> Path:
    """Copy a finished arm's weights from its run directory to ``data/foundation``; its new place.

    The manifest tells the guidance chosen for it and what was measured in the run.
    """
    manifest, results = runs.load(run), runs.results(run)
    given, seconds = manifest["parameters"], results["training_seconds"]
    out = paths.ROOT / "data" / "foundation" / f"unet-{given['kind']}-{given['ratio']}"
    shutil.copytree(run / "unet", out, dirs_exist_ok=True)
    measured = {"guidance": results["guidance"]}
    measured |= {f"clip_{kind}": round(value, 2) for kind, value in results["clip"].items()}
    read = results["facts"].get("descriptive", {})
    measured |= {f"read_{kind}": round(share, 3) for kind, share in read.items()}
    wall, cpu = quality.clock()
    started = wall - seconds["wall"], cpu - seconds["processor"]
    options = {"seed": given["seed"], "steps": given["steps"], "measured": measured}
    quality.write_manifest(out, started, **options)
    return out


# ---- comparing arms ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What is compared: an arm's scores (as of ``score_snapshots``), its last pictures by kind of
    prompt, and what to tell about it."""

    scores: pd.DataFrame
    pictures: dict[str, np.ndarray]
    about: dict


def outcome(cfg: Parameters, name: str, run: Path | None) -> Outcome:
    """The outcome of an arm: read from its live run, or sampled now from the shipped weights."""
    if run:
        manifest, results = runs.load(run), runs.results(run)
        scores = pd.read_parquet(run / "scores.parquet")
        scores = scores[scores.kind.isin(FIGURE_4)]  # further kinds are not chapter 04's
        pictures = {k: np.load(run / f"pictures-{k}.npy") for k in scores.kind.unique()}
        minutes = results["training_seconds"]["processor"] / 60
        about = {"source": manifest["run"], "steps": manifest["parameters"]["steps"]}
        about |= {"guidance": results["guidance"], "processor minutes": minutes}
        return Outcome(scores, pictures, about)
    shipped, seed = name.rsplit("-", 1)
    model, guidance = arm.load(shipped)
    model.to(pretrained.device(cfg))
    on, steps = arm.studio(arm.evaluation_records(cfg), cfg), cfg.sampling_steps
    scores, pictures = arm.score(model, on, seed=int(seed), steps=steps, guidance=guidance)
    manifest = quality.manifest(f"unet-{shipped}")
    about = {"source": "shipped", "steps": manifest["steps"], "guidance": guidance}
    about |= {"processor minutes": manifest["cpu_seconds"] / 60}
    return Outcome(scores.assign(step=manifest["steps"]), pictures, about)


def over_seeds(cfg: Parameters, names: Sequence[str]) -> pd.DataFrame:
    """Mean CLIP score over the seeds of each arm, with its 95 % interval over seeds.

    ``names`` are finished runs (kind-ratio-seed); columns arm, kind, seeds, mean, low, high.
    Intervals are NaN for a single seed. Raises UserError for a run that is missing.
    """
    rows = []
    for name in names:
        found = runs.results(runs.find(cfg, TRAINING, *arm.parts(name)))
        rows += [(arm.label(name), kind, score) for kind, score in found["clip"].items()]
    table = pd.DataFrame(rows, columns=["arm", "kind", "score"])
    summary = []
    for (name, kind), group in table.groupby(["arm", "kind"], sort=False):
        summary.append((name, kind, len(group), *stats.over_seeds(group.score)))
    return pd.DataFrame(summary, columns=["arm", "kind", "seeds", "mean", "low", "high"])
