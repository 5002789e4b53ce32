"""A cache that stays on disk because it is larger than the memory: what a step needs is read.

The operating system keeps what was read lately in whatever memory is free.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor


class StoredStates(Sequence[Tensor]):
    """The ragged states of one kind of caption, read from their shards when asked for."""

    def __init__(self, shards: Sequence[safe_open], kind: str) -> None:
        lengths = [shard.get_tensor(f"lengths.{kind}") for shard in shards]
        self.lengths = torch.cat(lengths).tolist()
        self._states = [shard.get_slice(f"states.{kind}") for shard in shards]
        self._ends = [[0, *length.cumsum(0).tolist()] for length in lengths]
        self._first = _starts(map(len, lengths))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect_right(self._first, index) - 1
        row = index - self._first[shard]
        start, end = self._ends[shard][row : row + 2]
        return self._states[shard][start:end]


class StoredLatents:
    """Latents float32 [N, 4, h, w] in shards on disk; ``latents[rows]`` reads a few of them."""

    def __init__(self, shards: Sequence[safe_open]) -> None:
        self._latents = [shard.get_slice("latents") for shard in shards]
        shapes = [latents.get_shape() for latents in self._latents]
        self._first = _starts(shape[0] for shape in shapes)
        self.shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        found = []
        for index in rows:
            shard = bisect_right(self._first, index) - 1
            row = index - self._first[shard]
            found.append(self._latents[shard][row : row + 1])
        return torch.cat(found).float()


def _starts(counts: Iterable[int]) -> list[int]:
    """Where each of several parts of the given lengths starts when they are put together."""
    return np.cumsum([0, *counts])[:-1].tolist()
