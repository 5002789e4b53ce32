"""What this machine has for the book, what it lacks, and the cure: ``python -m dalle3lib doctor``.

One line for each thing that is looked at. This module imports nothing but the standard library
until it has found the packages that it needs: a bare Python gets an answer too.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dalle3lib import UserError, files, paths

DEFAULT = "cpu"  # the preset of `make book`
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
GB = 1e9
MEMORY = 4 * GB  # two notebooks at a time; the largest one of preset cpu took 1.9 GB
DISK = 1 * GB  # executed notebooks, the book and its sources, beside what `plan.disk` counts
INSTALL = "`make book` installs everything into .venv; then use .venv/bin/python"


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``state`` is "ok", "note" (something is missing that the default
    preset can do without) or "lacks"; ``cure`` says what to do about the latter two."""

    what: str
    state: str
    said: str
    cure: str = ""

    def __str__(self) -> str:
        return f"{self.state:<6}{self.what:<18}{self.said}" + (
            f"; {self.cure}" if self.cure else ""
        )


def command(_options: object = None) -> int:
    """Say what this machine has and lacks for each preset; 1 if the default one cannot run."""
    lacking = []
    for finding in examine():
        print(finding, flush=True)
        lacking += [finding] if finding.state == "lacks" else []
    if lacking:
        print(f"\nPreset {DEFAULT} cannot run here yet: {_names(lacking)}.")
    else:
        print(f"\nPreset {DEFAULT} can run here: `make book`.")
    print("`python -m dalle3lib plan --preset NAME` has the arithmetic of a preset.")
    return int(bool(lacking))


def _names(findings: list[Finding]) -> str:
    return ", ".join(dict.fromkeys(finding.what for finding in findings))


def examine() -> Iterator[Finding]:
    """The findings in the order of the report; what stands on a missing part is left out."""
    yield python()
    yield from packages()
    importable = _tries("torch", "yaml")
    yield processor()
    if importable:
        yield device()
    yield memory()
    yield disk()
    yield foundations()
    yield captions()
    yield from programs()
    if importable:
        yield from presets()
    else:
        yield Finding("presets", "note", "not looked at without the packages above")


# ---- Python and its packages ---------------------------------------------------------------------


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Whether Python has a version that ``pyproject.toml`` accepts."""
    said = ".".join(map(str, version))
    wanted = re.search(r"\d+\.\d+", _project()["requires-python"])[0]
    if version[:2] < tuple(map(int, wanted.split("."))):
        cure = f"install Python {wanted} with venv and run `make book PYTHON=python{wanted}`"
        return Finding("Python", "lacks", f"{said}, older than {wanted}", cure)
    return Finding("Python", "ok", f"{said} ({sys.executable})")


def _project() -> dict:
    """The table [project] of ``pyproject.toml``."""
    return tomllib.loads((paths.ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def pins() -> dict[str, str]:
    """The version that ``requirements.lock`` names for every package."""
    lines = (paths.ROOT / "requirements.lock").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def packages(wanted: list[str] | None = None) -> Iterator[Finding]:
    """Whether the package's dependencies are installed, in the versions of the lock.

    ``wanted`` are requirements such as ``"torch==2.14.1"`` (those of ``pyproject.toml``).
    """
    names = [re.match(r"[\w.-]+", text)[0] for text in wanted or _project()["dependencies"]]
    locked = {name.lower().replace("_", "-"): version for name, version in pins().items()}
    absent, other = [], []
    for name in names:
        try:
            version = importlib.metadata.version(name).partition("+")[0]  # 2.14.1+cpu is 2.14.1
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
            continue
        pin = locked.get(name.lower().replace("_", "-"), version)
        other += [] if version == pin else [f"{name} {version} (tested: {pin})"]
    if absent:
        said = f"not installed: {', '.join(absent)}"
        yield Finding("packages", "lacks", said, INSTALL)
    elif other:
        cure = "`.venv/bin/pip install -r requirements.lock` brings the tested ones"
        yield Finding("packages", "note", ", ".join(other), cure)
    else:
        yield Finding("packages", "ok", f"all {len(names)} in the versions of requirements.lock")


def _tries(*modules: str) -> bool:
    """Whether every module is there (found, not imported)."""
    return all(importlib.util.find_spec(module) for module in modules)


# ---- the machine ---------------------------------------------------------------------------------


def processor() -> Finding:
    """Cores that this process may use, and its threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    said = f"{cores} {platform.machine()} core{'s' if cores != 1 else ''}"
    threads = os.environ.get("OMP_NUM_THREADS")
    said += f", OMP_NUM_THREADS={threads}" if threads else ""
    if cores < 2:
        return Finding("processor", "note", said, "the book takes about twice as long as stated")
    return Finding("processor", "ok", f"{said} (one thread a run; `make book` runs two at a time)")


