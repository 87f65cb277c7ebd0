"""The records that scheduler, runner and engine pass each other, one set a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from llmos.runtime.engine.generate.sampler import SampledRow
from llmos.runtime.engine.generate.sequence import Sequence
from llmos.runtime.errors import UserError


@dataclass(frozen=True)
class Limits:
    """The limits of one step. max_tokens: computed. max_requests: sequences that run. max_rows: rows of logits."""

    max_tokens: int = 512
    max_requests: int = 64
    max_rows: int = 128

    def __post_init__(self) -> None:
        if self.max_requests < 1:
            raise UserError("limits of a step: max_requests must be 1 or more")
        if self.max_tokens <= self.max_requests or self.max_rows <= self.max_requests:
            raise UserError("limits of a step: max_tokens and max_rows must be more than max_requests, so that prompts advance")


class Chunk(NamedTuple):
    """The tokens [begin, end) of a sequence, computed in one step. Logits are wanted of those from `first_row` on.

    num_blocks: how many blocks the sequence had before the step reserved more.
    """

    sequence: Sequence
    begin: int
    end: int
    first_row: int
    num_blocks: int

    @property
    def samples(self) -> bool:
        """Whether the chunk ends at the last known token, so that the next one is sampled."""
        return self.end == self.sequence.num_tokens


class StepPlan(NamedTuple):  # as fast to make as a tuple
    """One step: its chunks, one a sequence, and the sequences that ended or lost their blocks while it was planned.

    num_decodes: so many chunks, the first ones, are of the one token that a sequence lacks, whose logits are wanted.
    """

    chunks: tuple[Chunk, ...] = ()
    expired: tuple[Sequence, ...] = ()
    preempted: tuple[Sequence, ...] = ()
    num_tokens: int = 0
    num_rows: int = 0
    num_decodes: int = 0


class Outcome(NamedTuple):
    """What a step gave for one chunk: the sampled token, the tokens of the prompt with their log probabilities, or an error.

    is_deferred: the mask for the next token was late, so there is none yet, and its logits are computed again. is_complete: the sequence's
    grammar has ended, so there is none.
    """

    sampled: SampledRow | None = None
    prompt: tuple[SampledRow, ...] = ()
    error: Exception | None = None
    is_deferred: bool = False
    is_complete: bool = False
