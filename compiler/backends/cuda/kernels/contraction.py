"""Contractions on tensor cores, of floats and of bytes: sum over k of a*b with a fused prologue on either side and a fused epilogue.

A block computes a tile of the result. Step by step along k its threads evaluate a part of both sides, whatever these are (a weight, a
transposition, windows of an image, a chain), into shared memory, row by row with k innermost; what the next step needs is asked for
before this one multiplies. Warps then multiply fragments. The sums go through shared memory, so that the epilogue runs over neighbors of a
row, 16 bytes at a time, and is in the code once.

Rows and columns outside of the result are read as its last ones, and not written; k outside counts as 0. Each sum is one chain over k in
order, whatever the other rows are: the same request gives the same bits alone and in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from llmos.compiler.analysis.casts import extended
from llmos.compiler.analysis.generic import LinearExpr, trace_to_buffer
from llmos.compiler.backends.cuda.kernel import WARP, BlockFrame, Grid, is_multiple, kernel
from llmos.compiler.backends.cuda.kernels.elementwise import ACCESS_BYTES, emit_points
from llmos.compiler.backends.cuda.kernels.tensor_core import COLUMNS, ROWS, SUMS, Bf16, Bytes, TensorCore, Tf32x3
from llmos.compiler.codegen.access import group_dims
from llmos.compiler.codegen.builder import Value, byte_width, element_type, is_vector
from llmos.compiler.codegen.contraction_shape import ContractionShape
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import ceil_div, product, split_index
from llmos.compiler.codegen.loop_space import RowPlan, accesses_of, plan_rows
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

SCALAR_DEPTH = 32
LARGE = 1024  # rows and columns from which on a block takes a large tile


@dataclass(frozen=True)
class Tile:
    """What a block computes, and its warps: rows by columns, of which each warp takes a part."""

    rows: int
    columns: int
    warp_rows: int
    warp_columns: int

    @property
    def threads(self) -> int:
        """Return the threads of a block."""
        return self.rows // self.warp_rows * (self.columns // self.warp_columns) * WARP


SMALL_TILE, LARGE_TILE = Tile(64, 64, 32, 32), Tile(128, 128, 64, 32)


def emit_contraction(module: ir.Module, dispatch: Dispatch) -> Grid:
    """Append the kernel of a `contraction` dispatch."""
    plan = CudaContraction.of(dispatch)
    if plan is None:
        return _emit_points(module, dispatch)
    tile, shape = plan.tile, plan.shape
    row_tiles, column_tiles, batch = ceil_div(shape.m, tile.rows), ceil_div(shape.n, tile.columns), product(shape.batch)
    with kernel(module, dispatch, tile.threads) as frame:
        flat, row, column = split_index(frame.b, frame.emitter.sizes, frame.block, [batch, row_tiles, column_tiles])
        _TileEmitter(plan, frame, split_index(frame.b, frame.emitter.sizes, flat, shape.batch), row, column).emit()
    blocks = sympy.expand(batch * row_tiles * column_tiles)
    return Grid(num_tiles=blocks, threads=tile.threads, scratch_bytes=sympy.Integer(plan.shared_bytes))


def _emit_points(module: ir.Module, dispatch: Dispatch) -> Grid:
    """A thread for each element of the results: of types that tensor cores don't take."""
    shape = dispatch.shapes.shape(dispatch.results[0])
    plan = RowPlan(dispatch, len(shape), shape, plan_rows(dispatch).generics)
    return emit_points(module, plan, group_dims(accesses_of(plan), shape, range(len(shape))))


@dataclass(frozen=True)
class Side:
    """One side of the products: rows (of the result, or its columns) by k. value: what is multiplied; affine: by the loop dims.

    row_dims: those of its rows, and rows how many there are; along_k: whether neighbors along k lie together in memory, else those along
    rows do; width: elements that a thread reads at a time.
    """

    value: Value
    affine: ir.AffineMap
    row_dims: tuple[int, ...]
    rows: Expr
    along_k: bool
    width: int


