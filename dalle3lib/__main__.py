"""The command line: run a notebook, the whole graph, or one of its steps.

``python -m dalle3lib run NOTEBOOK`` checks the parameters before papermill starts a kernel;
``graph`` is what ``make book`` calls. A mistake is one line, ``error: …``, and exit code 1.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dalle3lib import UserError, doctor, paths
from dalle3lib.files import guard, sha256, to_json, write_atomic

try:
    from dalle3lib import config, fingerprint, rate, runs, study, upsample
except ModuleNotFoundError:  # nothing can run without packages, so say what else is missing
    sys.exit(doctor.command())

# One thread a process: two jobs share two cores, and a sum has the same bits in every run.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return the exit code: 0, or 1 after a line ``error: …``."""
    options = _parser().parse_args(arguments)
    try:
        return options.call(options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands; ``call`` is the function behind each."""
    parser = argparse.ArgumentParser(prog="python -m dalle3lib", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, call: Any, preset: str = "cpu") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=call.__doc__.split("\n")[0].split(";")[0])
        added.set_defaults(call=call)
        if preset:
            added.add_argument("--preset", default=preset, help="a file of notebooks/presets")
            added.add_argument("--data", default="world", help="'world' or a folder of images")
        return added

    run = command("run", run_command, preset="")
    run.add_argument(
        "notebook", type=lambda name: Path(name).stem, help="01_world or notebooks/01_world.ipynb"
    )
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    run.add_argument("-o", type=Path, metavar="OUT.ipynb", help="where the executed notebook goes")
    graph = command("graph", graph_command)
    graph.add_argument("--profile", choices=("local", "slurm"), default="local")
    plan = command("plan", plan_command)
    plan.add_argument("--peak", type=float, help="of the GPU, in TFLOP/s (default: an H100's 990)")
    plan.add_argument("--utilisation", type=float, help="share of it that is reached, 0 to 1")
    command("captions", captions_command)
    command("cache", cache_command)
    command("book", book_command)
    command("explorer", explorer_command)
    command("times", times_command)
    command("claims", claims_command).add_argument("--json", action="store_true")
    _recaption_options(command("recaption", recaption_command, preset=""))
    upsample.add_options(command("upsample", upsample.command, preset=""))
    study.add_options(command("study", study.command, preset=""))
    command("doctor", doctor.command, preset="")
    command("cards", cards_command, preset="")
    rate.add_options(command("rate", rate.command, preset=""))
    freeze = command("freeze", freeze_command, preset="")
    freeze.add_argument("names", nargs="+", metavar="FAMILY", help="of data/claims.yaml, or an id")
    return parser


def _recaption_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``recaption``."""
    add = parser.add_argument
    parser.description = (
        "Write captions for every image of SRC into the folder DST: parquet files that "
        "datasets.load_dataset(DST) reads, a list of images that cannot be captioned, and a "
        "manifest, which is written last. The same command goes on after an interruption."
    )
    add("source", metavar="SRC", help="a folder of images (with or without COCO-format captions), "
        "of tars or of parquet files; 'train-{000..127}.tar'; hf:NAME@REVISION:SPLIT; "
        "world:train:1000")  # fmt: skip
    add("destination", metavar="DST", help="a new folder, or one that this command has begun")
    add("--kind", choices=("ssc", "dsc", "both"), required=True, help="short or descriptive")
    add("--captioner", type=_pair, action="append", default=[], metavar="KIND=DIR",
        help="made by captioner.save (default: the shipped ones, for the world)")  # fmt: skip
    add("--max-len", type=_pair, action="append", default=[], metavar="KIND=TOKENS",
        help="the longest caption (default: ssc=16, dsc=48)")  # fmt: skip
    add("--runner", choices=("local", "ray"), default="local")
    add("--workers", type=int, default=1, help="processes of one thread each (runner local)")
    add("--ray-address", help="a Ray cluster, or 'auto' (default: one on this machine)")
    add("--shard-index", type=int, default=0, help="with --num-shards: this job of a job array")
    add("--num-shards", type=int, default=1, help="how many jobs the array has")
    add("--shard-size", type=int, default=1000, help="images a file (tars: one file a tar)")
    add("--batch-size", type=int, default=64)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--max-bad", type=float, default=0.01, help="share of images that may be bad (0.01)")
    add("--max-pixels", type=int, help="a larger image is not decoded (default: 89 million)")
    add("--min-side", type=int, help="nor one with a shorter side, in pixels (default: 16)")
    for column in ("image", "text", "key"):
        add(f"--{column}-column", metavar="NAME", help=f"the {column} column of a table")


def _pair(text: str) -> tuple[str, str]:
    """Split ``KIND=VALUE``."""
    kind, sign, value = text.partition("=")
    if not (kind and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not KIND=VALUE, such as dsc=76")
    return kind, value


def _root(options: argparse.Namespace) -> Path:
    """Return the directory of the runs of ``--preset`` and ``--data``, both checked."""
    config.preset_file(options.preset)
    options.data = config.data_source(options.data)
    return config.root(options.preset, options.data)


def run_command(options: argparse.Namespace) -> None:
    """Run a notebook with papermill; unknown parameters and wrong types are errors."""
    declared = config.notebook_parameters(config.notebook_path(options.notebook))
    given = {}
    for name, text in options.p:
        if name not in declared:
            nearest = config.nearest(name, declared)
            raise UserError(f"{options.notebook} has no parameter {name!r}{nearest}")
        given[name] = config.parse(name, declared[name].type, text)
    run_notebook(options.notebook, given, options.o)


def run_notebook(notebook: str, given: dict[str, Any], out: Path | None = None) -> Path:
    """Execute a notebook with the given parameters and return the executed copy's path.

    The copy appears under its name only when every cell and the run itself finished; a failed
    one stays beside it as ``….failed.ipynb``. Raises UserError saying what failed.
    """
    cfg = config.from_preset(notebook, **given)
    run = cfg.root / notebook / runs.run_id(cfg, *fingerprint.identity_names(notebook))
    name = notebook if run.name == "main" else f"{notebook}--{run.name}"
    out = (out or cfg.root / "notebooks" / f"{name}.ipynb").absolute()
    failed = out.with_suffix(".failed.ipynb")
    unfinished = out.with_name(f".{out.stem}.{os.getpid()}.ipynb")
    print(f"{name}: started", flush=True)
    if runs.busy(run):
        print(f"{name}: waiting for another process that works on {run}", flush=True)
    began = time.time()
    with guard(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            _execute(notebook, {name: cfg.values[name] for name in given}, unfinished, began)
            if not _finished_since(run, began):
                raise UserError(f"Notebook {notebook} ended before its run was finished.")
            os.replace(unfinished, out)
            failed.unlink(missing_ok=True)
        except UserError:
            out.unlink(missing_ok=True)
            if unfinished.exists():
                os.replace(unfinished, failed)
                print(f"{name}: failed, see {failed}", file=sys.stderr)
            raise
        finally:
            unfinished.unlink(missing_ok=True)
    print(f"{name}: finished in {time.time() - began:.0f} s", flush=True)
    return out


def _execute(notebook: str, given: dict[str, Any], out: Path, began: float) -> None:
    """Run papermill in a kernel that started at ``began``; UserError saying why it failed."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    private = paths.runs_dir() / ".cache"  # instead of dot files in the user's home
    for variable, name in (("IPYTHONDIR", "ipython"), ("MPLCONFIGDIR", "matplotlib")):
        (private / name).mkdir(parents=True, exist_ok=True)
        os.environ.setdefault(variable, str(private / name))
    os.environ["DALLE3_STARTED"] = str(began)
    source = config.notebook_path(notebook)
    try:
        papermill.execute_notebook(
            source,
            out,
            given,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=paths.ROOT,
            start_timeout=300,  # seconds; two jobs may start while the machine is busy
            extra_arguments=["--log-level=50", "--ext=dalle3lib.figure_data"],
        )
    except papermill.PapermillExecutionError as error:
        said = f"{error.ename} in notebook {notebook}: {error.evalue}"
        raise UserError(error.evalue if error.ename == "UserError" else said) from None
    except DeadKernelError:
        raise UserError(f"The kernel of {notebook} died (out of memory?).") from None
    finally:
        del os.environ["DALLE3_STARTED"]


def _finished_since(run: Path, began: float) -> bool:
    """Whether a run is complete and was finished after a moment (seconds since the epoch)."""
    try:
        return runs.load(run)["finished"] >= runs.utc(began)
    except UserError:
        return False


def graph_command(options: argparse.Namespace) -> int:
    """Run every chapter that is out of date, build the book, and print the times; as make book."""
    root = _root(options)
    for stem in config.notebook_stems():  # a mistake in the preset shows before anything runs
        config.from_preset(stem, preset=options.preset, data=options.data)
    _announce(options)
    _look_at(options, root)
    began = time.time()
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
        code = _snakemake(root, options)
    times_command(options)
    print(f"This call took {time.time() - began:.0f} s.")
    _tell_agreement(root / "04_caption_kind" / "main")
    index = paths.ROOT / "book" / "_build" / root.name / "html" / "index.html"
    if code:
        return _report_failure(options, root)
    print(f"Open {index}")
    return 0


def _look_at(options: argparse.Namespace, root: Path) -> None:
    """Say what a book of these images leaves out; UserError with all that is wrong with them.

    A folder with a damaged picture or a missing caption stops here, before anything starts; every
    problem is then listed in a file under ``root``.
    """
    if options.data == "world":
        return
    from dalle3lib import coco, images, which_chapters

    try:
        images.open_source(options.data, "train", 1)
    except coco.BadFolder as error:
        with guard(root):
            root.mkdir(parents=True, exist_ok=True)
        write_atomic(root / "problems.txt", error.listing().encode())
        raise UserError(f"{error} {root / 'problems.txt'} lists all of them.") from None
    (root / "problems.txt").unlink(missing_ok=True)
    _check_prompts(options)
    print("Chapters that these images cannot have:")
    cfg = config.from_preset("04_caption_kind", preset=options.preset, data=options.data)
    for stem, reason in which_chapters.left_out(options.data, cfg.get("evidence", "")).items():
        print(f"  {stem}: {reason}")
    print(flush=True)


def _check_prompts(options: argparse.Namespace) -> None:
    """UserError where a folder is too small to hold out the images that prompts are made of."""
    from dalle3lib import images, pairs

    cfg = config.from_preset("04a_train_arm", preset=options.preset, data=options.data)
    split = cfg.get("prompts_from", "")
    if split in pairs.HELD_OUT and len(images.open_source(options.data, split, 2)) < 2:
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


def plan_command(options: argparse.Namespace) -> None:
    """Print what a preset downloads, writes to disk and computes, with the arithmetic."""
    from dalle3lib import plan

    _root(options)
    cfg = config.from_preset("04a_train_arm", preset=options.preset, data=options.data)
    print(plan.report(cfg, options.peak or plan.PEAK, options.utilisation))


def _announce(options: argparse.Namespace) -> None:
    """Print the plan of a preset that needs a GPU or public models; UserError for what is missing.

    Nothing has started by then.
    """
    cfg = config.from_preset("04a_train_arm", preset=options.preset, data=options.data)
    if cfg.get("device", "cpu") != "cpu" or cfg.get("size", 64) != 64:
        from dalle3lib import plan

        print(plan.report(cfg), flush=True)
        plan.check(cfg)


def _snakemake(root: Path, options: argparse.Namespace) -> int:
    """Run the graph in ``workflow/Snakefile`` and return Snakemake's exit code."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
    command += ["--profile", f"workflow/profiles/{options.profile}", "--directory", str(root)]
    if options.profile == "local":
        command += ["--cores", str(config.jobs(options.preset))]
    command += ["--config", f"preset={options.preset}", f"data={json.dumps(options.data)}"]  # YAML
    python_path = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    environment = {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": python_path} | ONE_THREAD
    return subprocess.run(command, cwd=paths.ROOT, env=os.environ | environment).returncode


def _report_failure(options: argparse.Namespace, root: Path) -> int:
    """Name the notebooks that failed, after building the book whose pages say so; return 1."""
    failed = sorted((root / "notebooks").glob("*.failed.ipynb"))
    if failed:
        try:
            book_command(options)
        except UserError as error:
            print(error, file=sys.stderr)
    for path in failed:
        print(f"failed: {path}", file=sys.stderr)
    print("error: not everything finished; run the same command again to go on.", file=sys.stderr)
    return 1


def captions_command(options: argparse.Namespace) -> None:
    """Write the captions that the arms and their prompts need, unless they are there."""
    from dalle3lib import training_captions

    root = _root(options)
    arm, chapter = (
        config.from_preset(notebook, preset=options.preset, data=options.data)
        for notebook in ("04a_train_arm", "03_ssc_dsc")
    )
    made = training_captions.write(arm, chapter)
    with guard(root):
        (root / "captions").mkdir(parents=True, exist_ok=True)
    write_atomic(root / "captions" / "complete.json", to_json(made).encode())


def cache_command(options: argparse.Namespace) -> None:
    """Encode every image and caption that the arms train on, once."""
    from dalle3lib import latents

    root = _root(options)
    cfg = config.from_preset("04a_train_arm", preset=options.preset, data=options.data)
    latents.build(cfg)
    write_atomic(root / "cache" / "complete.json", b"{}\n")


def book_command(options: argparse.Namespace) -> None:
    """Build the book from the executed notebooks; nothing is executed."""
    from dalle3lib import book

    root = _root(options)
    print(f"Open {book.build(root, options.preset, options.data)}")


def explorer_command(options: argparse.Namespace) -> None:
    """Draw the book's explorer: scenes, their captions, and what each arm makes of them."""
    from dalle3lib import explorer

    root = _root(options)
    if options.data != "world":
        raise UserError("The explorer shows the world's scenes: leave out --data.")
    print(f"Made {explorer.make(root, options.preset)}")


def times_command(options: argparse.Namespace) -> None:
    """Print the time, processor time and peak memory of every run."""
    from dalle3lib import pages

    done = [state for state in pages.run_states(_root(options)) if state.manifest]
    print(f"\n{'Stage':<24}{'Run':<22}{'Wall':>12}{'CPU':>14}{'Peak memory':>14}")
    for state in done:
        made = state.manifest
        wall, cpu = pages.duration(made["wall_seconds"]), pages.duration(made["cpu_seconds"])
        peak = f"{made['peak_memory_bytes'] / 2**20:,.0f} MiB"
        print(f"{state.notebook:<24}{state.run:<22}{wall:>12}{cpu:>14}{peak:>14}")
    total = (sum(s.manifest[f"{kind}_seconds"] for s in done) for kind in ("wall", "cpu"))
    wall, cpu = map(pages.duration, total)
    print(f"{'Sum (two at a time)':<42}{wall:>12}{cpu:>14}\n", flush=True)


def claims_command(options: argparse.Namespace) -> None:
    """Print the ledger of the paper's claims and what was found here."""
    from dalle3lib import claims

    claims.main(_root(options), as_json=options.json)


def freeze_command(options: argparse.Namespace) -> None:
    """Fix what claims say by their hashes, before their study has results."""
    from dalle3lib import freezing

    frozen = freezing.freeze(options.names)
    print(f"{len(frozen)} claims are frozen: {', '.join(frozen)}. Commit data/claims.yaml.")


def cards_command(_options: argparse.Namespace) -> None:
    """Write the models' cards and the data set's metadata anew, from the files in data/."""
    from dalle3lib import croissant, model_cards

    for path in (croissant.write(), model_cards.write()):
        print(f"Wrote {path}")


def recaption_command(options: argparse.Namespace) -> None:
    """Write synthetic captions for any dataset: a folder, tars, a Hugging Face dataset."""
    os.environ |= ONE_THREAD
    from dataclasses import replace

    from dalle3lib import recaption, sources

    given = {"max_pixels": options.max_pixels, "min_side": options.min_side}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        lengths = {kind: int(tokens) for kind, tokens in options.max_len}
    except ValueError:
        raise UserError("--max-len needs a number of tokens, such as dsc=76.") from None
    manifest = recaption.caption_dataset(
        options.source,
        options.destination,
        recaption.KINDS if options.kind == "both" else (options.kind,),
        captioners={kind: Path(directory) for kind, directory in options.captioner},
        lengths=lengths,
        columns=sources.Columns(options.image_column, options.text_column, options.key_column),
        limits=replace(recaption.PHOTOGRAPHS, **given),
        shard_size=options.shard_size,
        batch_size=options.batch_size,
        device=options.device,
        runner=options.runner,
        workers=options.workers,
        ray_address=options.ray_address,
        part=(options.shard_index, options.num_shards),
        max_bad=options.max_bad,
    )
    if manifest:
        print(
            f"{manifest['captioned']:,} images captioned, {manifest['quarantined']:,} in "
            f"quarantine; cut at the greatest length: {manifest['truncated share']}. "
            f"See {options.destination}"
        )


if __name__ == "__main__":
    sys.exit(main())
