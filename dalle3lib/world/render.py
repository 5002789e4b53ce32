"""Scenes as pictures: RGB drawn from cached anti-aliased sprites, on any canvas, at any scale.

At scale 1 the world's canvas is 64 x 64 pixels. A larger scale draws the same scene finer: shapes,
textures and letters anew, and the marks of backgrounds, squares by design, as larger squares.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dalle3lib.world.canvas import HALF, LETTER, SQUARE, Canvas
from dalle3lib.world.scene import Scene, Thing

RADIUS = {"small": 10.0, "large": 13.5}  # pixels
FINE = 4  # sub-pixels per pixel and direction, for smooth edges
RGB = {
    "red": (222, 40, 40), "orange": (246, 140, 24), "yellow": (246, 222, 46),
    "green": (40, 150, 66), "blue": (44, 88, 222), "purple": (136, 54, 180),
    "pink": (248, 148, 196), "brown": (122, 76, 42),
}  # fmt: skip
OUTLINE, WHITE = np.array((28, 28, 28.0)), np.array((252, 252, 252.0))


def inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points of the square [-1, 1]² (y downwards) belong to the shape: bool, shape of x."""
    radius, angle = np.hypot(x, y), np.arctan2(x, -y)
    if shape == "circle":
        return radius < 0.95
    if shape == "square":
        return np.maximum(abs(x), abs(y)) < 0.82
    if shape == "triangle":
        return (y < 0.75) & (abs(x) < (y + 0.95) * 0.56)
    if shape == "diamond":
        return abs(x) * 1.25 + abs(y) < 1
    if shape == "star":  # five points: the radius falls from tip to notch with the angle
        sector = abs((angle / (2 * np.pi) * 5 + 0.5) % 1 - 0.5) * 2
        return radius < 1 - 0.58 * sector
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 0.9)
    if shape == "heart":
        u, v = x * 1.25, 0.2 - y * 1.15
        return (u**2 + v**2 - 1) ** 3 < u**2 * v**3
    if shape == "moon":  # a disc less a smaller one
        return (radius < 0.95) & (np.hypot(x - 0.48, y + 0.1) > 0.72)
    raise ValueError(f"unknown shape {shape!r}")


def coverage(shape: str, radius: float, dx: int = 0, dy: int = 0, scale: int = 1) -> np.ndarray:
    """The share of every pixel that the shape covers: float [32 s, 32 s, 1] in [0, 1].

    The shape's middle lies ``dx`` and ``dy`` off the middle of the square. These and ``radius``
    are pixels of scale 1; at scale s a pixel is 1/s of that.
    """
    side = 2 * HALF * scale
    grid = (np.arange(side * FINE) + 0.5) / (FINE * scale) - HALF
    x, y = np.meshgrid((grid - dx) / radius, (grid - dy) / radius)
    return inside(shape, x, y).reshape(side, FINE, side, FINE, 1).mean((1, 3))


