"""The explorer's page and the picture of the front page, from the files that ``explorer`` made.

Both are plain HTML in which every picture has a text in its place. A strip holds all pictures of a
scene; each ``<img>`` shows the part of it that its style names. ``book/_static/explorer.js`` shows
one scene at a time; without it all of them are there.
"""

import html
import shlex
import shutil
from pathlib import Path

from dalle3lib import explorer
from dalle3lib.pages import commit, duration

# The front page's picture: name, row of ``explorer.ROWS`` and arm. All are drawn for a short text.
STEPS = (
    ("alt-text", 1, "original only"),
    ("short captions", 1, "SSC 95 %"),
    ("descriptive captions", 1, "DSC 95 %"),
    ("+ upsampling", 2, "DSC 95 %"),
    ("+ consistency decoder", 3, "DSC 95 %"),
)
FRONT_SCENES = 3
ASKED = {
    "original": "the alt-text found with the picture",
    "short": "a short prompt",
    "upsampled": "the short prompt, upsampled",
    "descriptive": "a descriptive prompt",
}


def stage(root: Path, source: Path) -> None:
    """Copy the explorer's files beside the pages of the book in ``source``, if there are any."""
    if explorer.read(root):
        files = explorer.directory(root)
        shutil.copytree(files, source / "_static" / "explorer", dirs_exist_ok=True)
        (source / "tables").mkdir(exist_ok=True)
        shutil.copy(files / "explorer.csv", source / "tables" / "explorer.csv")


def command(preset: str) -> str:
    """The command that makes the explorer's files."""
    return f"python -m dalle3lib explorer --preset {shlex.quote(preset)}"


def front_picture(root: Path, preset: str, data: str = "world") -> str:
    """The first scenes, and what they become from arm to arm: a figure with caption and sources."""
    found = explorer.read(root)
    if not found:
        return _missing(preset, data)
    scenes = range(min(FRONT_SCENES, len(found["scenes"])))
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name, _, _ in STEPS)
    rows = ""
    for scene in scenes:
        about = found["scenes"][scene]
        truth = _tile(about["file"], 0, _tiles(found), f"The true picture: {about['shows']}.")
        cells = f"<th scope='row'>{truth}</th>"
        for _, row, arm in STEPS:
            cells += f"<td>{_picture(found, scene, row, found['arms'].index(arm))}</td>"
        said = html.escape(about["texts"]["short"])
        rows += f"<tr><th colspan='6' class='asked' scope='rowgroup'>“{said}”</th></tr>"
        rows += f"<tr>{cells}</tr>\n"
    table = f"<table class='steps'><thead><tr><th scope='col'>true picture</th>{head}</tr></thead>"
    return _raw(f"{table}<tbody>{rows}</tbody></table>") + (
        f":::{{div}} figure-source\nThe first {len(scenes)} held-out scenes, whatever they show. "
        "Above each row stands the short prompt that all its pictures were made from; no system "
        "sees the true picture. They differ in the captions they learned from, and in nothing "
        "else; the last two columns go on from descriptive captions. One seed of each: an "
        "illustration, no evidence. "
        f"More of them are in the [explorer](explorer.md).\n\n{_source(found)}\n:::\n"
    )


def page(root: Path, preset: str, data: str = "world") -> str:
    """The explorer: a picker, and for every scene its captions and all pictures of the arms."""
    found = explorer.read(root)
    if not found:
        return _missing(preset, data)
    picker = scenes = ""
    for number, about in enumerate(found["scenes"]):
        name = f"scene-{number + 1}"
        tile = _tile(about["file"], 0, _tiles(found), f"Scene {number + 1}: {about['shows']}")
        checked = " checked" if not number else ""
        picker += f"<label><input type='radio' name='scene' value='{name}'{checked}>{tile}</label>"
        scenes += _scene(found, number, name)
    return (
        _raw(
            "<div class='explorer'><form hidden><fieldset><legend>Choose a scene</legend>"
            f"{picker}</fieldset></form>\n{scenes}</div>"
        )
        + f":::{{div}} figure-source\n{_source(found)}\n:::\n"
    )


