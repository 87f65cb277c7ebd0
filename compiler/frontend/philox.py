"""Philox4x32-10, a counter-based random number generator, as a torch op.

J. K. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, and the reference code of Random123.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
Words = Sequence[np.ndarray]  # uint64, each below 2^32


def philox(counter: Words, key: Words) -> tuple[np.ndarray, ...]:
    """Return four words of 32 random bits, as uint64, for a counter of four words and a key of two."""
    c, k = list(counter), list(key)
    for _ in range(ROUNDS):
        first, second = c[0] * np.uint64(MULTIPLIERS[0]), c[2] * np.uint64(MULTIPLIERS[1])
        c = [(second >> _32) ^ c[1] ^ k[0], second & _LOW, (first >> _32) ^ c[3] ^ k[1], first & _LOW]
        k = [(word + np.uint64(step)) & _LOW for word, step in zip(k, KEY_STEPS, strict=True)]
    return tuple(c)


def random_words(seed: int, stream: int, count: int) -> np.ndarray:
    """Return int64 [count]: element i holds the first two words, the second in the high half, for the counter (i, stream).

    `i` and `stream` take 64 bits of the counter each, low words first; `seed` modulo 2^64 is the key.
    """
    index = np.arange(count, dtype=np.uint64)
    key = np.array(seed % 2**64, dtype=np.uint64)
    zeros = np.zeros_like(index)
    low, high, *_ = philox((index & _LOW, index >> _32, zeros + np.uint64(stream), zeros), (key & _LOW, key >> _32))
    words: np.ndarray = low | (high << _32)
    return words.view(np.int64)


@torch.library.custom_op("llmos::philox", mutates_args=())
def philox_op(seed: torch.Tensor, stream: int, size: Sequence[int]) -> torch.Tensor:
    """Return int64 of the given size with 64 random bits an element: `random_words` of its row-major index."""
    return torch.from_numpy(random_words(int(seed), stream, math.prod(size)).reshape(tuple(size)).copy())


@torch.library.custom_op("llmos::random_bits", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def random_bits(size: Sequence[int]) -> torch.Tensor:
    """Return int64 of the given size, a placeholder of `philox` until the program has a seed and the op a stream."""
    return torch.randint(-(2**63), 2**63 - 1, tuple(size), dtype=torch.int64)


@philox_op.register_fake
def _(seed: torch.Tensor, stream: int, size: Sequence[int]) -> torch.Tensor:
    return torch.empty(size, dtype=torch.int64)


@random_bits.register_fake
def _(size: Sequence[int]) -> torch.Tensor:
    return torch.empty(size, dtype=torch.int64)
