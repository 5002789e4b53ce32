"""A few pictures of one seed of every arm of the study, kept beside its results to be looked at."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from dalle3lib import UserError, files, study_results

SHOWN = ("original", "short", "upsampled", "descriptive")  # kinds of prompt
KEPT = 6  # prompts of each, the first of those the study asks


def path_of(stage: str, name: str) -> Path:
    """Where the kept pictures of a run ``kind-ratio-seed`` lie, or will lie."""
    return study_results.FOLDER / stage / "pictures" / f"{name}.png"


def keep(run: Path, stage: str, name: str) -> Path:
    """Keep the first pictures of a finished run of chapter 04a as one PNG; return its path.

    Rows are the kinds of prompt of ``SHOWN``, columns the first ``KEPT`` prompts.
    """
    rows = [np.load(run / f"pictures-{kind}.npy")[:KEPT] for kind in SHOWN]
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    sink, path = io.BytesIO(), path_of(stage, name)
    Image.fromarray(sheet).save(sink, "PNG", optimize=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, sink.getvalue())
    return path


def kept(stage: str, name: str) -> dict[str, np.ndarray] | None:
    """The kept pictures of a run by kind of prompt, uint8 [KEPT, H, W, 3]; None if there are none.

    UserError if the file is damaged.
    """
    path = path_of(stage, name)
    if not path.is_file():
        return None
    try:
        sheet = np.asarray(Image.open(path).convert("RGB"))
        rows = np.split(sheet, len(SHOWN))
        pictures = [np.stack(np.split(row, KEPT, axis=1)) for row in rows]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it with git.") from None
    return dict(zip(SHOWN, pictures, strict=True))
