"""The tables of the reproducibility checklist: the shipped models and the committed study runs.

Each number is read from a manifest, a result file or the weights themselves when the book is built.
"""

from dalle3lib import config, files, foundation, paths, study_results
from dalle3lib.model_cards import parameters
from dalle3lib.pages import duration, plain, table
from dalle3lib.study_stages import STAGES, jobs


def foundations() -> str:
    """A table of the shipped models: parameters, seed, training steps and processor time, size."""
    rows = []
    for directory in sorted(path.parent for path in paths.foundation_dir().glob("*/manifest.json")):
        made = files.read_json(directory / "manifest.json")
        size = sum(file["size"] for file in made["files"].values())
        rows.append(
            [
                f"`{directory.name}`",
                f"{parameters(directory):,}",
                str(made["seed"]),
                f"{made['steps']:,}",
                duration(made["cpu_seconds"]),
                f"{size / 2**20:.1f} MiB",
            ]
        )
    header = ["Model", "Parameters", "Seed", "Training steps", "Processor time", "Size"]
    return table(header, rows, "numbers wide")


def recipes() -> str:
    """A table of what each foundation was trained with, one column for each setting."""
    names = list(dict.fromkeys(name for recipe in foundation.RECIPES.values() for name in recipe))
    rows = [
        [f"`{model}`", *(plain(recipe.get(name, "–")) for name in names)]
        for model, recipe in foundation.RECIPES.items()
    ]
    return table(["Model", *names], rows, "numbers wide")


def progress(preset: str) -> str:
    """How many runs of the study's main stage are committed, as a paragraph.

    It also says so if the verdicts of a book with this preset do not stand on the study.
    """
    done, planned = len(study_results.names("main")), len(jobs("main"))
    if config.preset_values(preset, "04_caption_kind").get("evidence") != "study":
        return (
            "The verdicts here come from this build's own runs. Those of preset `cpu` stand on "
            f"the study, of which {done} of {planned} runs are committed; chapters show it in "
            "every preset.\n"
        )
    if done == planned:
        return f"The study behind its verdicts is whole: {planned} runs.\n"
    return (
        f"Of the study behind its verdicts {done} of {planned} runs are committed so far: claims "
        "that wait for the others are marked *pilot* or *no verdict*.\n"
    )


def studies() -> str:
    """A table of the study's stages: arms, planned seeds, and how many results are committed."""
    rows = []
    for name, stage in STAGES.items():
        done = study_results.names(name)
        spent = [study_results.read(path)[1]["seconds"]["run"]["processor"] for path in done]
        rows.append(
            [
                f"`{name}`",
                plain(stage.varies or "–"),
                ", ".join(f"`{arm}`" for arm in stage.arms),
                f"{stage.seeds.start} to {stage.seeds.stop - 1}",
                f"{len(done)} of {len(stage.arms) * len(stage.seeds)}",
                duration(sum(spent)) if done else "–",
            ]
        )
    header = ["Stage", "What differs", "Arms", "Seeds", "Results committed", "Processor time"]
    return table(header, rows, "studies wide")
