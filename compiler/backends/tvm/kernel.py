"""Kernels whose tiles TVM compiles: the frame and the grid are as those of the CPU backend's own kernels.

A dispatch that has no such kernel keeps the CPU backend's, and `Refusal` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmos.compiler.analysis.contraction import Contraction, root_contraction
from llmos.compiler.analysis.generic import Generic, combiner_of, dim_positions
from llmos.compiler.backends.cpu.arithmetic.register_tile import register_tile
from llmos.compiler.backends.cpu.packing import packed_shape
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.backends.tvm.blocks import LANES, BlockEmitter, Padding
from llmos.compiler.backends.tvm.lowering import llvm_of
from llmos.compiler.backends.tvm.schedules import ColumnTile, scheduled
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Frame, Launch, ceil_div, kernel, product, split_index
from llmos.compiler.ir.attributes import LLVM_IR
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc, make_private
from llmos.compiler.ir.sizes import Expr
from llmos.passes import PassContext
from llmos.passes.expand_math import ExpandMath
from llmos.runtime.errors import UnsupportedError

KINDS = ("contraction", "elementwise", "row_reduction")
MAX_VECTORS = 64  # of a tile of an elementwise kernel
MAX_OPS = 1000  # of an element with all that it is computed from
SUM_VECTORS = 4  # of a tile of sums


@dataclass(frozen=True)
class TileFunction:
    """A function in LLVM IR that computes one tile. sizes: what it is handed before the buffers; the grid's coordinates follow them."""

    name: str
    text: str
    sizes: tuple[Expr, ...]


@dataclass(frozen=True)
class TileKernel:
    """The functions of a dispatch and the grid that they compute.

    rows: of a contraction, how many rows along the grid's last axis `whole` computes at a time, of `num_rows`; `edge` computes one, and
    all of the last panel where that isn't whole. `whole` is None where no tile is.
    """

    grid: tuple[Expr, ...]
    edge: TileFunction
    whole: TileFunction | None = None
    rows: int = 1
    num_rows: Expr | None = None
    has_partial_panel: bool = False


def tile_kernel(dispatch: Dispatch, target: CpuTarget) -> TileKernel:
    """Return what TVM makes of a dispatch. Raises UnsupportedError, with the reason, where it is to keep the CPU backend's kernel."""
    if dispatch.kind not in KINDS:
        raise UnsupportedError(f"{dispatch.kind} is the CPU backend's alone")
    if DispatchFunc(dispatch.func).in_place is not None:
        raise UnsupportedError("it writes into what it reads")
    expanded = _Expanded.of(dispatch)
    if dispatch.kind == "contraction":
        return _contraction(expanded, target)
    return _by_columns(expanded)


def emit_tiles(module: ir.Module, dispatch: Dispatch, made: TileKernel) -> Launch:
    """Append the kernel of a dispatch, and declarations that carry the text of its tiles."""
    for function in {each.name: each for each in (made.whole, made.edge) if each is not None}.values():
        _declare(module, dispatch, function, len(made.grid))
    extents = list(made.grid)
    with kernel(module, dispatch) as frame, frame.tiles() as tile:
        at = split_index(frame.b, frame.emitter.sizes, tile, extents)
        if made.num_rows is None:
            _call(frame, dispatch, made.edge, at)
        else:
            _call_rows(frame, dispatch, made, at)
    return Launch(product(extents))


# -- the two forms of kernels
@dataclass(frozen=True)
class _Expanded:
    """A copy of a dispatch whose bodies call no functions of math, and the ops that its reductions accumulate by."""

    dispatch: Dispatch
    combiners: dict[ir.Operation, str]
    module: ir.Module  # that holds the copy

    @classmethod
    def of(cls, dispatch: Dispatch) -> _Expanded:
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            func = dispatch.func.clone()
        copy = Dispatch(func, dispatch.table)
        names = [_combiner(each) for each in _generics(copy)]
        ExpandMath().run(module, PassContext())
        copy = Dispatch(func, dispatch.table)  # read again: the pass has replaced ops
        _check_size(copy)
        combiners = {op: name for op, name in zip(_generics(copy), names, strict=True) if name}
        return cls(copy, combiners, module)

    def function(self, name: str, padding: Padding, tile: ColumnTile, root: Contraction | None = None) -> TileFunction:
        """Return the function of one tile."""
        blocks = BlockEmitter(self.dispatch, padding, self.combiners, root).emit(name)
        func = scheduled(blocks, tile, padding.row_axis, padding.rows)
        return TileFunction(name, llvm_of(func, name), tuple(blocks.sizes))

    @property
    def shape(self) -> tuple[Expr, ...]:
        """Return the sizes of the first result."""
        return tuple(self.dispatch.shapes.shape(self.dispatch.results[0]))


