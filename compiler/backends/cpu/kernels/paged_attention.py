"""Attention over a paged cache: a tile is a few tokens of one key-value head, with all query heads that read it.

Tokens of a tile that belong to one request go over the blocks of its cache together, SPAN of them at a time: a row is a token and a query
head. Scores of a row with the BLOCK_SIZE keys of a block are one vector, so keys and values are read as whole vectors where they lie, and
the softmax keeps a vector of sums that is reduced once, at the end. A span is processed in the same way for every row and every number of
rows, it begins at a multiple of SPAN blocks, and positions that a row doesn't attend to add exactly nothing. So a token's bits follow from
its request alone: not from what else is in the step, nor from how the prompt was split. Maximum and sum: "Online normalizer calculation
for softmax" (Milakov and Gimelshein, 2018).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sympy

from llmos.compiler.analysis.paged_attention import BLOCK_SIZE, LANES, SCALE_BYTES, PagedAttention
from llmos.compiler.backends.cpu.arithmetic.register_tile import TileShape, for_row_blocks
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.coordinates import Lane
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Frame, Launch, ceil_div, kernel, product, split_index
from llmos.compiler.codegen.paged_attention_shape import LOWEST, PagedAttentionShape
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr
from llmos.runtime.native.abi import INDEX_OUT_OF_RANGE

MIN_ROWS = 16  # of a tile, if there are as many tokens
SPAN = 4  # blocks that share a maximum, and one rescaling of what was summed before


def emit_paged_attention(module: ir.Module, dispatch: Dispatch, target: CpuTarget) -> Launch:
    """Append the kernel of a `paged_attention` dispatch."""
    plan = PagedAttentionPlan(dispatch, 16 if target.vector_bits >= 512 else 4)
    with kernel(module, dispatch, LANES) as frame, frame.tiles() as tile:
        _Tile.of(plan, frame, tile).emit()
    return plan.launch


@dataclass(frozen=True)
class PagedAttentionPlan(PagedAttentionShape):
    """What is known of a dispatch before anything is emitted. tile_rows: of a register tile with one vector of columns."""

    tile_rows: int

    @property
    def tokens_of_tile(self) -> int:
        """Return the most tokens of a tile."""
        return max(1, MIN_ROWS // self.parameters.group)

    @property
    def max_rows(self) -> int:
        """Return the rows of scratch: those of a tile, in whole vectors."""
        return -(-self.tokens_of_tile * self.parameters.group // LANES) * LANES

    @property
    def grid(self) -> list[Expr]:
        """Return the extents of the grid: groups of tokens, key-value heads."""
        return [ceil_div(self.size("query", 0), self.tokens_of_tile), self.size("cache", 1)]

    @property
    def row_tiles(self) -> list[TileShape]:
        """Return register tiles for blocks of rows, the largest first."""
        return [TileShape(rows, 1, LANES) for rows in (16, 8, 4, 2, 1) if rows <= self.tile_rows]

    @functools.cached_property
    def offsets(self) -> dict[str, int]:
        """Return where each part of the scratch begins and, as "end", where all end, in elements of 32 bits."""
        rows, padded = self.max_rows, self.parameters.layout.padded
        sizes = {"query": rows * padded, "output": rows * padded, "weights": rows * SPAN * LANES, "sums": rows * LANES}
        sizes |= dict.fromkeys(("highest", "block_highest", "kept", "positions"), rows)
        sizes["bases"] = 2 * SPAN  # addresses of the blocks of a span
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += size
        return {**offsets, "end": end}

    @property
    def launch(self) -> Launch:
        """Return the number of tiles, and the scratch of one."""
        return Launch(sympy.expand(product(self.grid)), sympy.Integer(self.offsets["end"] * 4))


@dataclass(frozen=True)
class _Tile:
    """A group of tokens and a key-value head: token numbers [first, first + count)."""

    plan: PagedAttentionPlan
    frame: Frame
    first: Value
    count: Value
    head: Value

    @classmethod
    def of(cls, plan: PagedAttentionPlan, frame: Frame, tile: Value) -> _Tile:
        b, sizes = frame.b, frame.emitter.sizes
        group, head = split_index(b, sizes, tile, plan.grid)
        first = b.mul(group, b.index(plan.tokens_of_tile))
        return cls(plan, frame, first, b.minimum(b.index(plan.tokens_of_tile), b.sub(sizes(plan.size("query", 0)), first)), head)

    def emit(self) -> None:
        """Emit one run for each stretch of tokens of one request."""
        b = self.frame.b
        with b.loop(b.index(0), self.count, b.index(1)) as loop, self.frame.emitter.scope():
            request = self._request(loop.iv)
            before = self._request(self._larger(b.sub(loop.iv, b.index(1)), b.index(0)))
            is_first = b.binary("arith.ori", b.compare("eq", loop.iv, b.index(0)), b.compare("ne", request, before))
            with b.when(is_first), self.frame.emitter.scope():
                _Run(self, b.add(self.first, loop.iv), self._length(loop.iv, request), self._checked(request)).emit()

    def _request(self, token: Value) -> Value:
        return self.integer("token_requests", self.frame.b.add(self.first, token))

    def integer(self, name: str, *at: Value) -> Value:
        """Emit an element of an operand of integers, as i64."""
        b = self.frame.b
        return b.op("arith.extsi", [self.frame.emitter.value(self.plan.operand(name), list(at))], b.i64)

    def _length(self, start: Value, request: Value) -> Value:
        """How many tokens from `start` on belong to the request."""
        b = self.frame.b
        one = b.index(1)
        with b.loop(b.add(start, one), self.count, one, [one, one]) as loop, self.frame.emitter.scope():
            same = b.op("arith.extui", [b.compare("eq", self._request(loop.iv), request)], b.i64)
            going = b.binary("arith.andi", loop.args[1], same)
            loop.yield_([b.add(loop.args[0], going), going])
        return loop.results[0]

    def _checked(self, request: Value) -> Value:
        return self.checked(request, self.plan.size("block_tables", 0))

    def checked(self, index: Value, size: Expr) -> Value:
        """Emit an index that is safe to use; an error of the call where it is outside [0, size)."""
        b = self.frame.b
        inside = b.compare("ult", index, self.frame.emitter.sizes(size))
        with b.when(b.binary("arith.xori", inside, b.const(b.i1, 1))):
            b.store(b.const(b.i32, INDEX_OUT_OF_RANGE), self.frame.emitter.guards.error, 4)
        return b.select(inside, index, b.index(0))

    def _larger(self, x: Value, y: Value) -> Value:
        return self.frame.b.binary("arith.maxsi", x, y)


@dataclass(frozen=True)
class _Run:
    """Tokens [first, first + count) of one request: count * group rows, the heads of a token together."""

    tile: _Tile
    first: Value
    count: Value
    request: Value

    @property
    def b(self) -> Builder:
        return self.tile.frame.b

    @property
    def parameters(self) -> PagedAttention:
        return self.tile.plan.parameters

    @functools.cached_property
    def num_rows(self) -> Value:
        return self.b.mul(self.count, self.b.index(self.parameters.group))

    @functools.cached_property
    def whole_rows(self) -> Value:
        """The rows in whole vectors of rows."""
        b = self.b
        return b.mul(b.div(b.add(self.num_rows, b.index(LANES - 1)), b.index(LANES)), b.index(LANES))

    def emit(self) -> None:
        """Read the queries, go over the blocks of the cache, write the rows."""
        b, frame = self.b, self.tile.frame
        reach = self._load()
        self._start()
        size, span = b.index(BLOCK_SIZE), b.index(SPAN)
        first = b.div(reach.low, size)
        end = b.add(self.tile.checked(b.div(reach.high, size), self.tile.plan.size("block_tables", 1)), b.index(1))
        with b.loop(b.mul(b.div(first, span), span), end, span) as loop, frame.emitter.scope():
            begin = b.binary("arith.maxsi", loop.iv, first)
            _Span(self, reach, loop.iv, begin, b.minimum(b.add(loop.iv, span), end)).emit()
        self._finish()

    # -- scratch
    def at(self, name: str, row: Value | None = None, width: int = 1, column: Value | None = None) -> Value:
        """Emit the address of an element of the scratch: row by row, `width` elements each."""
        b = self.b
        offset = b.index(self.tile.plan.offsets[name])
        if row is not None:
            offset = b.add(offset, b.mul(row, b.index(width)))
        return b.address(self.tile.frame.scratch, offset if column is None else b.add(offset, column), b.f32)

    def vector(self, address: Value, align: int = 64) -> Value:
        """Emit the load of a vector of float32."""
        return self.b.load(address, self.b.vec(self.b.f32), align)

    def each_row(self, body: Callable[[Value], None]) -> None:
        """Emit body(row) in a loop."""
        b = self.b
        with b.loop(b.index(0), self.num_rows, b.index(1)) as loop, self.tile.frame.emitter.scope():
            body(loop.iv)

    # -- steps
    def _load(self) -> _Reach:
        """Scaled queries and positions into scratch."""
        b, p, ev = self.b, self.parameters, self.tile.frame.emitter
        query, padded = self.tile.plan.operand("query"), p.layout.padded
        scale, group = b.splat_constant(b.f32, p.scale), b.index(p.group)

        start = [b.index(2**62), b.index(0), b.index(2**62)]
        with b.loop(b.index(0), self.count, b.index(1), start) as tokens, ev.scope():
            token = b.add(self.first, tokens.iv)
            position = self.tile.integer("positions", token)
            position = b.select(b.compare("sge", position, b.index(0)), position, b.index(2**40))  # a negative one is an error too
            narrow = b.op("arith.trunci", [b.minimum(position, b.index(2**31 - 1))], b.i32)
            with b.loop(b.index(0), group, b.index(1)) as heads, ev.scope():
                row = b.add(b.mul(tokens.iv, group), heads.iv)
                b.store(narrow, self.at("positions", row), 4)
                head = b.add(b.mul(self.tile.head, group), heads.iv)
                for column in range(0, padded, LANES):
                    mask = b.tail_mask(b.index(p.head_dim - column)) if p.head_dim - column < LANES else None
                    with ev.memory.masked(mask), ev.scope():
                        value = b.splat(ev.value(query, [token, head, Lane(b.index(column))]))
                    b.store(b.binary("arith.mulf", value, scale), self.at("query", row, padded, b.index(column)), 64)
            behind = b.binary("arith.maxsi", b.sub(position, b.index(p.window - 1)), b.index(0)) if p.window else b.index(0)
            low, high, nearest = tokens.args
            tokens.yield_([b.minimum(low, behind), b.binary("arith.maxsi", high, position), b.minimum(nearest, position)])
        return _Reach(*tokens.results)

    def _start(self) -> None:
        """Clear the running maxima and sums, and the output."""
        b, padded = self.b, self.parameters.layout.padded
        zero = b.splat_constant(b.f32, 0.0)
        with b.loop(b.index(0), self.whole_rows, b.index(LANES)) as loop:
            b.store(b.splat_constant(b.f32, LOWEST), self.at("highest", loop.iv), 64)
            b.store(b.splat_constant(b.f32, LOWEST), self.at("block_highest", loop.iv), 64)  # of rows that there are not

        def clear(row: Value) -> None:
            b.store(zero, self.at("sums", row, LANES), 64)
            for column in range(0, padded, LANES):
                b.store(zero, self.at("output", row, padded, b.index(column)), 64)

        self.each_row(clear)

    def _finish(self) -> None:
        """Divide by the sums and write the rows."""
        b, p, ev, plan = self.b, self.parameters, self.tile.frame.emitter, self.tile.plan
        group, padded = b.index(p.group), p.layout.padded
        root = plan.op.results[0]

        def write(row: Value) -> None:
            token = b.add(self.first, b.div(row, group))
            head = b.add(b.mul(self.tile.head, group), b.rem(row, group))
            total = self.fold(functools.partial(b.binary, "arith.addf"), self.vector(self.at("sums", row, LANES)))
            kept, total = self._with_sink(row, head, b.splat(total))
            factor = b.binary("arith.divf", b.splat_constant(b.f32, 1.0) if kept is None else kept, total)
            for column in range(0, padded, LANES):
                at = [token, head, Lane(b.index(column))]
                output = self.vector(self.at("output", row, padded, b.index(column)))
                made = b.binary("arith.mulf", output, factor)
                mask = b.tail_mask(b.index(p.head_dim - column)) if p.head_dim - column < LANES else None
                with ev.memory.masked(mask), ev.scope(), ev.binding(root, as_=made):
                    for value, buffer in zip(plan.dispatch.results, self.tile.frame.outputs, strict=True):
                        coords = ev.result_coords(value, root, at)
                        ev.memory.store(ev.value(value, coords), buffer, coords)

        self.each_row(write)

    def _with_sink(self, row: Value, head: Value, total: Value) -> tuple[Value | None, Value]:
        """The factor for a row's output, None for 1, and what it is divided by; the same number on all lanes."""
        b = self.b
        if not self.tile.plan.has_sinks:
            return None, total
        sink = b.splat(self.tile.frame.emitter.value(self.tile.plan.operand("sinks"), [head]))
        highest = b.splat(b.load(self.at("highest", row), b.f32, 4))
        new = self.larger(sink, highest)
        kept, own = (b.op("math.exp", [b.binary("arith.subf", each, new)], new.type) for each in (highest, sink))
        return kept, b.binary("arith.addf", b.binary("arith.mulf", total, kept), own)

    def multiply(self, sums: Sequence[Value], scalars: Sequence[Value], vector: Value) -> list[Value]:
        """Emit the addition of a vector times a number of each row to the sums of each row."""
        return [self.b.fma(self.b.splat(scalar), vector, total) for scalar, total in zip(scalars, sums, strict=True)]

    def larger(self, x: Value, y: Value) -> Value:
        """Emit the larger of two numbers or vectors; y where x is NaN."""
        kind = self.b.vec(self.b.i1, x.type.shape[0]) if isinstance(x.type, ir.VectorType) else self.b.i1
        return self.b.select(self.b.op("arith.cmpf", [x, y], kind, predicate=ir.IntegerAttr.get(self.b.i64, 2)), x, y)

    def fold(self, combine: Callable[[Value, Value], Value], value: Value) -> Value:
        """Emit the elements of a vector combined, in one order on every target: halves with each other until one element is left."""
        b, lanes = self.b, LANES
        while lanes > 1:
            lanes //= 2
            value = combine(*(self._part(value, start, lanes) for start in (0, lanes)))
        return b.op("vector.extract", [value], b.f32, static_position=ir.DenseI64ArrayAttr.get([0]))

    def _part(self, value: Value, start: int, lanes: int) -> Value:
        i64 = ir.IntegerType.get_signless(64)
        one = [ir.ArrayAttr.get([ir.IntegerAttr.get(i64, number)]) for number in (start, lanes, 1)]
        return self.b.op(
            "vector.extract_strided_slice", [value], self.b.vec(self.b.f32, lanes), offsets=one[0], sizes=one[1], strides=one[2]
        )


