"""What the engine needs of a sampler: rows of logits in, one token for each row out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llmos.runtime.engine.model import Array
from llmos.runtime.errors import LlmosError
from llmos.runtime.native.sampling import History, NoTokenError, RowSampling, SampledRow

__all__ = ["History", "NoTokenError", "RowSampling", "SampledRow", "Sampler"]


class Sampler(Protocol):
    """Samples each row alone: the result of a row depends on nothing else of the call.

    logits: float32 [rows, vocab_size]. positions: of the token that is sampled, which counts its random numbers. history: where a penalty
    needs it. allowed: uint32 [ceil(vocab_size / 32)] bit masks of the tokens that a row may give. A row that can't be sampled (NaN) has an
    error in its place, and the other rows are unharmed: a NoTokenError where none of the tokens that it may give is possible.
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
