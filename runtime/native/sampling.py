"""Sampling of tokens from rows of logits, in the C core; include/llmos/sampling.h says what is computed, and in which order."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from llmos.runtime.errors import ExecutionError, InputError
from llmos.runtime.native.binding import core

# llmos_sampling, llmos_sampling_row, llmos_sampled and llmos_token_logprob of sampling.h.
_SETTINGS = struct.Struct("@7dQPP4i")
_ROW = struct.Struct("@QPPPqq")
_SAMPLED = struct.Struct("@d4i")
_TOKEN_LOGPROB = struct.Struct("@dii")

_SEED_MASK = 2**64 - 1


@dataclass(frozen=True)
class RowSampling:
    """What one row of logits is sampled with. The values are not checked here; none can do more than give a senseless token.

    temperature: 0 takes the largest logit, of equal ones that of the lowest id. top_k, min_p: 0 is off; top_p, typical_p and
    repetition_penalty: 1 is off. logit_bias: (token id, what is added to its logit). seed: modulo 2^64. num_logprobs: -1: none, 0: that of
    the chosen token, n: also of the n likeliest.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    num_logprobs: int = -1

    @cached_property
    def reads_history(self) -> bool:
        """Whether it depends on tokens before: then `sample_rows` needs the history."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @cached_property
    def packed(self) -> bytes:
        """The llmos_sampling, made once; it points into `_biases`."""
        ids, values = self._biases
        numbers = (self.temperature, self.top_p, self.min_p, self.typical_p)
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        top_k = min(max(self.top_k, 0), 2**31 - 1)
        counts = (len(ids), top_k, min(self.num_logprobs, 2**31 - 1), 0)
        return _SETTINGS.pack(*numbers, *penalties, self.seed & _SEED_MASK, _address(ids), _address(values), *counts)

    @cached_property
    def _biases(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        ids = np.array([token for token, _ in self.logit_bias], np.int32)
        return ids, np.array([bias for _, bias in self.logit_bias], np.float32)


class SampledRow(NamedTuple):  # several times as fast to make as a dataclass; a step makes one a row
    """A token and what its row was asked for besides.

    logprob: of the token in the softmax of the logits as the model gave them; None where no logprobs are wanted. top: the likeliest tokens
    and their logprobs, the likeliest first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class NoTokenError(ExecutionError):
    """None of the tokens that a row may give is possible."""


History = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def sample_rows(
    logits: np.ndarray[Any, Any],
    rows: Sequence[RowSampling],
    positions: Sequence[int],
    history: Sequence[History | None],
    allowed: Sequence[np.ndarray[Any, Any] | None] | None = None,
) -> list[SampledRow | ExecutionError]:
    """Sample one token for each row of logits, float32 [rows, vocab_size], which stay as they are.

    positions: of the tokens that are sampled; they count the random numbers. history: (prompt ids, generated ids), int32 arrays, where
    `reads_history` asks for them. allowed: where given, bit masks of the tokens that may be sampled, uint32 [ceil(vocab_size / 32)], bit
    i % 32 of word i // 32 for token i.

    A row depends on nothing but its own logits, settings, position, history and mask, bit for bit. A row that can't be sampled (NaN or
    infinity among its logits, every token forbidden, a token id out of range) has an ExecutionError in its place, and the others are
    sampled all the same. Raises InputError where arguments have the wrong dtype or shape. Other Python threads run meanwhile.
    """
    return RowSampler()(logits, rows, positions, history, allowed)


class RowSampler:
    """Samples as `sample_rows`, from one thread at a time, and keeps what is the same in the next call: settings of rows, and memory."""

    def __init__(self) -> None:
        self._call: _Call | None = None

    def __call__(
        self,
        logits: np.ndarray[Any, Any],
        rows: Sequence[RowSampling],
        positions: Sequence[int],
        history: Sequence[History | None],
        allowed: Sequence[np.ndarray[Any, Any] | None] | None = None,
    ) -> list[SampledRow | ExecutionError]:
        """See sample_rows."""
        call = self._call
        if call is None or call.logits is not logits or call.rows != rows:
            call = self._call = _Call(logits, list(rows))
        if not len(rows) == len(positions) == len(history) == len(rows if allowed is None else allowed):
            counts = f"{len(positions)} positions, {len(history)} histories and {len(rows if allowed is None else allowed)} masks"
            raise InputError(f"sampling: {len(rows)} rows, but {counts}")
        if allowed is None and not call.reads_history:
            return call.run(call.plain_contexts.pack(*positions))
        masks = allowed if allowed is not None else [None] * len(rows)
        contexts = [
            _context(position, past if row.reads_history else None, mask, call.vocab_size)
            for row, position, past, mask in zip(rows, positions, history, masks, strict=True)
        ]
        return call.run(b"".join(contexts))


