"""The reader: which facts a picture shows, by drawing every possible object and comparing.

Analysis by synthesis: a picture is explained by a background and by sprites and letters laid on
it (``templates``), and the explanation that leaves the least squared error is its reading. Nothing
is learned, so nothing a generator was trained on can bias it. Squares that do not overlap may be
occupied together, whether or not the world arranges objects that way, and a printed word may have
any spelling.

An object or a letter makes a difference d to the backdrop; the picture has the difference r. It
lowers the squared error by its gain r·r - (r - d)·(r - d) = 2 r·d - d·d, and is found where that
is more than half of r·r. All differences are looked at in half the resolution (``look``).

Pictures of any canvas are read, drawn at any scale: larger ones are first averaged down to scale 1.
"""

from collections import Counter
from string import ascii_lowercase

import numpy as np

from dalle3lib import UserError
from dalle3lib.world.canvas import CANVASES, HALF, LETTER, SQUARE, Canvas
from dalle3lib.world.scene import BACKGROUNDS, Scene
from dalle3lib.world.templates import (
    CLOTHS,
    arrangements,
    backdrops,
    columns_of,
    letter_squares,
    letters,
    look,
    squares_of,
    templates,
    thing,
)

CHUNK = 64  # pictures read together
PRESENT = 0.5  # the least share of r·r that an object or a letter must explain
SHIFT = 32.0  # grey levels: how much brighter or darker than drawn a picture may be
CAP = 60.0  # grey levels: an error beyond says "not the background" and no more
ROUNDING = 1.0  # grey levels²: mean squared differences up to this are no evidence of anything


def energy(looks: np.ndarray) -> np.ndarray:
    """x·x along the last axis, more than zero even where there is nothing but rounding."""
    return np.einsum("...i,...i->...", looks, looks) + ROUNDING * looks.shape[-1]


def evidence(gain: np.ndarray, looks: np.ndarray, side: int) -> np.ndarray:
    """The gain where it speaks for an object or a letter, else 0.

    It must be a share ``PRESENT`` of what is there, and more than a mere change of the backdrop's
    colour all over the square would gain: a flat hole or a strange background is no object.
    """
    flat = look(np.ones((side, side, 3), np.float32)).reshape(-1, 3)[:, 0]
    along = flat @ looks.reshape(*looks.shape[:-1], -1, 3)
    tint = (along**2).sum(-1) / (flat @ flat)
    return np.where(gain >= np.maximum(PRESENT * energy(looks), tint), gain, 0)


# ---- reading -------------------------------------------------------------------------------------


def find_background(pictures: np.ndarray, canvas: Canvas = SQUARE) -> tuple[np.ndarray, np.ndarray]:
    """The background that explains most of each picture: (its number [N], the difference r).

    Objects cover less than half of a picture: a median finds how much brighter or darker than
    the backdrop the picture is, and a capped error keeps the objects from deciding. The
    difference [N, height, width, 3] is taken at the backdrop's brightness.
    """
    differences, errors = [], []
    for picture in backdrops(canvas):
        rest = pictures - picture
        shift = np.median(rest[:, 1::3, ::3].reshape(len(rest), -1), 1)  # a ninth is enough
        rest -= np.clip(shift, -SHIFT, SHIFT)[:, None, None, None]
        differences.append(rest)
        errors.append(np.minimum(abs(rest), CAP).mean((1, 2, 3)))
    best = np.argmin(errors, axis=0)
    return best, np.stack(differences)[best, np.arange(len(pictures))]


def find_objects(
    rest: np.ndarray, background: np.ndarray, canvas: Canvas = SQUARE
) -> tuple[np.ndarray, np.ndarray]:
    """The best template of each square and its gain, or 0 if that is no object: both [N, S].

    ``rest`` is the difference r [N, height, width, 3], ``background`` the number of its background
    [N].
    """
    paint, hidden, squares = templates(canvas)
    best = np.zeros((len(rest), len(hidden)), int)
    gain = np.zeros(best.shape)
    for number, where in enumerate(squares_of(canvas)):
        seen = look(rest[:, *canvas.square(*where)])
        gains = 2 * seen @ paint.T - squares[number, background]
        for i in np.unique(background):
            mine = background == i
            gains[mine] -= np.repeat(2 * seen[mine] @ hidden[number, i].T, len(CLOTHS), 1)
        best[:, number] = gains.argmax(1)
        gain[:, number] = evidence(gains.max(1), seen, 2 * HALF)
    return best, gain


