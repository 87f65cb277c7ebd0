"""Kernels of elementwise chains, moves and gathers: one walk over the space of the results, all of one shape.

Lanes run along the last dims that memory holds in order. Where everything is read along another dim, lanes run along that one, and blocks
of 16 by 16 are transposed in registers before they are written: both sides of a transposition then move whole cache lines. A few rows
(the channels of an image) are interleaved, and written as one run.
A concatenation of few, short pieces evaluates each of them under a mask; others are written piece by piece (concat.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from llmos.compiler.backends.cpu.arithmetic.register_tile import TileShape
from llmos.compiler.backends.cpu.kernels.column_reduction import columns_in, emit_columns
from llmos.compiler.backends.cpu.kernels.concat import emit_pieces, pieces_in
from llmos.compiler.backends.cpu.kernels.transpose import interleave, transpose
from llmos.compiler.backends.cpu.kernels.walk import Walk
from llmos.compiler.codegen.access import Accesses, group_dims
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Frame, Launch, ceil_div, kernel, product, split_index
from llmos.compiler.codegen.loop_space import RowPlan, accesses_of, plan_rows, spread
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr


def emit_elementwise(module: ir.Module, dispatch: Dispatch, shape: TileShape) -> Launch:
    """Append the kernel of an `elementwise` dispatch. `shape`: the processor's register tile."""
    columns = columns_in(dispatch)
    if columns is not None:
        return emit_columns(module, columns, shape)
    pieces = pieces_in(dispatch)
    if pieces is not None:
        return emit_pieces(module, pieces)
    plan = plan_rows(dispatch)
    groups = group_dims(accesses_of(plan), plan.sizes, range(plan.rank))
    transposed = _transposed_group(plan, groups)
    if transposed is not None:
        return _emit_transposed(module, plan, groups, transposed)
    return _emit_walk(module, Walk(plan, groups))


def _emit_walk(module: ir.Module, walk: Walk) -> Launch:
    with kernel(module, walk.plan.dispatch) as frame, frame.tiles() as tile:
        walk.emit(frame, tile, list(zip(walk.plan.dispatch.results, frame.outputs, strict=True)))
    return Launch(walk.num_tiles)


def _transposed_group(plan: RowPlan, groups: Sequence[Sequence[int]]) -> int | None:
    """The group along which everything that moves along it lies in order, if that isn't the last one, along which results are written."""
    reads = Accesses(plan.dispatch, through_pads=True)
    for value in plan.dispatch.results:
        shape = plan.dispatch.shapes.shape(value)
        reads.trace(value, [{dim: 1} if size != 1 else {} for dim, size in enumerate(shape)])
    real = [[form for form, size in zip(forms, shape, strict=True) if size != 1] for shape, forms in reads.leaves]
    innermost = [forms[-1] for forms in real if forms]
    along = [i for i, group in enumerate(groups[:-1]) if {group[-1]: 1} in innermost]
    if len(along) != 1:
        return None
    dim = groups[along[0]][-1]
    for forms in real:
        if any(form is None for form in forms) or any(dim in (form or {}) for form in forms[:-1]):
            return None
        if forms and dim in (forms[-1] or {}) and forms[-1] != {dim: 1}:
            return None
        if forms and groups[-1][-1] in (forms[-1] or {}) and len(forms) > 1:
            return None  # lies as the results do
    return along[0]


BLOCKS = 16  # blocks of one tile along what is read in order


def _emit_transposed(module: ir.Module, plan: RowPlan, groups: list[list[int]], along: int) -> Launch:
    """Append a kernel with lanes along group `along`, whose results are transposed to be written along the last group."""
    extents = [product([plan.sizes[dim] for dim in group]) for group in groups]
    read, written = extents[along], extents[-1]
    others = [i for i in range(len(groups) - 1) if i != along]
    outer = [extents[i] for i in others]
    with kernel(module, plan.dispatch) as frame, frame.tiles() as tile:
        b, size, lanes = frame.b, frame.emitter.sizes, frame.b.lanes
        chunks, strips = ceil_div(read, BLOCKS * lanes), ceil_div(written, lanes)
        *at, chunk, strip = split_index(b, size, tile, [*outer, chunks, strips])
        first = b.mul(strip, b.index(lanes))
        low = b.mul(chunk, b.index(BLOCKS * lanes))
        high = b.minimum(b.add(low, b.index(BLOCKS * lanes)), size(read))
        count = int(written) if written.is_Integer and written < lanes else None
        _Transposed(plan, groups, along, frame, dict(zip(others, at, strict=True)), count).emit(low, high, first, written)
    return Launch(sympy.expand(product(outer) * chunks * strips))


