"""A language model that computes nothing but a hash, to test what stands above a model.

Its caches hold the tokens and positions themselves, and the logits of a token are a pure function of those that it attends to, read through
its block table. So a wrong table, slot or position, a block that was lost or given to two sequences, gives other tokens or an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from llmos.runtime.device.host_memory import available_bytes
from llmos.runtime.engine.generate.model import StepSizes, host_caches
from llmos.runtime.engine.generate.spec import CacheSpec, GenerationSpec
from llmos.runtime.engine.model import Array
from llmos.runtime.errors import ExecutionError

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_INCREMENT = np.uint64(0xD1B54A32D192ED03)


def null_spec(
    *, vocab_size: int = 61, max_length: int = 256, windows: Sequence[int | None] = (None,), block_size: int = 4, eos: Sequence[int] = ()
) -> GenerationSpec:
    """Return the spec of a model with one cache for each window."""
    caches = tuple(CacheSpec(f"cache.{layer}", (1, 2 * block_size), window) for layer, window in enumerate(windows))
    return GenerationSpec(vocab_size, max_length, caches, block_size, eos_token_ids=tuple(eos))


@dataclass
class NullStepModel:
    """See StepModel. fails_at: a token id whose step fails. nan_at: one behind which logits are NaN. num_steps: calls so far."""

    spec: GenerationSpec = field(default_factory=null_spec)
    sizes: StepSizes = field(default_factory=lambda: StepSizes(512, 64, 256))
    name: str = "null"
    fails_at: int = -1
    nan_at: int = -1
    num_steps: int = 0

    def new_caches(self, num_blocks: int) -> list[Array]:
        """Return caches in the host's memory."""
        return host_caches(self.spec, num_blocks)

    def free_bytes(self) -> int:
        """Return what the host has."""
        return available_bytes()

    def __call__(self, arrays: Sequence[Array]) -> Array:
        """Write tokens and positions to the caches, and return pseudo-random logits."""
        self.num_steps += 1
        tokens, positions, slots, requests, tables, rows = arrays[:6]
        caches = arrays[6:]
        self._check(arrays)
        size = self.spec.block_size
        for cache in caches:
            cache[slots // size, 0, slots % size] = tokens
            cache[slots // size, 0, size + slots % size] = positions
        if (tokens == self.fails_at).any():
            raise ExecutionError("a token of the step fails")
        return np.stack([self._logits(tables[requests[row]], int(positions[row]), caches) for row in rows.tolist()])

    def close(self) -> None:
        """Do nothing: it holds nothing."""

    def _logits(self, table: Array, position: int, caches: Sequence[Array]) -> Array:
        layers = zip(caches, self.spec.caches, strict=True)
        histories = [self._history(cache, table, _first(layer, position), position + 1) for cache, layer in layers]
        if any((history == self.nan_at).any() for history in histories):
            return np.full(self.spec.vocab_size, np.nan, np.float32)
        return _logits_behind(histories, position, self.spec.vocab_size)

    def _history(self, cache: Array, table: Array, first: int, end: int) -> Array:
        """Return the tokens at positions [first, end), through the block table."""
        size = self.spec.block_size
        positions = np.arange(first, end)
        blocks = table[positions // size]
        if not np.array_equal(cache[blocks, 0, size + positions % size], positions):
            raise ExecutionError("a block table leads to another place than that of its tokens")
        found: Array = cache[blocks, 0, positions % size].astype(np.int64)
        return found

    def _check(self, arrays: Sequence[Array]) -> None:
        tokens, positions, slots, requests, tables, rows = arrays[:6]
        assert all(array.dtype == np.int32 and array.flags.c_contiguous and array.size for array in arrays[:6])
        assert len(tokens) == len(positions) == len(slots) == len(requests) <= self.sizes.max_tokens
        assert len(tables) <= self.sizes.max_requests
        assert len(rows) <= self.sizes.max_rows
        assert (np.diff(requests) >= 0).all()
        assert requests[0] == 0
        assert requests[-1] == len(tables) - 1
        assert len(np.unique(slots)) == len(slots), "two tokens of a step share a slot"
        lengths = np.maximum.reduceat(positions, np.flatnonzero(np.diff(requests, prepend=-1))) // self.spec.block_size + 1
        assert not tables[np.arange(tables.shape[1]) >= lengths[:, None]].any(), "unused entries of block tables are 0"
        assert positions.max() < self.spec.max_length
        assert len(arrays) == 6 + len(self.spec.caches)


def null_logits(spec: GenerationSpec, tokens: Array) -> Array:
    """Return the logits behind all of `tokens`, float32 [vocab_size], without a cache."""
    position = len(tokens) - 1
    return _logits_behind([tokens[_first(layer, position) :] for layer in spec.caches], position, spec.vocab_size)


def _first(layer: CacheSpec, position: int) -> int:
    """Return the first position that a token at `position` attends to."""
    return 0 if layer.window is None else max(0, position - layer.window + 1)


def _logits_behind(histories: Sequence[Array], position: int, vocab_size: int) -> Array:
    code = np.zeros(1, np.uint64)
    for history in histories:
        code = code * _MULTIPLIER + _hash(history) + np.uint64(position)
    return _uniform(code + np.arange(vocab_size, dtype=np.uint64) * _INCREMENT)


def _hash(history: Array) -> Array:
    """Return a number that depends on every token and its place, uint64 [1]."""
    weights = _MULTIPLIER * (np.arange(len(history), 0, -1, dtype=np.uint64) * np.uint64(2) + np.uint64(1))
    mixed = (history.astype(np.uint64) + np.uint64(1)) * weights
    mixed ^= mixed >> np.uint64(29)
    return np.add.reduce(mixed * _INCREMENT, keepdims=True)


def _uniform(codes: Array) -> Array:
    """Return float32 numbers in [-4, 4) that look random, of uint64 codes (the finalizer of MurmurHash3)."""
    codes = (codes ^ (codes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    codes = (codes ^ (codes >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    codes ^= codes >> np.uint64(33)
    return (codes >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-21) - np.float32(4)