@dataclass(frozen=True)
class CudaContraction:
    """What is known of a contraction before anything is emitted."""

    shape: ContractionShape
    core: TensorCore
    tile: Tile
    left: Side
    right: Side

    @classmethod
    def of(cls, dispatch: Dispatch) -> CudaContraction | None:
        """Return the plan; None for what tensor cores don't multiply."""
        shape = ContractionShape(dispatch)
        root = shape.root
        if not (root.is_bytes or root.types == (ir.F32Type.get(),) * 3) or dispatch.table.bounds(shape.k)[0] < 1:
            return None
        narrow = [extended(value) for value in (root.lhs, root.rhs)]
        core = Bytes() if root.is_bytes else Bf16() if all(value is not None for value in narrow) else Tf32x3()
        values = narrow if isinstance(core, Bf16) else [root.lhs, root.rhs]
        sides = zip(values, (root.lhs_map, root.rhs_map), (root.m, root.n), (shape.m, shape.n), strict=True)
        left, right = (_side(shape, core, value, affine, dims, rows) for value, affine, dims, rows in sides)
        return cls(shape, core, _tile_for(shape), left, right)

    @property
    def depth(self) -> int:
        """Return k of a step: less where threads read element by element, and registers hold what they have read."""
        is_wide = min(self.left.width, self.right.width) > 1
        return self.core.tile_depth if is_wide else min(self.core.tile_depth, SCALAR_DEPTH)

    @property
    def row_bytes(self) -> int:
        """Return the bytes from one row to the next in shared memory."""
        return (self.depth + self.core.padding) * self.core.element_bytes

    @property
    def right_at(self) -> int:
        """Return where the right side begins in shared memory."""
        return self.tile.rows * self.row_bytes

    @property
    def sum_columns(self) -> int:
        """Return the sums from one row of them to the next."""
        return self.tile.columns + SUMS

    @property
    def shared_bytes(self) -> int:
        """Return the shared memory of a block: that of both sides, and then of the sums."""
        return max((self.tile.rows + self.tile.columns) * self.row_bytes, self.tile.rows * self.sum_columns * 4)


def _tile_for(shape: ContractionShape) -> Tile:
    """A large tile reads each side fewer times, where there is enough for many of them."""
    most = [shape.dispatch.table.bounds(size)[1] for size in (shape.m, shape.n)]
    return LARGE_TILE if all(not (size.is_Integer and size < LARGE) for size in most) else SMALL_TILE


