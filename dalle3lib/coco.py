"""Captions in the COCO format: finding the file, reading it, and saying all that is wrong with it.

The functions that check add to ``problems``, so that a user hears of everything at once.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from dalle3lib import UserError

Problems = dict[str, list[str]]  # what is wrong -> where


TAR = "tar --sort=name -cf NEWFOLDER/images.tar -C FOLDER ."


class BadFolder(UserError):
    """A folder with problems: the message counts them, ``problems`` lists them all."""

    def __init__(self, folder: Path, file: str, problems: Problems) -> None:
        super().__init__(report(folder, file, problems))
        self.problems = problems

    def listing(self) -> str:
        """Every problem, a line each: what, and where."""
        return "".join(f"{kind}\t{at}\n" for kind, where in self.problems.items() for at in where)


def captions_file(
    folder: Path, names: Iterable[str], required: bool = True
) -> tuple[str, dict] | None:
    """Name and content of the one JSON with "images" and captions; UserError if not exactly one.

    ``names`` are the files of the folder; only those in it or in its ``annotations/`` count. If
    it is not ``required``, None is returned where every JSON is about something else.
    """
    found, rejected, unreadable = {}, [], False
    for name in names:
        if not (name.endswith(".json") and os.path.dirname(name) in ("", "annotations")):
            continue
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError, OSError) as error:
            rejected.append(f"{name} is not readable JSON: {error}")
            unreadable = True
            continue
        if _has_captions(content):
            found[name] = content
        else:
            rejected.append(f'{name} has no "images" and "annotations" with a "caption"')
    if not (found or required or unreadable):
        return None
    if not found:
        texts = any(name.endswith(".txt") for name in names)
        raise UserError(
            f"{folder} has no captions file ({'; '.join(rejected) or 'no *.json in it'}): add one "
            'COCO-format JSON with "images" and "annotations" to the folder or its annotations/'
            + (
                f", or, if each image has a text file, give a folder with a tar of both (`{TAR}`)."
                if texts
                else "."
            )
        )
    if len(found) > 1:
        raise UserError(
            f"{folder} has {len(found)} captions files ({', '.join(found)}): leave exactly one."
        )
    return next(iter(found.items()))


def _has_captions(content: object) -> bool:
    """Whether parsed JSON looks like COCO captions (boxes and key points have the same frame)."""
    if not isinstance(content, dict):
        return False
    images, annotations = content.get("images"), content.get("annotations")
    return (
        isinstance(images, list)
        and isinstance(annotations, list)
        and any(isinstance(a, dict) and "caption" in a for a in annotations)
    )


def first_captions(content: dict, problems: Problems) -> dict[str, str | None]:
    """The caption with the lowest annotation id for each file name (None: it has none)."""
    found = all_captions(content, problems)
    return {name: texts[0] if texts else None for name, texts in found.items()}


def references(folder: str | Path) -> dict[str, list[str]]:
    """All captions of each file name in a folder's captions file, as ``all_captions`` reads them.

    Raises UserError if there is not exactly one captions file. What is wrong in it is for
    ``splits.Folder`` to tell.
    """
    folder = Path(folder).expanduser()
    names = [*os.listdir(folder), *(f"annotations/{p.name}" for p in folder.glob("annotations/*"))]
    _, content = captions_file(folder, names)
    return all_captions(content, defaultdict(list))


def all_captions(content: dict, problems: Problems) -> dict[str, list[str]]:
    """The captions of each file name in the order of their annotation ids."""
    names: dict[object, str] = {}
    for entry in content["images"]:
        try:
            number, name = int(entry["id"]), str(entry["file_name"])
        except (KeyError, TypeError, ValueError, OverflowError):
            problems['entry of "images" without a whole id and a file_name'].append(_short(entry))
            continue
        if number in names:
            problems["image id given twice"].append(f"{number} ({names[number]}, {name})")
        names[number] = name
    for name, times in Counter(names.values()).items():
        if times > 1:
            problems["file name listed more than once"].append(name)

    found: dict[str, list[tuple[int, str]]] = {name: [] for name in names.values()}
    for entry in content["annotations"]:
        try:
            number, name = int(entry["id"]), names.get(int(entry["image_id"]))
            text = " ".join(entry["caption"].split())  # some captions hold line breaks
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            problems["annotation without a whole id, an image_id and a text as caption"].append(
                _short(entry)
            )
            continue
        if name is None:
            problems["annotation of an image that is not listed"].append(f"annotation {number}")
        elif not text:
            problems["empty caption"].append(f"annotation {number} of {name}")
        else:
            found[name].append((number, text))
    return {name: [text for _, text in sorted(texts)] for name, texts in found.items()}


def locate(captions: dict, paths: list[str], problems: Problems) -> dict[str, str]:
    """Where the image of each captioned file name lies; both directions are checked.

    ``captions`` holds the caption, or all of them, of each file name; nothing: a problem.
    """
    by_base = defaultdict(list)
    for path in paths:
        by_base[os.path.basename(path)].append(path)
    located, known = {}, set()
    for name, caption in captions.items():
        # "val2014/1.jpg" may lie in x/val2014/1.jpg: the end of the path must agree
        found = [p for p in by_base[os.path.basename(name)] if f"/{p}".endswith(f"/{name}")]
        known.update(found)
        if not found:
            problems["image file missing"].append(name)
        elif len(found) > 1:
            problems["file name found more than once"].append(" and ".join(found))
        elif not caption:
            problems["image without a caption"].append(name)
        else:
            located[name] = found[0]
    if unlisted := [path for path in paths if path not in known]:
        problems["image without a caption"] += unlisted
    return located


def report(folder: Path, file: str, problems: Problems) -> str:
    """One sentence: how many problems, the first three of each kind, and the cure."""
    total = sum(len(where) for where in problems.values())
    kinds = "; ".join(
        f"{kind} × {len(where)} ({', '.join(where[:3])}{', …' if len(where) > 3 else ''})"
        for kind, where in problems.items()
    )
    return (
        f"{folder} has {total} problem{'s' if total > 1 else ''}: {kinds}. Replace or remove the "
        f"images, or correct {file}, so that each image has a caption and each caption an image."
    )


def _short(entry: object) -> str:
    """An entry as it stands in the file, cut where it would fill the screen."""
    text = repr(entry)
    return text if len(text) <= 60 else text[:57] + "…"