def device() -> Finding:
    """Whether torch can be imported, and the GPUs that it finds."""
    try:
        torch = importlib.import_module("torch")
        count = torch.cuda.device_count()
        cards = [torch.cuda.get_device_properties(n) for n in range(count)]
    except Exception as error:  # a broken driver or half an installation: a dozen kinds
        reason = " ".join(str(error).split())[:200]
        return Finding("torch", "lacks", f"cannot be imported ({reason})", INSTALL)
    found = ", ".join(f"{card.name} with {card.total_memory / GB:.0f} GB" for card in cards)
    said = f"{torch.__version__}, {found or 'no GPU: presets smoke, cpu and study need none'}"
    return Finding("torch", "ok", said)


def memory(needed: float = MEMORY) -> Finding:
    """Whether enough memory is free for two notebooks at a time."""
    free, total = free_memory()
    said = f"{free / GB:.1f} GB free of {total / GB:.1f} GB"
    if total < needed:
        return Finding(
            "memory", "lacks", said, f"two notebooks at a time take {needed / GB:.0f} GB"
        )
    if free < needed:
        return Finding(
            "memory", "note", said, f"close other programs: {needed / GB:.0f} GB are used"
        )
    return Finding("memory", "ok", said)


def free_memory(
    proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
) -> tuple[int, int]:
    """Bytes of memory that are free and that there are, within a container's limit if any."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = total
    with contextlib.suppress(OSError, AttributeError):
        lines = (proc / "meminfo").read_text()
        kilobytes = {key: int(n) for key, n in re.findall(r"^(\w+):\s+(\d+) kB", lines, re.M)}
        free, total = (
            1024 * kilobytes.get(key, total // 1024) for key in ("MemAvailable", "MemTotal")
        )
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        free, total = min(free, max(0, limit - used)), min(total, limit)
    return free, total


def disk(needed: float = DISK) -> Finding:
    """Whether there is space where runs go, and permission to write there."""
    where, there = paths.runs_dir(), _runs_dir()
    said = f"{_free(there) / GB:.1f} GB free for {where}"
    cure = "set DALLE3_RUNS to another directory"
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding("disk", "lacks", f"{there} cannot be written to", cure)
    if _free(there) < needed:
        return Finding("disk", "lacks", said, f"{needed / GB:.0f} GB are needed; {cure}")
    return Finding("disk", "ok", said)


def _runs_dir() -> Path:
    """Where runs go, or the nearest folder above it that is there."""
    where = paths.runs_dir()
    return next(folder for folder in (where, *where.parents) if folder.exists())


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def programs() -> Iterator[Finding]:
    """The programs besides Python: git, make, and a browser for the tests."""
    for name, without in {"git": "runs do not record their commit", "make": "`make book`"}.items():
        where = shutil.which(name)
        cure = f"without it: {without}; apt-get install {name}"
        if name == "make":
            cure = f"apt-get install make, or call `python -m dalle3lib graph` for {without}"
        yield Finding(name, "ok", where) if where else Finding(name, "note", "not found", cure)
    found = [where for name in BROWSERS if (where := shutil.which(name))]
    cure = "tests that look at pages are left out; apt-get install chromium"
    yield (
        Finding("browser", "ok", found[0])
        if found
        else Finding("browser", "note", "no Chromium found", cure)
    )


# ---- what comes with the repository --------------------------------------------------------------


def foundations() -> Finding:
    """Whether the shipped models are there, byte for byte."""
    cure = "`git checkout data/foundation` restores them"
    try:
        from dalle3lib import foundation

        names = list(foundation.NAMES)
    except ImportError:  # nothing installed: look at those that are there
        names = sorted(path.parent.name for path in paths.foundation_dir().glob("*/manifest.json"))
    problems, size = [], 0
    for name in names:
        try:
            folder = paths.foundation(name)
            size += sum(path.stat().st_size for path in folder.iterdir())
        except UserError as error:
            problems.append(str(error).split(": ", 1)[1].split(";")[0])
    if problems or not names:
        said = f"{problems[0]} ({len(problems)} of {len(names)})" if problems else "none is there"
        return Finding("foundations", "lacks", said, cure)
    return Finding("foundations", "ok", f"{len(names)} models, all intact, {size / 1e6:.0f} MB")


def captions() -> Finding:
    """Whether the committed captions of the training images are there, byte for byte."""
    folder = paths.ROOT / "data" / "captions"
    cure = "`git checkout data/captions` restores them"
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        problem = files.damage(folder, manifest["files"])
    except (OSError, ValueError, KeyError):
        problem = f"{folder / 'manifest.json'} is missing or damaged"
    if problem:
        return Finding("captions", "lacks", problem, cure)
    return Finding("captions", "ok", f"of {manifest['rows']:,} training images")


# ---- what each preset would need -----------------------------------------------------------------


def presets(examined: Callable[[str], Finding] | None = None) -> Iterator[Finding]:
    """For every preset what it needs that is not here, and what it downloads and writes."""
    from transformers.utils import logging

    from dalle3lib import pages

    logging.disable_progress_bar()  # of weights that are loaded to count their operations
    for name in pages.preset_names():
        try:
            yield (examined or preset)(name)
        except (UserError, ImportError) as error:
            state = "lacks" if name == DEFAULT else "note"
            yield Finding(f"preset {name}", state, " ".join(str(error).split())[:300])


def preset(name: str) -> Finding:
    """Whether a preset can run here; its downloads and disk, as ``plan`` computes them."""
    from dalle3lib import config, plan, pretrained

    cfg = config.from_preset("04a_train_arm", preset=name, data="world")
    public = [model for model in models(cfg) if pretrained.missing(model)]
    written = DISK + sum(n for _, _, n in plan.disk(cfg, len(plan.arm_names(cfg))))
    lacking = []
    if cfg.device != "cpu":
        try:
            pretrained.device(cfg)
        except UserError:
            lacking.append("a GPU that torch finds")
    gone = (line.partition(": there is no folder ")[2] for line in plan.folders(cfg))
    lacking += [f"the folder {os.path.relpath(folder, paths.ROOT)}" for folder in gone if folder]
    if cfg.t5 != "world" and not _tries("sentencepiece"):
        lacking.append("`pip install sentencepiece protobuf`")
    free = _free(_runs_dir())
    if free < written:
        lacking.append(f"{(written - free) / GB:,.0f} GB more disk")
    fetched = sum(model.size for model in public)
    needs = f"downloads {f'{fetched / GB:,.1f} GB of models' if fetched else 'nothing'}"
    needs += f", writes {written / GB:,.1f} GB"
    if not lacking:
        return Finding(f"preset {name}", "ok", f"fits; {needs}")
    state = "lacks" if name == DEFAULT else "note"
    return Finding(f"preset {name}", state, f"{needs}; lacks {', '.join(lacking)}")


def models(cfg) -> list:
    """The public models that a preset reads: those of its arms, and its chapters' decoder."""
    from dalle3lib import config, pairs, pretrained

    decoder = config.from_preset("07_consistency_decoder", preset=cfg.preset, data="world").decoder
    named = [m for m in pretrained.MODELS if (m.role, m.name) == ("decoder", decoder)]
    own = cfg.captions_from in (pairs.WRITTEN, pairs.TRUTH)
    coca = [m for m in pretrained.MODELS if m.role == "coca" and not own]
    return [*pretrained.public(cfg), *named, *coca]