def find_word(rest: np.ndarray, background: str, canvas: Canvas = SQUARE) -> tuple[str, float]:
    """The word printed in one picture, "" if none, and its gain: the better of both alignments."""
    seen = look(letter_squares(rest, canvas))
    change = letters(background, canvas)
    gains = 2 * np.einsum("sli,si->sl", change, seen) - np.einsum("sli,sli->sl", change, change)
    best, gain = gains.argmax(1), evidence(gains.max(1), seen, LETTER)
    words = [(0.0, "")]
    longest = len(columns_of(canvas)[0])
    for part in (slice(longest), slice(longest, None)):
        found = best[part][gain[part] > 0]
        if len(found) > 1:  # a single letter is no word
            words.append((float(gain[part].sum()), "".join(ascii_lowercase[i] for i in found)))
    gain, word = max(words)
    return word, gain


def read_chunk(images: np.ndarray, canvas: Canvas = SQUARE) -> list[dict]:
    """The readings of a few pictures of scale 1: the arrangement of greatest gain in each."""
    background, rest = find_background(images.astype(np.float32), canvas)
    best, gain = find_objects(rest, background, canvas)
    words = [find_word(r, BACKGROUNDS[b], canvas) for r, b in zip(rest, background, strict=True)]
    gain = np.column_stack([gain, [g for _, g in words]])
    chosen = arrangements(canvas)[(gain @ arrangements(canvas).T).argmax(1)] & (gain > 0)
    fit = np.clip(_fit(look(rest), (gain * chosen).sum(1)), 0, 1)
    readings, squares = [], squares_of(canvas)
    for i, shown in enumerate(chosen):
        numbers = np.flatnonzero(shown[:-1])
        objects = tuple(thing(int(best[i, n]), squares[n][0]) for n in numbers)
        spec = Scene(BACKGROUNDS[background[i]], objects, words[i][0] if shown[-1] else None)
        readings.append(spec.facts() | {"fit": float(fit[i])})
    return readings


def _fit(looks: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """The share of the pictures' energy that is explained; rounding counts as explained."""
    return (gain + ROUNDING * looks.shape[-1]) / energy(looks)


def canvas_of(images: np.ndarray) -> tuple[Canvas, int] | None:
    """The canvas and the scale of pictures uint8 [N, H, W, 3]; None if there is no such canvas."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        return None
    for canvas in CANVASES:
        scale = max(1, images.shape[1] // canvas.height)
        if images.shape[1:3] == (scale * canvas.height, scale * canvas.width):
            return canvas, scale
    return None


def averaged(images: np.ndarray, scale: int) -> np.ndarray:
    """Pictures [N, H, W, 3] with every ``scale`` x ``scale`` pixels averaged into one: uint8."""
    if scale == 1:
        return images
    count, height, width, _ = images.shape
    blocks = images.reshape(count, height // scale, scale, width // scale, scale, 3)
    return (blocks.mean((2, 4), dtype=np.float32) + 0.5).astype(np.uint8)


def read(images: np.ndarray) -> list[dict]:
    """What each picture shows: the facts of a scene, and ``fit``.

    ``images`` is uint8 [N, H, W, 3] of the size of a canvas or a whole multiple of it. Each dict
    has "background", "objects" (in reading order, none if nothing is recognised) and "word" (or
    None) as ``Scene.facts`` has, and "fit": the share, 0 to 1, of what is not background that the
    reading explains. Raises UserError for any other array.
    """
    images = np.asarray(images)
    found = canvas_of(images)
    if found is None:
        sizes = ", ".join(f"{c.height}, {c.width}" for c in CANVASES)
        raise UserError(
            f"The reader needs pictures as uint8 [N, H, W, 3] of {sizes} or a multiple, not "
            f"{images.dtype} {list(images.shape)}: resize and convert them first."
        )
    canvas, scale = found
    starts = range(0, len(images), CHUNK)
    parts = (averaged(images[i : i + CHUNK], scale) for i in starts)
    return [facts for part in parts for facts in read_chunk(part, canvas)]


# ---- comparing -----------------------------------------------------------------------------------


def recall(read_facts: dict, true_facts: dict) -> dict[str, float]:
    """The share, 0 to 1, of the true facts that were read.

    "colour-shape", "texture-shape" and "size-shape" are pairs of attributes of one object,
    "colour-shape-place" says where as well; equal objects must be found as often as they are
    there. "background", "count" and, only if a word is true, "word" are right (1) or wrong (0).
    Without true objects there are no pairs to find and their keys are missing.
    """

    def kinds(facts: dict, names: tuple[str, ...]) -> Counter:
        return Counter(tuple(thing[name] for name in names) for thing in facts["objects"])

    number = len(true_facts["objects"])
    shares = {
        "background": float(read_facts["background"] == true_facts["background"]),
        "count": float(len(read_facts["objects"]) == number),
    }
    pairs = (("colour", "shape"), ("texture", "shape"), ("size", "shape"))
    for names in (*pairs, ("colour", "shape", "place")) if number else ():
        found = kinds(read_facts, names) & kinds(true_facts, names)
        shares["-".join(names)] = found.total() / number
    if true_facts["word"] is not None:
        shares["word"] = float(read_facts["word"] == true_facts["word"])
    return shares
