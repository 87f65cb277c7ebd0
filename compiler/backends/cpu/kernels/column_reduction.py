"""Reductions whose lanes run along the output: depthwise convolutions, pools, sums down columns.

Several vectors of channels at several neighboring pixels are accumulated at once, so that neither the latency of an addition nor address
arithmetic limits. A short window is unrolled. Where it slides over padding, pixels whose window lies inside read the source where it is;
at the edges the window is cut to what is inside, which is exact as the padding is what the reduction starts from. Each lane reduces by
itself, over the window in order, whatever its block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

import sympy

from llmos.compiler.analysis.generic import Generic, depends_on, dim_positions, is_fill, is_identity
from llmos.compiler.backends.cpu.arithmetic.register_tile import TileShape
from llmos.compiler.backends.cpu.kernels.padding import PaddedAxis, Padding, padding_of
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import LANES, Frame, Launch, ceil_div, kernel, product, split_index
from llmos.compiler.codegen.sums import block_level, loop_over_blocks, summed, with_rests
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

UNROLLED = 32  # taps at most that are written out
WRITTEN_ENDS = 4  # pixels at most at the ends of a row that are written out, each with its own part of a window
CHUNK_VECTORS = 16  # vectors of one tile along the lanes
CHUNK_PIXELS = 64  # pixels of one tile where nothing else splits the work


@dataclass(frozen=True)
class Columns:
    """One reduction at the root of an elementwise dispatch: its loop dims by their role."""

    dispatch: Dispatch
    root: Generic
    outer: tuple[int, ...]  # parallel dims before the pixels
    pixel: int | None  # the parallel dim before the lanes, where windows overlap along it
    lane: int

    @cached_property
    def sizes(self) -> tuple[Expr, ...]:
        """Return the extents of the reduction's loops."""
        return self.root.loop_sizes(self.dispatch.shapes)

    @property
    def taps(self) -> Expr:
        """Return how many elements one result is reduced from."""
        return product([self.sizes[d] for d in self.root.reduction_dims])


def columns_in(dispatch: Dispatch) -> Columns | None:
    """The reduction that an elementwise dispatch is made of, if its lanes are its result's last dim and all results lie as that does."""
    generics = [Generic(op) for op in dispatch.ops if op.name == "linalg.generic" and not is_fill(op)]
    reducing = [g for g in generics if g.reduction_dims]
    if len(reducing) != 1:
        return None
    root = reducing[0]
    if not all(any(_lies_as(value, result) for result in root.op.results) for value in dispatch.results):
        return None
    sizes = root.loop_sizes(dispatch.shapes)
    positions = dim_positions(root.maps[root.num_inputs])
    dims = [p for p in positions if p is not None and sizes[p] != 1]
    if not dims or dims[-1] != positions[-1]:
        return None
    slides = any(isinstance(e, ir.AffineAddExpr) for affine in root.maps for e in affine.results)
    pixel = dims[-2] if len(dims) > 1 and slides else None
    return Columns(dispatch, root, tuple(dims[: -1 if pixel is None else -2]), pixel, dims[-1])


def _lies_as(value: Value, root: Value) -> bool:
    """Whether a result of a dispatch is read off from the root point by point."""
    if value == root:
        return True
    if isinstance(value.owner, ir.Block) or value.owner.name != "linalg.generic":
        return False
    generic = Generic(value.owner.operation)
    inside = [(v, a) for v, a in zip(generic.inputs, generic.maps, strict=False) if depends_on(v, root)]
    return (
        generic.is_elementwise
        and bool(inside)
        and is_identity(generic.output_map(value))
        and all(is_identity(a) and _lies_as(v, root) for v, a in inside)
    )


@dataclass(frozen=True)
class _Window:
    """For some reduction dims the range that is walked: numbers, or values of the kernel. All of the others is."""

    known: dict[int, range]
    ranges: dict[int, tuple[Value, Value]]


WHOLE = _Window({}, {})


@dataclass(frozen=True)
class _Block:
    """Lanes [low, high) that are taken together: `vectors` at each of `together` pixels, or `alone` at one."""

    low: Value
    high: Value
    vectors: int
    together: int
    alone: int


