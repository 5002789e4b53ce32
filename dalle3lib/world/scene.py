"""What a scene is: objects with attributes and places, a background, sometimes a printed word."""

import hashlib
from dataclasses import asdict, dataclass

from dalle3lib import UserError
from dalle3lib.randomness import rng

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "moon")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "large")
BACKGROUNDS = ("snow", "sand", "grass", "sky", "night", "stone")
WORDS = tuple(
    "go up no ok hi we me on in by art bag bed bus cat cup day dog eat egg fan fox hat hot ice "
    "jam key leg map net oak pen red run sea sky sun tea top toy van win zoo baby bird blue book "
    "cake door duck east farm fish food gift gold hand home jazz king lake lion moon news open "
    "park pool quiz rain ship shop snow star taxi tree vote west wolf yoga zero".split()
)
# Colours and shapes that never meet in the splits an arm is trained, developed and tested on; a
# probe asks for them. Every colour and every shape is in one pair.
HELD_OUT_PAIRS = tuple((COLOURS[(3 * i + 1) % 8], shape) for i, shape in enumerate(SHAPES))
WORD_SHARE = 0.2  # of scenes that carry a printed word
TWIN_SHARE = 0.12  # of two-object scenes that show the same object twice ("two red circles")

# A scene belongs to the split into whose range the hash of its facts falls (per cent): no set of
# facts can appear in two splits, however many scenes are drawn.
SPLITS = {"foundation": (0, 40), "train": (40, 80), "dev": (80, 88), "test": (88, 100)}


@dataclass(frozen=True)
class Thing:
    """One object; ``dx`` and ``dy`` (pixels, within ±1) move it a little from its named place."""

    shape: str
    colour: str
    texture: str
    size: str
    place: str
    dx: int = 0
    dy: int = 0

    def kind(self) -> tuple[str, str, str, str]:
        """The attributes that make two objects "the same": shape, colour, texture, size."""
        return self.shape, self.colour, self.texture, self.size


@dataclass(frozen=True)
class Scene:
    """One to three objects in reading order (left before right, top before bottom)."""

    background: str
    objects: tuple[Thing, ...]
    word: str | None = None

    def facts(self) -> dict:
        """The scene as plain JSON data, without the jitter."""
        drop = ("dx", "dy")
        objects = [{k: v for k, v in asdict(o).items() if k not in drop} for o in self.objects]
        return {"background": self.background, "objects": objects, "word": self.word}

    @classmethod
    def from_facts(cls, facts: dict) -> "Scene":
        """The scene of which ``facts()`` gives these facts, every object exactly at its place."""
        return cls(facts["background"], tuple(Thing(**o) for o in facts["objects"]), facts["word"])

    def main(self) -> Thing:
        """The main subject: the larger object, the first in reading order among equals."""
        return max(self.objects, key=lambda o: o.size == "large")

    def twins(self) -> bool:
        """Whether the scene shows the same object twice, as in "two red circles"."""
        return len(self.objects) == 2 and self.objects[0].kind() == self.objects[1].kind()


def draw(random, counts: tuple[int, ...] = (1, 2)) -> Scene:
    """One scene from a generator, every attribute uniform and independent.

    ``counts`` are the equally likely numbers of objects; three objects exist for probe sets.
    """

    def pick(values):
        return values[int(random.integers(len(values)))]

    word = pick(WORDS) if random.random() < WORD_SHARE else None
    count = pick(counts)
    if count == 1:
        places = (pick(("centre", "left", "right") + (() if word else ("top", "bottom"))),)
    elif count == 2:
        across = ("left", "right")
        places = across if word else pick((across, ("top", "bottom")))
    else:
        places, word = ("top left", "top right", "bottom"), None  # three leave no room for a word
    kinds = [(pick(SHAPES), pick(COLOURS), pick(TEXTURES), pick(SIZES)) for _ in places]
    if count == 2 and random.random() < TWIN_SHARE:
        kinds[1] = kinds[0]
    jitter = random.integers(-1, 2, size=(count, 2)).tolist()
    objects = tuple(
        Thing(*k, p, dx, dy) for k, p, (dx, dy) in zip(kinds, places, jitter, strict=True)
    )
    return Scene(pick(BACKGROUNDS), objects, word)


def held_out(spec: Scene) -> bool:
    """Whether an object of the scene is of a held-out colour and shape."""
    return any((thing.colour, thing.shape) in HELD_OUT_PAIRS for thing in spec.objects)


def split_of(spec: Scene) -> str:
    """The split a scene belongs to: a pure function of its facts, so splits share nothing."""
    digest = hashlib.blake2b(repr(sorted(spec.facts().items())).encode(), digest_size=4).digest()
    bucket = int.from_bytes(digest, "little") % 100
    return next(name for name, (low, high) in SPLITS.items() if low <= bucket < high)


def scene(split: str, index: int, seed: int = 0, counts: tuple[int, ...] = (1, 2)) -> Scene:
    """Scene number ``index`` of a split: draw until one falls into it.

    Held-out pairs occur in the foundation split only: what the paper takes as given (autoencoder,
    scorer, judge) knows every object. Raises UserError for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    random = rng(seed, f"scene/{split}", index)
    while True:
        spec = draw(random, counts)
        if split_of(spec) == split and (split == "foundation" or not held_out(spec)):
            return spec
