"""Which runs the study has, by stage: arms, seeds, and what differs from preset ``study``.

``pilot`` and ``main`` are the study itself. ``order`` trains arms of the main stage once more with
another order of data (an A/A control); the sensitivity stages change one thing each, with few
seeds: they show where a claim holds, and decide nothing.
"""

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dalle3lib import UserError, config, runs
from dalle3lib.config import Parameters

NOTEBOOK, PRESET = "04a_train_arm", "study"
FIGURE_4 = ("original-0", "ssc-95", "dsc-95")  # the arms of these figures of the paper
FIGURE_5 = ("dsc-50", "dsc-65", "dsc-80", "dsc-90", "dsc-95", "dsc-100")
FOUR = ("original-0", "ssc-95", "dsc-80", "dsc-95")
NOISE = (*FIGURE_4, "dsc-100")  # is the lead of 100 % over 95 % the alt-text's fault?
CURVE_SEED, CURVE_POINTS = 100, 5  # whose scores are also taken during training


class Stage(NamedTuple):
    """Some arms, the seeds of each, and the parameters that differ from the preset's.

    ``varies`` says so to readers. Without it the stage is the study itself or its pilot.
    """

    arms: tuple[str, ...]
    seeds: range
    given: dict[str, Any] = {}
    varies: str = ""


FEW = range(100, 103)  # seeds of a sensitivity stage, which decides nothing
OTHER_CAPTIONS = "runs/study-captions/captioner-1"  # see study_captions
STAGES = {
    "pilot": Stage(FOUR, range(10, 14)),
    "main": Stage(("original-0", "ssc-95", *FIGURE_5), range(100, 110)),
    "order": Stage(
        ("original-0", "dsc-95"), range(100, 106), {"data_order": 1}, "another order of data"
    ),
    "noise-0": Stage(NOISE, FEW, {"noise": 0.0}, "alt-text noise 0"),
    "noise-25": Stage(NOISE, FEW, {"noise": 0.25}, "alt-text noise .25"),
    "noise-75": Stage(NOISE, FEW, {"noise": 0.75}, "alt-text noise .75"),
    "truth": Stage(FOUR, FEW, {"captions_from": "truth"}, "captions from truth"),
    "captioner": Stage(
        FIGURE_4, FEW, {"captions_from": OTHER_CAPTIONS}, "captioners of another seed"
    ),
    "steps-1000": Stage(FIGURE_4, FEW, {"steps": 1000}, "half the training"),
    "steps-4000": Stage(FIGURE_4, FEW, {"steps": 4000}, "twice the training"),
    "guidance-3": Stage(FIGURE_4, FEW, {"guidances": [3.0]}, "guidance 3 for every arm"),
}
SENSITIVITY = tuple(name for name, stage in STAGES.items() if stage.varies and name != "order")


@dataclass(frozen=True)
class Job:
    """One run of a stage: an arm (kind-ratio) and a seed."""

    stage: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """The run as its result file is called: kind-ratio-seed."""
        return f"{self.arm}-{self.seed}"

    @property
    def identity(self) -> dict[str, Any]:
        """The parameters that name the run within its stage."""
        kind, ratio = self.arm.rsplit("-", 1)
        return {"kind": kind, "ratio": int(ratio), "seed": self.seed}

    @property
    def curve(self) -> bool:
        """Whether the run is also scored during training, and some of its pictures are kept."""
        return self.stage == "main" and self.seed == CURVE_SEED

    @property
    def settings(self) -> dict[str, Any]:
        """The parameters that differ from the preset's, for a run without a curve."""
        return self.identity | STAGES[self.stage].given

    @property
    def given(self) -> dict[str, Any]:
        """The parameters that differ from the preset's."""
        return self.settings | ({"evaluations": CURVE_POINTS} if self.curve else {})


def jobs(stage: str) -> list[Job]:
    """The runs of a stage, seed by seed, so that what is finished early is paired."""
    if stage not in STAGES:
        raise UserError(f"There is no stage {stage!r}{config.nearest(stage, STAGES)}")
    return [Job(stage, arm, s) for s in STAGES[stage].seeds for arm in STAGES[stage].arms]


def job(name: str, stage: str | None = None) -> Job:
    """The run called kind-ratio-seed of a stage; without one, of the study itself or its pilot.

    UserError naming the nearest if there is none.
    """
    known = {one.name: one for of in ([stage] if stage else ["pilot", "main"]) for one in jobs(of)}
    if name not in known:
        raise UserError(f"The study has no run {name!r}{config.nearest(name, known)}")
    return known[name]


def parameters(one: Job, **given: Any) -> Parameters:
    """The resolved parameters of a run; ``given`` are further explicit ones."""
    return config.from_preset(NOTEBOOK, preset=PRESET, **one.settings, **given)


def run_directory(cfg: Parameters) -> Path:
    """Where chapter 04a leaves a run with these parameters."""
    return cfg.root / NOTEBOOK / runs.run_id(cfg, "kind", "ratio", "seed")


def words(given: dict[str, Any]) -> list[str]:
    """The command line that makes a run, after ``python``."""
    options = [str(w) for name, value in given.items() for w in ("-p", name, value)]
    return ["-m", "dalle3lib", "run", NOTEBOOK, "-p", "preset", PRESET, *options]


def again(one: Job) -> list[str]:
    """The two commands that make a run once more and compare it."""
    of = f" --stage {one.stage}" if STAGES[one.stage].varies else ""
    return [
        f"  python {shlex.join(words(one.settings))}",
        f"  python -m dalle3lib study check {one.name}{of}",
    ]


def worth(stage: str, seeds: Collection[int] = ()) -> str:
    """What results are good for: "sensitivity, 3 seeds".

    ``seeds`` are the numbers of seeds of several effects; without any, all of the stage.
    """
    what = {"pilot": "", "main": "", "order": "control, "}.get(stage, "sensitivity, ")
    counts = sorted({*seeds} or {len(STAGES[stage].seeds)})
    return f"{what}{' to '.join(map(str, counts[:: max(1, len(counts) - 1)]))} seeds"
