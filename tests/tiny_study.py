"""A study of three made-up systems, small enough to be looked at by hand."""

from pathlib import Path

import numpy as np

from dalle3lib import human, human_study
from dalle3lib.human_samples import Samples, from_arrays

SYSTEMS = ("alpha", "beta", "gamma")
PROMPTS = 8


def samples(system: str, prompts: int = PROMPTS, side: int = 8) -> Samples:
    """Pictures that no two systems or prompts share; captions that all systems share."""
    random = np.random.default_rng(list(system.encode()))
    pictures = random.integers(0, 256, (prompts, side, side, 3), dtype=np.uint8)
    return from_arrays(pictures, [f"a <b>thing</b> number {i}" for i in range(prompts)])


def systems(names=SYSTEMS, prompts: int = PROMPTS) -> dict[str, dict[str, Samples]]:
    """Each system's samples by question."""
    return {name: dict.fromkeys(human.QUESTIONS, samples(name, prompts)) for name in names}


def make(folder: Path, names=SYSTEMS, prompts: int = PROMPTS, **options) -> human.Plan:
    """A study of 12 pairs, 3 checks and 3 repeats a rater unless told otherwise."""
    given = {"seed": 0, "trials": 12, "checks": 3, "repeats": 3} | options
    return human_study.make(folder, systems(names, prompts), **given)