@dataclass(frozen=True)
class _Reach:
    """Positions of a run: the lowest and the highest that a row attends to, and the highest to which all rows attend but for a window."""

    low: Value
    high: Value
    nearest: Value


@dataclass(frozen=True)
class _Span:
    """Blocks [begin, end) of the run's request, those of [first, first + SPAN) that its rows attend to."""

    run: _Run
    reach: _Reach
    first: Value
    begin: Value
    end: Value

    @property
    def b(self) -> Builder:
        return self.run.b

    def emit(self) -> None:
        """Emit scores, maxima, weights, weighted values."""
        b, run, tiles = self.b, self.run, self.run.tile.plan.row_tiles

        def scores(block: Value) -> None:
            found = self._find(block)
            for_row_blocks(b, b.index(0), run.num_rows, tiles, found.scores)

        self._each_block(scores)
        visible = self._is_visible()
        with b.when(visible):
            run.each_row(lambda row: self._maximum(row, masked=False))
        with b.when(b.binary("arith.xori", visible, b.const(b.i1, 1))):
            run.each_row(lambda row: self._maximum(row, masked=True))
        self._rescale()
        run.each_row(self._weigh)
        for_row_blocks(b, b.index(0), run.num_rows, tiles, self._add_values)

    def _each_block(self, body: Callable[[Value], None]) -> None:
        """Emit body(block) in a loop; block: its number in the request's table."""
        b = self.b
        with b.loop(self.begin, self.end, b.index(1)) as loop, self.run.tile.frame.emitter.scope():
            body(loop.iv)

    def _base(self, block: Value) -> Value:
        """Where the address of a block is kept."""
        b = self.b
        return b.address(self.run.at("bases"), b.sub(block, self.first), b.i64)

    def _find(self, block: Value) -> _Block:
        """Look a block up in the request's table, and keep its address."""
        run = self.run
        b, plan, ev = run.b, run.tile.plan, run.tile.frame.emitter
        cache = ev.buffers[plan.operand("cache")]
        number = run.tile.checked(run.tile.integer("block_tables", run.request, block), plan.size("cache", 0))
        flat = b.add(b.mul(number, ev.sizes(plan.size("cache", 1))), run.tile.head)
        keys = b.address(cache.pointer, b.mul(flat, b.index(run.parameters.layout.num_elements)), self._kind)
        b.store(keys, self._base(block), 8)
        return _Block(run, keys, self._kind, self._weights_of(block))

    def _block(self, block: Value) -> _Block:
        """A block that was found before."""
        b = self.b
        return _Block(self.run, b.load(self._base(block), b.ptr, 8), self._kind, self._weights_of(block))

    @property
    def _kind(self) -> ir.Type:
        """Type of cached elements; integers for bfloat16."""
        kind = self.run.tile.frame.emitter.buffers[self.run.tile.plan.operand("cache")].kind
        return ir.IntegerType.get_signless(16) if isinstance(kind, ir.BF16Type) else kind

    def _weights_of(self, block: Value) -> Value:
        """First column of a block's weights within those of a row."""
        b = self.b
        return b.mul(b.sub(block, self.first), b.index(LANES))

    def _is_visible(self) -> Value:
        """Whether every row attends to all positions of the blocks."""
        b, size, window = self.b, self.b.index(BLOCK_SIZE), self.run.parameters.window
        behind = b.compare("sle", b.mul(self.end, size), self.reach.nearest)
        if not window:
            return behind
        return b.binary("arith.andi", behind, b.compare("sgt", b.mul(self.begin, size), b.sub(self.reach.high, b.index(window))))

    def _maximum(self, row: Value, *, masked: bool) -> None:
        """The highest score of a row, which is masked in place first where not every row attends to everything."""
        b, run = self.b, self.run
        lowest = b.splat_constant(b.f32, float("-inf"))
        with b.loop(self.begin, self.end, b.index(1), [lowest]) as loop, run.tile.frame.emitter.scope():
            at = run.at("weights", row, SPAN * LANES, self._weights_of(loop.iv))
            score = run.vector(at)
            if masked:
                score = self._masked(row, b.mul(loop.iv, b.index(BLOCK_SIZE)), score)
                b.store(score, at, 64)
            loop.yield_([run.larger(score, loop.args[0])])
        b.store(run.fold(run.larger, loop.results[0]), run.at("block_highest", row), 4)

    def _masked(self, row: Value, start: Value, score: Value) -> Value:
        """-inf where the row's token doesn't attend: behind its position, or before its window. start: position of the first score."""
        b, window = self.b, self.run.parameters.window
        position = b.op("arith.extsi", [b.load(self.run.at("positions", row), b.i32, 4)], b.i64)
        ahead = b.binary("arith.addi", b.iota(), b.splat(b.sub(start, position)))  # distance from the token, 0 or less
        attends = b.compare("sle", ahead, b.index(0))
        if window:
            attends = b.binary("arith.andi", attends, b.compare("sgt", ahead, b.index(-window)))
        return b.select(attends, score, b.splat_constant(b.f32, float("-inf")))

    def _rescale(self) -> None:
        """New maxima, and the factors exp(old - new) for what was summed under the old ones, LANES rows at once."""
        b, run = self.b, self.run
        with b.loop(b.index(0), run.whole_rows, b.index(LANES)) as loop:
            old, highest = (run.vector(run.at(name, loop.iv)) for name in ("highest", "block_highest"))
            new = run.larger(highest, old)
            b.store(b.op("math.exp", [b.binary("arith.subf", old, new)], new.type), run.at("kept", loop.iv), 64)
            b.store(new, run.at("highest", loop.iv), 64)

    def _weigh(self, row: Value) -> None:
        """exp(score - maximum), times the values' scales, in place of the scores, and the sums of exp(score - maximum)."""
        b, run = self.b, self.run
        highest, kept = (b.splat(b.load(run.at(name, row), b.f32, 4)) for name in ("highest", "kept"))
        sums = run.at("sums", row, LANES)
        before = b.binary("arith.mulf", run.vector(sums), kept)
        with b.loop(self.begin, self.end, b.index(1), [before]) as loop, run.tile.frame.emitter.scope():
            block = self._block(loop.iv)
            weights = run.at("weights", row, SPAN * LANES, block.weights)
            weight = b.op("math.exp", [b.binary("arith.subf", run.vector(weights), highest)], b.vec(b.f32))
            b.store(block.scaled(1, weight), weights, 64)
            loop.yield_([b.binary("arith.addf", loop.args[0], weight)])
        b.store(loop.results[0], sums, 64)

    def _add_values(self, row: Value, shape: TileShape) -> None:
        """Weighted values onto the rescaled output of some rows."""
        b, run, layout = self.b, self.run, self.run.parameters.layout
        rows = [b.add(row, b.index(r)) for r in range(shape.rows)]
        kept = [b.splat(b.load(run.at("kept", each), b.f32, 4)) for each in rows]
        with b.loop(b.index(0), b.index(layout.padded), b.index(LANES)) as columns:
            outputs = [run.at("output", each, layout.padded, columns.iv) for each in rows]
            start = [b.binary("arith.mulf", run.vector(output), factor) for output, factor in zip(outputs, kept, strict=True)]
            first = b.add(columns.iv, b.index(layout.values))
            with b.loop(self.begin, self.end, b.index(1), start) as blocks, run.tile.frame.emitter.scope():
                block = self._block(blocks.iv)
                weights = [run.at("weights", each, SPAN * LANES, block.weights) for each in rows]
                position = b.mul(blocks.iv, b.index(BLOCK_SIZE))
                count = b.minimum(b.index(BLOCK_SIZE), b.sub(b.add(self.reach.high, b.index(1)), position))
                with b.loop(b.index(0), count, b.index(1), blocks.args) as loop:
                    scalars = [b.load(b.address(weight, loop.iv, b.f32), b.f32, 4) for weight in weights]
                    value = block.read(b.add(first, b.mul(loop.iv, b.index(layout.padded))))
                    loop.yield_(run.multiply(loop.args, scalars, value))
                blocks.yield_(loop.results)
            for output, made in zip(outputs, blocks.results, strict=True):
                b.store(made, output, 64)


