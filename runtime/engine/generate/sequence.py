"""One sequence of tokens that the engine extends: a prompt and what is generated for it."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmos.runtime.engine.generate.blocks import BlockPool, BlockTable
from llmos.runtime.engine.generate.guide import Guidance
from llmos.runtime.engine.generate.sampler import RowSampling
from llmos.runtime.engine.model import Array

STOP, LENGTH, ABORT, ERROR = "stop", "length", "abort", "error"  # finish reasons, OpenAI's and vLLM's


@dataclass(frozen=True)
class SequenceSpec:
    """What the submitter decides of a sequence.

    max_length: tokens at which it ends, prompt included. stop_ids: tokens that end it from min_length tokens on. early_mask: the tokens
    allowed until then, a bit mask as the sampler takes, None for all. cache_key: only sequences of equal keys share blocks. order: who is
    served first, lowest first; no two sequences have the same. prompt_logprobs: k as in SamplingParams, None for none.
    """

    max_length: int
    order: tuple[float, int]
    cache_key: Hashable
    sampling: RowSampling = field(default_factory=RowSampling)
    stop_ids: frozenset[int] = frozenset()
    min_length: int = 0
    early_mask: Array | None = None
    prompt_logprobs: int | None = None
    deadline_s: float = math.inf


class Sequence:
    """The state of a sequence. Its tokens are known, and `num_computed` of them have their keys and values in the cache.

    There is no prefill or decode phase: a step computes tokens, so that num_computed catches up with num_tokens, and where it does, one
    more is sampled. Only the scheduler changes a sequence; `owner` is its submitter's.
    """

    __slots__ = (
        "_tokens",
        "error",
        "finish_reason",
        "followers",
        "guidance",
        "last_token",
        "num_cached",
        "num_computed",
        "num_preemptions",
        "num_prompt",
        "num_prompt_rows",
        "num_tokens",
        "owner",
        "reads_history",
        "spec",
        "stop_token",
        "table",
    )

    def __init__(self, prompt: Array, spec: SequenceSpec, pool: BlockPool, owner: Any = None, guidance: Guidance | None = None) -> None:
        self.spec = spec
        self.owner = owner
        self.guidance = guidance  # where it must follow a grammar
        self.reads_history = spec.sampling.reads_history
        self.num_prompt = self.num_tokens = len(prompt)
        self._tokens: Array = np.empty(min(spec.max_length, self.num_prompt + 64), np.int32)
        self._tokens[: self.num_prompt] = prompt
        self.last_token = int(prompt[-1])
        self.num_computed = 0
        self.num_cached: int | None = None  # tokens that needed no computing when it first ran
        self.num_prompt_rows = 0  # positions of the prompt whose log probabilities are known
        self.num_preemptions = 0
        self.table = BlockTable(pool, spec.cache_key)
        self.followers: list[Sequence] = []  # wait until the prompt is computed, since they have the same
        self.finish_reason: str | None = None
        self.stop_token: int | None = None
        self.error: Exception | None = None

    @property
    def tokens(self) -> Array:
        """Return the known tokens, int32, without a copy."""
        return self._tokens[: self.num_tokens]

    @property
    def prompt(self) -> Array:
        """Return the tokens of the prompt, int32, without a copy."""
        return self._tokens[: self.num_prompt]

    @property
    def generated(self) -> Array:
        """Return the tokens behind the prompt, int32, without a copy."""
        return self._tokens[self.num_prompt : self.num_tokens]

    @property
    def num_generated(self) -> int:
        """Return how many tokens were generated, one that stopped the sequence included."""
        return self.num_tokens - self.num_prompt + (self.stop_token is not None)

    @property
    def wants_prompt_rows(self) -> bool:
        """Whether the log probabilities of a part of the prompt are still missing."""
        return self.spec.prompt_logprobs is not None and self.num_prompt_rows < self.num_prompt - 1

    @property
    def awaits_mask(self) -> bool:
        """Whether a step would leave it out, since the mask for its next token is late."""
        return self.guidance is not None and self.guidance.is_awaited

    def append(self, token: int) -> None:
        """Take a sampled token; the sequence finishes if it is a stop token or the last one."""
        spec = self.spec
        if token in spec.stop_ids and self.num_tokens >= spec.min_length:
            self.finish_reason, self.stop_token = STOP, token
            return
        if self.num_tokens == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty(len(self._tokens), np.int32)])
        self._tokens[self.num_tokens] = self.last_token = token
        self.num_tokens += 1
        if self.num_tokens >= spec.max_length:
            self.finish_reason = LENGTH
