"""The one training loop: any model, any loss that is a pure function of the step.

The loop knows nothing of images or captions. Because ``loss(step)`` draws all its randomness from
``randomness.rng(seed, stream, step)``, a checkpoint needs only weights, averaged weights, the best
weights so far, optimizer and the log: a run killed at any moment and started again ends with the
same bits.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from dalle3lib import UserError, files


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


def _laid_out_as(weight: Tensor, value: Tensor) -> Tensor:
    """A copy of ``value`` in the memory layout of ``weight``, which a file does not keep."""
    return torch.empty_like(weight).copy_(value)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": v for i, values in state.items() for k, v in values.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        weight = weights[int(index)]
        if value.shape == weight.shape:  # the fused step walks memory: lay it out as the weight is
            value = _laid_out_as(weight, value)
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def save_checkpoint(directory: Path, step: int, parts: dict[str, dict[str, Tensor]]) -> None:
    """Write ``directory/step-NNNNNN`` so that it appears complete or not at all.

    Each part becomes a safetensors file; the manifest with their SHA-256 is written last, then
    the whole directory is renamed into place. The previous checkpoint is kept, older ones go.
    """
    final = directory / f"step-{step:06d}"
    staging = directory / f".staging-{step:06d}"
    with files.guard(final):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for name, tensors in parts.items():
            # cloned, because safetensors refuses tied weights that share memory (T5 has some)
            own = {k: v.contiguous() for k, v in _copy(tensors, "cpu").items()}
            save_file(own, staging / f"{name}.safetensors")
            with open(staging / f"{name}.safetensors", "rb") as file:
                os.fsync(file.fileno())
        hashes = {f.name: files.sha256(f) for f in sorted(staging.iterdir())}
        manifest = json.dumps({"step": step, "files": hashes}).encode()
        files.write_atomic(staging / "manifest.json", manifest)
        if final.exists():
            shutil.rmtree(final)
        os.replace(staging, final)
    for old in sorted(directory.glob("step-*"))[:-2]:
        shutil.rmtree(old)


def load_checkpoint(directory: Path) -> tuple[int, dict[str, dict[str, Tensor]]] | None:
    """The newest intact checkpoint as (step, parts), or None.

    A damaged one (missing file, wrong SHA-256) is named and passed over for the one before it.
    """
    for path in sorted(directory.glob("step-*"), reverse=True):
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            damaged = [f for f, h in manifest["files"].items() if files.sha256(path / f) != h]
            if not damaged:
                parts = {Path(f).stem: load_file(path / f) for f in manifest["files"]}
                return manifest["step"], parts
        except (OSError, ValueError, KeyError) as error:
            damaged = [str(error)]
        print(f"checkpoint {path.name} is damaged ({damaged[0]}): using the one before it")
        shutil.rmtree(path)
    return None


def accumulate(parts: dict[str, Tensor] | Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Add up the gradients of a step's parts, one at a time; return the sums of their values.

    A step is one dictionary of scalars, or micro-batches whose scalars sum to the whole batch's.
    """
    sums: dict[str, float] = {}
    for values in [parts] if isinstance(parts, dict) else parts:
        values["loss"].backward()
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    return sums


@torch.no_grad()
def measure(model: nn.Module, held_out: Callable[[], float], average: dict[str, Tensor]) -> float:
    """``held_out()`` of the model in evaluation mode, with the averaged weights if there are any.

    Afterwards the model trains on with the weights it had. UserError if the value is not finite.
    """
    own = _copy(model.state_dict()) if average else {}
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


def _copy(weights: dict[str, Tensor], device: str | None = None) -> dict[str, Tensor]:
    return {k: v.detach().to(device or v.device, copy=True) for k, v in weights.items()}


def _save(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    log: dict[str, list[float]],
    **weights: dict[str, Tensor],
) -> None:
    """Write all that ``_resume`` restores; empty ``weights`` are left out."""
    parts = {"model": model.state_dict(), "optimizer": _optimizer_tensors(optimizer)}
    parts |= {name: kept for name, kept in weights.items() if kept}
    parts["log"] = {k: torch.tensor(v, dtype=torch.float64) for k, v in log.items()}
    save_checkpoint(directory, step, parts)


def _resume(
    model: nn.Module, optimizer: torch.optim.Optimizer, parts: dict[str, dict[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, list[float]]]:
    """Restore model and optimizer from a checkpoint; averaged weights, best weights and log."""
    model.load_state_dict(parts["model"])
    _restore_optimizer(optimizer, parts["optimizer"])
    weights = model.state_dict()
    average = {k: _laid_out_as(weights[k], v) for k, v in parts.get("ema", {}).items()}
    log = {name: values.tolist() for name, values in parts["log"].items()}
    return average, parts.get("best", {}), log


def train(
    model: nn.Module,
    loss: Callable[[int], dict[str, Tensor] | Iterable[dict[str, Tensor]]],
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

    ``loss(step)`` gives a dictionary of scalars whose entry "loss" is minimised with AdamW, or an
    iterable of such dictionaries, made one after the other, whose sum is (gradient accumulation).
    If ``ema_decay`` is set, the model holds the averaged weights on return, and their fp16 copies
    at the steps in ``snapshots`` lie in ``directory/ema-NNNNNN.safetensors``.

    ``held_out()`` measures the model, lower being better, every ``held_out_every`` steps and after
    the last; the log then has the values as "held_out" and their steps as "held_out_step". With
    ``patience`` set, training stops early when so many measurements in a row have brought nothing
    better, and the model holds its best weights on return; without, measuring changes nothing.

    Finished steps are never repeated: the newest intact checkpoint is resumed. Raises UserError
    when the disk is full (the previous checkpoint stays) or a loss is no longer finite.
    """
    directory = Path(directory)
    with files.guard(directory):
        directory.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    average = _copy(model.state_dict()) if ema_decay else {}
    start, best, log = 0, {}, {}
    if found := load_checkpoint(directory / "checkpoints"):
        start, parts = found
        average, best, log = _resume(model, optimizer, parts)
    model.train()
    todo = range(start, start if is_stale(log, patience) else steps)
    for step in tqdm(todo, initial=start, total=steps, desc=description, mininterval=5):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr, warmup)
        values = accumulate(loss(step))
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
        if done in snapshots:
            half = {k: v.half().contiguous() for k, v in average.items()}
            files.write_atomic(directory / f"ema-{done:06d}.safetensors", save(half))
        if held_out and (done % held_out_every == 0 or done == steps):
            value = measure(model, held_out, average)
            if patience and value < min(log.get("held_out", [math.inf])):
                best = _copy(average or model.state_dict(), "cpu")  # a GPU has better uses
            log.setdefault("held_out", []).append(value)
            log.setdefault("held_out_step", []).append(done)
        stop = done == steps or is_stale(log, patience)
        if done % checkpoint_every == 0 or stop:
            _save(directory / "checkpoints", done, model, optimizer, log, ema=average, best=best)
        if stop:
            break
    if kept := (best if patience else {}) or average:
        model.load_state_dict(kept)
    return log
