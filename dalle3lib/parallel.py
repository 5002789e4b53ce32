"""One training on several processes, one per GPU: what ``accelerate launch`` starts.

Every process holds the whole model and computes its share of each step's parts; then the gradients
are added up. A part's random numbers depend on the step alone, not on who computes it, so several
processes train the model that one would, up to the rounding of a sum. In a process that nobody
launched so, every function here does nothing.
"""

import os
import sys
from collections.abc import Sequence
from functools import lru_cache

import accelerate
import torch
from accelerate.utils import parse_flag_from_env, reduce
from torch import nn

from dalle3lib import UserError


def launch_command(processes: int, device: str = "cpu") -> tuple[list[str], dict[str, str]]:
    """What starts a script or a module (``-m name``) in several processes of this machine.

    Returns the beginning of the command and its environment; one process per GPU where ``device``
    is "cuda", and of one thread each where it is "cpu". To be run as a subprocess: a notebook that
    has touched CUDA can no longer fork (so ``accelerate.notebook_launcher`` is out).
    """
    # "multi_gpu" is accelerate's name for torchrun, without which it starts no second process.
    options = f"--multi_gpu --num_machines 1 --num_processes {processes} --main_process_port 0"
    options += " --num_cpu_threads_per_process 1 --mixed_precision no --dynamo_backend no"
    environment = {**os.environ, "ACCELERATE_USE_CPU": str(device == "cpu").lower()}
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*launcher, *options.split()], environment


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


@lru_cache(maxsize=1)
def state() -> accelerate.PartialState:
    """The connection to the other processes, made at the first call."""
    return accelerate.PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def is_main() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return count() == 1 or state().is_main_process


def wait() -> None:
    """Go on when all processes have come here."""
    if count() > 1:
        state().wait_for_everyone()


def micro_batches(batch: int, size: int | None = None) -> list[slice]:
    """A batch cut into parts of at most ``size`` samples, at least one for each process.

    The default is one part for each process. UserError if some process would have none.
    """
    size = min(size or batch, -(-batch // count()))
    parts = [slice(first, min(first + size, batch)) for first in range(0, batch, size)]
    if len(parts) < count():
        raise UserError(
            f"A batch of {batch} in parts of {size} leaves some of {count()} processes without "
            "work: make the parts smaller or the batch larger."
        )
    return parts


def own(parts: Sequence) -> Sequence:
    """The parts of a step that this process computes: every n-th of them.

    UserError if there are fewer than processes.
    """
    if len(parts) < count():
        raise UserError(
            f"A step of this training has {len(parts)} part, too few for {count()} processes: run "
            "it with one process."
        )
    return parts[state().process_index :: count()] if count() > 1 else parts


@torch.no_grad()
def add_up(model: nn.Module, values: dict[str, float]) -> dict[str, float]:
    """Replace the model's gradients by their sum over the processes; return the values' sums."""
    if count() == 1:
        return values
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    total = reduce(torch.cat([g.flatten() for g in gradients]), "sum")  # one message, not hundreds
    for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))
    sums = reduce(torch.tensor(list(values.values()), device=total.device), "sum")
    return dict(zip(values, sums.tolist(), strict=True))
