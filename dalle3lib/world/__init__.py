"""The procedural world: scenes with exact ground truth, their pictures and their captions.

From one scene specification come the image (``render``), a noisy web-style alt-text, human-style
short and descriptive captions, and questions with answers (``language``, ``questions``);
``prompts`` asks for what training never shows. The class ``World`` serves them as the same records
that a folder of photographs gives.
"""

from collections.abc import Sequence

from dalle3lib import UserError
from dalle3lib.images import Record
from dalle3lib.randomness import rng
from dalle3lib.world.canvas import CANVASES, LANDSCAPE, PORTRAIT, SQUARE, Canvas
from dalle3lib.world.language import alt_text, descriptive_caption, short_caption
from dalle3lib.world.prompts import PROBES, Probe, probe, satisfied
from dalle3lib.world.questions import questions
from dalle3lib.world.render import render
from dalle3lib.world.scene import SPLITS, Scene, Thing, scene

__all__ = [
    "CANVASES",
    "LANDSCAPE",
    "PORTRAIT",
    "PROBES",
    "SPLITS",
    "SQUARE",
    "Canvas",
    "Probe",
    "Scene",
    "Thing",
    "World",
    "alt_text",
    "descriptive_caption",
    "probe",
    "questions",
    "render",
    "satisfied",
    "scene",
    "short_caption",
]


class World(Sequence):
    """The first ``count`` scenes of a split as records, made on access.

    ``noise`` in [0, 0.75] is the noise level of the alt-text; ``seed`` names another draw of the
    same world. Each caption has a random stream of its own, so that changing the noise changes
    neither the scenes nor the human captions.

    With several ``canvases`` each scene is drawn on one of those that hold it, all equally likely;
    at ``scale`` 2 it has twice as many pixels in each direction.
    """

    def __init__(
        self,
        split: str,
        count: int,
        noise: float = 0.5,
        seed: int = 0,
        canvases: Sequence[Canvas] = (SQUARE,),
        scale: int = 1,
    ):
        self.split, self.count, self.noise, self.seed = split, count, noise, seed
        self.canvases, self.scale = tuple(canvases), scale

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """The specification of scene ``index``."""
        return scene(self.split, index, self.seed)

    def canvas(self, index: int) -> Canvas:
        """What scene ``index`` is drawn on. Raises UserError if no canvas holds it."""
        return self._canvas(self.scene(index), index)

    def _canvas(self, spec: Scene, index: int) -> Canvas:
        fitting = [canvas for canvas in self.canvases if canvas.holds(spec)]
        if not fitting:
            raise UserError(f"Scene {index} of {self.split} fits on none of the canvases given.")
        if len(fitting) == 1:
            return fitting[0]
        return fitting[rng(self.seed, f"{self.split}/canvas", index).integers(len(fitting))]

    def __getitem__(self, index):  # an integer gives a Record, a slice a list of them
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < self.count:
            raise IndexError(index)
        spec = self.scene(index)
        alt, short, descriptive = self.captions(index)
        return Record(
            key=f"{self.split}-{index:06d}",
            image=render(spec, self._canvas(spec, index), self.scale),
            alt=alt,
            short=short,
            descriptive=descriptive,
            facts=spec.facts(),
        )

    def captions(self, index: int, wording: str = "") -> tuple[str, str, str]:
        """Alt-text, short and descriptive caption of scene ``index``.

        Any other ``wording`` than the empty one of the records says the same facts otherwise.
        """
        spec = self.scene(index)

        def stream(name: str):
            return rng(self.seed, f"{self.split}/{name}", index)

        return (
            alt_text(
                spec, self.noise, stream("alt"), stream(f"style{wording}") if wording else None
            ),
            short_caption(spec, stream(f"short{wording}")),
            descriptive_caption(spec, stream(f"descriptive{wording}")),
        )
