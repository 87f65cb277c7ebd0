"""How the generation engine of a model is set up."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llmos.runtime.engine.generate.model import StepModel
from llmos.runtime.engine.generate.step import Limits


@dataclass(frozen=True)
class GenerationOptions:
    """limits: of one step, within what the model takes. max_queue: most requests that have not ended; more are rejected.

    timeout_s: of a request that gives none. cache_blocks, cache_bytes: size of the cache; where neither is given it holds max_requests
    of the full context, as far as `memory_fraction` of the free memory does. prefix_cache: whether requests of a principal share blocks.
    slowdown: how much longer a step of decodes may take if it computes tokens of prompts too.
    """

    limits: Limits = field(default_factory=Limits)
    max_queue: int = 256
    timeout_s: float = math.inf
    cache_blocks: int | None = None
    cache_bytes: int | None = None
    memory_fraction: float = 0.5
    prefix_cache: bool = True
    slowdown: float = 1.4


def limits_of(limits: Limits, model: StepModel) -> Limits:
    """Return the limits of a step, clamped to what the model takes."""
    sizes = model.sizes
    rows, tokens = min(limits.max_rows, sizes.max_rows), min(limits.max_tokens, sizes.max_tokens)
    requests = min(limits.max_requests, sizes.max_requests, rows - 1, tokens - 1)
    return Limits(tokens, max(1, requests), rows)
