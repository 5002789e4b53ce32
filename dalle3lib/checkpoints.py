"""Checkpoints of a training run: complete or not there, checked when read, bit-exact when resumed.

Because all randomness is a pure function of the step, a checkpoint needs only weights, averaged
weights, the best weights so far, optimizer and log.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dalle3lib import files


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
            own = {k: v.contiguous() for k, v in copy_of(tensors, "cpu").items()}
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
        shutil.rmtree(path, ignore_errors=True)  # another process of the run may be at it, too
    return None


def copy_of(weights: dict[str, Tensor], device: str | None = None) -> dict[str, Tensor]:
    """The same weights in memory of their own, on a device (default: where they are)."""
    return {k: v.detach().to(device or v.device, copy=True) for k, v in weights.items()}


def save_run(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    log: dict[str, list[float]],
    **weights: dict[str, Tensor],
) -> None:
    """Write all that ``resume_run`` restores; empty ``weights`` are left out."""
    parts = {"model": model.state_dict(), "optimizer": _optimizer_tensors(optimizer)}
    parts |= {name: kept for name, kept in weights.items() if kept}
    parts["log"] = {k: torch.tensor(v, dtype=torch.float64) for k, v in log.items()}
    save_checkpoint(directory, step, parts)


def resume_run(
    model: nn.Module, optimizer: torch.optim.Optimizer, parts: dict[str, dict[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, list[float]]]:
    """Restore model and optimizer from a checkpoint; averaged weights, best weights and log."""
    model.load_state_dict(parts["model"])
    _restore_optimizer(optimizer, parts["optimizer"])
    weights = model.state_dict()
    average = {k: _laid_out_as(weights[k], v) for k, v in parts.get("ema", {}).items()}
    log = {name: values.tolist() for name, values in parts["log"].items()}
    return average, parts.get("best", {}), log
