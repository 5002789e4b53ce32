"""The command line: run a notebook, the whole graph, or one of its steps.

``python -m dalle3lib run NOTEBOOK`` checks the parameters before papermill starts a kernel;
``graph`` is what ``make book`` calls. A mistake is one line, ``error: …``, and exit code 1.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from dalle3lib import UserError, doctor
from dalle3lib.files import guard, to_json, write_atomic

try:
    from dalle3lib import config, rate, study, upsample
except ModuleNotFoundError:  # nothing can run without packages, so say what else is missing
    sys.exit(doctor.command())


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
    config.reject_unknown(options.notebook, [name for name, _ in options.p], declared)
    given = {name: config.parse(name, declared[name].type, text) for name, text in options.p}
    from dalle3lib import execution

    execution.run_notebook(options.notebook, given, options.o)


def graph_command(options: argparse.Namespace) -> int:
    """Run every chapter that is out of date, build the book, and print the times; as make book."""
    from dalle3lib import graph

    root = _root(options)
    began = time.time()
    code = graph.run(root, options.preset, options.data, options.profile)
    times_command(options)
    print(f"This call took {time.time() - began:.0f} s.")
    return graph.report(root, options.preset, options.data, code)


def plan_command(options: argparse.Namespace) -> None:
    """Print what a preset downloads, writes to disk and computes, with the arithmetic."""
    from dalle3lib import plan

    _root(options)
    cfg = config.from_preset("04a_train_arm", preset=options.preset, data=options.data)
    print(plan.report(cfg, options.peak or plan.PEAK, options.utilisation))


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
    from dalle3lib import ledger

    ledger.show(_root(options), as_json=options.json)


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
    from dataclasses import replace

    from dalle3lib import graph

    os.environ |= graph.ONE_THREAD  # before torch is imported
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