def _side(shape: ContractionShape, core: TensorCore, value: Value | None, affine: ir.AffineMap, dims: tuple[int, ...], rows: Expr) -> Side:
    assert value is not None
    most, last = ACCESS_BYTES // core.element_bytes, _innermost(shape, core, value, affine)
    for along_k, its in ((True, shape.root.k), (False, dims)):
        if last is None or not its or last != {its[-1]: 1}:
            continue
        for width in (most, most // 2, most // 4):
            if width > 1 and is_multiple(shape.sizes[its[-1]], width):
                return Side(value, affine, dims, rows, along_k, width)
    return Side(value, affine, dims, rows, True, 1)


def _innermost(shape: ContractionShape, core: TensorCore, value: Value, affine: ir.AffineMap) -> LinearExpr:
    """What moves along the last axis of the memory that a side is read from; None where it isn't read as it lies."""
    source = trace_to_buffer(value, [_form(expr) for expr in affine.results])
    if source is None or byte_width(source[0].type.element_type) != core.element_bytes:
        return None
    axes = zip(reversed(source[1]), reversed(shape.dispatch.shapes.shape(source[0])), strict=True)
    return next((form for form, size in axes if size != 1), None)


def _form(expr: ir.AffineExpr) -> LinearExpr:
    return {expr.position: 1} if isinstance(expr, ir.AffineDimExpr) else {} if isinstance(expr, ir.AffineConstantExpr) else None


@dataclass(frozen=True)
class _TileEmitter:
    """Emits what one thread does for a tile. batch: coordinates of the batch dims; row, column: numbers of the tile."""

    plan: CudaContraction
    frame: BlockFrame
    batch: Sequence[Value]
    row: Value
    column: Value

    def emit(self) -> None:
        b, plan, tile = self.frame.b, self.plan, self.plan.tile
        sides = [
            _SideEmitter(plan, self.frame, plan.left, tile.rows, b.mul(self.row, b.index(tile.rows)), 0, self.batch),
            _SideEmitter(plan, self.frame, plan.right, tile.columns, b.mul(self.column, b.index(tile.columns)), plan.right_at, self.batch),
        ]
        fragments = _Fragments(plan, self.frame)
        zero = b.const(plan.core.total, 0)
        first = [value for side in sides for value in side.read(b.index(0))]
        steps = self.frame.emitter.sizes(ceil_div(plan.shape.k, plan.depth))
        with b.loop(b.index(0), steps, b.index(1), [*first, *[zero] * fragments.num_sums]) as loop, self.frame.emitter.scope():
            read = list(loop.args)
            self.frame.barrier()  # the step before has multiplied
            for side in sides:
                side.write([read.pop(0) for _ in range(side.num_parts)])
            self.frame.barrier()
            next_k = b.mul(b.add(loop.iv, b.index(1)), b.index(plan.depth))
            following = [value for side in sides for value in side.read(next_k)]
            loop.yield_([*following, *fragments.multiply(read)])
        fragments.store(loop.results[len(first) :])
        self._epilogue()

    def _epilogue(self) -> None:
        """Each result of the dispatch, with the sums in the place of the root, by neighbors of a row."""
        b, plan, tile, size = self.frame.b, self.plan, self.plan.tile, self.frame.emitter.sizes
        width = 4 if len(plan.shape.n_groups) == 1 and is_multiple(plan.shape.n, 4) else 1
        per_row, count = b.index(tile.columns // width), b.index(tile.rows * tile.columns // width)
        with b.of_lanes(width), b.loop(self.frame.thread, count, b.index(tile.threads)) as loop, self.frame.emitter.scope():
            at, part = b.div(loop.iv, per_row), b.mul(b.rem(loop.iv, per_row), b.index(width))
            m, n = b.add(b.mul(self.row, b.index(tile.rows)), at), b.add(b.mul(self.column, b.index(tile.columns)), part)
            inside = b.binary("arith.andi", b.compare("slt", m, size(plan.shape.m)), b.compare("slt", n, size(plan.shape.n)))
            with b.when(inside), self.frame.emitter.scope():
                address = b.address(self.frame.shared, b.add(b.mul(at, b.index(plan.sum_columns)), part), b.f32)
                total = plan.core.total
                self._finish(b.load(address, b.vec(total) if width > 1 else total, 4 * width), m, n, width)

    def _finish(self, total: Value, m: Value, n: Value, width: int) -> None:
        b, ev, shape = self.frame.b, self.frame.emitter, self.plan.shape
        point: list[Coord] = [b.index(0)] * shape.generic.rank
        for dim, coord in zip(shape.root.batch, self.batch, strict=True):
            point[dim] = coord
        for groups, flat in ((shape.m_groups, m), (shape.n_groups, n)):
            for group, coord in zip(groups, split_index(b, ev.sizes, flat, [shape.extent(group) for group in groups]), strict=True):
                point[group[-1]] = Lane(coord) if width > 1 and flat is n else coord
        coords = ev.index.apply(shape.root.out_map, point)
        if not shape.starts_at_zero:
            init = ev.value(shape.generic.inits[0], coords)
            add = "arith.addf" if shape.root.is_float else "arith.addi"
            total = b.binary(add, b.splat(init) if width > 1 else init, total)
        with ev.binding(shape.value, as_=total):
            for value, buffer in zip(shape.dispatch.results, self.frame.outputs, strict=True):
                place = ev.result_coords(value, shape.value, coords)
                ev.memory.store(ev.value(value, place), buffer, place)


@dataclass(frozen=True)
class _SideEmitter:
    """Moves one side of a step into shared memory. num_rows: of the tile; first: the first of them; at: bytes where they go."""

    plan: CudaContraction
    frame: BlockFrame
    side: Side
    num_rows: int
    first: Value
    at: int
    batch: Sequence[Value]

    @property
    def num_parts(self) -> int:
        """Return how many parts of `side.width` elements a thread moves in a step."""
        return self.num_rows * self.plan.depth // (self.side.width * self.plan.tile.threads)

    def read(self, k: Value) -> list[Value]:
        """Emit the evaluation of this thread's parts of the step that begins at `k`."""
        with self.frame.b.of_lanes(self.side.width), self.frame.emitter.scope():
            return [self._part(k, *self._place(i)) for i in range(self.num_parts)]

    def write(self, parts: Sequence[Value]) -> None:
        """Emit the stores of what `read` gave."""
        b, plan = self.frame.b, self.plan
        for i, part in enumerate(parts):
            row, depth = self._place(i)
            if self.side.along_k:
                self._store(part, row, depth)
                continue
            for j in range(self.side.width):
                at = ir.DenseI64ArrayAttr.get([j])
                self._store(b.op("vector.extract", [part], plan.core.element(), static_position=at), b.add(row, b.index(j)), depth)

    def _store(self, value: Value, row: Value, depth: Value) -> None:
        b, plan = self.frame.b, self.plan
        offset = b.add(b.mul(row, b.index(plan.row_bytes)), b.mul(depth, b.index(plan.core.element_bytes)))
        lanes = self.side.width if self.side.along_k else 1
        b.store(value, b.address(self.frame.shared_at(self.at), offset, b.i8), plan.core.element_bytes * lanes)

    def _place(self, part: int) -> tuple[Value, Value]:
        """Row and k of a part within the tile. Threads that follow each other read neighbors."""
        b, side = self.frame.b, self.side
        number = b.add(self.frame.thread, b.index(part * self.plan.tile.threads))
        inner = b.index((self.plan.depth if side.along_k else self.num_rows) // side.width)
        outer, along = b.div(number, inner), b.mul(b.rem(number, inner), b.index(side.width))
        return (outer, along) if side.along_k else (along, outer)

    def _part(self, k: Value, row: Value, depth: Value) -> Value:
        b, ev, side, shape = self.frame.b, self.frame.emitter, self.side, self.plan.shape
        along_k = side.width if side.along_k else 1
        m = b.minimum(b.add(self.first, row), b.sub(ev.sizes(side.rows), b.index(side.width // along_k)))
        at = b.add(k, depth)
        inside = b.compare("slt", at, ev.sizes(shape.k))
        at = b.minimum(at, b.sub(ev.sizes(shape.k), b.index(along_k)))
        point: list[Coord] = [b.index(0)] * shape.generic.rank
        for dim, coord in zip(shape.root.batch, self.batch, strict=True):
            point[dim] = coord
        for dims, flat, lanes in ((side.row_dims, m, not side.along_k), (shape.root.k, at, side.along_k)):
            real = shape.real(dims)
            for dim, coord in zip(real, split_index(b, ev.sizes, flat, [shape.sizes[dim] for dim in real]), strict=True):
                point[dim] = Lane(coord) if lanes and side.width > 1 and dim == real[-1] else coord
        value = self._bits(ev.value(side.value, ev.index.apply(side.affine, point)))
        return b.select(inside, value, self._bits(b.const(self.plan.core.element(), 0)))

    def _bits(self, value: Value) -> Value:
        """A part as shared memory holds it: the bits of a 16-bit float are moved, not its number."""
        b, element = self.frame.b, self.plan.core.element()
        value = b.splat(value) if self.side.width > 1 else value
        return (
            value
            if element_type(value.type) == element
            else b.op("arith.bitcast", [value], b.vec(element) if is_vector(value) else element)
        )


@dataclass(frozen=True)
class _Fragments:
    """The products of a warp: fragments from shared memory, and the sums that its lanes hold."""

    plan: CudaContraction
    frame: BlockFrame

    @property
    def _counts(self) -> tuple[int, int]:
        """Instructions along the rows and the columns of a warp's part."""
        return self.plan.tile.warp_rows // ROWS, self.plan.tile.warp_columns // COLUMNS

    @property
    def num_sums(self) -> int:
        """Return how many a lane holds."""
        rows, columns = self._counts
        return rows * columns * SUMS

    def _corner(self) -> tuple[Value, Value]:
        """The first row and column of the warp's part."""
        b, tile = self.frame.b, self.plan.tile
        warp, across = b.div(self.frame.thread, b.index(WARP)), b.index(tile.columns // tile.warp_columns)
        return b.mul(b.div(warp, across), b.index(tile.warp_rows)), b.mul(b.rem(warp, across), b.index(tile.warp_columns))

    def _lane(self) -> tuple[Value, Value]:
        """Group and number in the group: 4g + t is the lane."""
        b = self.frame.b
        lane = b.rem(self.frame.thread, b.index(WARP))
        return b.div(lane, b.index(4)), b.rem(lane, b.index(4))

    def multiply(self, sums: Sequence[Value]) -> list[Value]:
        """Emit the products of one step. Returns the new sums."""
        b, plan, core = self.frame.b, self.plan, self.plan.core
        (rows, columns), (row, column) = self._counts, self._corner()
        left, right = self._row_of_lane(row, 8, 16), b.add(self._row_of_lane(column, 16, 8), b.index(plan.right_at))
        found = list(sums)
        for k in range(0, plan.depth * core.element_bytes, core.depth * core.element_bytes):
            lefts = [self.frame.fragment(b.add(left, b.index(i * ROWS * plan.row_bytes + k))) for i in range(rows)]
            pairs = [self.frame.fragment(b.add(right, b.index(j * COLUMNS * plan.row_bytes + k))) for j in range(0, columns, 2)]
            rights = [words for pair in pairs for words in (pair[:2], pair[2:])]
            for i in range(rows):
                for j in range(columns):
                    place = (i * columns + j) * SUMS
                    found[place : place + SUMS] = core.multiply(b, lefts[i], rights[j], found[place : place + SUMS])
        return found

    def _row_of_lane(self, first: Value, next_rows: int, next_words: int) -> Value:
        """Where the row lies that this lane names for a fragment of 16 rows from `first` on, in bytes: lanes from `next_rows` on begin with
        its row 8, those from `next_words` on with the second 16 bytes of a row."""
        b = self.frame.b
        lane = b.rem(self.frame.thread, b.index(WARP))
        lower, second = (b.rem(b.div(lane, b.index(each)), b.index(2)) for each in (next_rows, next_words))
        row = b.add(b.add(first, b.rem(lane, b.index(8))), b.mul(lower, b.index(8)))
        return b.add(b.mul(row, b.index(self.plan.row_bytes)), b.mul(second, b.index(16)))

    def store(self, sums: Sequence[Value]) -> None:
        """Emit the sums to shared memory, in the place of both sides."""
        b, plan = self.frame.b, self.plan
        (rows, columns), (row, column), (group, number) = self._counts, self._corner(), self._lane()
        self.frame.barrier()
        first = b.add(b.mul(b.add(row, group), b.index(plan.sum_columns)), b.add(column, b.mul(number, b.index(2))))
        base = b.address(self.frame.shared, first, b.f32)
        for i in range(rows):
            for j in range(columns):
                for each in range(SUMS):
                    at = (i * ROWS + each // 2 * 8) * plan.sum_columns + j * COLUMNS + each % 2
                    b.store(sums[(i * columns + j) * SUMS + each], b.address(base, b.index(at), b.f32), 4)
        self.frame.barrier()
