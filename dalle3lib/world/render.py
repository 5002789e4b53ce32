"""Scenes as pictures: 64 x 64 RGB, drawn from cached anti-aliased sprites."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dalle3lib.world.scene import Scene, Thing

SIDE = 64
RADIUS = {"small": 8.5, "large": 12.5}  # pixels
HALF = 13  # half a sprite, pixels
FINE = 4  # sub-pixels per pixel and direction, for smooth edges
RGB = {
    "red": (222, 40, 40), "orange": (246, 140, 24), "yellow": (246, 222, 46),
    "green": (40, 150, 66), "blue": (44, 88, 222), "purple": (136, 54, 180),
    "pink": (248, 148, 196), "brown": (122, 76, 42),
}  # fmt: skip
OUTLINE, WHITE = np.array((28, 28, 28.0)), np.array((252, 252, 252.0))
CENTRE = {
    "centre": (32, 32), "left": (17, 32), "right": (47, 32), "top": (32, 17), "bottom": (32, 47),
    "top left": (17, 17), "top right": (47, 17),
}  # fmt: skip
WORD_RISE = 10  # pixels by which objects move up to leave room for a printed word
WORD_ROW = 53  # the vertical middle of the word, pixels from the top


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


def coverage(shape: str, radius: float) -> np.ndarray:
    """The share of every sprite pixel that the shape covers: float [2 HALF, 2 HALF] in [0, 1]."""
    grid = (np.arange(2 * HALF * FINE) + 0.5) / FINE - HALF
    x, y = np.meshgrid(grid / radius, grid / radius)
    return inside(shape, x, y).reshape(2 * HALF, FINE, 2 * HALF, FINE).mean((1, 3))


def pattern(texture: str) -> np.ndarray:
    """Where a texture shows the object's colour (1) and where white (0): [2 HALF, 2 HALF]."""
    row, column = np.mgrid[: 2 * HALF, : 2 * HALF]
    if texture == "plain":
        return np.ones((2 * HALF, 2 * HALF))
    if texture == "striped":
        return 1.0 * ((row + column) % 6 < 3)
    if texture == "dotted":
        return 1.0 - ((row % 5 < 2) & (column % 5 < 2))
    if texture == "checkered":
        return 1.0 * ((row // 4 + column // 4) % 2 == 0)
    raise ValueError(f"unknown texture {texture!r}")


@cache
def sprite(shape: str, colour: str, texture: str, size: str) -> tuple[np.ndarray, np.ndarray]:
    """An object ready to be laid on a background: (premultiplied RGB, what shows through)."""
    whole = coverage(shape, RADIUS[size])[..., None]
    inner = np.minimum(coverage(shape, RADIUS[size] - 1.1)[..., None], whole)
    share = pattern(texture)[..., None]
    fill = share * np.array(RGB[colour], float) + (1 - share) * WHITE
    return (inner * fill + (whole - inner) * OUTLINE).astype(np.float32), np.float32(1 - whole)


@cache
def backdrop(name: str) -> np.ndarray:
    """The picture of a background: float32 [64, 64, 3], read only."""
    row, column = np.mgrid[:SIDE, :SIDE]
    base, mark, where = {
        "snow": ((238, 243, 250), (216, 226, 240), (row * 7 + column * 3) % 23 == 0),
        "sand": ((230, 208, 160), (208, 182, 130), (row * 5 + column * 11) % 13 == 0),
        "grass": ((154, 200, 122), (120, 172, 92), (column * 3 + row // 4) % 7 == 0),
        "sky": ((170, 212, 246), (206, 230, 250), (row // 6) % 3 == 0),
        "night": ((24, 28, 58), (200, 200, 170),
                  (row * row * 7 + column * 31 + row * column * 13) % 89 == 0),
        "stone": ((164, 164, 170), (134, 134, 140),
                  (row % 8 == 0) | ((column + row // 8 * 8) % 16 == 0)),
    }[name]  # fmt: skip
    picture = np.where(where[..., None], np.array(mark, np.float32), np.array(base, np.float32))
    picture.setflags(write=False)
    return picture


@cache
def lettering(word: str) -> np.ndarray:
    """How much ink a printed word lays on a strip over the full width: float32 [18, 64, 1]."""
    strip = Image.new("L", (SIDE, 18))
    font = ImageFont.load_default(size=17)
    ImageDraw.Draw(strip).text((SIDE / 2, 9), word.upper(), fill=255, font=font, anchor="mm")
    return np.asarray(strip, np.float32)[..., None] / 255


def centre(thing: Thing, with_word: bool) -> tuple[int, int]:
    """The pixel (x, y) of an object's middle."""
    x, y = CENTRE[thing.place]
    return x + thing.dx, y + thing.dy - (WORD_RISE if with_word else 0)


def render(spec: Scene) -> np.ndarray:
    """The picture of a scene: uint8 [64, 64, 3]."""
    picture = backdrop(spec.background).copy()
    for thing in spec.objects:
        x, y = centre(thing, spec.word is not None)
        paint, through = sprite(*thing.kind())
        patch = picture[y - HALF : y + HALF, x - HALF : x + HALF]
        patch *= through
        patch += paint
    if spec.word:
        ink = lettering(spec.word)
        strip = picture[WORD_ROW - 9 : WORD_ROW + 9]
        strip += ink * ((WHITE if spec.background == "night" else OUTLINE) - strip)
    return (picture + 0.5).astype(np.uint8)