@dataclass(frozen=True)
class _Transposed:
    """Emits one tile: 16 neighbors along the last group, or `count` where there are no more. `outer`: the other groups' coordinates."""

    plan: RowPlan
    groups: list[list[int]]
    along: int
    frame: Frame
    outer: dict[int, Coord]
    count: int | None

    def emit(self, low: Value, high: Value, first: Value, written: Expr) -> None:
        """[low, high) of what is read by the elements from `first` on of the `written` ones."""
        b, ev = self.frame.b, self.frame.emitter
        whole = b.add(first, b.index(b.lanes))
        if written.is_Integer and int(written) % b.lanes == 0:
            self._strip(low, high, first, None)
        elif self.count is not None:
            self._strip(low, high, first, b.index(self.count))
        else:
            with b.when(b.compare("sle", whole, ev.sizes(written))), ev.scope():
                self._strip(low, high, first, None)
            with b.when(b.compare("sgt", whole, ev.sizes(written))), ev.scope():
                self._strip(low, high, first, b.sub(ev.sizes(written), first))

    def _strip(self, low: Value, high: Value, first: Value, count: Value | None) -> None:
        """16 neighbors along the last group (`count`, if fewer) by [low, high) of what is read."""
        b, ev = self.frame.b, self.frame.emitter
        width = b.index(b.lanes)
        whole = b.add(low, b.mul(b.div(b.sub(high, low), width), width))
        with b.loop(low, whole, width) as loop, ev.scope():
            self._block(loop.iv, first, None, count)
        with b.loop(whole, high, width) as loop, ev.scope():
            self._block(loop.iv, first, b.sub(high, loop.iv), count)

    def _block(self, read: Value, first: Value, num_read: Value | None, count: Value | None) -> None:
        b, ev = self.frame.b, self.frame.emitter
        mask = b.tail_mask(num_read) if num_read is not None else None
        rows: list[list[Value]] = [[] for _ in self.plan.dispatch.results]
        last = b.sub(count, b.index(1)) if count is not None else None
        for i in range(b.lanes if self.count is None else self.count):
            at = b.add(first, b.index(i)) if last is None else b.add(first, b.minimum(b.index(i), last))
            coords = self._coords(Lane(read), at)
            with ev.memory.masked(mask):
                for made, value in zip(rows, self.plan.dispatch.results, strict=True):
                    made.append(b.splat(ev.value(value, coords)))
        if num_read is None and self.count is not None and self.along == len(self.groups) - 2:
            self._store_run(rows, self._coords(read, b.index(0)))
            return
        transposed = [transpose(b, made) for made in rows]
        for i in range(b.lanes):
            with ev.memory.masked(b.tail_mask(count) if count is not None else None):
                self._store(transposed, i, self._coords(b.add(read, b.index(i)), Lane(first)), num_read)

    def _store_run(self, rows: Sequence[Sequence[Value]], coords: list[Coord]) -> None:
        """A block whose results are neighbors in memory, from `coords` on."""
        b, ev = self.frame.b, self.frame.emitter
        for made, buffer in zip(rows, self.frame.outputs, strict=True):
            begin = b.address(buffer.pointer, ev.memory.locate(buffer, coords), buffer.kind)
            run = Buffer(begin, buffer.kind, (sympy.Integer(len(made) * b.lanes),), (sympy.S.One,))
            for i, vector in enumerate(interleave(b, made)):
                ev.memory.store(vector, run, [Lane(b.index(i * b.lanes))])

    def _store(self, transposed: Sequence[Sequence[Value]], i: int, coords: list[Coord], num_read: Value | None) -> None:
        """Row i of a block, if there is one."""
        b, ev = self.frame.b, self.frame.emitter

        def write() -> None:
            for values, buffer in zip(transposed, self.frame.outputs, strict=True):
                ev.memory.store(values[i], buffer, coords)

        if num_read is None:
            write()
            return
        with b.when(b.compare("slt", b.index(i), num_read)), ev.scope():
            write()

    def _coords(self, read: Coord, written: Coord) -> list[Coord]:
        b = self.frame.b
        indices = [self.outer.get(i, b.index(0)) for i in range(len(self.groups))]
        indices[self.along], indices[-1] = read, written
        place = spread(self.plan, self.groups, indices, b.index(0))
        return [place.get(dim, b.index(0)) for dim in range(self.plan.rank)]