@cache
def silhouette(
    shape: str, size: str, dx: int, dy: int, scale: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel the whole object and its inside, without outline, cover."""
    whole = coverage(shape, RADIUS[size], dx, dy, scale)
    return whole, np.minimum(coverage(shape, RADIUS[size] - 1.1, dx, dy, scale), whole)


def pattern(texture: str, scale: int = 1) -> np.ndarray:
    """Where a texture shows the object's colour (1) and where white (0): [32 s, 32 s, 1].

    Patterns repeat every 8 pixels and stay in place when an object moves by a pixel: like a
    cloth seen through a hole. An autoencoder with 8 x 8 cells then finds the same in each cell.
    """
    side = 2 * HALF * scale
    row, column = (np.mgrid[:side, :side, :1][:2] + 0.5) / scale  # the middle of each pixel
    if texture == "plain":
        return np.ones(row.shape)
    if texture == "striped":
        return 1.0 * ((row + column - 0.5) % 8 < 4)
    if texture == "dotted":
        return 1.0 * (np.hypot((row + 4) % 8 - 4, (column + 4) % 8 - 4) > 2.2)
    if texture == "checkered":
        return 1.0 * ((row // 4 + column // 4) % 2 == 0)
    raise ValueError(f"unknown texture {texture!r}")


@cache
def cloth(colour: str, texture: str, scale: int = 1) -> np.ndarray:
    """What an object is made of, before it is cut to shape: RGB [32 s, 32 s, 3]."""
    share = pattern(texture, scale)
    return share * np.array(RGB[colour], float) + (1 - share) * WHITE


def sprite(thing: Thing, scale: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """An object ready to be laid on a background.

    Returns (its RGB times what it covers [32 s, 32 s, 3], the share of the background that shows
    through [32 s, 32 s, 1]), float32.
    """
    whole, inner = silhouette(thing.shape, thing.size, thing.dx, thing.dy, scale)
    paint = inner * cloth(thing.colour, thing.texture, scale) + (whole - inner) * OUTLINE
    return paint.astype(np.float32), np.float32(1 - whole)


@cache
def backdrop(name: str, canvas: Canvas = SQUARE, scale: int = 1) -> np.ndarray:
    """The picture of a background: float32 [height s, width s, 3], read only.

    Like the textures, backgrounds repeat every 8 pixels (stone every 16).
    """
    row, column = np.mgrid[: canvas.height * scale, : canvas.width * scale] // scale
    down, across = row % 8, column % 8
    base, mark, where = {
        "snow": ((238, 243, 250), (206, 219, 238), abs(down - 3) + abs(across - 4) < 2),
        "sand": ((230, 208, 160), (204, 176, 122),
                 (down * 3 + across * 5) % 16 == 2),
        "grass": ((154, 200, 122), (112, 166, 84),
                  (across % 4 == 1) & ((down + across) % 8 < 5)),
        "sky": ((164, 208, 246), (208, 232, 252), down < 3),
        "night": ((24, 28, 58), (206, 206, 176), (down // 2 == 1) & (across // 2 == 2)),
        "stone": ((166, 166, 172), (128, 128, 134),
                  (down == 7) | ((column + row // 8 * 8) % 16 == 7)),
    }[name]  # fmt: skip
    picture = np.where(where[..., None], np.array(mark, np.float32), np.array(base, np.float32))
    picture.setflags(write=False)
    return picture


@cache
def letter(character: str, scale: int = 1) -> np.ndarray:
    """How much ink a printed letter lays on its square: float32 [16 s, 16 s, 1] in [0, 1]."""
    square = Image.new("L", (LETTER * scale, LETTER * scale))
    font = ImageFont.load_default(size=18 * scale)
    drawing = ImageDraw.Draw(square)
    place = LETTER * scale / 2, (LETTER - 2) * scale
    ink = {"fill": 255, "stroke_width": 0.4 * scale}  # a little bold
    drawing.text(place, character.upper(), font=font, anchor="ms", **ink)
    return np.asarray(square, np.float32)[..., None] / 255


def ink_colour(background: str) -> np.ndarray:
    """The RGB of printed letters: white on the night sky, dark elsewhere."""
    return WHITE if background == "night" else OUTLINE


def zoomed(where: tuple[slice, slice], scale: int) -> tuple[slice, slice]:
    """The same rows and columns at another scale."""
    return tuple(slice(part.start * scale, part.stop * scale) for part in where)


def render(spec: Scene, canvas: Canvas = SQUARE, scale: int = 1) -> np.ndarray:
    """The picture of a scene that the canvas holds: uint8 [height s, width s, 3]."""
    picture = backdrop(spec.background, canvas, scale).copy()
    for thing in spec.objects:
        paint, through = sprite(thing, scale)
        patch = picture[zoomed(canvas.square(thing.place, spec.word is not None), scale)]
        patch *= through
        patch += paint
    word = spec.word or ""
    rows = slice(canvas.word_top, canvas.word_top + LETTER)
    for character, column in zip(word, canvas.letter_columns(len(word)), strict=True):
        patch = picture[zoomed((rows, slice(column, column + LETTER)), scale)]
        patch += letter(character, scale) * (ink_colour(spec.background) - patch)
    return (picture + 0.5).astype(np.uint8)
