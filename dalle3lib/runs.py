"""Run directories: what a notebook leaves behind, and how to tell that it is whole.

A run is complete when its ``manifest.json`` is there and every file matches it; the manifest is
written last, by rename. A killed run keeps its checkpoints, and the next one with the same
fingerprint (code, parameters, inputs) goes on from them.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from dalle3lib import UserError, paths
from dalle3lib.config import Parameters
from dalle3lib.files import damage, digest, guard, sha256, to_json, write_atomic
from dalle3lib.fingerprint import code_fingerprint, identity_names, inputs_fingerprint

BOOKKEEPING = (".lock", "run.json", "manifest.json")
PACKAGES = (
    "torch torchvision diffusers transformers open_clip_torch accelerate safetensors "
    "numpy scipy pandas pyarrow pillow papermill"
).split()
CPU_FLAGS = {"f16c", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "neon", "asimd"}

_locks: dict[Path, IO] = {}  # held by this process: a cell run twice must not wait for itself


def run_id(cfg: Parameters, *names: str) -> str:
    """Return a run's name: the identity values (or ``main``), and a digest of other overrides."""
    others = {name: value for name, value in cfg.overrides.items() if name not in names}
    identity = _join(cfg.values[name] for name in names)
    return f"{identity}-{digest(others)[:8]}" if others else identity


def _join(values: Iterator[Any]) -> str:
    """Return identity values joined by hyphens, or ``main``; UserError if that is no file name."""
    identity = "-".join(str(value) for value in values) or "main"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", identity):
        raise UserError(f"A run cannot be called {identity!r}; use letters, digits, '.', '_', '-'.")
    return identity


def run_path(cfg: Parameters, notebook: str, *identity_values: Any) -> Path:
    """Return the directory of a notebook's run with the preset's values, complete or not."""
    return cfg.root / notebook / _join(iter(identity_values))


class Run:
    """An open run directory: write payload files to ``path``, then call ``finish``.

    ``id`` is its name, ``cfg`` its parameters, ``reused`` says that payload of an interrupted
    run with the same fingerprint was kept.
    """

    def __init__(self, cfg: Parameters, path: Path, fingerprint: dict, reused: bool) -> None:
        """Note the time and processor time so far; ``open_run`` is the way to make a run."""
        self.cfg, self.path, self.id, self.reused = cfg, path, path.name, reused
        self.fingerprint = fingerprint
        # `python -m dalle3lib run` says when it began: then start-up and imports count too
        began = os.environ.get("DALLE3_STARTED")
        self.started = float(began) if began else time.time()
        self.cpu_before = 0.0 if began else _cpu_seconds()

    def log(self, **metrics: Any) -> None:
        """Append one line to ``metrics.jsonl`` (numbers and short texts)."""
        with guard(self.path), open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(json.loads(to_json(metrics)), ensure_ascii=False) + "\n")

    def finish(self, results: dict[str, Any]) -> None:
        """Write ``results.json``, then the manifest that makes the run complete; free the lock."""
        write_atomic(self.path / "results.json", to_json(results).encode())
        manifest = self._manifest()
        manifest["sha256"] = digest(manifest)
        write_atomic(self.path / "manifest.json", to_json(manifest).encode())
        _release(self.path)
        print(f"Run {self.cfg.notebook}/{self.id} is complete: {self.path}")

    def _manifest(self) -> dict[str, Any]:
        """Return everything the manifest says about this run except its own digest."""
        commit, dirty = git_state()
        return {
            "run": self.id,
            "notebook": self.cfg.notebook,
            "preset": self.cfg.preset,
            "parameters": json.loads(to_json(self.cfg.values)),
            "seed": self.cfg.values.get("seed"),
            "fingerprint": digest(self.fingerprint),
            "resumed": self.reused,
            "commit": commit,
            "dirty": dirty,
            "packages": package_versions(),
            "python": sys.version.split()[0],
            "cpu": cpu(),
            "threads": threads(),
            "wall_seconds": round(time.time() - self.started, 3),
            "cpu_seconds": round(_cpu_seconds() - self.cpu_before, 3),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "started": utc(self.started),
            "finished": utc(time.time()),
            "files": {
                name: {"sha256": sha256(file), "size": file.stat().st_size}
                for name, file in _payload(self.path).items()
            },
        }