class ColumnsEmitter:
    """Emits one dispatch, or the part of one that such a reduction is."""

    def __init__(self, plan: Columns, shape: TileShape) -> None:
        self.plan, self.sizes = plan, plan.sizes
        self.padding = padding_of(plan.dispatch, plan.root, plan.lane)
        self.blocks = block_level(plan.dispatch.table, [self.sizes[d] for d in plan.root.reduction_dims])
        self.registers = 8 * LANES if shape.lanes >= 16 else 4 * LANES  # lanes in all that are accumulated at once

    def emit(self, module: ir.Module) -> Launch:
        """Append the kernel: a tile is a chunk of pixels by a chunk of lanes, at a point of the outer dims."""
        plan = self.plan
        outer = [self.sizes[d] for d in plan.outer]
        width = self.sizes[plan.pixel] if plan.pixel is not None else sympy.S.One
        with kernel(module, plan.dispatch) as frame, frame.tiles() as tile:
            b, size = frame.b, frame.emitter.sizes
            chunk_lanes = CHUNK_VECTORS * b.lanes
            step = sympy.Integer(CHUNK_PIXELS) if len(plan.outer) < 2 and plan.pixel is not None else width
            pixel_chunks = sympy.floor((width + CHUNK_PIXELS - 1) / CHUNK_PIXELS) if step != width else sympy.S.One
            chunks = ceil_div(self.sizes[plan.lane], chunk_lanes)
            *at, pixels, lanes = split_index(b, size, tile, [*outer, pixel_chunks, chunks])
            first, low = b.mul(pixels, size(step)), b.mul(lanes, b.index(chunk_lanes))
            last = b.minimum(b.add(first, size(step)), size(width))
            self.pixels(frame, at, (first, last) if step != width else None, low, chunk_lanes)
        return Launch(sympy.expand(product(outer) * pixel_chunks * chunks))

    # -- which points
    def pixels(self, frame: Frame, outer: Sequence[Coord], pixels: tuple[Value, Value] | None, low: Value, count: int) -> None:
        """Pixels [first, last), or all of a row of pixels.

        `outer`: coordinates of the outer dims; `low`: the first of up to `count` lanes, a multiple of `count`, itself one of a vector.
        """
        point = dict(zip(self.plan.outer, outer, strict=True))
        accumulators = min(8, self.registers // frame.b.lanes)
        _PixelsEmitter(self.plan, self.padding, self.blocks, frame, point, accumulators).emit(pixels, low, count)


@dataclass(frozen=True)
class _PixelsEmitter:
    """Emits some pixels. `blocks`: `block_level` of the sums; `point`: coordinates of the outer dims; `accumulators`: vectors at once."""

    plan: Columns
    padding: Padding | None
    blocks: tuple[int, int] | None
    frame: Frame
    point: dict[int, Coord]
    accumulators: int

    @property
    def root(self) -> Generic:
        return self.plan.root

    @property
    def sizes(self) -> tuple[Expr, ...]:
        return self.plan.sizes

    def emit(self, pixels: tuple[Value, Value] | None, low: Value, count: int) -> None:
        """As `ColumnsEmitter.pixels`."""
        b, ev = self.frame.b, self.frame.emitter
        high = b.minimum(b.add(low, b.index(count)), ev.sizes(self.sizes[self.plan.lane]))
        vectors = self._vectors(self.accumulators if self.plan.pixel is None else self.accumulators // 4, count)
        together = 1 if self.plan.pixel is None else self.accumulators // vectors
        block = _Block(low, high, vectors, together, self._vectors(max(vectors, self.accumulators // 2), count))
        with self._reading_source():
            inside = self._rows_inside()
            if inside is None:
                self._row(pixels, block, WHOLE)
                return
            with b.when(inside), ev.scope():
                self._row(pixels, block, WHOLE)
            with b.when(b.binary("arith.xori", inside, b.const(b.i1, 1))), ev.scope():
                self._row(pixels, block, _Window({}, {axis.tap: self._taps_inside(axis) for axis in self._axes(along=False)}))

    def _row(self, pixels: tuple[Value, Value] | None, block: _Block, window: _Window) -> None:
        """Pixels whose windows are inside along the row by blocks, then one by one; those at its ends with their windows cut."""
        b, ev = self.frame.b, self.frame.emitter
        width = self.sizes[self.plan.pixel] if self.plan.pixel is not None else sympy.S.One
        first, last = pixels or (b.index(0), ev.sizes(width))
        inside, outside = self._inside(first, last)
        step = b.index(block.together)
        whole = b.add(inside, b.mul(b.div(b.sub(outside, inside), step), step)) if block.together > 1 else inside
        if block.together > 1:
            with b.loop(inside, whole, step) as loop, ev.scope():
                self._lanes(block, block.vectors, [b.add(loop.iv, b.index(i)) for i in range(block.together)], window)
        with b.loop(whole, outside, b.index(1)) as loop, ev.scope():
            self._lanes(block, block.alone, [loop.iv], window)
        for axis in self._axes(along=True):
            if pixels is None and (ends := _ends(axis, width)) is not None:
                for pixel in ends:
                    with ev.scope():
                        self._lanes(block, block.alone, [b.index(pixel)], _Window({axis.tap: axis.known_taps_inside(pixel)}, window.ranges))
                continue
            with b.loop(first, b.sub(last, b.sub(outside, inside)), b.index(1)) as loop, ev.scope():
                before = b.compare("slt", loop.iv, inside)
                pixel = b.select(before, loop.iv, b.add(loop.iv, b.sub(outside, inside)))
                cut = {axis.tap: axis.taps_inside(b, ev.sizes, pixel)}
                self._lanes(block, block.alone, [pixel], _Window({}, {**window.ranges, **cut}))

    def _axes(self, along: bool) -> list[PaddedAxis]:
        """Padded axes that the pixels of a row move along, at most one; or the others."""
        axes = self.padding.axes if self.padding is not None else ()
        return [axis for axis in axes if (axis.out == self.plan.pixel) == along]

    def _vectors(self, most: int, count: int) -> int:
        """Vectors side by side: about `most`, no more than there are, and a divisor of those of `count` lanes."""
        size = self.sizes[self.plan.lane]
        lanes: int = self.frame.b.lanes
        whole: int = next(v for v in (most, most + 1, *range(most, 0, -1)) if count // lanes % v == 0)
        return min(whole, max(-(-int(size) // lanes), 1)) if size.is_Integer else whole

    def _inside(self, first: Value, last: Value) -> tuple[Value, Value]:
        """The pixels of [first, last) whose window meets no padding along their row."""
        b, size, low, high = self.frame.b, self.frame.emitter.sizes, first, last
        for axis in self._axes(along=True):
            begin, end = (size(bound) for bound in axis.whole_windows)
            low = b.minimum(b.binary("arith.maxsi", low, begin), last)
            high = b.binary("arith.maxsi", b.minimum(high, end), low)
        return low, high

    def _rows_inside(self) -> Value | None:
        """Whether windows meet no padding along the other axes; None where those have none."""
        b, size = self.frame.b, self.frame.emitter.sizes
        inside: Value | None = None
        for axis in self._axes(along=False):
            begin, end = (size(bound) for bound in axis.whole_windows)
            coord = self.point.get(axis.out, b.index(0))
            for condition in (b.compare("sge", coord, begin), b.compare("slt", coord, end)):
                inside = condition if inside is None else b.binary("arith.andi", inside, condition)
        return inside

    def _taps_inside(self, axis: PaddedAxis) -> tuple[Value, Value]:
        b = self.frame.b
        return axis.taps_inside(b, self.frame.emitter.sizes, self.point.get(axis.out, b.index(0)))

    @contextmanager
    def _reading_source(self) -> Iterator[None]:
        """What is padded is read past its padding: only points inside are asked for."""
        if self.padding is None:
            yield
            return
        padding, ev = self.padding, self.frame.emitter
        with ev.binding(padding.value, as_=lambda coords: ev.value(padding.source, padding.shifted(ev.index, coords))):
            yield

    # -- blocks of lanes
    def _lanes(self, block: _Block, vectors: int, pixels: Sequence[Value], window: _Window) -> None:
        """The lanes of a block at some pixels, `vectors` at a time, the last ones under a mask."""
        b, ev, size, low, high = self.frame.b, self.frame.emitter, self.sizes[self.plan.lane], block.low, block.high
        step = vectors * b.lanes
        whole = b.add(low, b.mul(b.div(b.sub(high, low), b.index(step)), b.index(step)))
        with b.loop(low, whole, b.index(step)) as loop, ev.scope():
            self._block(loop.iv, vectors, pixels, window, None)
        if size.is_Integer and int(size) % step == 0:
            return
        if not size.is_Integer:
            with b.loop(whole, high, b.index(b.lanes)) as loop, ev.scope():
                self._block(loop.iv, 1, pixels, window, b.tail_mask(b.sub(high, loop.iv)))
            return
        rest = int(size) % step
        with b.loop(whole, high, b.index(step)) as loop, ev.scope():
            mask = b.tail_mask(b.index(rest % b.lanes)) if rest % b.lanes else None
            self._block(loop.iv, -(-rest // b.lanes), pixels, window, mask)

    def _block(self, lane: Value, vectors: int, pixels: Sequence[Value], window: _Window, last_mask: Value | None) -> None:
        """A block of accumulators through the window, then through the epilogue to memory."""
        b, ev = self.frame.b, self.frame.emitter
        points: list[tuple[dict[int, Coord], Value | None]] = []
        for v, pixel in itertools.product(range(vectors), pixels):
            point = {**self.point, self.plan.lane: Lane(b.add(lane, b.index(v * b.lanes)))}
            if self.plan.pixel is not None:
                point[self.plan.pixel] = pixel
            points.append((point, last_mask if v == vectors - 1 else None))
        starts = [self._start(point, mask) for point, mask in points]
        carried = [ev.carried(v) for start in starts for v in start]
        if self.blocks is not None:
            carried = with_rests(b, carried, summed([self.root]) * len(points))
        ended = self._walk(points, list(self.root.reduction_dims), window, carried)
        count = len(self.root.inits)
        for i, ((point, mask), start) in enumerate(zip(points, starts, strict=True)):
            values = [ev.uncarried(v, s.type) for v, s in zip(ended[i * count : (i + 1) * count], start, strict=True)]
            with ev.memory.masked(mask):
                self._finish(point, values)

    def _loop_point(self, point: dict[int, Coord]) -> list[Coord]:
        return [point.get(dim, self.frame.b.index(0)) for dim in range(self.root.rank)]

    def _start(self, point: dict[int, Coord], mask: Value | None) -> list[Value]:
        ev = self.frame.emitter
        loop = self._loop_point(point)
        with ev.memory.masked(mask):
            maps = self.root.maps[self.root.num_inputs :]
            return [ev.b.splat(ev.value(init, ev.index.apply(affine, loop))) for init, affine in zip(self.root.inits, maps, strict=True)]

    def _walk(
        self, points: Sequence[tuple[dict[int, Coord], Value | None]], dims: list[int], window: _Window, carried: list[Value]
    ) -> list[Value]:
        """The reduction loops, outermost first, over all points of a block at once."""
        b, ev = self.frame.b, self.frame.emitter
        if not dims:
            made: list[Value] = []
            count = len(self.root.inits)
            for i, (point, mask) in enumerate(points):
                with ev.memory.masked(mask):
                    made += ev.accumulate(self.root, self._loop_point(point), carried[i * count : (i + 1) * count])
            return made
        dim, rest = dims[0], dims[1:]

        def at(tap: Value) -> list[tuple[dict[int, Coord], Value | None]]:
            return [({**point, dim: tap}, mask) for point, mask in points]

        if self._is_unrolled(dims, window):
            for tap in window.known.get(dim, range(int(self.sizes[dim]))):
                carried = self._walk(at(b.index(tap)), rest, window, carried)
            return carried

        def run(low: Value, high: Value, values: list[Value]) -> list[Value]:
            with b.loop(low, high, b.index(1), values) as loop, ev.scope():
                loop.yield_(self._walk(at(loop.iv), rest, window, loop.args))
            return loop.results

        low, high = self._range(dim, window)
        if self.blocks is not None and len(dims) == len(self.root.reduction_dims) - self.blocks[0]:
            return loop_over_blocks(b, low, high, self.blocks[1], carried, summed([self.root]) * len(points), run)
        return run(low, high, carried)

    def _range(self, dim: int, window: _Window) -> tuple[Value, Value]:
        """The part of a reduction dim that is walked."""
        b, known = self.frame.b, window.known.get(dim)
        every = (b.index(0), self.frame.emitter.sizes(self.sizes[dim]))
        return (b.index(known.start), b.index(known.stop)) if known is not None else window.ranges.get(dim, every)

    def _is_unrolled(self, dims: Sequence[int], window: _Window) -> bool:
        sizes = [self.sizes[d] for d in dims]
        is_known = all(size.is_Integer for size in sizes)  # their product may be without them: 0 times a symbol
        return is_known and int(product(sizes)) <= UNROLLED and not any(d in window.ranges for d in dims)

    def _finish(self, point: dict[int, Coord], values: Sequence[Value]) -> None:
        """The epilogue of one vector, and its stores."""
        ev = self.frame.emitter
        coords = ev.index.apply(self.root.maps[self.root.num_inputs], self._loop_point(point))
        with ExitStack() as bindings:
            for result, value in zip(self.root.op.results, values, strict=True):
                bindings.enter_context(ev.binding(result, as_=value))
            for value, buffer in zip(self.plan.dispatch.results, self.frame.outputs, strict=True):
                ev.memory.store(ev.value(value, coords), buffer, coords)


def _ends(axis: PaddedAxis, width: Expr) -> list[int] | None:
    """Pixels of a row whose windows meet padding, if they are few enough to write out each."""
    begin, end = axis.whole_windows
    if not (axis.is_known and width.is_Integer):
        return None
    low, high = min(int(width), max(0, int(begin))), min(int(width), max(0, int(end)))
    ends = [*range(low), *range(max(low, high), int(width))]
    return ends if len(ends) <= WRITTEN_ENDS else None


def emit_columns(module: ir.Module, plan: Columns, shape: TileShape) -> Launch:
    """Append the kernel of a reduction with its lanes along the output. `shape`: the processor's register tile."""
    return ColumnsEmitter(plan, shape).emit(module)
