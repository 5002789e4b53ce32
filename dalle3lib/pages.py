"""What the book's generated pages are made of, and two of them: the parameters, the API.

Each function returns MyST Markdown as one string; ``book`` writes it into the staged source.
Nothing here computes a result: the texts come from manifests, presets and the package itself.
"""

import pkgutil
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dalle3lib
from dalle3lib import UserError, config, fingerprint, runs
from dalle3lib.paths import presets_dir

# One API page per step of the method. A module named in no group lands on the last page, so that
# a new module cannot be forgotten.
GROUPS = {
    "world": ("The world and images", ("world", "images", "splits", "coco")),
    "captions": (
        "Captions and text",
        (
            *("captions", "caption_facts", "captioner", "captioner_training"),
            *("fine_tuning", "caption_sets"),
            *("caption_decoding", "caption_search", "caption_attention"),
            *("recaption", "captioning", "training_captions"),
            *("sources", "tars", "shards", "runners"),
            *("text", "upsample", "upsampler", "prompt_kinds", "prompt_facts"),
            *("released_prompts", "completions", "completion_cache", "budget"),
            *("chat_server", "chat_model"),
        ),
    ),
    "diffusion": (
        "Latent diffusion and foundations",
        (
            *("vae", "latents", "stored", "pairs", "unet", "diffusion"),
            *("arm", "trained_arms", "sample"),
            *("consistency", "decoder_network", "decoder_training", "decoder"),
            *("decoder_scores", "decoder_samples"),
            *("buckets", "recipe", "recipe_training", "recipe_scores"),
            *("train", "checkpoints", "parallel", "arm_processes", "randomness"),
            *("pretrained", "plan", "foundation", "quality"),
        ),
    ),
    "evaluation": (
        "Evaluation and claims",
        (
            *("evals", "automatic_evaluation", "evaluation_table", "photo_evaluation"),
            *("limitations", "limitation_evidence", "upsample_scores"),
            *("human", "human_study", "human_samples", "vote_store", "vote_file"),
            *("human_panel", "human_app", "rate", "ratings", "elo", "rater_quality"),
            *("simulated_raters", "stats", "power", "claims", "ledger", "freezing"),
            *("study", "study_stages", "study_captions", "study_results", "study_evidence"),
            *("study_planning", "study_controls", "study_map", "study_causes"),
            *("mixing_ratio", "study_pictures", "agreement"),
        ),
    ),
    "runs": (
        "Runs, figures and the book",
        (
            *("paths", "config", "runs", "fingerprint", "files", "execution", "graph"),
            *("plots", "caption_plots", "captioner_plots", "drawings"),
            *("verdict_plots", "recipe_plots", "human_plots", "study_plots"),
            *("figure_data", "playground", "playground_panel", "explorer", "explorer_page"),
            *("ledger_page", "status_page", "checklist", "which_chapters", "pages", "chapters"),
            *("book", "book_checks"),
            *("launch", "croissant", "model_cards", "doctor"),
        ),
    ),
    "other": ("The package and its commands", ()),
}

PRESETS = ("smoke", "cpu", "study", "world-gpu", "gpu", "paper")  # by cost


@dataclass(frozen=True)
class RunState:
    """One run directory: its manifest when the run is complete, else what is wrong with it."""

    notebook: str
    run: str
    manifest: dict[str, Any] | None
    problem: str = ""


def run_states(root: Path) -> list[RunState]:
    """Return every run under ``root`` in reading order, complete or not."""
    states = []
    for started in sorted(root.glob("[0-9]*/*/run.json")):
        notebook, run = started.parent.parent.name, started.parent.name
        try:
            states.append(RunState(notebook, run, runs.load(started.parent)))
        except UserError as error:
            states.append(RunState(notebook, run, None, without(str(error), root.parent)))
    return states


def without(text: str, *folders: Path) -> str:
    """Return a text with paths below ``folders`` relative: a book names no place of its machine."""
    for folder in folders:
        text = text.replace(f"{folder}/", "") if folder.name else text  # not the root directory
    return text


def plain(text: object) -> str:
    """Return a text as Markdown that shows it as it is: one line, no sign acts as markup."""
    return re.sub(r"([\\`*_{}\[\]()#$|~^:@<&])", r"\\\1", " ".join(str(text).split()))