def _check_size(dispatch: Dispatch) -> None:
    """Raises UnsupportedError where elements that are computed anew wherever they are read make an expression too long for TVM's passes."""
    num_ops: dict[ir.Value, int] = {}
    for op in dispatch.ops:
        read = sum(num_ops.get(operand, 0) for operand in op.operands)
        own = len(list(op.regions[0].blocks[0].operations)) if len(op.regions) else 1
        is_reduction = op.name == "linalg.generic" and bool(Generic(op).reduction_dims)
        if read + own > MAX_OPS:
            raise UnsupportedError(f"an element of {read + own} operations")
        num_ops |= dict.fromkeys(op.results, 0 if is_reduction else read + own)


def _generics(dispatch: Dispatch) -> list[ir.Operation]:
    return [op for op in dispatch.ops if op.name == "linalg.generic"]


def _combiner(op: ir.Operation) -> str:
    generic = Generic(op)
    found = combiner_of(generic, 0) if generic.reduction_dims and len(op.results) == 1 else None
    return found.name if found is not None else ""


def _by_columns(expanded: _Expanded) -> TileKernel:
    dispatch, shape = expanded.dispatch, expanded.shape
    name = f"{dispatch.name}_tile"
    reductions = [Generic(op) for op in _generics(dispatch) if Generic(op).reduction_dims]
    rows = [each for each in reductions if each.op in expanded.combiners and _is_along_rows(each, dispatch)]
    if rows:
        num_rows = len(dispatch.shapes.shape(rows[-1].op.results[0]))
        if any(len(dispatch.shapes.shape(each.op.results[0])) != num_rows for each in rows):
            raise UnsupportedError("sums along rows of several ranks")
        lanes = _lanes(shape[-1]) if len(shape) > num_rows else 1
        return TileKernel(shape[:num_rows], expanded.function(name, Padding(lanes), ColumnTile(lanes, 1)))
    lanes = _lanes(shape[-1]) if shape else 1
    most = SUM_VECTORS if reductions else MAX_VECTORS
    vectors = min(most, int(ceil_div(shape[-1], lanes))) if shape and shape[-1].is_Integer else most if shape else 1
    tile = ColumnTile(lanes, max(1, vectors))
    grid = (*shape[:-1], ceil_div(shape[-1], tile.columns)) if shape else ()
    return TileKernel(grid, expanded.function(name, Padding(tile.columns), tile))


def _is_along_rows(generic: Generic, dispatch: Dispatch) -> bool:
    size = generic.loop_sizes(dispatch.shapes)[-1]
    return generic.iterators[-1] == "reduction" and not (size.is_Integer and int(size) < LANES)


def _lanes(size: Expr) -> int:
    return max(1, min(LANES, int(size))) if size.is_Integer else LANES


def _contraction(expanded: _Expanded, target: CpuTarget) -> TileKernel:
    dispatch, shape = expanded.dispatch, expanded.shape
    root = root_contraction(dispatch.ops)
    if str(root.types[2]) != "f32" or any(str(kind) != "f32" for kind in root.types[:2]):
        raise UnsupportedError("products of other types than float32")
    axes = dim_positions(root.out_map)
    if not _keeps_places(dispatch, root):
        raise UnsupportedError("a contraction whose result is moved")
    if axes[-1] not in root.n:
        raise UnsupportedError("a contraction whose columns don't lie innermost")
    tile = _register_tile(dispatch, root, shape[-1], target)
    row_axis = max((axis for axis, dim in enumerate(axes) if dim in root.m), default=None)
    name, partial = f"{dispatch.name}_tile", int(shape[-1]) % tile.columns != 0
    panels = ceil_div(shape[-1], tile.columns)
    others = [size for axis, size in enumerate(shape[:-1]) if axis != row_axis]
    if row_axis is None:
        edge = expanded.function(name, Padding(tile.columns), ColumnTile(tile.lanes, tile.vectors, True), root)
        return TileKernel((panels, *others), edge)
    rows = register_tile(target.vector_bits, tile.columns).rows
    edge = expanded.function(f"{dispatch.name}_edge", Padding(tile.columns, row_axis), tile, root)
    has_whole = int(shape[-1]) >= tile.columns and not (shape[row_axis].is_Integer and int(shape[row_axis]) < rows)
    whole = expanded.function(name, Padding(tile.columns, row_axis, rows, True), tile, root) if has_whole else None
    return TileKernel((panels, *others, ceil_div(shape[row_axis], rows)), edge, whole, rows, shape[row_axis], partial)


