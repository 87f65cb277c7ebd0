"""The runner: a plan becomes arrays, a call of the model, and sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence as List

import numpy as np

from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.engine.generate.model import StepModel
from llmos.runtime.engine.generate.sampler import History, RowSampling, SampledRow, Sampler
from llmos.runtime.engine.generate.scheduler import Limits
from llmos.runtime.engine.generate.sequence import Sequence
from llmos.runtime.engine.generate.step import Chunk, Outcome, StepPlan
from llmos.runtime.engine.model import Array
from llmos.runtime.errors import LlmosError


class Runner:
    """Runs plans of up to `limits` on one model. It owns the caches, and arrays that are reused from step to step."""

    def __init__(self, model: StepModel, sampler: Sampler, limits: Limits, num_blocks: int) -> None:
        spec = model.spec
        self._model = model
        self._sampler = sampler
        self._block_size = spec.block_size
        self._mask_words = -(-spec.vocab_size // 32)
        dtype = np.dtype(DTYPES[spec.kv_dtype].storage)
        self.caches: list[Array] = [np.zeros((num_blocks, *spec.cache_shape), dtype) for _ in spec.caches]
        self._tokens, self._positions, self._slots, self._requests = np.zeros((4, limits.max_tokens), np.int32)
        self._numbers: Array = np.arange(limits.max_tokens, dtype=np.int32)
        self._logit_rows: Array = np.zeros(limits.max_rows, np.int32)
        self._width = model.sizes.table_width
        widest = self._width or -(-spec.max_length // spec.block_size)
        self._tables: Array = np.zeros(limits.max_requests * widest, np.int32)

    def run(self, plan: StepPlan) -> list[Outcome]:
        """Compute a step and sample. Raises what the model or the sampler raises; the error of one row is in its outcome."""
        logits = self._model([*self._assemble(plan), *self.caches])
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
        except Exception as error:  # an exception of the model ends its sequence, not the worker
            return Outcome(error=error)

    # Arrays.

    def _assemble(self, plan: StepPlan) -> tuple[Array, ...]:
        """Return the step's inputs, as StepModel wants them; views of arrays that the next step overwrites."""
        chunks, num_tokens = plan.chunks, plan.num_tokens
        width = self._width or max(chunk.sequence.table.num_blocks for chunk in chunks)
        tables = self._tables[: len(chunks) * width].reshape(len(chunks), width)
        tables.fill(0)
        counts: list[int] = []
        shifts: list[int] = []
        logit_rows: list[int] = []
        at = 0
        for index, (sequence, begin, end, first_row, _) in enumerate(chunks):
            table = sequence.table
            tables[index, : table.num_blocks] = table.row[: table.num_blocks]
            count = end - begin
            self._tokens[at : at + count] = sequence.tokens[begin:end]
            counts.append(count)
            shifts.append(begin - at)
            logit_rows.extend(range(at + first_row - begin, at + count))
            at += count
        rows = self._logit_rows[: max(1, plan.num_rows)]
        rows[:] = logit_rows or num_tokens - 1  # a step gives one row or more, wanted or not
        positions, slots = self._positions[:num_tokens], self._slots[:num_tokens]
        requests = self._requests[:num_tokens]
        requests[:] = np.repeat(self._numbers[: len(chunks)], counts)
        np.add(self._numbers[:num_tokens], np.repeat(np.array(shifts, np.int32), counts), out=positions)
        blocks, offsets = np.divmod(positions, self._block_size)
        np.multiply(tables[requests, blocks], self._block_size, out=slots)
        slots += offsets
        return self._tokens[:num_tokens], positions, slots, requests, tables, rows

    # Sampling.

    def _sample(self, plan: StepPlan, logits: Array) -> list[Outcome]:
        if not plan.num_rows:
            return [Outcome()] * len(plan.chunks)
        rows: list[RowSampling] = []
        positions: list[int] = []
        history: list[History | None] = []
        allowed: list[Array | None] = []
        for sequence, _, end, first_row, _ in plan.chunks:
            for position in range(first_row + 1, end + 1):  # of the token that a row gives
                known = position < sequence.num_tokens
                rows.append(_prompt_sampling(sequence) if known else sequence.spec.sampling)
                positions.append(position)
                history.append((sequence.prompt, sequence.generated) if sequence.spec.sampling.reads_history and not known else None)
                allowed.append(self._only(int(sequence.tokens[position])) if known else _early_mask(sequence))
        masks = allowed if any(mask is not None for mask in allowed) else None
        return _outcomes(plan, self._sampler(logits, rows, positions, history, masks))

    def _only(self, token: int) -> Array:
        """Return the mask that allows one token."""
        mask = np.zeros(self._mask_words, np.uint32)
        mask[token // 32] = 1 << (token % 32)
        return mask


def _prompt_sampling(sequence: Sequence) -> RowSampling:
    assert sequence.spec.prompt_logprobs is not None
    return RowSampling(num_logprobs=sequence.spec.prompt_logprobs)


def _early_mask(sequence: Sequence) -> Array | None:
    return sequence.spec.early_mask if sequence.num_tokens < sequence.spec.min_length else None


def _outcomes(plan: StepPlan, sampled: List[SampledRow | LlmosError]) -> list[Outcome]:
    """Return the outcome of each chunk; a row that failed fails its chunk."""
    outcomes, at = [], 0
    for chunk in plan.chunks:
        rows = sampled[at : at + chunk.end - chunk.first_row]
        at += len(rows)
        error = next((row for row in rows if isinstance(row, LlmosError)), None)
        if error is not None:
            outcomes.append(Outcome(error=error))
            continue
        good = [row for row in rows if isinstance(row, SampledRow)]
        outcomes.append(Outcome(good.pop() if good and chunk.samples else None, tuple(good)))
    return outcomes