def table(header: list[str], rows: list[list[str]], classes: str) -> str:
    """Return a Markdown table inside a block with CSS classes; a wide one scrolls by itself."""
    lines = [header, ["---"] * len(header), *rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f":::{{div}} {classes}\n\n{body}\n\n:::\n"


def duration(seconds: float) -> str:
    """Return a duration as people say it: ``"4.2 s"``, ``"3 min 12 s"``, ``"2 h 05 min"``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def made_by(state: RunState, copies: int, tables: Sequence[str] = ()) -> str:
    """Return the line under a chapter's title: run, preset, duration, commit, linked to status.

    ``copies`` is the number of executed copies of the notebook, of which this is the last;
    ``tables`` are the files of its run that the page offers for download.
    """
    made = state.manifest
    parts = [
        f"Made by run [`{state.run}`](../status.md)",
        f"preset `{made['preset']}`",
        duration(made["wall_seconds"]),
        f"commit `{commit(made)}`",
    ]
    if copies > 1:
        parts.insert(1, f"the last of {copies} runs of this notebook")
    places = (f"{{download}}`{name} <tables/{state.notebook}/{name}>`" for name in tables)
    links = [", ".join(places)] if tables else []
    return ":::{div} made-by\n" + " · ".join([*parts, *links]) + f"\n\n`{command(state)}`\n:::\n"


def command(state: RunState) -> str:
    """Return the command that makes a run again: its notebook, preset, and what names the run."""
    given = state.manifest["parameters"]
    names = ["preset", "data"] if given.get("data", "world") != "world" else ["preset"]
    names += fingerprint.identity_names(state.notebook)
    words = [f"-p {name} {shlex.quote(str(given[name]))}" for name in names]
    return " ".join(["python -m dalle3lib run", state.notebook, *words])


def figure_source(state: RunState, tables: Sequence[str]) -> str:
    """Return the line below a figure: its numbers to download, and the command that makes it."""
    names = [f"{{download}}`data (CSV) <tables/{state.notebook}/{name}>`" for name in tables]
    return ":::{div} figure-source\n" + " · ".join([*names, f"`{command(state)}`"]) + "\n:::\n"


def provenance(preset: str, data: str, states: list[RunState]) -> str:
    """Return where this copy of the book comes from: preset, data, runs, latest date and commit."""
    done = [state.manifest for state in states if state.manifest]
    source = "the world" if data == "world" else f"the folder `{Path(data).name}`"
    text = f"This copy was built with preset `{preset}` on {source} from {len(done)} finished runs"
    if done:
        latest = max(done, key=lambda made: str(made["finished"]))
        text += f" (the last on {str(latest['finished'])[:10]}, commit `{commit(latest)}`)"
    return text + "; see the [status page](status.md).\n"


def commit(manifest: dict[str, Any]) -> str:
    """Return the short commit of a run, with a ``+`` when files were changed after it."""
    name = str(manifest.get("commit") or "unknown")[:7]
    return name + ("+" if manifest.get("dirty") else "")


def failure(title: str, problems: list[str]) -> str:
    """Return the page that stands in for a chapter that failed: what failed and the last line."""
    listing = "\n\n".join(f"```text\n{problem}\n```" for problem in problems)
    return (
        f"# {title}\n\n:::{{admonition}} This chapter failed\n:class: error\n\n"
        "The notebook did not run to its end, so nothing of it is published. "
        f"Its last words were:\n\n{listing}\n\n"
        "Run `make book` again once the cause is cured: everything that finished is kept.\n:::\n"
    )


def page_link(stem: str, published: set[str], name: str = "") -> str:
    """Return a notebook's name, linked when this book has a page of it."""
    return f"[{name or stem}](chapters/{stem})" if stem in published else f"`{name or stem}`"


def presets() -> str:
    """Return the table of presets: the first line of each file says its purpose and cost."""
    rows = []
    for name in preset_names():
        text = (presets_dir() / f"{name}.yaml").read_text(encoding="utf-8")
        rows.append([f"`{name}`", plain(text.partition("\n")[0].removeprefix("#"))])
    return table(["Preset", "What it is for, and what it costs"], rows, "presets wide")


def preset_names() -> list[str]:
    """Return the names of all presets, the cheapest first."""
    names = sorted(path.stem for path in presets_dir().glob("*.yaml"))
    known = [name for name in PRESETS if name in names]
    return known + [name for name in names if name not in known]


def _shown(value: Any) -> str:
    """Return a parameter's value as code; of a long list how many values it has."""
    long = isinstance(value, list) and len(value) > 12
    return f"{len(value)} values" if long else f"`{value}`"


def parameters() -> str:
    """Return the page of all parameters: for each notebook name, type, meaning, preset values."""
    names = preset_names()
    text = (
        "# Parameters\n\nA value given in the notebook or on the command line beats the preset's. "
        "A dash means that the preset leaves the notebook's own value.\n"
    )
    for stem in config.notebook_stems():
        given = [config.preset_values(preset, stem) for preset in names]
        rows = [
            [f"`{name}`", p.type.__name__, plain(p.meaning)]
            + [_shown(values[name]) if name in values else "–" for values in given]
            for name, p in config.notebook_parameters(config.notebook_path(stem)).items()
        ]
        header = ["Parameter", "Type", "Meaning", *(f"`{preset}`" for preset in names)]
        text += f"\n## {stem}\n\n" + table(header, rows, "parameters wide")
    return text


def modules() -> list[str]:
    """Return the dotted names of the package and of every module in it, by walking its folder."""
    walked = pkgutil.walk_packages(dalle3lib.__path__, "dalle3lib.")
    return ["dalle3lib", *sorted(module.name for module in walked)]


def api_pages() -> dict[str, str]:
    """Return the API reference: page name → Markdown; every module is on exactly one page."""
    group_of = {name: page for page, (_, names) in GROUPS.items() for name in names}
    members: dict[str, list[str]] = {page: [] for page in GROUPS}
    for module in modules():
        first = (module.split(".") + [""])[1]
        members[group_of.get(first, "other")].append(module)
    order = {name: i for i, name in enumerate(n for _, names in GROUPS.values() for n in names)}
    pages = {}
    for page, (title, _) in GROUPS.items():
        found = sorted(members[page], key=lambda m: order.get((m.split(".") + [""])[1], -1))
        if found:
            pages[page] = f"# {title}\n\n" + "\n".join(map(_api_section, found))
    return pages


def _api_section(module: str) -> str:
    """Return one module's part of an API page."""
    options = ":members:\n   :ignore-module-all:\n   :show-inheritance:"
    directive = f".. automodule:: {module}\n   {options}"
    return f"## `{module}`\n\n```{{eval-rst}}\n{directive}\n```\n"
