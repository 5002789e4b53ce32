"""Captions that a stage of the study needs and that are not committed: are they there, how to
make them.

The stage ``captioner`` asks whether another pair of captioners, taught in another order, would have
changed the results. They are fine-tuned as the shipped ones were, and caption the same images.
"""

import shlex
from pathlib import Path

from dalle3lib import UserError, config, foundation, paths, runs
from dalle3lib.pairs import TRUTH, WRITTEN
from dalle3lib.recaption import KINDS
from dalle3lib.study_stages import NOTEBOOK, PRESET, STAGES

SEED = 1  # the shipped captioners have 0
FINE_TUNE, FINE_TUNE_PRESET = "02a_fine_tune", "cpu"


def folder(stage: str) -> str | None:
    """The folder of captions that a stage trains on; None: captions that need no preparation."""
    where = STAGES[stage].given.get("captions_from", WRITTEN)
    return None if where in (WRITTEN, TRUTH) else where


def lacking(stage: str) -> bool:
    """Whether the captions of a stage must still be made."""
    where = folder(stage)
    return where is not None and not (paths.folder(where) / "manifest.json").is_file()


def commands(stage: str) -> list[str]:
    """The commands, after ``python``, that fine-tune the other captioners and caption with them.

    Fine-tuning takes the examples, steps and learning rate of the shipped captioners.
    """
    lines, captioners = [], []
    for kind in KINDS:
        recipe = foundation.RECIPES[f"coca-{kind}"]
        given = {
            "kind": kind,
            "seed": SEED,
            "examples": recipe["scenes"],
            "held_out_every": recipe["steps"],  # the shipped ones were not stopped early
            "warmup": 100,
            **{name: recipe[name] for name in ("steps", "lr")},
        }
        options = [str(w) for name, value in given.items() for w in ("-p", name, value)]
        start = ["-m", "dalle3lib", "run", FINE_TUNE, "-p", "preset", FINE_TUNE_PRESET]
        lines.append(shlex.join([*start, *options]))
        captioners += ["--captioner", f"{kind}={_made_in(given)}"]
    scenes = config.from_preset(NOTEBOOK, preset=PRESET).scenes
    start = ["-m", "dalle3lib", "recaption", f"world:train:{scenes}", folder(stage)]
    return [*lines, shlex.join([*start, "--kind", "both", "--workers", "2", *captioners])]


def _made_in(given: dict) -> Path:
    """Where such a run of chapter 02a leaves its captioner, seen from the repository if inside."""
    cfg = config.from_preset(FINE_TUNE, preset=FINE_TUNE_PRESET, **given)
    made = cfg.root / FINE_TUNE / runs.run_id(cfg, "kind") / "captioner"
    return made.relative_to(paths.ROOT) if made.is_relative_to(paths.ROOT) else made


def told(stage: str) -> list[str]:
    """What a plan says of captions that must be made first: lines, or none."""
    if not lacking(stage):
        return []
    return [
        f"The captions of stage {stage} are not there yet ({folder(stage)}). They are made by:",
        *(f"  python {command}" for command in commands(stage)),
    ]


def require(stage: str) -> None:
    """UserError with the commands that make them if the captions of a stage are not there."""
    if lines := told(stage):
        raise UserError("\n".join(lines))
