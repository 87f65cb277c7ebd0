"""The arrays of a step, made of its plan: buffers that are written again each step."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence as List
from functools import lru_cache

import numpy as np

from llmos.runtime.engine.generate.blocks import BlockTable
from llmos.runtime.engine.generate.spec import GenerationSpec
from llmos.runtime.engine.generate.step import Chunk, Limits, StepPlan
from llmos.runtime.engine.model import Array

_MAX_PARTS = 512
_WIDTH_STEP = 8  # block tables grow by so many columns, so that few steps see another shape


class StepArrays:
    """Makes the inputs of StepModel, without the caches. table_width: as in StepSizes."""

    def __init__(self, spec: GenerationSpec, limits: Limits, table_width: int | None) -> None:
        self._block_size = spec.block_size
        self._tokens, self._positions, self._slots, self._requests = (_Buffer(limits.max_tokens) for _ in range(4))
        self._rows = _Buffer(limits.max_rows)
        self._numbers = _Buffer(limits.max_tokens)
        self._numbers.part(limits.max_tokens)[:] = range(limits.max_tokens)
        self._tables = _BlockTables(limits.max_requests, -(-spec.max_length // spec.block_size), table_width)

    def of(self, plan: StepPlan) -> tuple[Array, ...]:
        """Return the inputs of a step, in the order of STEP_INPUTS; the next step overwrites them."""
        num_tokens, num_decodes = plan.num_tokens, plan.num_decodes
        tables = self._tables.of([chunk.sequence.table for chunk in plan.chunks])
        tokens, positions, slots = self._tokens.part(num_tokens), self._positions.part(num_tokens), self._slots.part(num_tokens)
        self._write_decodes(plan.chunks[:num_decodes])
        if num_decodes == num_tokens:
            requests = rows = self._numbers.part(num_tokens)
        else:
            requests, rows = self._requests.part(num_tokens), self._rows.part(max(1, plan.num_rows))
            rows[0] = num_tokens - 1  # a step gives one row or more, wanted or not
            requests[:num_decodes] = rows[:num_decodes] = self._numbers.part(num_decodes)
            self._write_prefills(plan, tokens, positions, requests, rows)
            self._write_slots(tables, requests[num_decodes:], positions[num_decodes:], slots[num_decodes:])
        return tokens, positions, slots, requests, tables, rows

    def _write_decodes(self, chunks: List[Chunk]) -> None:
        """Write one token a chunk. For so few, packing is faster than operations on arrays."""
        if not chunks:
            return
        size = self._block_size
        begins = [chunk.begin for chunk in chunks]
        places = zip(chunks, begins, strict=True)
        self._tokens.write([chunk.sequence.last_token for chunk in chunks])
        self._positions.write(begins)
        self._slots.write([chunk.sequence.table.row.item(begin // size) * size + begin % size for chunk, begin in places])

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

    def _write_slots(self, tables: Array, requests: Array, positions: Array, slots: Array) -> None:
        blocks, offsets = np.divmod(positions, self._block_size)
        np.multiply(tables[requests, blocks], self._block_size, out=slots)
        slots += offsets


class _BlockTables:
    """The array of block tables; rows that are those of the step before are left as they are."""

    def __init__(self, max_requests: int, max_blocks: int, width: int | None) -> None:
        self._fixed_width = width
        self._max_blocks = max_blocks
        self._buffer = _Buffer(max_requests * (width or max_blocks))
        self._shape = (0, 0)
        self._written: list[tuple[BlockTable, int] | None] = []  # table and version of each row

    def of(self, tables: List[BlockTable]) -> Array:
        """Return the tables as rows, int32 [requests, width], with zeros behind their blocks."""
        shape = len(tables), self._fixed_width or self._width(max([table.num_blocks for table in tables]))
        rows = self._buffer.part(*shape)
        if shape != self._shape:
            self._shape, self._written = shape, [None] * len(tables)
        for index, table in enumerate(tables):
            written = table, table.version
            if self._written[index] != written:
                rows[index, : table.num_blocks] = table.row[: table.num_blocks]
                rows[index, table.num_blocks :] = 0
                self._written[index] = written
        return rows

    def _width(self, num_blocks: int) -> int:
        return min(self._max_blocks, -(-num_blocks // _WIDTH_STEP) * _WIDTH_STEP)


class _Buffer:
    """An int32 array whose leading parts are the same objects from step to step, so that a model can keep them exported."""

    def __init__(self, size: int) -> None:
        self._array: Array = np.zeros(size, np.int32)
        self._memory = memoryview(self._array.data)
        self._parts: dict[tuple[int, ...], Array] = {}

    def part(self, *shape: int) -> Array:
        """Return the first elements of the buffer as an array of this shape."""
        part = self._parts.get(shape)
        if part is None:
            if len(self._parts) >= _MAX_PARTS:
                self._parts.clear()
            part = self._parts[shape] = self._array[: math.prod(shape)].reshape(shape)
        return part

    def write(self, values: List[int]) -> None:
        """Write the first elements of the buffer."""
        _packing(len(values)).pack_into(self._memory, 0, *values)


@lru_cache(maxsize=256)
def _packing(count: int) -> struct.Struct:
    return struct.Struct(f"@{count}i")
