"""Attention with streaming softmax: no score matrix in memory.

Lanes run over query rows, so scores are computed transposed, S^T[j, i] = sum_d K[j, d] Q^T[d, i]: keys and values are read where they
are, as broadcast scalars (bfloat16 ones are extended into scratch, a block at a time), only a block of queries is transposed, and the
softmax over j needs no step across lanes. The running maximum and sum are those of "Online normalizer calculation for softmax" (Milakov
and Gimelshein, 2018); blocks of j start at multiples of 64, so what else is in a batch, and how far it is padded with masked keys,
changes no bit of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sympy

from llmos.compiler.analysis.attention import AttentionParts, parts_of
from llmos.compiler.analysis.casts import EXTEND
from llmos.compiler.analysis.contraction import Contraction
from llmos.compiler.analysis.generic import LinearExpr, trace_to_buffer
from llmos.compiler.backends.cpu.arithmetic.f32 import accumulate
from llmos.compiler.backends.cpu.arithmetic.register_tile import Panel, Strided, TileShape, for_row_blocks, row_tiles, store_tile, zeros
from llmos.compiler.backends.cpu.kernels.transpose import transpose
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Frame, Launch, ceil_div, product, split_index
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.codegen.sums import is_long
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

BLOCK = 64  # keys of one step of the streaming softmax
LOWEST = -3.4028234663852886e38  # the start of a maximum: finite, so that exp(masked - maximum) is exp(-inf) = 0 and never exp(nan)


def attention_in(dispatch: Dispatch) -> AttentionParts:
    """Return the parts of an `attention` dispatch."""
    return parts_of([op.operation for op in dispatch.block.operations])


class AttentionPlan:
    """What is known of an attention dispatch before anything is emitted. `tile`: the target's register tile."""

    def __init__(self, dispatch: Dispatch, tile: TileShape) -> None:
        self.dispatch, self.parts = dispatch, attention_in(dispatch)
        self.shape = TileShape(tile.rows, 2, tile.lanes)
        self.block_rows = self.shape.columns
        scores, values = self.parts.scores, self.parts.values
        shapes = dispatch.shapes
        self.score_sizes, self.value_sizes = scores.generic.loop_sizes(shapes), values.generic.loop_sizes(shapes)
        self.score_shape = shapes.shape(scores.generic.op.results[0])
        self.num_queries = self.score_shape[self.parts.query_axis]
        self.num_keys = self.score_shape[self.parts.key_axis]
        self.is_long = is_long(dispatch.table, self.num_keys)  # then each block of keys has sums of its own, which are added
        self.batch_axes = [axis for axis in range(len(self.score_shape)) if axis not in (self.parts.query_axis, self.parts.key_axis)]
        self.depth = product([self.score_sizes[d] for d in scores.k])
        self.value_dims = values.n if self.parts.weights == 0 else values.m
        self.width = product([self.value_sizes[d] for d in self.value_dims])
        self.wide_keys = self._is_truncated(scores.generic.inputs[1 - self.parts.query])
        self.wide_values = self._is_truncated(values.generic.inputs[1 - self.parts.weights])

    @staticmethod
    def _is_truncated(value: Value) -> bool:
        """Whether K or V lies in memory as bfloat16: each block is then extended into scratch."""
        source = trace_to_buffer(value, [{}] * len(value.type.shape), through=(EXTEND,))
        return source is not None and isinstance(source[0].type.element_type, ir.BF16Type)

    def scratch(self) -> dict[str, Expr]:
        """Return the sizes of the parts of a tile's scratch, in elements of 32 bits."""
        rows = self.block_rows
        depth, width = (ceil_div(size, self.shape.lanes) * self.shape.lanes for size in (self.depth, self.width))  # of whole vectors
        return {
            "query": depth * rows,
            "scores": sympy.Integer(BLOCK * rows),
            "output": width * rows,
            "rows": width * rows,
            "max": sympy.Integer(rows),
            "sum": sympy.Integer(rows),
            "scale": sympy.Integer(rows),
            "keys": BLOCK * self.depth if self.wide_keys else sympy.S.Zero,
            "values": BLOCK * self.width if self.wide_values else sympy.S.Zero,
        }

    @functools.cached_property
    def offsets(self) -> dict[str, Expr]:
        """Return where each part of the scratch begins and, as "end", where all end, in elements of 32 bits."""
        offsets: dict[str, Expr] = {}
        position: Expr = sympy.Integer(0)
        for name, size in self.scratch().items():
            offsets[name] = sympy.expand(position)
            position = position + size
        return {**offsets, "end": sympy.expand(position)}

    @property
    def grid(self) -> list[Expr]:
        """Return the extents of the grid: the points of the batch, blocks of queries."""
        return [product(self.batch), ceil_div(self.num_queries, self.block_rows)]

    @property
    def batch(self) -> list[Expr]:
        """Return the extents of the batch axes."""
        return [self.score_shape[axis] for axis in self.batch_axes]

    @property
    def launch(self) -> Launch:
        """Return the number of tiles, and the scratch of one."""
        return Launch(sympy.expand(product(self.grid)), sympy.expand(self.offsets["end"] * 4))


