"""Canvases: what a scene is drawn on, square or wider or higher, and where its places are.

The world's own canvas is a square of 64 pixels. The landscape and the portrait have 15/16 of its
area. Not every scene fits on them: nothing is above anything else on a landscape, nothing beside
anything on a portrait, and no long word has room there.
"""

from dataclasses import dataclass

from dalle3lib.world.scene import Scene

HALF = 16  # half the square an object is drawn in, pixels; the squares of a scene do not overlap
LETTER = 16  # the side of a letter's square, pixels
WORD_RISE = 8  # pixels by which objects move up to leave room for a printed word


@dataclass(frozen=True, eq=False)
class Canvas:
    """A size in pixels and the middle (x, y) of each place on it; a word goes on the last rows."""

    name: str
    width: int
    height: int
    centre: dict[str, tuple[int, int]]

    @property
    def word_top(self) -> int:
        """The first row of a printed word."""
        return self.height - LETTER

    def holds(self, spec: Scene) -> bool:
        """Whether a scene can be drawn here: every place is there, and its word is not too long."""
        fits = LETTER * len(spec.word or "") <= self.width
        return fits and all(thing.place in self.centre for thing in spec.objects)

    def square(self, place: str, with_word: bool) -> tuple[slice, slice]:
        """The rows and columns of the square in which an object at a place is drawn."""
        x, y = self.centre[place]
        y -= WORD_RISE if with_word else 0
        return slice(y - HALF, y + HALF), slice(x - HALF, x + HALF)

    def letter_columns(self, count: int) -> range:
        """The first columns of the squares of a word of ``count`` letters, centred."""
        first = (self.width - LETTER * count) // 2
        return range(first, first + LETTER * count, LETTER)


SQUARE = Canvas(
    "square", 64, 64,
    {
        "centre": (32, 32), "left": (16, 32), "right": (48, 32), "top": (32, 16),
        "bottom": (32, 48), "top left": (16, 16), "top right": (48, 16),
    },
)  # fmt: skip
LANDSCAPE = Canvas("landscape", 80, 48, {"centre": (40, 24), "left": (24, 24), "right": (56, 24)})
PORTRAIT = Canvas("portrait", 48, 80, {"centre": (24, 40), "top": (24, 24), "bottom": (24, 56)})
CANVASES = (SQUARE, LANDSCAPE, PORTRAIT)
