"""The one training loop: any model, any loss that is a pure function of the step.

The loop knows nothing of images or captions. Because ``loss(step)`` draws all its randomness from
``randomness.rng(seed, stream, step)``, a checkpoint needs only weights, averaged weights,
optimizer and the log: a run killed at any moment and started again ends with the same bits.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
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
            own = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
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


def train(
    model: nn.Module,
    loss: Callable[[int], dict[str, Tensor]],
    *,
    steps: int,
    lr: float,
    directory: Path,
    warmup: int = 100,
    weight_decay: float = 0.01,
    ema_decay: float | None = None,
    checkpoint_every: int = 200,
    snapshots: Sequence[int] = (),
    grad_clip: float = 1.0,
    description: str = "training",
) -> dict[str, list[float]]:
    """Train ``model`` in place; return the log, one value a step for each entry of the loss.

    ``loss(step)`` gives a dictionary of scalars whose entry "loss" is minimised with AdamW. If
    ``ema_decay`` is set, the model holds the averaged weights on return, and their fp16 copies at
    the steps in ``snapshots`` lie in ``directory/ema-NNNNNN.safetensors``. Finished steps are
    never repeated: the newest intact checkpoint is resumed. Raises UserError when the disk is
    full (the previous checkpoint stays) or the loss is no longer finite.
    """
    directory = Path(directory)
    with files.guard(directory):
        directory.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    average = {k: v.detach().clone() for k, v in model.state_dict().items()} if ema_decay else {}
    log: dict[str, list[float]] = {}
    start, found = 0, load_checkpoint(directory / "checkpoints")
    if found:
        start, parts = found
        model.load_state_dict(parts["model"])
        _restore_optimizer(optimizer, parts["optimizer"])
        weights = model.state_dict()
        average = {k: _laid_out_as(weights[k], v) for k, v in parts.get("ema", {}).items()}
        log = {name: values.tolist() for name, values in parts["log"].items()}
    model.train()
    progress = tqdm(
        range(start, steps), initial=start, total=steps, desc=description, mininterval=5
    )
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr, warmup)
        values = loss(step)
        values["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in values.items():
            log.setdefault(name, []).append(value.item())
        if not math.isfinite(log["loss"][-1]):
            raise UserError(f"The loss is not finite at step {step}: lower the learning rate.")
        if ema_decay:
            update_ema(average, model, ema_decay, step)
        done = step + 1
        if done in snapshots:
            half = {k: v.half().contiguous() for k, v in average.items()}
            files.write_atomic(directory / f"ema-{done:06d}.safetensors", save(half))
        if done % checkpoint_every == 0 or done == steps:
            parts = {"model": model.state_dict(), "optimizer": _optimizer_tensors(optimizer)}
            if ema_decay:
                parts["ema"] = average
            parts["log"] = {k: torch.tensor(v, dtype=torch.float64) for k, v in log.items()}
            save_checkpoint(directory / "checkpoints", done, parts)
    if ema_decay:
        model.load_state_dict(average)
    return log
