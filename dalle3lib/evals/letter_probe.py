"""The letter probe: how much of a printed word the latents still carry.

What they have lost no decoder can write; what a linear reader finds in them is surely there.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle3lib.randomness import rng
from dalle3lib.world.canvas import LETTER, SQUARE
from dalle3lib.world.scene import WORDS, Scene

RIDGE = 1e-5  # weight of the squared coefficients
ROOM = {"centre", "left", "right"}  # the places of objects that leave room for a word


def worded(scenes: Sequence[Scene], seed: int = 0) -> list[Scene]:
    """The scenes whose objects leave room for a word, each with a word drawn at random."""
    roomy = [s for s in scenes if {o.place for o in s.objects} <= ROOM]
    drawn = rng(seed, "instruments/words").integers(len(WORDS), size=len(roomy))
    return [replace(spec, word=WORDS[i]) for spec, i in zip(roomy, drawn, strict=True)]


def letter_squares(maps: Tensor, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """What lies under each printed letter: (features [L, 2 d + 2], letter [L], picture [L]).

    ``maps`` [N, C, S, S] are the scenes' latents (S = 8: d = 4 · 2 · 2) or pixels. White letters
    on a dark background and dark ones elsewhere take separate halves of the features, each with a
    constant: two linear readers in one.
    """
    cell = SQUARE.width // maps.shape[-1]
    rows, side, found = SQUARE.word_top // cell, LETTER // cell, []
    for i, spec in enumerate(scenes):
        for letter, left in zip(spec.word, SQUARE.letter_columns(len(spec.word)), strict=True):
            square = maps[i, :, rows : rows + side, left // cell : left // cell + side].flatten()
            half = F.pad(square, (0, 1), value=1.0)
            halves = (0 * half, half) if spec.background == "night" else (half, 0 * half)
            found.append((torch.cat(halves), ord(letter) - ord("a"), i))
    features, letters, pictures = zip(*found, strict=True)
    return torch.stack(features), torch.tensor(letters), torch.tensor(pictures)


def letter_probe(
    maps: Tensor, scenes: Sequence[Scene], held_out_maps: Tensor, held_out: Sequence[Scene]
) -> dict[str, float]:
    """The shares of letters and of whole words that a linear reader gets right on held-out scenes.

    A multinomial logistic regression to 26 letters (squared coefficients weighted by 1e-5) learns
    from ``maps`` [N, C, S, S] of ``scenes`` and is measured on the held-out ones. Returns shares
    "letters" and "words". It is a lower bound of what maps carry: a decoder that is not linear, or
    knows which words exist, may do better.
    """
    mean, spread = maps.mean((0, 2, 3), keepdim=True), maps.std((0, 2, 3), keepdim=True)
    x, y, _ = letter_squares((maps - mean) / spread, scenes)
    weights = torch.zeros(x.shape[1], 26, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(x @ weights, y) + RIDGE * weights.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    x, y, picture = letter_squares((held_out_maps - mean) / spread, held_out)
    right = (x @ weights.detach()).argmax(1) == y
    misspelt = len(picture[~right].unique())
    return {"letters": right.double().mean().item(), "words": 1 - misspelt / len(held_out)}
