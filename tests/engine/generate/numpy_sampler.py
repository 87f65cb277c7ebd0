"""A small sampler in numpy, and generation with it without engine, cache or scheduler, to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmos.runtime.engine.generate import GenerationSpec
from llmos.runtime.engine.generate.null import null_logits
from llmos.runtime.engine.generate.sampler import History, RowSampling, SampledRow
from llmos.runtime.errors import ExecutionError, LlmosError

Array = np.ndarray[Any, Any]


def sample(
    logits: Array,
    rows: Sequence[RowSampling],
    positions: Sequence[int],
    history: Sequence[History | None],
    allowed: Sequence[Array | None] | None = None,
) -> list[SampledRow | LlmosError]:
    """See Sampler. Every parameter, the position and every token of the history change what is sampled."""
    masks = allowed or [None] * len(rows)
    return [_sample_row(*each) for each in zip(logits, rows, positions, history, masks, strict=True)]


def generate(spec: GenerationSpec, prompt: Array, sampling: RowSampling, count: int) -> list[SampledRow]:
    """Generate `count` tokens one by one, for a prompt alone."""
    tokens, rows = list(prompt), []
    for _ in range(count):
        history = (np.array(prompt, np.int32), np.array(tokens[len(prompt) :], np.int32)) if sampling.reads_history else None
        row = _sample_row(null_logits(spec, np.array(tokens)), sampling, len(tokens), history, None)
        assert isinstance(row, SampledRow)
        rows.append(row)
        tokens.append(row.token)
    return rows


def _sample_row(logits: Array, row: RowSampling, position: int, history: History | None, allowed: Array | None) -> SampledRow | LlmosError:
    if np.isnan(logits).any():
        return ExecutionError("the logits hold NaN")
    scores = logits.astype(np.float64)
    logprobs = scores - np.log(np.exp(scores).sum())
    if history is not None:
        prompt, generated = history
        for weight, ids in ((row.repetition_penalty, prompt), (row.frequency_penalty, generated)):
            scores = scores - weight * 0.1 * np.bincount(ids, minlength=len(scores))
    for token, bias in row.logit_bias:
        scores[token] += bias
    if allowed is not None:
        bits = np.unpackbits(allowed.view(np.uint8), bitorder="little")[: len(scores)]
        scores = np.where(bits, scores, -np.inf)
    if row.temperature:
        random = np.random.default_rng([row.seed, position])
        scores = scores / row.temperature + random.gumbel(size=len(scores))
    token = int(scores.argmax())
    if row.num_logprobs < 0:
        return SampledRow(token)
    top = np.argsort(-logprobs, kind="stable")[: row.num_logprobs].tolist()
    return SampledRow(token, float(logprobs[token]), tuple((each, float(logprobs[each])) for each in top))