@dataclass(frozen=True)
class _Block:
    """One block of the cache. weights: first column of its scores, and then weights, within those of a row."""

    run: _Run
    keys: Value  # address of the block's first element
    kind: ir.Type  # of cached elements
    weights: Value

    @property
    def b(self) -> Builder:
        return self.run.b

    def read(self, offset: Value) -> Value:
        """Emit LANES elements of the block as float32, from an offset in elements."""
        b = self.b
        address = b.address(self.keys, offset, self.kind)
        if self.kind == b.f32:
            return b.load(address, b.vec(b.f32), 4)
        if self.run.parameters.has_scales:
            wide = b.op("arith.extsi", [b.load(address, b.vec(self.kind), 1)], b.vec(b.i32))
            return b.op("arith.sitofp", [wide], b.vec(b.f32))
        return self._bfloat16(address)

    def _bfloat16(self, address: Value) -> Value:
        """LANES numbers of bfloat16 as float32."""
        b = self.b
        half = ir.IntegerType.get_signless(16)
        bits = b.op("arith.extui", [b.load(address, b.vec(half), 2)], b.vec(b.i32))
        return b.op("arith.bitcast", [b.binary("arith.shli", bits, b.splat_constant(b.i32, 16))], b.vec(b.f32))

    def scaled(self, kind: int, vector: Value) -> Value:
        """Emit a vector over the block's positions times the scales of their keys (0) or values (1), where there are any.

        So the products run on the integers, and neither keys nor values are multiplied.
        """
        b, layout = self.b, self.run.parameters.layout
        if not layout.has_scales:
            return vector
        address = b.address(self.keys, b.index(layout.scales + kind * BLOCK_SIZE * SCALE_BYTES), self.kind)
        return b.binary("arith.mulf", vector, self._bfloat16(address))

    def scores(self, row: Value, shape: TileShape) -> None:
        """Emit scores of some rows with the keys."""
        b, run, p = self.b, self.run, self.run.parameters
        rows = [b.add(row, b.index(r)) for r in range(shape.rows)]
        queries = [run.at("query", each, p.layout.padded) for each in rows]
        with b.loop(b.index(0), b.index(p.head_dim), b.index(1), [b.splat_constant(b.f32, 0.0)] * shape.rows) as loop:
            scalars = [b.load(b.address(query, loop.iv, b.f32), b.f32, 4) for query in queries]
            loop.yield_(run.multiply(loop.args, scalars, self.read(b.mul(loop.iv, b.index(BLOCK_SIZE)))))
        for each, score in zip(rows, loop.results, strict=True):
            b.store(self._capped(self.scaled(0, score)), run.at("weights", each, SPAN * LANES, self.weights), 64)

    def _capped(self, score: Value) -> Value:
        b, cap = self.b, self.run.parameters.softcap
        if not cap:
            return score
        bounded = b.op("math.tanh", [b.binary("arith.mulf", score, b.splat_constant(b.f32, 1 / cap))], score.type)
        return b.binary("arith.mulf", bounded, b.splat_constant(b.f32, cap))