def _scene(found: dict, number: int, name: str) -> str:
    """One scene: the true picture, what is said of it, and a table of what the arms drew."""
    about, arms = found["scenes"][number], found["arms"]
    texts = {key: html.escape(text) for key, text in about["texts"].items()}
    truth = _tile(about["file"], 0, _tiles(found), f"The true picture: {about['shows']}.")
    said = {
        "shows": html.escape(about["shows"]),
        "alt-text": texts["original"],
        "SSC": texts["ssc"],
        "DSC": texts["dsc"],
    }
    listing = "".join(f"<dt>{key}</dt><dd>{text}</dd>" for key, text in said.items())
    head = "".join(f"<th scope='col'>{html.escape(arm)}</th>" for arm in arms)
    body = ""
    for row, (kind, decoder) in enumerate(found["rows"]):
        how = ASKED[kind] + (", decoded by the consistency decoder" if decoder != "VAE" else "")
        body += f"<tr><th colspan='{len(arms)}' class='asked' scope='rowgroup'>{how}: "
        body += f"<q>{texts[kind]}</q></th></tr>\n<tr>"
        for column in range(len(arms)):
            drawn = _drawn(found, number, row, column)
            body += f"<td>{_picture(found, number, row, column)}"
            body += (
                f"<b>{drawn['clip_score']:.1f}</b><small>{html.escape(drawn['reading'])}</small>"
            )
            body += "</td>"
        body += "</tr>\n"
    return (
        f"<section class='scene' id='{name}' aria-label='Scene {number + 1}'>"
        f"<h2>Scene {number + 1}</h2><div class='truth'>{truth}<dl>{listing}</dl></div>\n"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></section>\n"
    )


def _drawn(found: dict, scene: int, row: int, column: int) -> dict:
    """What the table says of one picture."""
    rows, arms = len(found["rows"]), len(found["arms"])
    return found["pictures"][(scene * rows + row) * arms + column]


def _tiles(found: dict) -> int:
    """How many pictures a strip holds: the true one, and one for each row and arm."""
    return 1 + len(found["rows"]) * len(found["arms"])


def _picture(found: dict, scene: int, row: int, column: int) -> str:
    """The picture that an arm drew of a scene, with what the reader sees as its text."""
    drawn = _drawn(found, scene, row, column)
    alt = f"{drawn['arm']}: the reader sees {drawn['reading']}; CLIP score {drawn['clip_score']}."
    number = 1 + row * len(found["arms"]) + column
    return _tile(found["scenes"][scene]["file"], number, _tiles(found), alt)


def _tile(file: str, number: int, tiles: int, alt: str) -> str:
    """One picture of a strip: an image of which only a square shows."""
    place = 100 * number / (tiles - 1)
    return (
        f"<img class='tile' src='_static/explorer/{file}' alt='{html.escape(alt)}' "
        f"width='64' height='64' style='object-position: {place:.4g}% 0'>"
    )


def _source(found: dict) -> str:
    """What is measured in these pictures, by which command, and how long it took."""
    return (
        "[{download}`table (CSV) <tables/explorer.csv>`]{.data} · "
        f"`{command(found['preset'])}` · {found['steps']} steps of DDIM · "
        f"{duration(found['seconds'])} · commit `{commit(found)}`"
    )


def _missing(preset: str, data: str) -> str:
    """What stands in the place of pictures that were not made."""
    if data == "world":
        text = f"`{command(preset)}` makes them, and `make book` too."
    else:
        text = "They show the world's scenes, and this copy is of a folder of images."
    return f":::{{admonition}} No pictures in this copy\n{text}\n:::\n"


def _raw(markup: str) -> str:
    """HTML as it is, in a page of Markdown."""
    return f"````{{raw}} html\n{markup}\n````\n\n"
