"""What the engine needs of a sampler: rows of logits in, one token for each row out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llmos.runtime.engine.model import Array
from llmos.runtime.errors import LlmosError

History = tuple[Array, Array]  # int32 ids of the prompt, and of what was generated


@dataclass(frozen=True)
class RowSampling:
    """What one row of logits is sampled with. temperature 0: greedy. num_logprobs -1: none, 0: of the token, n: and of the n likeliest."""

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

    @property
    def reads_history(self) -> bool:
        """Whether it depends on the tokens before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True)
class SampledRow:
    """A sampled token, its log probability and the likeliest tokens with theirs, as far as they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler(Protocol):
    """Samples each row alone: the result of a row depends on nothing else of the call.

    logits: float32 [rows, vocab_size]. positions: of the token that is sampled, which counts its random numbers. history: where a penalty
    needs it. allowed: uint32 [ceil(vocab_size / 32)] bit masks of the tokens that a row may give. A row that can't be sampled (NaN) has an
    error in its place, and the other rows are unharmed.
    """

    def __call__(
        self,
        logits: Array,
        rows: Sequence[RowSampling],
        positions: Sequence[int],
        history: Sequence[History | None],
        allowed: Sequence[Array | None] | None = None,
    ) -> Sequence[SampledRow | LlmosError]:
        """Sample one token a row."""
        ...