class _Call:
    """The call of the core for given logits and settings: only the contexts of rows differ from call to call."""

    def __init__(self, logits: np.ndarray[Any, Any], rows: list[RowSampling]) -> None:
        count = len(rows)
        if logits.dtype != np.float32 or logits.ndim != 2 or len(logits) != count or not logits.flags.c_contiguous or not logits.shape[1]:
            raise InputError(f"sampling: logits must be contiguous float32 [{count}, vocabulary], not {logits.dtype} {list(logits.shape)}")
        self.logits, self.rows = logits, rows
        self.vocab_size = logits.shape[1]
        self.reads_history = any(row.reads_history for row in rows)
        self.plain_contexts = _plain_contexts(count)
        self._sample = core().sample
        self._max_top = max(0, min(max((row.num_logprobs for row in rows), default=0), self.vocab_size))
        self._settings = b"".join([row.packed for row in rows])
        self._results = ctypes.create_string_buffer(_SAMPLED.size * count)
        self._tops = ctypes.create_string_buffer(_TOKEN_LOGPROB.size * count * self._max_top) if self._max_top else None
        self._address = _address(logits)

    def run(self, contexts: bytes) -> list[SampledRow | ExecutionError]:
        """Sample. contexts: an llmos_sampling_row each."""
        count = len(self.rows)
        code = self._sample(self._address, count, self.vocab_size, self._settings, contexts, self._results, self._tops, self._max_top)
        if code:
            raise core().error(code)
        return [
            SampledRow(token, logprob if row.num_logprobs >= 0 else None, self._top(index, num_top) if num_top else ())
            if not status
            else self._error(status)
            for index, (row, (logprob, token, status, num_top, _)) in enumerate(
                zip(self.rows, _SAMPLED.iter_unpack(self._results), strict=True)
            )
        ]

    def _error(self, status: int) -> ExecutionError:
        kind = NoTokenError if status == _NO_TOKEN else ExecutionError
        return kind(_REASONS[status].format(vocab_size=self.vocab_size))

    def _top(self, index: int, count: int) -> tuple[tuple[int, float], ...]:
        """Return the likeliest tokens of a row and their logprobs."""
        offsets = range(index * self._max_top, index * self._max_top + count)
        found = [_TOKEN_LOGPROB.unpack_from(self._tops or b"", offset * _TOKEN_LOGPROB.size) for offset in offsets]
        return tuple((token, logprob) for logprob, token, _ in found)


@lru_cache(maxsize=256)
def _plain_contexts(count: int) -> struct.Struct:
    """The llmos_sampling_row of rows without history and mask."""
    return struct.Struct("@" + "Q40x" * count)


_NO_TOKEN = 2
_REASONS = {
    1: "the model computed logits that are NaN or infinite",
    _NO_TOKEN: "no token can be sampled: all are forbidden or impossible",
    3: "a token id is outside of the vocabulary of {vocab_size} tokens",
}


def _context(position: int, history: History | None, mask: np.ndarray[Any, Any] | None, vocab_size: int) -> bytes:
    """The llmos_sampling_row; the arrays must outlive its use."""
    prompt, generated, words = 0, 0, 0
    num_prompt, num_generated = 0, 0
    if history is not None:
        for ids in history:
            if ids.dtype != np.int32 or ids.ndim != 1 or not ids.flags.c_contiguous:
                raise InputError(f"sampling: token ids of the history must be contiguous int32 [tokens], not {ids.dtype} {list(ids.shape)}")
        prompt, generated = _address(history[0]), _address(history[1])
        num_prompt, num_generated = len(history[0]), len(history[1])
    if mask is not None:
        if mask.dtype != np.uint32 or mask.shape != (-(-vocab_size // 32),) or not mask.flags.c_contiguous:
            raise InputError(f"sampling: a mask must be contiguous uint32 [{-(-vocab_size // 32)}], not {mask.dtype} {list(mask.shape)}")
        words = _address(mask)
    return _ROW.pack(position, prompt, generated, words, num_prompt, num_generated)


def _address(array: np.ndarray[Any, Any]) -> int:
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]  # numpy declares it from Python 3.12 on
    except (TypeError, ValueError):  # it is read-only, or empty; slower
        address: int = array.__array_interface__["data"][0]
        return address
