"""From what a client submits to sequences: every check that a request must pass before it waits."""

from __future__ import annotations

import os
from collections.abc import Sequence as List
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmos.runtime.engine.generate.blocks import BlockPool
from llmos.runtime.engine.generate.guide import Grammar, Guidance
from llmos.runtime.engine.generate.request import GenerationRequest
from llmos.runtime.engine.generate.scheduler import Scheduler
from llmos.runtime.engine.generate.sequence import Sequence, SequenceSpec
from llmos.runtime.engine.generate.spec import GenerationSpec
from llmos.runtime.engine.model import Array
from llmos.runtime.errors import InputError

PRIORITY_STEP_S = 10.0  # how much earlier a request of one priority more counts as having arrived


@dataclass(frozen=True)
class Admission:
    """Makes sequences of requests for one model and cache. prefix_cache: whether requests of a principal share blocks."""

    spec: GenerationSpec
    num_blocks: int
    prefix_cache: bool = True

    def prompt(self, prompt_ids: List[int] | Array) -> Array:
        """Return token ids as int32. Raises InputError if there are none, too many, or one that the model doesn't know."""
        ids = _integers(prompt_ids)
        if not len(ids):
            raise InputError("the prompt is empty: give it one token or more")
        low, high, size = int(ids.min()), int(ids.max()), self.spec.vocab_size
        if low < 0 or high >= size:
            raise InputError(f"the prompt has token id {low if low < 0 else high}, the model has ids 0 to {size - 1}")
        if len(ids) >= self.spec.max_length:
            raise InputError(
                f"the prompt has {len(ids)} tokens, the context is {self.spec.max_length}: shorten it, so that one or more can follow"
            )
        return ids.astype(np.int32)

    def max_length(self, num_prompt: int, max_tokens: int | None, scheduler: Scheduler) -> int:
        """Return how many tokens a sequence may have. Raises InputError if the cache can't hold it even alone."""
        longest = self.spec.max_length if max_tokens is None else min(self.spec.max_length, num_prompt + max_tokens)
        if max_tokens is None and scheduler.blocks_needed(longest - 1) > self.num_blocks:
            longest = max(num_prompt + 1, min(longest, self.num_blocks * self.spec.block_size + 1))
        needed = scheduler.blocks_needed(longest - 1)  # nothing reads the keys and values of the last token
        if needed > self.num_blocks:
            raise InputError(
                f"{num_prompt} tokens of prompt and {longest - num_prompt} to generate need {needed} blocks of cache, there are "
                f"{self.num_blocks}: give the cache more memory, or ask for fewer"
            )
        return longest

    def sequences(
        self,
        request: GenerationRequest,
        first_id: int,
        principal: str,
        max_length: int,
        pool: BlockPool,
        grammar: Grammar | None = None,
    ) -> list[Sequence]:
        """Return the sequences of a request. The first has the others as followers: they share the blocks of its prompt.

        grammar: that each of them follows. Raises InputError where no token can come before min_tokens.
        """
        params, num_prompt = request.params, len(request.prompt)
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else frozenset(self.spec.eos_token_ids))
        seed = int.from_bytes(os.urandom(8)) if params.seed is None else params.seed
        common = SequenceSpec(
            max_length=max_length,
            order=(request.order_s - PRIORITY_STEP_S * params.priority, first_id),
            cache_key=("principal", principal) if self.prefix_cache else ("request", first_id),
            stop_ids=stop_ids,
            min_length=num_prompt + params.min_tokens,
            early_mask=self._mask_without(stop_ids) if params.min_tokens and stop_ids else None,
            prompt_logprobs=None,
            deadline_s=request.deadline_s,
        )
        specs = [
            replace(
                common,
                order=(common.order[0], first_id + index),
                sampling=params.row_sampling(seed, index),
                prompt_logprobs=params.prompt_logprobs if index == 0 else None,
            )
            for index in range(params.n)
        ]
        sequences = [
            Sequence(request.prompt, spec, pool, (request, index), None if grammar is None else Guidance(grammar))
            for index, spec in enumerate(specs)
        ]
        sequences[0].followers = sequences[1:]
        return sequences

    def _mask_without(self, ids: frozenset[int]) -> Array:
        """Return the bit mask of all tokens but these, as the sampler takes it. Raises InputError if there are no others."""
        if len(ids) >= self.spec.vocab_size:
            raise InputError(
                "min_tokens: every token is one that ends the text, so that none can come before: leave some out of stop_token_ids"
            )
        mask = np.full(-(-self.spec.vocab_size // 32), 0xFFFFFFFF, np.uint32)
        for token in ids:
            mask[token // 32] &= np.uint32(0xFFFFFFFF ^ (1 << (token % 32)))
        return mask


def _integers(ids: Any) -> Array:
    try:
        array = np.asarray(ids)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError("the prompt must be a list of token ids") from error
    if array.ndim == 1 and not array.size:
        return array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"the prompt must be a list of token ids, not {array.dtype.name} of shape {list(array.shape)}")
    return array
