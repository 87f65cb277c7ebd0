"""The arrays of a step, made of its plan: buffers that are written again each step."""

from __future__ import annotations

import math
from collections.abc import Sequence as List

import numpy as np

from llmos.runtime.engine.generate.scheduler import Limits
from llmos.runtime.engine.generate.spec import GenerationSpec
from llmos.runtime.engine.generate.step import Chunk, StepPlan
from llmos.runtime.engine.model import Array

_MAX_PARTS = 512


class StepArrays:
    """Makes the inputs of StepModel, without the caches. table_width: as in StepSizes."""

    def __init__(self, spec: GenerationSpec, limits: Limits, table_width: int | None) -> None:
        self._block_size = spec.block_size
        self._width = table_width
        self._tokens, self._positions, self._slots, self._requests = (_Buffer(limits.max_tokens) for _ in range(4))
        self._rows = _Buffer(limits.max_rows)
        self._tables = _Buffer(limits.max_requests * (table_width or -(-spec.max_length // spec.block_size)))
        self._numbers = _Buffer(limits.max_tokens)
        self._numbers.part(limits.max_tokens)[:] = range(limits.max_tokens)

    def of(self, plan: StepPlan) -> tuple[Array, ...]:
        """Return the inputs of a step, in the order of STEP_INPUTS; the next step overwrites them."""
        num_tokens, num_decodes = plan.num_tokens, plan.num_decodes
        tables = self._block_tables(plan.chunks)
        tokens, positions, slots, requests = (
            buffer.part(num_tokens) for buffer in (self._tokens, self._positions, self._slots, self._requests)
        )
        rows = self._rows.part(max(1, plan.num_rows))
        decodes = plan.chunks[:num_decodes]
        tokens[:num_decodes] = [chunk.sequence.last_token for chunk in decodes]
        positions[:num_decodes] = [chunk.begin for chunk in decodes]
        if num_decodes == num_tokens:
            requests = rows = self._numbers.part(num_tokens)
        else:
            rows[0] = num_tokens - 1  # a step gives one row or more, wanted or not
            requests[:num_decodes] = rows[:num_decodes] = self._numbers.part(num_decodes)
            self._write_prefills(plan, tokens, positions, requests, rows)
        blocks, offsets = np.divmod(positions, self._block_size)
        np.multiply(tables[requests, blocks], self._block_size, out=slots)
        slots += offsets
        return tokens, positions, slots, requests, tables, rows

    def _write_prefills(self, plan: StepPlan, tokens: Array, positions: Array, requests: Array, rows: Array) -> None:
        """Write the tokens behind those of decodes, chunk by chunk."""
        at = row = plan.num_decodes
        for index, (sequence, begin, end, first_row, _) in enumerate(plan.chunks[at:], at):
            to = at + end - begin
            tokens[at:to] = sequence.tokens[begin:end]
            np.add(self._numbers.part(to - at), begin, out=positions[at:to])
            requests[at:to] = index
            wanted = end - first_row
            np.add(self._numbers.part(wanted), to - wanted, out=rows[row : row + wanted])
            at, row = to, row + wanted

    def _block_tables(self, chunks: List[Chunk]) -> Array:
        tables = [chunk.sequence.table for chunk in chunks]
        width = self._width or max([table.num_blocks for table in tables])
        rows = self._tables.part(len(chunks), width)
        rows.fill(0)
        for row, table in zip(rows, tables, strict=True):
            row[: table.num_blocks] = table.row[: table.num_blocks]
        return rows


class _Buffer:
    """An int32 array whose leading parts are the same objects from step to step, so that a model can keep them exported."""

    def __init__(self, size: int) -> None:
        self._array: Array = np.zeros(size, np.int32)
        self._parts: dict[tuple[int, ...], Array] = {}

    def part(self, *shape: int) -> Array:
        """Return the first elements of the buffer as an array of this shape."""
        part = self._parts.get(shape)
        if part is None:
            if len(self._parts) >= _MAX_PARTS:
                self._parts.clear()
            part = self._parts[shape] = self._array[: math.prod(shape)].reshape(shape)
        return part