@dataclass(frozen=True)
class QueryBlock:
    """The queries of a tile: a point of the batch, the first of them, how many."""

    batch: Sequence[Value]
    first: Value
    count: Value

    @classmethod
    def of(cls, plan: AttentionPlan, frame: Frame, tile: Value) -> QueryBlock:
        """Emit the block of a tile, by its number in the grid."""
        b, sizes = frame.b, frame.emitter.sizes
        flat, block = split_index(b, sizes, tile, plan.grid)
        batch = split_index(b, sizes, flat, plan.batch)
        first = b.mul(block, b.index(plan.block_rows))
        return cls(batch, first, b.minimum(b.index(plan.block_rows), b.sub(sizes(plan.num_queries), first)))


@dataclass(frozen=True)
class AttentionEmitter:
    """Emits one block of queries."""

    plan: AttentionPlan
    frame: Frame
    queries: QueryBlock

    def emit(self) -> None:
        """Read the queries, go over all keys, write the rows."""
        b = self.frame.b
        self._load_queries()
        self._start()
        num_keys = self.frame.emitter.sizes(self.plan.num_keys)
        with b.loop(b.index(0), num_keys, b.index(BLOCK)) as loop, self.frame.emitter.scope():
            self._keys(loop.iv, b.minimum(b.index(BLOCK), b.sub(num_keys, loop.iv)))
        self._finish()

    def _at(self, name: str) -> Value:
        return self.frame.b.address(self.frame.scratch, self.frame.emitter.sizes(self.plan.offsets[name]), self.frame.b.f32)

    # -- coordinates
    def _score_coords(self, i: Coord, j: Coord) -> list[Coord]:
        coords: list[Coord] = [self.frame.b.index(0)] * len(self.plan.score_shape)
        for axis, coord in zip(self.plan.batch_axes, self.queries.batch, strict=True):
            coords[axis] = coord
        coords[self.plan.parts.query_axis], coords[self.plan.parts.key_axis] = i, j
        return coords

    def _score_loop(self, i: Coord, j: Coord, d: Coord) -> list[Coord]:
        """Loop point of Q K^T."""
        loop = self.frame.emitter.index.invert(self.plan.parts.scores.out_map, self._score_coords(i, j))
        for dim in self.plan.parts.scores.k:
            if self.plan.score_sizes[dim] != 1:
                loop[dim] = d
        return loop

    def _value_loop(self, i: Coord, j: Coord, d: Coord) -> list[Coord]:
        """Loop point of P V."""
        generic = self.plan.parts.values.generic
        loop = self.frame.emitter.index.invert(generic.maps[self.plan.parts.weights], self._score_coords(i, j))
        for dim in self.plan.value_dims:
            if self.plan.value_sizes[dim] != 1:
                loop[dim] = d
        return loop

    def _strided(
        self,
        contraction: Contraction,
        operand: int,
        loop: Sequence[Coord],
        row_dims: Sequence[int],
        k_dims: Sequence[int],
        sizes: Sequence[Expr],
    ) -> Strided:
        """An operand read in place: its address at `loop`, and the strides of its row and k dims."""
        ev, b = self.frame.emitter, self.frame.b
        generic = contraction.generic
        forms: list[LinearExpr] = [{e.position: 1} if isinstance(e, ir.AffineDimExpr) else {} for e in generic.maps[operand].results]
        source = trace_to_buffer(generic.inputs[operand], forms)
        assert source is not None, "the pass that forms attention keeps K and V as plain rearrangements"
        buffer = ev.buffers[source[0]]
        offset: Coord = b.index(0)
        strides: dict[int, Expr] = {}
        for form, stride in zip(source[1], buffer.strides, strict=True):
            for dim, coefficient in (form or {}).items():
                offset = ev.index.add(offset, ev.index.scale(loop[dim], sympy.expand(stride * coefficient)))
                strides[dim] = sympy.expand(strides.get(dim, 0) + stride * coefficient)
        row = sum((strides.get(d, sympy.Integer(0)) for d in row_dims if sizes[d] != 1), sympy.Integer(0))
        k = sum((strides.get(d, sympy.Integer(0)) for d in k_dims if sizes[d] != 1), sympy.Integer(0))
        return Strided(b.address(buffer.pointer, offset, b.f32), ev.sizes(row), ev.sizes(k))

    def _extend(
        self, name: str, contraction: Contraction, operand: int, extent: Expr, count: Value, point: Callable[[Value, Coord], list[Coord]]
    ) -> None:
        """A block of bfloat16 K or V into scratch as float32, [j][d]; `point`: the contraction's loop point of j and d."""
        b, ev, generic = self.frame.b, self.frame.emitter, contraction.generic
        target = Buffer(self._at(name), b.f32, (), (sympy.S.One,))
        with b.loop(b.index(0), count, b.index(1)) as rows, ev.scope():
            start = b.mul(rows.iv, ev.sizes(extent))

            def copy(d: Value) -> None:
                coords = ev.index.apply(generic.maps[operand], point(rows.iv, Lane(d)))
                ev.memory.store(b.splat(ev.value(generic.inputs[operand], coords)), target, [Lane(b.add(start, d))])

            self._over_lanes(extent, copy)

    def _over_lanes(self, extent: Expr, body: Callable[[Value], None]) -> None:
        """body(first element) for each vector of an extent, the last one under a mask."""
        b, ev = self.frame.b, self.frame.emitter
        high, step = ev.sizes(extent), b.index(b.lanes)
        whole = b.mul(b.div(high, step), step)
        with b.loop(b.index(0), whole, step) as loop, ev.scope():
            body(loop.iv)
        if not (extent.is_Integer and int(extent) % b.lanes == 0):
            with b.loop(whole, high, step) as loop, ev.scope(), ev.memory.masked(b.tail_mask(b.sub(high, loop.iv))):
                body(loop.iv)

    # -- steps
    def _load_queries(self) -> None:
        """Q^T of the block into scratch, [d][i]: as many queries as there are lanes at a time, the last one again behind the end."""
        b, ev, lanes = self.frame.b, self.frame.emitter, self.plan.shape.lanes
        generic, query = self.plan.parts.scores.generic, self.plan.parts.query
        last = b.sub(self.queries.count, b.index(1))

        def row_at(i: Value, d: Value) -> Value:
            point = self._score_loop(b.add(self.queries.first, b.minimum(i, last)), b.index(0), Lane(d))
            return b.splat(ev.value(generic.inputs[query], ev.index.apply(generic.maps[query], point)))

        with b.loop(b.index(0), self.queries.count, b.index(lanes)) as rows, ev.scope():

            def transpose_block(d: Value) -> None:
                loaded = [row_at(b.add(rows.iv, b.index(i)), d) for i in range(lanes)]
                for k, vector in enumerate(transpose(b, loaded)):
                    at = b.add(b.mul(b.add(d, b.index(k)), b.index(self.plan.block_rows)), rows.iv)
                    b.store(vector, b.address(self._at("query"), at, b.f32), 4 * lanes)

            self._over_lanes(self.plan.depth, transpose_block)

    def _vectors(self) -> range:
        return range(self.plan.shape.vectors)

    def _slot(self, name: str, row: Value | None, vector: int) -> Value:
        b = self.frame.b
        offset = b.index(vector * self.plan.shape.lanes)
        return b.address(self._at(name), offset if row is None else b.add(b.mul(row, b.index(self.plan.block_rows)), offset), b.f32)

    def _get(self, name: str, row: Value | None, vector: int) -> Value:
        return self.frame.b.load(self._slot(name, row, vector), self.frame.b.vec(self.frame.b.f32), self.plan.shape.lanes * 4)

    def _put(self, value: Value, name: str, row: Value | None, vector: int) -> None:
        self.frame.b.store(value, self._slot(name, row, vector), self.plan.shape.lanes * 4)

    def _start(self) -> None:
        b = self.frame.b
        for v in self._vectors():
            self._put(b.splat_constant(b.f32, LOWEST), "max", None, v)
            self._put(b.splat_constant(b.f32, 0.0), "sum", None, v)
        with b.loop(b.index(0), self.frame.emitter.sizes(self.plan.width), b.index(1)) as loop:
            for v in self._vectors():
                self._put(b.splat_constant(b.f32, 0.0), "output", loop.iv, v)

    def _keys(self, first: Value, count: Value) -> None:
        """One block of keys: scores, running maximum and sum, then the weighted values."""
        self._scores(first, count)
        self._rescale(self._logits(first, count))
        self._exponentials(count)
        self._weigh(first, count)

    def _scores(self, first: Value, count: Value) -> None:
        b, ev, scores = self.frame.b, self.frame.emitter, self.plan.parts.scores
        key = 1 - self.plan.parts.query
        key_dims = scores.n if self.plan.parts.query == 0 else scores.m
        if self.plan.wide_keys:
            self._extend("keys", scores, key, self.plan.depth, count, lambda j, d: self._score_loop(b.index(0), b.add(first, j), d))
        panel = Panel(self._at("query"), b.index(self.plan.block_rows), self.plan.shape.lanes * 4)

        def block(row: Value, part: TileShape) -> None:
            with ev.scope():
                loop = self._score_loop(b.index(0), b.add(first, row), b.index(0))
                if self.plan.wide_keys:
                    depth = ev.sizes(self.plan.depth)
                    keys = Strided(b.address(self._at("keys"), b.mul(row, depth), b.f32), depth, b.index(1))
                else:
                    keys = self._strided(scores, key, loop, key_dims, scores.k, self.plan.score_sizes)
                made = accumulate(b, part, keys, panel, ev.sizes(self.plan.depth), zeros(b, part))
                store_tile(b, part, made, self._slot("scores", row, 0), self.plan.block_rows)

        for_row_blocks(b, b.index(0), count, row_tiles(self.plan.shape, self.plan.block_rows), block)

    def _logits(self, first: Value, count: Value) -> list[Value]:
        """What the softmax reads, in place of the raw scores; the block's maximum of each row."""
        b, ev = self.frame.b, self.frame.emitter
        root = self.plan.parts.scores.generic.op.results[0]
        start = [b.splat_constant(b.f32, LOWEST) for _ in self._vectors()]
        with b.loop(b.index(0), count, b.index(1), start) as loop, ev.scope():
            made: list[Value] = []
            for v in self._vectors():
                i = b.add(self.queries.first, b.index(v * self.plan.shape.lanes))
                score = self._get("scores", loop.iv, v)
                mask = b.tail_mask(b.sub(self.queries.count, b.index(v * self.plan.shape.lanes)))
                with ev.memory.masked(mask), ev.scope(), ev.binding(root, as_=score):
                    logit = b.splat(ev.value(self.plan.parts.logits, self._score_coords(Lane(i), b.add(first, loop.iv))))
                self._put(logit, "scores", loop.iv, v)
                made.append(self._larger(logit, loop.args[v]))
            loop.yield_(made)
        return loop.results

    def _larger(self, a: Value, b: Value) -> Value:
        """a > b ? a : b, one instruction where arith.maximumf is five; a NaN is left to the exponentials, which all see it."""
        builder = self.frame.b
        greater = builder.op("arith.cmpf", [a, b], builder.vec(builder.i1), predicate=ir.IntegerAttr.get(builder.i64, 2))
        return builder.select(greater, a, b)

    def _rescale(self, block_max: Sequence[Value]) -> None:
        """The new maximum, and the factor exp(old - new) for what was summed under the old one."""
        b = self.frame.b
        for v in self._vectors():
            old = self._get("max", None, v)
            new = self._larger(block_max[v], old)
            scale = b.op("math.exp", [b.binary("arith.subf", old, new)], b.vec(b.f32))
            self._put(new, "max", None, v)
            self._put(scale, "scale", None, v)
            self._put(b.binary("arith.mulf", self._get("sum", None, v), scale), "sum", None, v)

    def _exponentials(self, count: Value) -> None:
        b = self.frame.b
        highest = [self._get("max", None, v) for v in self._vectors()]
        before = [self._get("sum", None, v) for v in self._vectors()]
        start = [b.splat_constant(b.f32, 0.0) for _ in before] if self.plan.is_long else before
        with b.loop(b.index(0), count, b.index(1), start) as loop:
            made = []
            for v in self._vectors():
                weight = b.op("math.exp", [b.binary("arith.subf", self._get("scores", loop.iv, v), highest[v])], b.vec(b.f32))
                self._put(weight, "scores", loop.iv, v)
                made.append(b.binary("arith.addf", loop.args[v], weight))
            loop.yield_(made)
        for v in self._vectors():
            self._put(b.binary("arith.addf", before[v], loop.results[v]) if self.plan.is_long else loop.results[v], "sum", None, v)

    def _weigh(self, first: Value, count: Value) -> None:
        b, ev, values = self.frame.b, self.frame.emitter, self.plan.parts.values
        panel = Panel(self._at("scores"), b.index(self.plan.block_rows), self.plan.shape.lanes * 4)
        scale = [self._get("scale", None, v) for v in self._vectors()]
        if self.plan.wide_values:
            operand = 1 - self.plan.parts.weights
            self._extend("values", values, operand, self.plan.width, count, lambda j, d: self._value_loop(b.index(0), b.add(first, j), d))

        def block(row: Value, part: TileShape) -> None:
            with ev.scope():
                loop = self._value_loop(b.index(0), first, row)
                if self.plan.wide_values:
                    source = Strided(b.address(self._at("values"), row, b.f32), b.index(1), ev.sizes(self.plan.width))
                else:
                    source = self._strided(values, 1 - self.plan.parts.weights, loop, self.plan.value_dims, values.k, self.plan.value_sizes)
                places = [(b.add(row, b.index(r)), v) for r in range(part.rows) for v in self._vectors()]
                if self.plan.is_long:
                    sums = accumulate(b, part, source, panel, count, zeros(b, part))
                    made = [b.fma(self._get("output", r, v), scale[v], total) for (r, v), total in zip(places, sums, strict=True)]
                else:
                    start = [b.binary("arith.mulf", self._get("output", r, v), scale[v]) for r, v in places]
                    made = accumulate(b, part, source, panel, count, start)
                store_tile(b, part, made, self._slot("output", row, 0), self.plan.block_rows)

        for_row_blocks(b, b.index(0), ev.sizes(self.plan.width), row_tiles(self.plan.shape, self.plan.block_rows), block)

    def _factors(self) -> list[Value]:
        """1 / the sum of each row: one division instead of one for each element, at half a unit in the last place more."""
        b = self.frame.b
        totals = [self._get("sum", None, v) for v in self._vectors()]
        if self.plan.parts.floored or not self.plan.num_keys.is_positive:  # no key at all is a row of zeros too
            totals = [b.binary("arith.maximumf", total, b.splat_constant(b.f32, 1.0)) for total in totals]
        return [b.binary("arith.divf", b.splat_constant(b.f32, 1.0), total) for total in totals]

    def _finish(self) -> None:
        """Divide by the sums, transpose from [d][i] to [i][d], and write rows: lanes change from queries to the head's width."""
        b, ev, lanes = self.frame.b, self.frame.emitter, self.plan.shape.lanes
        factors = self._factors()
        size = ceil_div(self.plan.width, lanes) * lanes
        width = ev.sizes(size)

        def place(row: Value, column: Value) -> Value:
            return b.address(self._at("rows"), b.add(b.mul(row, width), column), b.f32)

        with b.loop(b.index(0), width, b.index(lanes)) as loop:
            for v in self._vectors():
                columns = [self._get("output", b.add(loop.iv, b.index(d)), v) for d in range(lanes)]
                for i, row in enumerate(transpose(b, [b.binary("arith.mulf", each, factors[v]) for each in columns])):
                    b.store(row, place(b.index(v * lanes + i), loop.iv), 4 * lanes)
        self._write(lambda row, column: b.load(place(row, column), b.vec(b.f32), 4 * lanes))

    def _write(self, value_at: Callable[[Value, Value], Value]) -> None:
        """The results, through what follows P V. `value_at`: a vector of it from a row of the block and its first column."""
        b, ev = self.frame.b, self.frame.emitter
        with b.loop(b.index(0), self.queries.count, b.index(1)) as rows, ev.scope():
            self._over_lanes(self.plan.width, lambda column: self._write_vector(rows.iv, column, value_at(rows.iv, column)))

    def _write_vector(self, row: Value, column: Value, total: Value) -> None:
        b, ev, values = self.frame.b, self.frame.emitter, self.plan.parts.values
        root = values.generic.op.results[0]
        loop = self._value_loop(b.add(self.queries.first, row), b.index(0), Lane(column))
        coords = ev.index.apply(values.out_map, loop)
        with ev.binding(root, as_=total):
            for value, buffer in zip(self.plan.dispatch.results, self.frame.outputs, strict=True):
                at = ev.result_coords(value, root, coords)
                ev.memory.store(ev.value(value, at), buffer, at)