def open_run(cfg: Parameters, *identity_names: str, uses: Sequence[Path] = ()) -> Run:
    """Create or reopen the run directory of a notebook and hold its lock until ``finish``.

    ``identity_names`` are the parameters that name the run; ``uses`` the directories of runs it
    reads. If another process works on the same run, this waits and says so once. An unfinished
    payload is kept when its fingerprint is the same, and cleared otherwise; ``metrics.jsonl``
    starts afresh either way, because a resumed loop returns its whole history.
    """
    path = cfg.root / cfg.notebook / run_id(cfg, *identity_names)
    with guard(path):
        path.mkdir(parents=True, exist_ok=True)
        _lock(path)
        fingerprint = {
            "notebook": cfg.notebook,
            "parameters": json.loads(to_json(cfg.values)),
            "code": code_fingerprint(cfg.notebook),
            "inputs": inputs_fingerprint(
                cfg.data, [load(used)["files"] for used in uses], cfg.values
            ),
        }
        reused = _read(path / "run.json") == fingerprint
        for name in ("manifest.json", "run.json", "metrics.jsonl"):
            (path / name).unlink(missing_ok=True)
        for entry in path.iterdir():
            if entry.name != ".lock" and (not reused or entry.name.endswith(".tmp")):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    write_atomic(path / "run.json", to_json(fingerprint).encode())
    return Run(cfg, path, fingerprint, reused)


def _lock(path: Path) -> None:
    """Take the exclusive lock of a run directory; the kernel frees it if this process dies."""
    _release(path)
    file = open(path / ".lock", "a")  # noqa: SIM115 - held until finish
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"Another process is working on {path}; waiting for it to finish or to be closed.")
        fcntl.flock(file, fcntl.LOCK_EX)
    _locks[path] = file


def busy(path: Path) -> bool:
    """Whether another process is working on a run at this moment."""
    try:
        with open(path / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such run yet
        return False
    return False


def _release(path: Path) -> None:
    """Free the lock of a run directory if this process holds it."""
    if path in _locks:
        _locks.pop(path).close()


def _payload(path: Path) -> dict[str, Path]:
    """Return a run's payload files by name relative to it, without its checkpoints."""
    names = {f.relative_to(path).as_posix(): f for f in sorted(path.rglob("*")) if f.is_file()}
    skipped = (*BOOKKEEPING, "checkpoints")
    return {name: file for name, file in names.items() if name.split("/")[0] not in skipped}


def _read(path: Path) -> Any:
    """Return a JSON file's content, or None if it is missing or unreadable."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def load(path: str | Path) -> dict[str, Any]:
    """Return the manifest of a complete run after checking it and every file it lists.

    Raises UserError naming what is missing or damaged.
    """
    path = Path(path)
    if not (path / "manifest.json").is_file():
        raise UserError(f"No complete run in {path}: it has no manifest.json; run it (again).")
    manifest = _read(path / "manifest.json")
    content = {k: v for k, v in manifest.items() if k != "sha256"} if manifest else {}
    if not content or digest(content) != manifest.get("sha256"):
        problem = f"{path / 'manifest.json'} is damaged"
    else:
        problem = damage(path, content["files"])
    if problem:
        raise UserError(f"The run in {path} cannot be used: {problem}; delete it and run it again.")
    return manifest


def results(path: str | Path) -> dict[str, Any]:
    """Return the results of a complete run, checked as ``load`` does."""
    load(path)
    return json.loads((Path(path) / "results.json").read_bytes())


def find(cfg: Parameters, notebook: str, *identity_values: Any) -> Path:
    """Return the directory of a complete run; UserError naming the command that makes it."""
    path = run_path(cfg, notebook, *identity_values)
    if not (path / "manifest.json").is_file():
        given = {"preset": cfg.preset, "data": cfg.values.get("data", "world")}
        given |= dict(zip(identity_names(notebook), identity_values, strict=True))
        options = " ".join(f"-p {name} {shlex.quote(str(v))}" for name, v in given.items())
        command = f"python -m dalle3lib run {notebook} {options}"
        raise UserError(f"No complete run in {path}; make it with `{command}`.")
    load(path)
    return path


# --- what a manifest records about the machine ---------------------------------------------------


def git_state() -> tuple[str | None, bool | None]:
    """Return the checked-out commit and whether tracked files differ from it (None: no git)."""
    git = ["git", "-C", str(paths.ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
        )
    except OSError:
        return None, None
    if head.returncode or changes.returncode:
        return None, None
    return head.stdout.strip(), bool(changes.stdout.strip())


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that can change a result."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def cpu() -> dict[str, Any]:
    """Return the processor's model name and those of its flags that change arithmetic."""
    information = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            information.setdefault(key.strip(), value.strip())
    flags = information.get("flags", information.get("Features", "")).split()
    model = information.get("model name", os.uname().machine)
    return {"model": model, "flags": sorted(CPU_FLAGS & set(flags))}


def threads() -> int:
    """Return the number of threads torch computes with (what it would use, if not imported)."""
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def _cpu_seconds() -> float:
    """Return the processor seconds of this process and of its finished children."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def utc(seconds: float) -> str:
    """Return a time since the epoch as an ISO 8601 date in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
