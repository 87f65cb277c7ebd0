"""The runner: a plan becomes arrays, a call of the model, and sampled tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence as List

import numpy as np

from llmos.runtime.engine.errors import StateLostError
from llmos.runtime.engine.generate.arrays import StepArrays
from llmos.runtime.engine.generate.guide import GRACE_S, Guidance
from llmos.runtime.engine.generate.model import StepModel
from llmos.runtime.engine.generate.sampler import History, NoTokenError, RowSampling, SampledRow, Sampler
from llmos.runtime.engine.generate.sequence import Sequence
from llmos.runtime.engine.generate.step import Chunk, Limits, Outcome, StepPlan
from llmos.runtime.engine.model import Array
from llmos.runtime.errors import InputError, LlmosError


class Runner:
    """Runs plans of up to `limits` on one model. It owns the caches."""

    def __init__(self, model: StepModel, sampler: Sampler, limits: Limits, num_blocks: int) -> None:
        spec = model.spec
        self._model = model
        self._sampler = sampler
        self._mask_words = -(-spec.vocab_size // 32)
        self._arrays = StepArrays(spec, limits, model.sizes.table_width)
        self.caches = model.new_caches(num_blocks)

    def run(self, plan: StepPlan) -> list[Outcome]:
        """Compute a step and sample. Raises what the model or the sampler raises; the error of one row is in its outcome."""
        logits = self._model([*self._arrays.of(plan), *self.caches])
        return self._sample(plan, logits)

    def run_each(self, plan: StepPlan) -> list[Outcome]:
        """Compute a step chunk by chunk, after it has failed as a whole: a chunk that fails has its error as its outcome.

        Slots that the failed step has written are written again, with the same values.
        """
        return [self._run_alone(chunk) for chunk in plan.chunks]

    def _run_alone(self, chunk: Chunk) -> Outcome:
        plan = StepPlan((chunk,), num_tokens=chunk.end - chunk.begin, num_rows=chunk.end - chunk.first_row)
        try:
            return self.run(plan)[0]
        except StateLostError:
            raise
        except Exception as error:  # an exception of the model ends its sequence, not the worker
            return Outcome(error=error)

    def _sample(self, plan: StepPlan, logits: Array) -> list[Outcome]:
        if not plan.num_rows:
            return [Outcome()] * len(plan.chunks)
        rows = _Rows(self._mask_words)
        for sequence, _, end, first_row, _ in plan.chunks:
            samples = end == sequence.num_tokens
            if end - first_row > samples:
                rows.add_prompt(sequence, first_row + 1, end + 1 - samples)
            if samples:
                rows.add(sequence)
        outcomes = _outcomes(
            plan, self._sampler(logits, rows.sampling, rows.positions, rows.history, rows.allowed if rows.masked else None)
        )
        if not rows.unguided:
            return outcomes
        return [_without_token(outcome, rows.unguided.get(chunk.sequence)) for outcome, chunk in zip(outcomes, plan.chunks, strict=True)]


class _Rows:
    """What the rows of a step are sampled with, row by row."""

    def __init__(self, mask_words: int) -> None:
        self._mask_words = mask_words
        self.sampling: list[RowSampling] = []
        self.positions: list[int] = []
        self.history: list[History | None] = []
        self.allowed: list[Array | None] = []
        self.masked = False  # whether `allowed` holds a mask
        self.unguided: dict[Sequence, Outcome] = {}  # those that get no token, since there is no mask for it
        self._grace_ends_s: float | None = None

    def add(self, sequence: Sequence) -> None:
        """Add the row that gives the next token of a sequence."""
        spec, position = sequence.spec, sequence.num_tokens
        mask = spec.early_mask if position < spec.min_length else None
        if sequence.guidance is not None:
            mask = self._guided_mask(sequence, sequence.guidance)
        self.sampling.append(spec.sampling)
        self.positions.append(position)
        self.history.append((sequence.prompt, sequence.generated) if sequence.reads_history else None)
        self.allowed.append(mask)
        if mask is not None:
            self.masked = True

    def _guided_mask(self, sequence: Sequence, guidance: Guidance) -> Array | None:
        """Return the mask of a sequence that follows a grammar; None if there is none (yet), so that what is sampled is dropped."""
        now_s = time.perf_counter()
        if self._grace_ends_s is None:
            self._grace_ends_s = now_s + GRACE_S
        if not guidance.ready.wait(max(0.0, self._grace_ends_s - now_s)):
            guidance.is_late = True
            self.unguided[sequence] = Outcome(is_deferred=True)
        elif guidance.error is not None:
            self.unguided[sequence] = Outcome(error=guidance.error)
        elif guidance.is_complete:
            self.unguided[sequence] = Outcome(is_complete=True)
        else:
            return guidance.mask
        return None

    def add_prompt(self, sequence: Sequence, begin: int, end: int) -> None:
        """Add the rows that give the log probabilities of the prompt's tokens [begin, end): each may give that token alone."""
        assert sequence.spec.prompt_logprobs is not None
        count = end - begin
        self.sampling += [RowSampling(num_logprobs=sequence.spec.prompt_logprobs)] * count
        self.positions += range(begin, end)
        self.history += [None] * count
        masks = np.zeros((count, self._mask_words), np.uint32)
        tokens = sequence.tokens[begin:end]
        masks[np.arange(count), tokens // 32] = np.uint32(1) << (tokens % 32).astype(np.uint32)
        self.allowed += list(masks)
        self.masked = True


def _without_token(outcome: Outcome, unguided: Outcome | None) -> Outcome:
    """Return what a sequence gets that has no mask, instead of the token of its row; a row that failed remains so."""
    return outcome if unguided is None or outcome.error is not None else unguided._replace(prompt=outcome.prompt)


def _outcomes(plan: StepPlan, sampled: List[SampledRow | LlmosError]) -> list[Outcome]:
    """Return the outcome of each chunk; a row that failed fails its chunk."""
    at = plan.num_decodes
    outcomes = [_outcome(chunk.sequence, row) for chunk, row in zip(plan.chunks, sampled[:at], strict=False)]
    for chunk in plan.chunks[at:]:
        end = at + chunk.end - chunk.first_row
        rows = list(sampled[at:end])
        own = rows.pop() if chunk.samples else None
        tokens = chunk.sequence.tokens[chunk.first_row + 1 :].tolist()
        prompt = [_prompt_row(row, token) for row, token in zip(rows, tokens, strict=False)]
        error = next((row for row in prompt if isinstance(row, LlmosError)), None)
        if error is not None:
            outcomes.append(Outcome(error=error))
        else:
            known = tuple(row for row in prompt if isinstance(row, SampledRow))
            outcomes.append(_outcome(chunk.sequence, own, known))
        at = end
    return outcomes


def _outcome(sequence: Sequence, row: SampledRow | LlmosError | None, prompt: tuple[SampledRow, ...] = ()) -> Outcome:
    """Return what the row of a sequence's next token gives it."""
    if not isinstance(row, LlmosError):
        return Outcome(row, prompt)
    if isinstance(row, NoTokenError) and sequence.guidance is not None:
        return Outcome(error=InputError("structured_outputs: the model can give none of the tokens that may follow"))
    if isinstance(row, NoTokenError) and sequence.num_tokens < sequence.spec.min_length:
        return Outcome(error=InputError("min_tokens: the model can give no token but those that end the text"))
    return Outcome(error=row)


def _prompt_row(row: SampledRow | LlmosError, token: int) -> SampledRow | LlmosError:
    """Return the row of a token of the prompt, which may be one that the model never gives."""
    return SampledRow(token, -math.inf) if isinstance(row, NoTokenError) else row
