"""Words that a picture prints: read by any means, compared with the words asked for.

Words that come out with missing or extra characters are a limit that the paper names (§5.2). Three
measures: read exactly; the character error rate and the word error rate, which count the edits
(Levenshtein 1966) that turn what is read into what was asked for, by its length.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from dalle3lib.evals import per_image
from dalle3lib.world import reader

QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|(?<!\w)[\'‘](.+?)[\'’](?!\w)')


def edit_distance(a: Sequence, b: Sequence) -> int:
    """The fewest insertions, deletions and replacements that turn ``a`` into ``b``."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


def plain(text: str) -> str:
    """A text in lower case with single spaces: what prints a word in capitals prints the word."""
    return " ".join(text.lower().split())


def error_rate(read: Sequence, asked: Sequence) -> float:
    """Edits by the length of what was asked: 0 is right, above 1 if much more is read.

    Characters if both are texts, words if both are lists of words. Where nothing is asked for,
    0 if nothing is read and else 1.
    """
    return edit_distance(read, asked) / len(asked) if len(asked) else float(len(read) > 0)


def asked_text(prompt: str) -> str | None:
    """What stands in quotes in a prompt, parts with spaces between them; None if nothing does."""
    parts = ["".join(groups) for groups in QUOTED.findall(prompt)]
    return " ".join(parts) or None


def world_reader(images: np.ndarray) -> list[str]:
    """The word that the world's reader reads in each picture, "" where none is."""
    return [facts["word"] or "" for facts in reader.read(images)]


def score_images(
    images: np.ndarray,
    prompts: Sequence[str],
    words: dict[str, str],
    read: Callable[[np.ndarray], Sequence[str]] = world_reader,
    *,
    seed: int | Sequence[int] = 0,
) -> pd.DataFrame:
    """The words in images uint8 [N, H, W, 3], a row each (``per_image.table``).

    ``words`` gives what each prompt asks for, ``read`` (any OCR) what each picture prints.
    ``score`` is 1 if both are equal but for case and spaces; two more columns are
    ``character_error_rate`` and ``word_error_rate``. Raises UserError if a prompt is not
    among ``words``.
    """
    per_image.same_number(len(images), prompts)
    asked = [plain(word) for word in per_image.look_up(words, prompts, "word asked for")]
    found = [plain(text) for text in read(images)]
    per_image.same_number(len(images), found)
    pairs = list(zip(found, asked, strict=True))
    reasons = [f'"{a}" asked, "{f}" read' if f else f'"{a}" asked, nothing read' for f, a in pairs]
    frame = per_image.table(prompts, seed, [f == a for f, a in pairs], reasons)
    return frame.assign(
        character_error_rate=[error_rate(f, a) for f, a in pairs],
        word_error_rate=[error_rate(f.split(), a.split()) for f, a in pairs],
    )
