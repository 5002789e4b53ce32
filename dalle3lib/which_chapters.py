"""Which chapters the book of a data source has, and why the others are left out.

The world's records hold the facts of every picture; those of any other source hold a picture and
its alt-text. Chapters that measure facts need the first; three of them have a page that asks the
same question of photographs, by measures that need no facts.
"""

WORLD = (
    *("00_foundations", "01_world", "02_captioning", "03_ssc_dsc", "04_caption_kind"),
    *("05_mixing_ratio", "06_upsampling", "07_consistency_decoder", "08_recipe"),
    *("09_human_evaluation", "10_automatic_evaluation", "11_released_verdicts"),
    *("12_limitations", "13_playground", "99_ledger"),
)
IMAGES = (
    *("01_world", "02_captioning", "03_ssc_dsc", "04_caption_kind"),
    *("06a_photographs", "07a_photographs", "10a_photographs"),
    *("11_released_verdicts", "13_playground", "99_ledger"),
)
RATIOS = "05_mixing_ratio"  # of images where a preset trains the arms that it compares
# Why a chapter of the world is not in the book of a folder of images.
LEFT_OUT = {
    "00_foundations": "it measures the shipped models on scenes whose content is known exactly",
    RATIOS: "it shows the committed study of the world, unless a preset trains all ratios itself",
    "06_upsampling": "it counts facts of prompts and pictures; 06a_photographs scores by CLIP",
    "07_consistency_decoder": "it reads printed words and textures of drawn scenes; "
    "07a_photographs compares the decoders by pixels",
    "08_recipe": "its second stage draws the same scenes anew at other sizes, and a photograph "
    "cannot be drawn again",
    "09_human_evaluation": "its prompts and simulated raters are the world's; people can rate "
    "pictures of any folder with `python -m dalle3lib rate`",
    "10_automatic_evaluation": "it tests the metrics on pictures whose truth is known; "
    "10a_photographs takes the paper's own benchmarks",
    "12_limitations": "it counts places, numbers, printed words and invented detail, all facts",
}
FACTS = "it measures facts of pictures, and nobody has listed those of these images"


def facts_known(data: str) -> bool:
    """Whether the records of a data source hold facts: the world's alone do."""
    return data == "world"


def of(data: str, evidence: str = "") -> tuple[str, ...]:
    """The chapters of the book of a data source ("world" or a folder), in reading order.

    ``evidence`` is the parameter of chapter 04: "runs" where the preset's own arms are compared.
    """
    if facts_known(data):
        return WORLD
    return tuple(sorted((*IMAGES, RATIOS))) if evidence == "runs" else IMAGES


def left_out(data: str, evidence: str = "") -> dict[str, str]:
    """The chapters of the world that a data source's book does not have, each with the reason."""
    here = of(data, evidence)
    return {stem: LEFT_OUT.get(stem, FACTS) for stem in WORLD if stem not in here}