def _keeps_places(dispatch: Dispatch, root: Contraction) -> bool:
    """Whether each element of the result is computed from the contraction's at the same place."""
    made = {root.generic.op.results[0]}
    for op in dispatch.ops:
        if not any(operand in made for operand in op.operands):
            continue
        if op.name != "linalg.generic" or len(op.results) != 1 or not Generic(op).is_elementwise:
            return False
        generic = Generic(op)
        reads = [affine for operand, affine in zip(op.operands, generic.maps, strict=True) if operand in made]
        if any(dim_positions(affine) != dim_positions(generic.output_map(op.results[0])) for affine in reads):
            return False
        made.add(op.results[0])
    return dispatch.results[0] in made


def _register_tile(dispatch: Dispatch, root: Contraction, columns: Expr, target: CpuTarget) -> ColumnTile:
    """Vectors of a register tile: as many as a panel has, or a part of that, and no two panels in one."""
    arguments = DispatchFunc(dispatch.func).arguments
    packed = [each for each in arguments if each.packed is not None]
    if len(packed) != 1 or not columns.is_Integer:
        raise UnsupportedError("a right side that is no weight in panels")
    layout = packed[0].packed
    assert layout is not None
    width = packed_shape(packed[0].value.type.shape, layout.n_axes, layout.k_axes, layout.columns)[2]
    if len(layout.n_axes) > 1 and int(columns) % LANES:
        raise UnsupportedError("columns that are several dims")
    shape = register_tile(target.vector_bits, width)
    count = int(columns) if len(layout.n_axes) > 1 else width
    vectors = max(each for each in range(1, shape.vectors + 1) if width % (each * shape.lanes) == 0 and count % (each * shape.lanes) == 0)
    return ColumnTile(shape.lanes, vectors, in_registers=True)


# -- the frame around them
def _declare(module: ir.Module, dispatch: Dispatch, function: TileFunction, num_grid: int) -> None:
    ptr, i64 = ir.Type.parse("!llvm.ptr"), ir.IntegerType.get_signless(64)
    num_buffers = len(dispatch.tensors) + len(dispatch.results)
    kind = ir.FunctionType.get([i64] * len(function.sizes) + [ptr] * num_buffers + [i64] * num_grid, [])
    with ir.InsertionPoint(module.body):
        declared = ir.Operation.create(
            "func.func",
            regions=1,
            attributes={
                "sym_name": ir.StringAttr.get(function.name),
                "function_type": ir.TypeAttr.get(kind),
                LLVM_IR: ir.StringAttr.get(function.text),
            },
        )
    make_private(declared)


def _call(frame: Frame, dispatch: Dispatch, function: TileFunction, at: Sequence[Value]) -> None:
    sizes = [frame.emitter.sizes(size) for size in function.sizes]
    pointers = [*[frame.emitter.buffers[value].pointer for value in dispatch.tensors], *[buffer.pointer for buffer in frame.outputs]]
    ir.Operation.create("func.call", operands=[*sizes, *pointers, *at], attributes={"callee": ir.FlatSymbolRefAttr.get(function.name)})


def _call_rows(frame: Frame, dispatch: Dispatch, made: TileKernel, at: Sequence[Value]) -> None:
    """A block of rows at once where it is whole, else row by row: the sums are the same."""
    b, size = frame.b, frame.emitter.sizes
    assert made.num_rows is not None
    first = b.mul(at[-1], b.index(made.rows))
    end = b.minimum(b.add(first, b.index(made.rows)), size(made.num_rows))
    if made.whole is None:
        _call_each(frame, dispatch, made.edge, at, first, end)
        return
    is_whole = b.compare("eq", b.sub(end, first), b.index(made.rows))
    if made.has_partial_panel:
        is_whole = b.binary("arith.andi", is_whole, b.compare("slt", at[0], b.sub(size(made.grid[0]), b.index(1))))
    with b.when(is_whole):
        _call(frame, dispatch, made.whole, at)
    with b.when(b.binary("arith.xori", is_whole, b.const(b.i1, 1))):
        _call_each(frame, dispatch, made.edge, at, first, end)


def _call_each(frame: Frame, dispatch: Dispatch, function: TileFunction, at: Sequence[Value], first: Value, end: Value) -> None:
    with frame.b.loop(first, end, frame.b.index(1)) as loop:
        _call(frame, dispatch, function, [*at[:-1], loop.iv])
