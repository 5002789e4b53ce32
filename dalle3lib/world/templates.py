"""What could be in a picture, drawn once and looked at as the reader looks: its templates.

An object is one of 512 kinds at one of 9 jitters in a square of ``Canvas.square``. A template is
looked at in half the resolution (``look``): softness, noise and a displacement by a pixel then
weigh little beside colour and shape.
"""

from functools import cache
from itertools import combinations, product
from string import ascii_lowercase

import numpy as np

from dalle3lib.world.canvas import LETTER, SQUARE, Canvas
from dalle3lib.world.render import backdrop, ink_colour, letter, sprite
from dalle3lib.world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Thing

KERNEL = np.array((1, 5, 10, 10, 5, 1)) / 32  # a blur of 1.1 pixels, before every other is dropped

ORDER = (  # in reading order: (place, whether raised to leave room for a word)
    ("top left", False), ("top", False), ("top right", False),
    ("left", True), ("centre", True), ("right", True),
    ("left", False), ("centre", False), ("right", False), ("bottom", False),
)  # fmt: skip
CUTS = tuple(product(SHAPES, SIZES, (-1, 0, 1), (-1, 0, 1)))  # 144 outlines, jitter included
CLOTHS = tuple(product(COLOURS, TEXTURES))  # 32 fillings; a template is a cloth cut to an outline


@cache
def squares_of(canvas: Canvas) -> tuple[tuple[str, bool], ...]:
    """Where objects can be on a canvas, in reading order: (place, whether raised for a word)."""
    return tuple(where for where in ORDER if where[0] in canvas.centre)


@cache
def columns_of(canvas: Canvas) -> tuple[range, ...]:
    """The columns of the letters of the longest even and the longest odd word with room, longest
    first: shorter words stand in the middle of these."""
    most = min(4, canvas.width // LETTER)
    return canvas.letter_columns(most), canvas.letter_columns(most - 1)


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
    """Patches [..., H, W, 3] blurred, at half the resolution: float32 [..., 3 H W / 4]."""
    height, width = patches.shape[-3:-1]
    down, across = look_matrices(height)[0], look_matrices(width)[1]
    rows = patches.reshape(-1, 3 * width) @ across
    return (down @ rows.reshape(-1, height, 3 * width // 2)).reshape(*patches.shape[:-3], -1)


def thing(template: int, place: str) -> Thing:
    """The object of template 0 ... 4607 at a place."""
    cut, cloth = divmod(template, len(CLOTHS))
    shape, size, dx, dy = CUTS[cut]
    return Thing(shape, *CLOTHS[cloth], size, place, dx, dy)


@cache
def backdrops(canvas: Canvas = SQUARE) -> np.ndarray:
    """The pictures of the six backgrounds: float32 [6, height, width, 3]."""
    return np.stack([backdrop(name, canvas) for name in BACKGROUNDS])


@cache
def templates(canvas: Canvas = SQUARE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every object, looked at: (paint [4608, 768], hidden [S, 6, 144, 768], d·d [S, 6, 4608]).

    In each of the canvas's S squares and on each background, an object makes the difference
    d = paint - hidden: what it adds less what it hides of the backdrop, which its outline alone
    decides.
    """
    drawn = [sprite(thing(i, "centre")) for i in range(len(CUTS) * len(CLOTHS))]
    cover = np.stack([1 - through for _, through in drawn[:: len(CLOTHS)]])
    paint = look(np.stack([paint for paint, _ in drawn]))
    fillings = paint.reshape(len(CUTS), len(CLOTHS), -1)
    own = np.einsum("oti,oti->ot", fillings, fillings)
    hidden, squares = [], []
    for where in squares_of(canvas):
        hidden.append(look(backdrops(canvas)[:, None, *canvas.square(*where)] * cover))
        for behind in hidden[-1]:
            mixed = (fillings @ behind[:, :, None])[..., 0]
            both = np.einsum("oi,oi->o", behind, behind)[:, None]
            squares.append((own - 2 * mixed + both).ravel())
    shape = len(hidden), len(BACKGROUNDS), len(paint)
    return paint, np.stack(hidden), np.stack(squares).reshape(shape)


@cache
def letters(background: str, canvas: Canvas = SQUARE) -> np.ndarray:
    """The difference that each letter makes in each square of ``columns_of``: [C, 26, 192]."""
    ink = np.stack([letter(character) for character in ascii_lowercase])
    behind = letter_squares(backdrop(background, canvas), canvas)
    return look(np.float32(ink * (ink_colour(background) - behind[:, None])))


def letter_squares(picture: np.ndarray, canvas: Canvas) -> np.ndarray:
    """The squares of a picture [height, width, 3] where letters can be: [C, 16, 16, 3]."""
    strip = picture[canvas.word_top :]
    columns = [column for run in columns_of(canvas) for column in run]
    return np.stack([strip[:, column : column + LETTER] for column in columns])


@cache
def arrangements(canvas: Canvas = SQUARE) -> np.ndarray:
    """Every set of squares, and of the word's strip, that do not overlap: bool [sets, S + 1]."""
    squares = squares_of(canvas)
    drawn = np.zeros((len(squares) + 1, canvas.height, canvas.width), int)
    for number, where in enumerate(squares):
        drawn[number][canvas.square(*where)] = 1
    drawn[-1, canvas.word_top :] = 1
    numbers = np.arange(len(drawn))
    sets = [np.isin(numbers, s) for n in range(6) for s in combinations(numbers, n)]
    return np.stack([chosen for chosen in sets if drawn[chosen].sum(0).max() <= 1])
