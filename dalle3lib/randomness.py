"""Randomness as a pure function of (seed, stream name, step).

Nothing here has a hidden state, so the step number is the whole state of a data loader: a run
that is killed and resumed draws exactly what an uninterrupted run draws, and two arms with the
same seed share data order, noise and timesteps (they are *paired*).
"""

import hashlib
from functools import lru_cache

import numpy as np


def rng(seed: int, stream: str, step: int = 0) -> np.random.Generator:
    """A generator that depends only on its arguments.

    ``stream`` names what the numbers are for ("order", "noise", "timestep", "caption", ...), so
    that drawing more numbers in one place never shifts the numbers of another. Returns a
    counter-based Philox generator keyed by a 128-bit hash of the three arguments.
    """
    key = hashlib.blake2b(f"{seed}|{stream}|{step}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def batch_indices(seed: int, step: int, batch: int, n: int, stream: str = "order") -> np.ndarray:
    """Which of ``n`` samples the batch of this step holds: int64 [batch].

    Samples are visited in epochs, each a fresh permutation; a batch may straddle two epochs.
    Another ``stream`` is another order.
    """
    position = step * batch + np.arange(batch)
    indices = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(position // n):
        here = position // n == epoch
        indices[here] = _order(seed, stream, int(epoch), n)[position[here] % n]
    return indices


@lru_cache(maxsize=8)  # of millions of samples, it takes longer than a training step
def _order(seed: int, stream: str, epoch: int, n: int) -> np.ndarray:
    """In which order an epoch visits ``n`` samples."""
    return rng(seed, stream, epoch).permutation(n)
