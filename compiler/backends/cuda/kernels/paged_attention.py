"""Attention over a paged cache: a block of threads takes a token and query heads that read one key-value head.

Each warp goes over every so many-th block of the request's cache, a lane having two positions of it for the scores and two columns at a
time for the values, with a streaming softmax of its own; the warps' maxima, sums and outputs are combined at the end, in order. Which warp
takes which block follows from positions alone, and positions that a token doesn't attend to add exactly nothing. So a token's bits follow
from its request alone: not from what else is in the step, nor from how the prompt was split.

Maximum and sum: "Online normalizer calculation for softmax" (Milakov and Gimelshein, 2018). Parts that are combined: "Flash-Decoding for
long-context inference" (Dao et al., 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import sympy

from llmos.compiler.analysis.paged_attention import BLOCK_SIZE, SCALE_BYTES, PagedAttention
from llmos.compiler.backends.cuda.kernel import WARP, BlockFrame, Grid, kernel
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import product, split_index
from llmos.compiler.codegen.paged_attention_shape import LOWEST, PagedAttentionShape
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

WARPS = 8  # of a block of threads
PAIR = 2  # positions, or columns, that a lane reads at a time
KEY_ROWS = WARP * PAIR // BLOCK_SIZE  # rows of keys that a warp reads at a time
MAX_SUMS = 64  # of the output that a lane holds
FAR = 2**40  # a position that no cache has
ORDERED_GREATER = 2  # as arith.cmpf numbers it


def emit_paged_attention(module: ir.Module, dispatch: Dispatch) -> Grid:
    """Append the kernel of a `paged_attention` dispatch."""
    plan = PagedAttentionPlan(dispatch)
    with kernel(module, dispatch, WARPS * WARP) as frame:
        token, head, chunk = split_index(frame.b, frame.emitter.sizes, frame.block, plan.grid)
        _BlockEmitter(plan, frame, token, head, chunk).emit()
    return Grid(num_tiles=product(plan.grid), threads=WARPS * WARP, scratch_bytes=sympy.Integer(4 * plan.offsets["end"]))


@dataclass(frozen=True)
class PagedAttentionPlan(PagedAttentionShape):
    """What is known of a dispatch before anything is emitted."""

    @property
    def column_pairs(self) -> int:
        """Return how many pairs of columns a lane has."""
        return -(-self.parameters.layout.padded // (WARP * PAIR))

    @cached_property
    def rows(self) -> int:
        """Return the query heads of a block of threads: as many of a group as its lanes have registers for."""
        most = max(1, MAX_SUMS // (PAIR * self.column_pairs))
        return max(rows for rows in range(1, self.parameters.group + 1) if self.parameters.group % rows == 0 and rows <= most)

    @property
    def grid(self) -> list[Expr]:
        """Return the extents of the grid: tokens, key-value heads, parts of a group."""
        return [self.size("query", 0), self.size("cache", 1), sympy.Integer(self.parameters.group // self.rows)]

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Return where each part of the shared memory begins and, as "end", where all end, in float32."""
        rows, padded = self.rows, self.parameters.layout.padded
        sizes = {"query": rows * self.parameters.head_dim, "weights": WARPS * rows * BLOCK_SIZE, "output": WARPS * rows * padded}
        sizes |= dict.fromkeys(("highest", "sums"), WARPS * rows)
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += -(-size // 4) * 4  # parts begin at 16 bytes
        return {**offsets, "end": end}


@dataclass
class _Row:
    """What a lane holds of a query head: the maximum so far, the sum of its own weights, and its columns of the output."""

    highest: Value
    total: Value
    output: list[Value]

    @property
    def values(self) -> list[Value]:
        return [self.highest, self.total, *self.output]

    @classmethod
    def of(cls, values: Sequence[Value]) -> _Row:
        return cls(values[0], values[1], list(values[2:]))


@dataclass(frozen=True)
class _BlockEmitter:
    """Emits what one thread does. token, head: of keys and values; chunk: the part of its query heads."""

    plan: PagedAttentionPlan
    frame: BlockFrame
    token: Value
    head: Value
    chunk: Value

    @property
    def b(self) -> Builder:
        return self.frame.b

    @property
    def parameters(self) -> PagedAttention:
        return self.plan.parameters

    def emit(self) -> None:
        """Read the queries, go over the blocks of the cache, combine what the warps found, write the rows."""
        b, plan, ev = self.b, self.plan, self.frame.emitter
        self._load_queries()
        request = self._checked(self._integer("token_requests", self.token), plan.size("block_tables", 0))
        position = self._integer("positions", self.token)
        position = b.select(b.compare("sge", position, b.index(0)), position, b.index(FAR))  # a negative one is an error too
        behind = b.binary("arith.maxsi", b.sub(position, b.index(self.parameters.window - 1)), b.index(0))
        size, warp = b.index(BLOCK_SIZE), b.div(self.frame.thread, b.index(WARP))
        first = b.div(behind, size) if self.parameters.window else b.index(0)
        last = self._checked(b.div(position, size), plan.size("block_tables", 1))
        self.frame.barrier()
        start = [value for _ in range(plan.rows) for value in self._empty_row().values]
        with b.loop(b.add(first, warp), b.add(last, b.index(1)), b.index(WARPS), start) as loop, ev.scope():
            step = len(loop.args) // plan.rows
            rows = [_Row.of(loop.args[at : at + step]) for at in range(0, len(loop.args), step)]
            made = _CacheBlock.of(self, warp, request, loop.iv, position).attend(rows)
            loop.yield_([value for row in made for value in row.values])
        rows = [_Row.of(loop.results[at : at + step]) for at in range(0, len(loop.results), step)]
        self._share(warp, rows)
        self.frame.barrier()
        self._finish()

    def _empty_row(self) -> _Row:
        b = self.b
        return _Row(b.const(b.f32, LOWEST), b.const(b.f32, 0.0), [b.const(b.f32, 0.0)] * (PAIR * self.plan.column_pairs))

    def _integer(self, name: str, *at: Value) -> Value:
        """An element of an operand of integers, as i64."""
        b = self.b
        return b.op("arith.extsi", [self.frame.emitter.value(self.plan.operand(name), list(at))], b.i64)

    def block_of(self, request: Value, number: Value) -> Value:
        """Emit the place in the cache of a block of a request."""
        return self._checked(self._integer("block_tables", request, number), self.plan.size("cache", 0))

    def _checked(self, index: Value, size: Expr) -> Value:
        return self.frame.emitter.guards.checked(index, size)[0]

    @property
    def lane(self) -> Value:
        """Emit the number of the thread in its warp."""
        return self.b.rem(self.frame.thread, self.b.index(WARP))

    def shared(self, name: str, at: Value) -> Value:
        """Emit the address of a float32 of a part of the shared memory."""
        b = self.b
        return b.address(self.frame.shared, b.add(b.index(self.plan.offsets[name]), at), b.f32)

    def _query_head(self, row: Value) -> Value:
        b = self.b
        return b.add(b.mul(self.head, b.index(self.parameters.group)), b.add(b.mul(self.chunk, b.index(self.plan.rows)), row))

    def _load_queries(self) -> None:
        """Scaled queries into shared memory."""
        b, ev, size = self.b, self.frame.emitter, self.b.index(self.parameters.head_dim)
        count = b.index(self.plan.rows * self.parameters.head_dim)
        with b.loop(self.frame.thread, count, b.index(WARPS * WARP)) as loop, ev.scope():
            at = [self.token, self._query_head(b.div(loop.iv, size)), b.rem(loop.iv, size)]
            scaled = b.binary("arith.mulf", ev.value(self.plan.operand("query"), at), b.const(b.f32, self.parameters.scale))
            b.store(scaled, self.shared("query", loop.iv), 4)

    def column(self, pair: int) -> Value:
        """Emit the first of a lane's columns: neighbors, which lanes have in order."""
        return self.b.add(self.b.mul(self.lane, self.b.index(PAIR)), self.b.index(pair * WARP * PAIR))

    def _share(self, warp: Value, rows: Sequence[_Row]) -> None:
        """What a warp found, into shared memory."""
        b, padded = self.b, self.parameters.layout.padded
        for number, row in enumerate(rows):
            place = b.add(b.mul(warp, b.index(self.plan.rows)), b.index(number))
            total = row.total
            for distance in (4, 2, 1):  # lanes that differ in their higher bits have the same positions
                total = b.binary("arith.addf", total, self.frame.exchange(total, distance))
            with b.when(b.compare("eq", self.lane, b.index(0))):
                b.store(row.highest, self.shared("highest", place), 4)
                b.store(total, self.shared("sums", place), 4)
            for pair in range(self.plan.column_pairs):
                column = self.column(pair)
                with b.when(b.compare("slt", column, b.index(padded))):
                    for i in range(PAIR):
                        at = b.add(b.mul(place, b.index(padded)), b.add(column, b.index(i)))
                        b.store(row.output[pair * PAIR + i], self.shared("output", at), 4)

    def _finish(self) -> None:
        """Combine the warps in order, divide by the sums and write the rows."""
        b, ev, plan, size = self.b, self.frame.emitter, self.plan, self.b.index(self.parameters.head_dim)
        count = b.index(plan.rows * self.parameters.head_dim)
        root = plan.op.results[0]
        with b.loop(self.frame.thread, count, b.index(WARPS * WARP)) as loop, ev.scope():
            row, column = b.div(loop.iv, size), b.rem(loop.iv, size)
            head = self._query_head(row)
            made = self._combined(row, column, head)
            with ev.binding(root, as_=made):
                for value, buffer in zip(plan.dispatch.results, self.frame.outputs, strict=True):
                    coords = ev.result_coords(value, root, [self.token, head, column])
                    ev.memory.store(ev.value(value, coords), buffer, coords)

    def _combined(self, row: Value, column: Value, head: Value) -> Value:
        b, padded = self.b, self.b.index(self.parameters.layout.padded)
        places = [b.add(b.index(warp * self.plan.rows), row) for warp in range(WARPS)]
        each = [b.load(self.shared("highest", place), b.f32, 4) for place in places]
        sink = self.frame.emitter.value(self.plan.operand("sinks"), [head]) if self.plan.has_sinks else None
        highest = each[0]
        for other in [*each[1:], *([] if sink is None else [sink])]:
            highest = self.larger(other, highest)
        total = b.const(b.f32, 0.0) if sink is None else self.exp_of_difference(sink, highest)
        output = b.const(b.f32, 0.0)
        for place, own in zip(places, each, strict=True):
            kept = self.exp_of_difference(own, highest)
            total = b.fma(kept, b.load(self.shared("sums", place), b.f32, 4), total)
            output = b.fma(kept, b.load(self.shared("output", b.add(b.mul(place, padded), column)), b.f32, 4), output)
        return b.binary("arith.divf", output, total)

    def larger(self, x: Value, y: Value) -> Value:
        """Emit x if it is larger than y, else y."""
        b = self.b
        above = b.op("arith.cmpf", [x, y], b.i1, predicate=ir.IntegerAttr.get(b.i64, ORDERED_GREATER))
        return b.select(above, x, y)

    def exp_of_difference(self, x: Value, y: Value) -> Value:
        """Emit exp(x - y)."""
        return self.b.op("math.exp", [self.b.binary("arith.subf", x, y)], self.b.f32)


@dataclass(frozen=True)
class _CacheBlock:
    """One block of the cache, of one warp: positions from `start` on, of which the token attends to some."""

    owner: _BlockEmitter
    warp: Value
    keys: Value  # address of the block's first element
    kind: ir.Type  # of cached elements, bfloat16 as its bits
    ahead: Value  # start - the token's position

    @classmethod
    def of(cls, owner: _BlockEmitter, warp: Value, request: Value, number: Value, position: Value) -> _CacheBlock:
        """The block of a number in the request's table."""
        b, ev = owner.b, owner.frame.emitter
        cache = ev.buffers[owner.plan.operand("cache")]
        flat = b.add(b.mul(owner.block_of(request, number), ev.sizes(owner.plan.size("cache", 1))), owner.head)
        kind = ir.IntegerType.get_signless(16) if isinstance(cache.kind, ir.BF16Type) else cache.kind
        keys = b.address(cache.pointer, b.mul(flat, b.index(owner.parameters.layout.num_elements)), kind)
        return cls(owner, warp, keys, kind, b.sub(b.mul(number, b.index(BLOCK_SIZE)), position))

    @property
    def b(self) -> Builder:
        return self.owner.b

    def attend(self, rows: Sequence[_Row]) -> list[_Row]:
        """Emit the scores with the block's keys, and the weighted values onto the rescaled output."""
        owner = self.owner
        weighed = [self._weigh(number, row, scores) for number, (row, scores) in enumerate(zip(rows, self._scores(), strict=True))]
        owner.frame.warp_barrier()  # the weights are in shared memory
        outputs = [row.output for row in weighed]
        for pair in range(owner.plan.column_pairs):
            sums = self._add_values(pair, [output[pair * PAIR : (pair + 1) * PAIR] for output in outputs])
            for output, made in zip(outputs, sums, strict=True):
                output[pair * PAIR : (pair + 1) * PAIR] = made
        owner.frame.warp_barrier()  # and have been read
        return [_Row(row.highest, row.total, output) for row, output in zip(weighed, outputs, strict=True)]

    def _pair(self, offset: Value) -> list[Value]:
        """Two neighbors of the block as float32, from an offset in elements."""
        b = self.b
        address = b.address(self.keys, offset, self.kind)
        if self.kind == b.f32:
            return self._split(b.load(address, b.vec(b.f32, PAIR), 8), b.f32)
        if self.owner.parameters.has_scales:
            return [b.op("arith.sitofp", [each], b.f32) for each in self._split(b.load(address, b.vec(self.kind, PAIR), 2), self.kind)]
        return self._bfloat16(address)

    def _bfloat16(self, address: Value) -> list[Value]:
        """Two numbers of bfloat16 as float32: a word of their bits."""
        b = self.b
        word = b.load(address, b.i32, 4)
        halves = (b.binary("arith.shli", word, b.const(b.i32, 16)), b.binary("arith.andi", word, b.const(b.i32, -(1 << 16))))
        return [b.op("arith.bitcast", [half], b.f32) for half in halves]

    def _split(self, pair: Value, kind: ir.Type) -> list[Value]:
        return [self.b.op("vector.extract", [pair], kind, static_position=ir.DenseI64ArrayAttr.get([i])) for i in range(PAIR)]

    @property
    def _first_position(self) -> Value:
        """The first of a lane's positions in the block."""
        b = self.b
        return b.mul(b.rem(self.owner.lane, b.index(BLOCK_SIZE // PAIR)), b.index(PAIR))

    def _scores(self) -> list[list[Value]]:
        """Scores of each row with the lane's positions, masked; each lane sums some elements of the key, which are then exchanged."""
        b, owner, p = self.b, self.owner, self.owner.parameters
        rows, first = owner.plan.rows, b.div(owner.lane, b.index(BLOCK_SIZE // PAIR))
        start = [b.const(b.f32, 0.0)] * (rows * PAIR)
        with b.loop(first, b.index(p.head_dim), b.index(KEY_ROWS), start) as loop:
            key = self._pair(b.add(b.mul(loop.iv, b.index(BLOCK_SIZE)), self._first_position))
            made = []
            for row in range(rows):
                query = b.load(owner.shared("query", b.add(b.index(row * p.head_dim), loop.iv)), b.f32, 4)
                made += [b.fma(query, key[i], loop.args[row * PAIR + i]) for i in range(PAIR)]
            loop.yield_(made)
        sums = loop.results
        for distance in (BLOCK_SIZE // PAIR, BLOCK_SIZE):
            sums = [b.binary("arith.addf", each, owner.frame.exchange(each, distance)) for each in sums]
        return [
            [self._masked(i, self._capped(score)) for i, score in enumerate(self._scaled(0, sums[at : at + PAIR]))]
            for at in range(0, len(sums), PAIR)
        ]

    def _scaled(self, which: int, pair: Sequence[Value]) -> list[Value]:
        """Numbers of the lane's positions times the scales of their keys (0) or values (1), where there are any."""
        b, layout = self.b, self.owner.parameters.layout
        if not layout.has_scales:
            return list(pair)
        at = b.add(b.index(layout.scales + which * BLOCK_SIZE * SCALE_BYTES), b.mul(self._first_position, b.index(SCALE_BYTES)))
        scales = self._bfloat16(b.address(self.keys, at, self.kind))
        return [b.binary("arith.mulf", each, scale) for each, scale in zip(pair, scales, strict=True)]

    def _capped(self, score: Value) -> Value:
        b, cap = self.b, self.owner.parameters.softcap
        if not cap:
            return score
        bounded = b.op("math.tanh", [b.binary("arith.mulf", score, b.const(b.f32, 1 / cap))], b.f32)
        return b.binary("arith.mulf", bounded, b.const(b.f32, cap))

    def _attends(self, place: Value) -> Value:
        """Whether the token attends to a place in the block: at its position or before, and inside of its window."""
        b, window = self.b, self.owner.parameters.window
        distance = b.add(self.ahead, place)
        attends = b.compare("sle", distance, b.index(0))
        return b.binary("arith.andi", attends, b.compare("sgt", distance, b.index(-window))) if window else attends

    def _masked(self, i: int, score: Value) -> Value:
        b = self.b
        return b.select(self._attends(b.add(self._first_position, b.index(i))), score, b.const(b.f32, float("-inf")))

    def _weigh(self, number: int, row: _Row, scores: Sequence[Value]) -> _Row:
        """The new maximum and sum, the output rescaled; exp(score - maximum), times the values' scales, to shared memory."""
        b, owner = self.b, self.owner
        block = owner.larger(scores[1], scores[0])
        for distance in (4, 2, 1):
            block = owner.larger(owner.frame.exchange(block, distance), block)
        highest = owner.larger(block, row.highest)
        kept = owner.exp_of_difference(row.highest, highest)
        weights = [owner.exp_of_difference(score, highest) for score in scores]
        total = b.binary("arith.addf", b.binary("arith.mulf", row.total, kept), b.binary("arith.addf", *weights))
        place = self._weights(number)
        with b.when(b.compare("slt", owner.lane, b.index(BLOCK_SIZE // PAIR))):
            for i, weight in enumerate(self._scaled(1, weights)):
                attended = b.select(self._attends(b.add(self._first_position, b.index(i))), weight, b.const(b.f32, 0.0))  # any scale there
                b.store(attended, owner.shared("weights", b.add(place, b.add(self._first_position, b.index(i)))), 4)
        return _Row(highest, total, [b.binary("arith.mulf", each, kept) for each in row.output])

    def _weights(self, row: int) -> Value:
        """Where the weights of a row of this warp begin."""
        b = self.b
        return b.mul(b.add(b.mul(self.warp, b.index(self.owner.plan.rows)), b.index(row)), b.index(BLOCK_SIZE))

    def _add_values(self, pair: int, sums: list[list[Value]]) -> list[list[Value]]:
        """Weighted values of two columns onto the output of each row. What a place holds that isn't attended to, perhaps nothing yet,
        counts as 0."""
        b, owner, layout = self.b, self.owner, self.owner.parameters.layout
        column = b.minimum(owner.column(pair), b.index(layout.padded - PAIR))
        zero = b.const(b.f32, 0.0)
        for place in range(BLOCK_SIZE):
            attends = self._attends(b.index(place))
            read = self._pair(b.add(b.index(layout.values + place * layout.padded), column))
            value = [b.select(attends, each, zero) for each in read]
            for row, old in enumerate(sums):
                weight = b.load(owner.shared("weights", b.add(self._weights(row), b.index(place))), b.f32, 4)
                sums[row] = [b.fma(weight, each, total) for each, total in zip(value, old, strict=True)]
        return sums
