"""The whole graph as ``make book`` runs it: what is looked at before, and what is said after.

``workflow/Snakefile`` says what depends on what.
"""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

from dalle3lib import UserError, config, paths, runs
from dalle3lib.files import guard, sha256, to_json, write_atomic

# One thread a process: two jobs share two cores, and a sum has the same bits in every run.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def run(root: Path, preset: str, data: str, profile: str = "local") -> int:
    """Run every chapter that is out of date and build the book; Snakemake's exit code.

    ``root`` is where the runs of the preset and the data are. UserError, before anything starts,
    for a mistake in the preset, for whatever is wrong with a folder of images, and for missing
    public models.
    """
    for stem in config.notebook_stems():
        config.from_preset(stem, preset=preset, data=data)
    _announce(preset, data)
    _look_at(root, preset, data)
    with guard(root):
        root.mkdir(parents=True, exist_ok=True)
    # The lock is not inherited by children and goes with this process, however it ends; jobs of a
    # killed call that still run are waited for one by one, by the lock of each run directory.
    with open(root / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another `make book` is working in {root}; waiting for it.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        _notice_new_captions(root)
        for failed in (root / "notebooks").glob("*.failed.ipynb"):
            failed.unlink()  # what failed before runs again now
        return _snakemake(root, preset, data, profile)


def report(root: Path, preset: str, data: str, code: int) -> int:
    """Say where the book is, or what failed; 0, or 1 if ``code`` (as of ``run``) is not 0."""
    _tell_agreement(root / "04_caption_kind" / "main")
    if code:
        return _report_failure(root, preset, data)
    print(f"Open {paths.ROOT / 'book' / '_build' / root.name / 'html' / 'index.html'}")
    return 0


def _announce(preset: str, data: str) -> None:
    """Print the plan of a preset that needs a GPU or public models; UserError for what is missing.

    Nothing has started by then.
    """
    cfg = config.from_preset("04a_train_arm", preset=preset, data=data)
    if cfg.get("device", "cpu") != "cpu" or cfg.get("size", 64) != 64:
        from dalle3lib import plan

        print(plan.report(cfg), flush=True)
        plan.check(cfg)


def _look_at(root: Path, preset: str, data: str) -> None:
    """Say what a book of these images leaves out; UserError with all that is wrong with them.

    A folder with a damaged picture or a missing caption stops here, before anything starts; every
    problem is then listed in a file under ``root``.
    """
    if data == "world":
        return
    from dalle3lib import coco, splits, which_chapters

    try:
        splits.open_source(data, "train", 1)
    except coco.BadFolder as error:
        with guard(root):
            root.mkdir(parents=True, exist_ok=True)
        write_atomic(root / "problems.txt", error.listing().encode())
        raise UserError(f"{error} {root / 'problems.txt'} lists all of them.") from None
    (root / "problems.txt").unlink(missing_ok=True)
    _check_prompts(preset, data)
    print("Chapters that these images cannot have:")
    cfg = config.from_preset("04_caption_kind", preset=preset, data=data)
    for stem, reason in which_chapters.left_out(data, cfg.get("evidence", "")).items():
        print(f"  {stem}: {reason}")
    print(flush=True)


def _check_prompts(preset: str, data: str) -> None:
    """UserError where a folder is too small to hold out the images that prompts are made of."""
    from dalle3lib import pairs, splits

    cfg = config.from_preset("04a_train_arm", preset=preset, data=data)
    split = cfg.get("prompts_from", "")
    if split in pairs.HELD_OUT and len(splits.open_source(data, split, 2)) < 2:
        raise UserError(
            f"Fewer than 2 of these images fall into the split {split}, of which prompts are made "
            "and without which there is no interval: give more images, 40 or so."
        )


def _notice_new_captions(root: Path) -> None:
    """Write down anew which captions the graph reads, so that others than before are a change."""
    marker = root / "captions" / "complete.json"
    known = json.loads(marker.read_bytes()) if marker.is_file() else {}
    manifests = {folder: paths.folder(folder) / "manifest.json" for folder in known}
    if not all(file.is_file() for file in manifests.values()):
        marker.unlink()  # they are written again when something needs them
        return
    found = {folder: sha256(file) for folder, file in manifests.items()}
    if found != known:
        write_atomic(marker, to_json(found).encode())


def _tell_agreement(chapter: Path) -> None:
    """Say whether the arms that chapter 04 compared agree with the committed study."""
    from dalle3lib import agreement

    if (chapter / "manifest.json").is_file():
        for line in agreement.sentences(runs.results(chapter).get("agreement", [])):
            print(line)


def _snakemake(root: Path, preset: str, data: str, profile: str) -> int:
    """Run the graph in ``workflow/Snakefile`` and return Snakemake's exit code."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
    command += ["--profile", f"workflow/profiles/{profile}", "--directory", str(root)]
    if profile == "local":
        command += ["--cores", str(config.jobs(preset))]
    command += ["--config", f"preset={preset}", f"data={json.dumps(data)}"]  # YAML
    environment = {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": paths.python_path()}
    environment |= ONE_THREAD
    return subprocess.run(command, cwd=paths.ROOT, env=os.environ | environment).returncode


def _report_failure(root: Path, preset: str, data: str) -> int:
    """Name the notebooks that failed, after building the book whose pages say so; return 1."""
    failed = sorted((root / "notebooks").glob("*.failed.ipynb"))
    if failed:
        from dalle3lib import book

        try:
            print(f"Open {book.build(root, preset, data)}")
        except UserError as error:
            print(error, file=sys.stderr)
    for path in failed:
        print(f"failed: {path}", file=sys.stderr)
    print("error: not everything finished; run the same command again to go on.", file=sys.stderr)
    return 1
