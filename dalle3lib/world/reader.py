"""The reader: which facts a picture shows, by drawing every possible object and comparing.

Analysis by synthesis: a picture is explained by a background and by sprites and letters laid on
it, and the explanation that leaves the least squared error is its reading. Nothing is learned, so
nothing a generator was trained on can bias it. An object is one of 512 kinds at one of 9 jitters
in a square of ``render.square``. Squares that do not overlap may be occupied together, whether or
not the world arranges objects that way, and a printed word may have any spelling.

An object or a letter makes a difference d to the backdrop; the picture has the difference r. It
lowers the squared error by its gain r·r - (r - d)·(r - d) = 2 r·d - d·d, and is found where that
is more than half of r·r. All differences are looked at in half the resolution (``look``):
softness, noise and a displacement by a pixel then weigh little beside colour and shape.
"""

from collections import Counter
from functools import cache
from itertools import combinations, product
from string import ascii_lowercase

import numpy as np

from dalle3lib import UserError
from dalle3lib.world.render import (
    HALF,
    LETTER,
    SIDE,
    WORD_TOP,
    backdrop,
    ink_colour,
    letter,
    letter_columns,
    sprite,
    square,
)
from dalle3lib.world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing

CHUNK = 64  # pictures read together
KERNEL = np.array((1, 5, 10, 10, 5, 1)) / 32  # a blur of 1.1 pixels, before every other is dropped
PRESENT = 0.5  # the least share of r·r that an object or a letter must explain
SHIFT = 32.0  # grey levels: how much brighter or darker than drawn a picture may be
CAP = 60.0  # grey levels: an error beyond says "not the background" and no more
ROUNDING = 1.0  # grey levels²: mean squared differences up to this are no evidence of anything

SQUARES = (  # in reading order: (place, whether raised to leave room for a word)
    ("top left", False), ("top", False), ("top right", False),
    ("left", True), ("centre", True), ("right", True),
    ("left", False), ("centre", False), ("right", False), ("bottom", False),
)  # fmt: skip
CUTS = tuple(product(SHAPES, SIZES, (-1, 0, 1), (-1, 0, 1)))  # 144 outlines, jitter included
CLOTHS = tuple(product(COLOURS, TEXTURES))  # 32 fillings; a template is a cloth cut to an outline
COLUMNS = (*letter_columns(4), *letter_columns(3))  # two letters fill the middle of four


