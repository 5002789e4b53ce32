"""The cards of the shipped models, ``data/foundation/README.md``, made from their manifests.

``python -m dalle3lib cards`` writes them: architecture and size are read from the weights and their
configuration, seed, steps, times and quality from the manifest; only what no file knows is written
here.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from dalle3lib import decoder_training, files, foundation, paths, recipe_training

PREFACE = """\
# Model cards

Made by `python -m dalle3lib cards` from the manifests in this folder; `python -m dalle3lib doctor`
checks every file. All models are small, were trained from scratch on the procedural world described
in the [data set card](../README.md), and are stored in half precision (safetensors). Quality was
measured when a model was finished, on held-out scenes of the `dev` split; chapter 00 measures it
again. Numbers are shares unless a unit is given.

**For what.** To run the book from a fresh clone: they stand where the paper has pretrained models.
**Not for** photographs, or for anything outside this world: they know 8 shapes, 8 colours, 4
textures, 6 backgrounds and 80 printed words, and English of a few dozen sentence patterns.
**Licence**: MIT, like the repository; no third-party weights or data went into them.
**Reproducing**: notebook 00 with `train=true` (foundations), 04a (arms), 07 (decoders) and 08
(second stage). On another machine or number of threads the numbers agree, the bits do not.
"""


@dataclass(frozen=True)
class Card:
    """What no file says of a model: its role, how to load it, what it learned from, its limits."""

    role: str
    architecture: str
    load: str
    data: str
    limits: str


FOUNDATION = "{scenes:,} scenes of the `foundation` split"
ARM = Card(
    "A text-to-image diffusion model in latent space, trained on {captions}: an arm of chapter 04.",
    "diffusers' `UNet2DConditionModel` on latents of `vae`, conditioned on states of `t5`",
    'arm.load("{arm}")',
    "20,000 scenes of the `train` split, alt-text with noise 0.5; notebook 04a, preset `cpu`",
    "One seed of each arm, for demonstration; verdicts rest on the study. The guidance scale was "
    "chosen on 64 development prompts.",
)
STAGE = Card(
    "The second stage of chapter 08 ({how}): pictures of twice the side, in three aspects.",
    "diffusers' `UNet2DConditionModel` on latents of `vae-recipe`",
    'UNet2DConditionModel.from_pretrained(paths.foundation("{name}"))',
    "10,000 scenes of the `train` split at scale 2; the curve is in `training.json`",
    "One seed. Scored on 40 prompts of each aspect.",
)
CARDS = {
    "vae": Card(
        "The autoencoder between pictures and the latents that diffusion models learn.",
        "diffusers' `AutoencoderKL` on patches of 4 × 4 pixels; latents are 8 times smaller",
        'vae.load(paths.foundation("vae"))',
        FOUNDATION,
        "Fine textures and letters are where it loses; what it loses no arm can draw.",
    ),
    "vae-recipe": Card(
        "`vae`, adapted to pictures at scale 2 in three aspects (chapter 08).",
        "as `vae`",
        'vae.load(paths.foundation("vae-recipe"))',
        "scenes of the `foundation` split at both scales",
        "A short adaptation; `… first` is what it keeps of pictures of the first stage's size.",
    ),
    "t5": Card(
        "The text encoder of the diffusion models.",
        "transformers' `T5EncoderModel` with a byte-level BPE tokenizer (any text can be read)",
        'text.load(paths.foundation("t5"))',
        "texts of " + FOUNDATION + ": alt, short and descriptive, a third of the tokens each",
        "Its decoder is not shipped, so `pairs kept` cannot be measured again.",
    ),
    "upsampler": Card(
        "Writes short prompts out into long ones, in the place of the paper's GPT-4.",
        "transformers' `T5ForConditionalGeneration`, its encoder begun from `t5`",
        "upsampler.load()",
        "texts alone: the committed captions of {scenes:,} scenes of the `train` split",
        "It invents what the prompt leaves open, as it should; it knows no world but this one.",
    ),
    "clip": Card(
        "The CLIP scorer: how well a text fits a picture.",
        "open_clip's `CLIP`",
        'clip_score.load(paths.foundation("clip"))',
        FOUNDATION + ", one of their three captions each time",
        "It has read descriptive captions, unlike OpenAI's CLIP, and shares no weights with the "
        "captioners. Adverts and file names among the alt-texts have no right answer.",
    ),
    "judge": Card(
        "Answers questions about a picture: the learned one of three instruments.",
        "transformers' `BlipForQuestionAnswering`",
        'vqa.load(paths.foundation("judge"))',
        "{scenes:,} scenes of the `foundation` split in another draw of the world, three objects "
        "included: first captions, then questions",
        "Measured on rendered scenes; chapter 00 says how far it can be trusted on others.",
    ),
    "coca-base": Card(
        "The captioner before fine-tuning.",
        "open_clip's `CoCa`",
        'captioner.load(paths.foundation("coca-base"))',
        FOUNDATION + " with alt-text of noise {noise}; contrastive and captioning loss",
        "At the arms' noise of 0.5 it learned no colour in the time given, hence the lower noise.",
    ),
    "coca-ssc": Card(
        "The captioner of short synthetic captions (SSC).",
        "as `coca-base`, from which it was fine-tuned with the captioning loss",
        'captioner.load(paths.foundation("coca-ssc"))',
        "human-style short captions of the first {scenes:,} scenes of the `foundation` split",
        "It names the main subject and nothing else, by design.",
    ),
    "coca-dsc": Card(
        "The captioner of descriptive synthetic captions (DSC).",
        "as `coca-base`, from which it was fine-tuned with the captioning loss",
        'captioner.load(paths.foundation("coca-dsc"))',
        "human-style descriptive captions of the first {scenes:,} scenes of the `foundation` split",
        "Printed words are its weak side (`states printed word`).",
    ),
    "decoder-teacher": Card(
        "The diffusion model over pixels, given latents, from which `decoder` was distilled.",
        "diffusers' `UNet2DModel` on patches of 4 × 4 pixels",
        'decoder_network.load(paths.foundation("decoder-teacher"))',
        FOUNDATION + ", seen through `vae`",
        "Measured with 16 steps.",
    ),
    "decoder": Card(
        "The consistency decoder: latents to pictures in two steps (chapter 07).",
        "as `decoder-teacher`",
        'decoder_network.load(paths.foundation("decoder"))',
        FOUNDATION + ", seen through `vae`",
        "It reads latents of `vae` only.",
    ),
    "unet-recipe-first": Card(
        "The first stage of chapter 08: an arm of descriptive captions on latents of `vae-recipe`.",
        ARM.architecture.replace("`vae`", "`vae-recipe`"),
        'arm.load("recipe-first")',
        ARM.data,
        "One seed.",
    ),
}
HOW = {
    "progressive": "grown from the first",
    "scratch": "from scratch, with the operations of both stages",
    "squares": "grown from the first, on squares alone, for comparison",
}
KINDS = {"original": "alt-text alone", "ssc": "short", "dsc": "descriptive"}


def card_of(name: str) -> Card:
    """The card of a shipped model by its name in ``data/foundation``; KeyError for another."""
    family, _, rest = name.partition("-")
    if name in CARDS or family != "unet":
        return CARDS[name]
    if rest.startswith("recipe-"):
        how = {"how": HOW[rest.removeprefix("recipe-")], "name": name}
        return Card(*(part.format_map(how) for part in vars(STAGE).values()))
    kind, ratio = rest.rsplit("-", 1)
    share = KINDS[kind] if kind == "original" else f"{ratio} % {KINDS[kind]} synthetic captions"
    told = {"captions": share, "arm": rest}
    return Card(*(part.format_map(told) for part in vars(ARM).values()))


def recipe_of(name: str) -> dict[str, float]:
    """With what a model was trained, as far as a recipe in the package says so."""
    decoders = {
        "decoder": decoder_training.STUDENT,
        "decoder-teacher": decoder_training.TEACHER,
    }
    stages = {f"unet-recipe-{how}": recipe_training.RECIPE for how in HOW}
    return {**foundation.RECIPES, **decoders, **stages}.get(name, {})


def parameters(directory: Path) -> int:
    """How many numbers the weights in a directory hold, read from the headers of their files."""
    total = 0
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "numpy") as weights:
            shapes = (weights.get_slice(key).get_shape() for key in weights.keys())
            total += sum(map(math.prod, shapes))
    return total


def card(name: str, directory: Path) -> str:
    """The card of one model as Markdown, its numbers from the manifest in ``directory``."""
    made, said, recipe = (
        files.read_json(directory / "manifest.json"),
        card_of(name),
        recipe_of(name),
    )
    size = sum(file["size"] for file in made["files"].values())
    training = [f"{made['steps']:,} steps", f"seed {made['seed']}"]
    batch = made.get("batch") or recipe.get("batch")
    training += [f"batches of {batch}"] if batch else []
    training += [f"peak learning rate {recipe['lr']:g}"] if "lr" in recipe else []
    training += [f"{made['cpu_seconds'] / 60:.0f} minutes of processor time"]
    rows = {
        "Architecture": f"{said.architecture}; {parameters(directory):,} parameters",
        "Files": f"{size / 1e6:.1f} MB; `{said.load}`",
        "Training data": said.data.format_map(recipe),
        "Training": ", ".join(training),
        "Quality": ", ".join(f"{measure(k)} {value:g}" for k, value in made["quality"].items()),
        "Limits": said.limits,
    }
    table = "\n".join(f"| {key} | {text} |" for key, text in rows.items())
    return f"## {name}\n\n{said.role}\n\n| | |\n|---|---|\n{table}\n"


UNITS = {"psnr": "PSNR in dB", "ssim": "SSIM", "clip": "CLIP score on prompts", "read": "read"}


def measure(key: str) -> str:
    """A quality's name in words: ``psnr_db_square`` is "PSNR in dB square"."""
    first, *rest = key.replace("psnr_db", "psnr").split("_")
    return " ".join([UNITS.get(first, first), *rest])


def document(root: Path | None = None) -> str:
    """All cards, in the order in which the models need each other; each name once."""
    root = root or paths.foundation_dir()
    return PREFACE + "".join(f"\n{card(name, root / name)}" for name in foundation.NAMES)


def page() -> str:
    """The cards as a page of the book, as they are committed; a sentence where there are none."""
    path = paths.foundation_dir() / "README.md"
    if not path.is_file():
        return "# Model cards\n\nNo cards lie beside the models of this copy.\n"
    return path.read_text("utf-8").replace("[data set card](../README.md)", "data set card")


def write() -> Path:
    """Write the cards into ``data/foundation``; return the file's path."""
    path = paths.foundation_dir() / "README.md"
    files.write_atomic(path, document().encode())
    return path
