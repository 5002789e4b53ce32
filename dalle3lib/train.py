"""The one training loop: any model, any loss that is a pure function of the step.

The loop knows nothing of images or captions. ``loss(step)`` draws all its randomness from
``randomness.rng(seed, stream, step)``: a run killed at any moment and started again ends with the
same bits (``checkpoints``), and several processes share a step's parts (``parallel``).
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from tqdm.auto import tqdm

from dalle3lib import UserError, files, parallel
from dalle3lib.checkpoints import copy_of, load_checkpoint, resume_run, save_run

Part = Callable[[], dict[str, Tensor]]  # a micro-batch: computed when called


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up to ``peak``, then half a cosine down to 5 % of it at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def update_ema(average: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """Move the exponential moving average of the weights towards the model, in place.

    Early on the decay is (1 + step) / (10 + step), so the start is soon forgotten.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in model.state_dict().items():
        if value.dtype.is_floating_point:
            average[name].lerp_(value, 1 - decay)


def accumulate(model: nn.Module, step: dict[str, Tensor] | Sequence[Part]) -> dict[str, float]:
    """Add up the gradients of a step's parts, one at a time; return the sums of their values.

    A step is one dictionary of scalars, or functions that make one each: micro-batches, whose
    scalars sum to the whole batch's. Processes that train together share them.
    """
    sums: dict[str, float] = {}
    for part in parallel.own([lambda: step] if isinstance(step, dict) else step):
        values = part()
        values["loss"].backward()
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    return parallel.add_up(model, sums)


@torch.no_grad()
def measure(model: nn.Module, held_out: Callable[[], float], average: dict[str, Tensor]) -> float:
    """``held_out()`` of the model in evaluation mode, with the averaged weights if there are any.

    Afterwards the model trains on with the weights it had. UserError if the value is not finite.
    """
    own = copy_of(model.state_dict()) if average else {}
    if average:
        model.load_state_dict(average)
    model.eval()
    value = float(held_out())
    model.train()
    if average:
        model.load_state_dict(own)
    if not math.isfinite(value):
        raise UserError("The held-out loss is not finite: lower the learning rate.")
    return value


def is_stale(log: dict[str, list[float]], patience: int | None) -> bool:
    """Whether the best held-out loss is ``patience`` measurements old: time to stop."""
    values = log.get("held_out")
    return bool(values and patience) and len(values) - 1 - values.index(min(values)) >= patience


def train(
    model: nn.Module,
    loss: Callable[[int], dict[str, Tensor] | Sequence[Part]],
    *,
    steps: int,
    lr: float,
    directory: Path,
    warmup: int = 100,
    weight_decay: float = 0.01,
    ema_decay: float | None = None,
    held_out: Callable[[], float] | None = None,
    held_out_every: int = 100,
    patience: int | None = None,
    checkpoint_every: int = 200,
    snapshots: Sequence[int] = (),
    grad_clip: float = 1.0,
    description: str = "training",
) -> dict[str, list[float]]:
    """Train ``model`` in place; return the log, one value a step for each entry of the loss.

    ``loss(step)`` gives a dictionary of scalars whose entry "loss" is minimised with AdamW, or
    functions that make such dictionaries, whose sum is minimised (gradient accumulation).
    If ``ema_decay`` is set, the model holds the averaged weights on return, and their fp16 copies
    at the steps in ``snapshots`` lie in ``directory/ema-NNNNNN.safetensors``.

    ``held_out()`` measures the model, lower being better, every ``held_out_every`` steps and after
    the last; the log then has the values as "held_out" and their steps as "held_out_step". With
    ``patience`` set, training stops early when so many measurements in a row have brought nothing
    better, and the model holds its best weights on return; without, measuring changes nothing.

    Finished steps are never repeated: the newest intact checkpoint is resumed. Under ``accelerate
    launch`` all processes call this alike, and the first one writes the files. Raises UserError
    when the disk is full (the previous checkpoint stays) or a loss is no longer finite.
    """
    directory = Path(directory)
    with files.guard(directory):
        directory.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    average = copy_of(model.state_dict()) if ema_decay else {}
    start, best, log = 0, {}, {}
    if found := load_checkpoint(directory / "checkpoints"):
        start, parts = found
        average, best, log = resume_run(model, optimizer, parts)
    model.train()
    todo, shown = range(start, start if is_stale(log, patience) else steps), parallel.is_main()
    bar = {"initial": start, "total": steps, "mininterval": 5, "disable": not shown}
    for step in tqdm(todo, description, **bar):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr, warmup)
        values = accumulate(model, loss(step))
        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in values.items():
            log.setdefault(name, []).append(value)
        if not math.isfinite(values["loss"]):
            raise UserError(f"The loss is not finite at step {step}: lower the learning rate.")
        if ema_decay:
            update_ema(average, model, ema_decay, step)
        done = step + 1
        if done in snapshots and shown:
            half = {k: v.half().contiguous() for k, v in average.items()}
            files.write_atomic(directory / f"ema-{done:06d}.safetensors", save(half))
        if held_out and (done % held_out_every == 0 or done == steps):
            value = measure(model, held_out, average)
            if patience and value < min(log.get("held_out", [math.inf])):
                best = copy_of(average or model.state_dict(), "cpu")  # a GPU has better uses
            log.setdefault("held_out", []).append(value)
            log.setdefault("held_out_step", []).append(done)
        stop = done == steps or is_stale(log, patience)
        if (done % checkpoint_every == 0 or stop) and shown:
            save_run(directory / "checkpoints", done, model, optimizer, log, ema=average, best=best)
        if stop:
            break
    if kept := (best if patience else {}) or average:
        model.load_state_dict(kept)
    parallel.wait()  # until the last checkpoint is written
    return log