@cache
def look_matrices(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Halving as matrices: of rows [side / 2, side], of the RGB values in a row [3 side, 3 side/2].

    Outside the patch all is zero.
    """
    reach = len(KERNEL) // 2 - 1
    halve = np.zeros((side // 2, side + 2 * reach), np.float32)
    for i, row in enumerate(halve):
        row[2 * i : 2 * i + len(KERNEL)] = KERNEL
    halve = halve[:, reach : reach + side]
    return halve, np.kron(halve.T, np.eye(3, dtype=np.float32))


def look(patches: np.ndarray) -> np.ndarray:
    """Patches [..., side, side, 3] blurred, at half the resolution: float32 [..., 3 side² / 4]."""
    side = patches.shape[-2]
    down, across = look_matrices(side)
    rows = patches.reshape(-1, 3 * side) @ across
    return (down @ rows.reshape(-1, side, 3 * side // 2)).reshape(*patches.shape[:-3], -1)


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


# ---- templates -----------------------------------------------------------------------------------


def thing(template: int, place: str) -> Thing:
    """The object of template 0 ... 4607 at a place."""
    cut, cloth = divmod(template, len(CLOTHS))
    shape, size, dx, dy = CUTS[cut]
    return Thing(shape, *CLOTHS[cloth], size, place, dx, dy)


@cache
def backdrops() -> np.ndarray:
    """The pictures of the six backgrounds: float32 [6, 64, 64, 3]."""
    return np.stack([backdrop(name) for name in BACKGROUNDS])


@cache
def templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every object, looked at: (paint [4608, 768], hidden [10, 6, 144, 768], d·d [10, 6, 4608]).

    In each square and on each background, an object makes the difference d = paint - hidden:
    what it adds less what it hides of the backdrop, which its outline alone decides.
    """
    drawn = [sprite(thing(i, "centre")) for i in range(len(CUTS) * len(CLOTHS))]
    cover = np.stack([1 - through for _, through in drawn[:: len(CLOTHS)]])
    paint = look(np.stack([paint for paint, _ in drawn]))
    fillings = paint.reshape(len(CUTS), len(CLOTHS), -1)
    own = np.einsum("oti,oti->ot", fillings, fillings)
    hidden, squares = [], []
    for where in SQUARES:
        hidden.append(look(backdrops()[:, None, *square(*where)] * cover))
        for behind in hidden[-1]:
            mixed = (fillings @ behind[:, :, None])[..., 0]
            both = np.einsum("oi,oi->o", behind, behind)[:, None]
            squares.append((own - 2 * mixed + both).ravel())
    shape = len(SQUARES), len(BACKGROUNDS), len(paint)
    return paint, np.stack(hidden), np.stack(squares).reshape(shape)


@cache
def letters(background: str) -> np.ndarray:
    """The difference each letter makes in each square of ``COLUMNS``, looked at: [7, 26, 192]."""
    ink = np.stack([letter(character) for character in ascii_lowercase])
    strip = backdrop(background)[WORD_TOP : WORD_TOP + LETTER]
    behind = np.stack([strip[:, column : column + LETTER] for column in COLUMNS])
    return look(np.float32(ink * (ink_colour(background) - behind[:, None])))


@cache
def arrangements() -> np.ndarray:
    """Every set of squares, and of the word's strip, that do not overlap: bool [sets, 11]."""
    drawn = np.zeros((len(SQUARES) + 1, SIDE, SIDE), int)
    for number, where in enumerate(SQUARES):
        drawn[number][square(*where)] = 1
    drawn[-1, WORD_TOP:] = 1
    numbers = np.arange(len(drawn))
    sets = [np.isin(numbers, s) for n in range(6) for s in combinations(numbers, n)]
    return np.stack([chosen for chosen in sets if drawn[chosen].sum(0).max() <= 1])


# ---- reading -------------------------------------------------------------------------------------


def find_background(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The background that explains most of each picture: (its number [N], the difference r).

    Objects cover less than half of a picture: a median finds how much brighter or darker than
    the backdrop the picture is, and a capped error keeps the objects from deciding. The
    difference [N, 64, 64, 3] is taken at the backdrop's brightness.
    """
    differences, errors = [], []
    for picture in backdrops():
        rest = pictures - picture
        shift = np.median(rest[:, 1::3, ::3].reshape(len(rest), -1), 1)  # a ninth is enough
        rest -= np.clip(shift, -SHIFT, SHIFT)[:, None, None, None]
        differences.append(rest)
        errors.append(np.minimum(abs(rest), CAP).mean((1, 2, 3)))
    best = np.argmin(errors, axis=0)
    return best, np.stack(differences)[best, np.arange(len(pictures))]


def find_objects(rest: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best template of each square and its gain, or 0 if that is no object: both [N, 10].

    ``rest`` is the difference r [N, 64, 64, 3], ``background`` the number of its background [N].
    """
    paint, hidden, squares = templates()
    best = np.zeros((len(rest), len(SQUARES)), int)
    gain = np.zeros(best.shape)
    for number, where in enumerate(SQUARES):
        seen = look(rest[:, *square(*where)])
        gains = 2 * seen @ paint.T - squares[number, background]
        for i in np.unique(background):
            mine = background == i
            gains[mine] -= np.repeat(2 * seen[mine] @ hidden[number, i].T, len(CLOTHS), 1)
        best[:, number] = gains.argmax(1)
        gain[:, number] = evidence(gains.max(1), seen, 2 * HALF)
    return best, gain


def find_word(rest: np.ndarray, background: str) -> tuple[str, float]:
    """The word printed in one picture, "" if none, and its gain: the better of both alignments."""
    strip = rest[WORD_TOP : WORD_TOP + LETTER]
    seen = look(np.stack([strip[:, column : column + LETTER] for column in COLUMNS]))
    change = letters(background)
    gains = 2 * np.einsum("sli,si->sl", change, seen) - np.einsum("sli,sli->sl", change, change)
    best, gain = gains.argmax(1), evidence(gains.max(1), seen, LETTER)
    words = [(0.0, "")]
    for part in (slice(4), slice(4, 7)):
        found = best[part][gain[part] > 0]
        if len(found) > 1:  # a single letter is no word
            words.append((float(gain[part].sum()), "".join(ascii_lowercase[i] for i in found)))
    gain, word = max(words)
    return word, gain


def read_chunk(images: np.ndarray) -> list[dict]:
    """The readings of a few pictures: the arrangement of squares of greatest gain in each."""
    background, rest = find_background(images.astype(np.float32))
    best, gain = find_objects(rest, background)
    words = [find_word(r, BACKGROUNDS[b]) for r, b in zip(rest, background, strict=True)]
    gain = np.column_stack([gain, [g for _, g in words]])
    chosen = arrangements()[(gain @ arrangements().T).argmax(1)] & (gain > 0)
    fit = np.clip(_fit(look(rest), (gain * chosen).sum(1)), 0, 1)
    readings = []
    for i, shown in enumerate(chosen):
        numbers = np.flatnonzero(shown[:-1])
        objects = tuple(thing(int(best[i, n]), SQUARES[n][0]) for n in numbers)
        spec = Scene(BACKGROUNDS[background[i]], objects, words[i][0] if shown[-1] else None)
        readings.append(spec.facts() | {"fit": float(fit[i])})
    return readings


def _fit(looks: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """The share of the pictures' energy that is explained; rounding counts as explained."""
    return (gain + ROUNDING * looks.shape[-1]) / energy(looks)


def read(images: np.ndarray) -> list[dict]:
    """What each picture shows: the facts of a scene, and ``fit``.

    ``images`` is uint8 [N, 64, 64, 3]. Each dict has "background", "objects" (in reading order,
    none if nothing is recognised) and "word" (or None) as ``Scene.facts`` has, and "fit": the
    share, 0 to 1, of what is not background that the reading explains. Raises UserError for any
    other array.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIDE, SIDE, 3):
        raise UserError(
            f"The reader needs pictures as uint8 [N, {SIDE}, {SIDE}, 3], not {images.dtype} "
            f"{list(images.shape)}: resize and convert them first."
        )
    chunks = range(0, len(images), CHUNK)
    return [facts for i in chunks for facts in read_chunk(images[i : i + CHUNK])]


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
