"""A dispatch as one function of TIR: each linalg op a block, its parallel dims spatial axes, its reductions reduction axes.

The two forms say the same. What differs is said here: a bool lies in a byte, a weight in panels (passes/pack_weights.py), and sizes are
variables, one for each expression of the program's symbols, that the caller computes. A sum along rows is kept in 16 lanes, which are
added at the end, so that its bits depend on nothing but the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tvm import ir as tvm_ir
from tvm import s_tir, tirx

from llmos.compiler.analysis.contraction import Contraction
from llmos.compiler.analysis.generic import Generic, dim_positions, fill_value, is_fill
from llmos.compiler.analysis.windows import identity_element
from llmos.compiler.backends.cpu.packing import packed_shape
from llmos.compiler.backends.tvm import expressions
from llmos.compiler.backends.tvm.expressions import Expr, constant, dtype_of
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import ceil_div
from llmos.compiler.ir import sizes
from llmos.compiler.ir.attributes import PackedLayout
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc
from llmos.compiler.ir.shapes import kept_dims as dims_of_slice
from llmos.compiler.ir.shapes import pad_parameters, reassociation, slice_parameters
from llmos.runtime.errors import UnsupportedError

LANES = 16  # of sums along a row, on every target
INDEX = "int64"
MAX_BOUND = 14  # variables nested in one expression
SPATIAL, REDUCTION = tirx.IterVar.DataPar, tirx.IterVar.CommReduce

Indices = Sequence[Expr]
Element = Callable[[Indices], Expr]


def integer(number: int) -> Expr:
    """Return an index or a size."""
    return tirx.IntImm(INDEX, number)


@dataclass(frozen=True)
class Padding:
    """How much of the space of the result one tile computes, along its last axis and one other.

    columns: of the last axis; its extent is rounded up to a multiple. rows: likewise of `row_axis`, if that isn't None. is_whole: whether
    the tiles of this function lie within the result; else what lies outside is skipped.
    """

    columns: int
    row_axis: int | None = None
    rows: int = 1
    is_whole: bool = False


@dataclass
class Blocks:
    """The function of a dispatch, and what a schedule must know of it.

    sizes: what its size variables are, in the order of its parameters; the buffers of the dispatch's tensors and of its result follow.
    inlined: blocks of elementwise ops, in program order. row_sums: blocks of reductions along rows. column_sums: of all others.
    """

    func: Expr
    sizes: Sequence[sizes.Expr]
    inlined: Sequence[str]
    row_sums: Sequence[str]
    column_sums: Sequence[str]
    num_row_axes: int
    result: str = "result"


@dataclass
class BlockEmitter:
    """Emits the blocks of one dispatch. Raises UnsupportedError for what has no block of the same bits.

    combiners: the op that a reduction accumulates by, where it is one. root: the contraction, if it has one.
    """

    dispatch: Dispatch
    padding: Padding
    combiners: Mapping[ir.Operation, str]
    root: Contraction | None = None
    stmts: list[Expr] = field(default_factory=list)
    inlined: list[str] = field(default_factory=list)
    row_sums: list[str] = field(default_factory=list)
    column_sums: list[str] = field(default_factory=list)
    num_row_axes: int = 0
    _result: Expr = None
    _sizes: dict[sizes.Expr, Expr] = field(default_factory=dict)
    _buffers: dict[ir.Value, Expr] = field(default_factory=dict)
    _packed: dict[ir.Value, tuple[PackedLayout, int]] = field(default_factory=dict)
    _num_bound: dict[ir.Value, int] = field(default_factory=dict)
    _fills: dict[ir.Value, ir.Value] = field(default_factory=dict)
    _allocated: list[Expr] = field(default_factory=list)

    def emit(self, name: str) -> Blocks:
        """Return the function of that name."""
        if len(self.dispatch.results) != 1:
            raise UnsupportedError("several results")
        parameters = [self._parameter(value) for value in self.dispatch.tensors]
        result = self.dispatch.results[0]
        if isinstance(result.owner, ir.Block) or is_fill(result.owner.operation):
            raise UnsupportedError("a result that nothing computes")
        self._result = self._buffer(result, "result")
        for op in self.dispatch.ops:
            self._visit(op)
        if result in self._buffers:  # a reduction that nothing follows
            self._write_result(result, lambda at: self.load(result, at))
        body = tirx.SeqStmt(self.stmts) if len(self.stmts) > 1 else self.stmts[0]
        root = s_tir.SBlock([], [], [], "root", body, alloc_buffers=self._allocated)
        func = tirx.PrimFunc([*self._sizes.values(), *parameters, self._result], s_tir.SBlockRealize([], True, root))
        # A result may lie in the memory of what it is computed from (passes/update_in_place.py).
        for key, value in {"global_symbol": name, "tirx.noalias": False, "s_tir": True}.items():
            func = func.with_attr(key, value)
        return Blocks(func, list(self._sizes), self.inlined, self.row_sums, self.column_sums, self.num_row_axes)

    # -- sizes and memory
    def size(self, expr: sizes.Expr) -> Expr:
        """Return a size: a number, or the variable of its expression."""
        if expr.is_Integer:
            return integer(int(expr))
        if expr not in self._sizes:
            self._sizes[expr] = tirx.Var(f"size{len(self._sizes)}", INDEX)
        return self._sizes[expr]

    def _shape(self, value: ir.Value) -> list[Expr]:
        return [self.size(dim) for dim in self.dispatch.shapes.shape(value)] or [integer(1)]

    def _buffer(self, value: ir.Value, name: str, shape: Sequence[Expr] | None = None) -> Expr:
        dtype = dtype_of(value.type.element_type)
        return tirx.decl_buffer(shape or self._shape(value), "int8" if dtype == "bool" else dtype, name=name)

    def _parameter(self, value: ir.Value) -> Expr:
        argument = DispatchFunc(self.dispatch.func).arguments.of(value)
        assert argument is not None
        shape, layout = None, argument.packed
        if layout is not None:
            if layout.tile is not None or layout.k_per_word is not None or str(value.type.element_type) != "f32":
                raise UnsupportedError("a weight packed for other arithmetic")
            panels = packed_shape(value.type.shape, layout.n_axes, layout.k_axes, layout.columns)
            self._packed[value] = (layout, panels[2])
            shape = [integer(dim) for dim in panels]
        self._buffers[value] = self._buffer(value, f"arg{argument.position}", shape)
        return self._buffers[value]

    def _temporary(self, value: ir.Value, shape: Sequence[Expr] | None = None) -> Expr:
        buffer = self._buffer(value, f"value{len(self._allocated)}", shape)
        self._allocated.append(buffer)
        return buffer

    def load(self, value: ir.Value, indices: Indices) -> Expr:
        """Return the element of a tensor."""
        if value in self._fills:
            return self._scalar(self._fills[value])
        if value not in self._buffers:
            raise UnsupportedError(f"the result of {value.owner.name}")
        if value in self._packed:
            indices = self._in_panels(value, indices)
        return self._read(self._buffers[value], dtype_of(value.type.element_type), indices or [integer(0)])

    def _read(self, buffer: Expr, dtype: str, indices: Indices) -> Expr:
        read = tirx.BufferLoad(buffer, list(indices))
        return tirx.NE(read, tirx.const(0, "int8")) if dtype == "bool" else read

    def _in_panels(self, value: ir.Value, indices: Indices) -> list[Expr]:
        (layout, width), shape = self._packed[value], value.type.shape
        n, k = (_linear([indices[i] for i in axes], [shape[i] for i in axes]) for axes in (layout.n_axes, layout.k_axes))
        return [tirx.floordiv(n, integer(width)), k, tirx.floormod(n, integer(width))]

    def _store(self, buffer: Expr, element: Expr, dtype: str, indices: Indices) -> Expr:
        return tirx.BufferStore(buffer, tirx.Cast("int8", element) if dtype == "bool" else element, list(indices))

    # -- ops
    def _visit(self, op: ir.Operation) -> None:
        if op.name == "tensor.empty" or not any(isinstance(each.type, ir.RankedTensorType) for each in op.results):
            return
        if is_fill(op):
            filled = fill_value(op)
            assert filled is not None
            self._fills[op.results[0]] = filled
        elif op.name == "linalg.generic":
            self._generic(Generic(op), self.combiners.get(op))
        elif op.name in _MOVES:
            self._elementwise(op.results[0], _MOVES[op.name](self, op))
        else:
            raise UnsupportedError(op.name)

    def _generic(self, generic: Generic, combiner: str | None) -> None:
        if len(generic.op.results) != 1:
            raise UnsupportedError("a linalg.generic of several results")
        result = generic.op.results[0]
        axes = dim_positions(generic.output_map(result))
        if None in axes or len(set(axes)) != len(axes):
            raise UnsupportedError("a result that is no permutation of loop dims")
        if generic.is_elementwise:
            self._elementwise(result, lambda at: self._body(generic, _place(axes, at[: len(axes)]), None))
        elif self.root is not None and generic.op == self.root.generic.op:
            self._contraction(generic, axes)
        elif combiner is not None and generic.reduction_dims[-1] == generic.rank - 1 and self._is_long(generic):
            self._row_sum(generic, axes, combiner)
        else:
            self._column_sum(generic, axes)

    def _is_long(self, generic: Generic) -> bool:
        size = generic.loop_sizes(self.dispatch.shapes)[-1]
        return not size.is_Integer or int(size) >= LANES

    def _elementwise(self, value: ir.Value, element: Element) -> None:
        """One block, of the result or one that is computed where it is read."""
        dtype = dtype_of(value.type.element_type)
        if value == self.dispatch.results[0]:
            self._write_result(value, element)
            return
        buffer = self._buffers[value] = self._temporary(value)
        name = f"op{len(self.stmts)}"
        self._block(name, self._shape(value), SPATIAL, lambda at: self._store(buffer, element(at), dtype, at))
        self.inlined.append(name)

    def _write_result(self, value: ir.Value, element: Element) -> None:
        dtype = dtype_of(value.type.element_type)
        extents, guard = self._padded(value)
        self._block("result", extents, SPATIAL, lambda at: guard(at, self._store(self._result, element(at), dtype, at)))

    def _padded(self, value: ir.Value) -> tuple[list[Expr], Callable[[Indices, Expr], Expr]]:
        """The extents of the result's space in whole tiles, and what keeps a statement to the result."""
        shape, pad = list(self.dispatch.shapes.shape(value)), self.padding
        extents, partial = self._shape(value), []
        tiles = {len(shape) - 1: pad.columns, **({pad.row_axis: pad.rows} if pad.row_axis is not None else {})}
        for axis, count in tiles.items():
            if not shape or count == 1 or (shape[axis].is_Integer and int(shape[axis]) % count == 0):
                continue
            extents[axis] = tirx.Mul(self.size(ceil_div(shape[axis], count)), integer(count))
            partial.append((axis, self.size(shape[axis])))

        def guard(at: Indices, statement: Expr) -> Expr:
            for axis, size in [] if pad.is_whole else partial:
                statement = tirx.IfThenElse(_likely(tirx.LT(at[axis], size)), statement, None)
            return statement

        return extents, guard

    # -- reductions
    def _contraction(self, generic: Generic, axes: Sequence[int | None]) -> None:
        """Products and sums rounded together, in order of k."""
        assert self.root is not None
        result, root = generic.op.results[0], self.root
        extents, _ = self._padded(self.dispatch.results[0])
        loop = generic.loop_sizes(self.dispatch.shapes)
        dtype = dtype_of(result.type.element_type)
        buffer = self._buffers[result] = self._temporary(result, extents)

        def update(at: Indices, k: Indices) -> Expr:
            place = _place([*axes, *root.k], [*at, *k])
            left, right = (self.load(generic.inputs[i], self._at(generic.maps[i], place)) for i in (root.left, root.right))
            return expressions.multiply_add(left, right, self._read(buffer, dtype, at), dtype)

        self.column_sums.append("contraction")
        self._reduction("contraction", extents, [self.size(loop[dim]) for dim in root.k], buffer, dtype, update, self._initial(generic))

    def _column_sum(self, generic: Generic, axes: Sequence[int | None]) -> None:
        """One element after the other."""
        result = generic.op.results[0]
        dtype, loop = dtype_of(result.type.element_type), generic.loop_sizes(self.dispatch.shapes)
        shapes, whole = self.dispatch.shapes, self.dispatch.results[0]
        extents, keep = self._padded(whole) if shapes.shape(result) == shapes.shape(whole) else (self._shape(result), None)
        buffer = self._buffers[result] = self._temporary(result, extents)

        def update(at: Indices, k: Indices) -> Expr:
            place = _place([*axes, *generic.reduction_dims], [*at[: len(axes)], *k])
            return self._body(generic, place, self._read(buffer, dtype, at))

        def guard(at: Indices, _: Indices, statement: Expr) -> Expr:
            return keep(at, statement) if keep is not None else statement

        name = f"sum{len(self.stmts)}"
        self.column_sums.append(name)
        reduced = [self.size(loop[dim]) for dim in generic.reduction_dims]
        self._reduction(name, extents, reduced, buffer, dtype, update, self._initial(generic), guard)

    def _row_sum(self, generic: Generic, axes: Sequence[int | None], combiner: str) -> None:
        """In lanes along the last dim, then the lanes in order."""
        result, loop = generic.op.results[0], generic.loop_sizes(self.dispatch.shapes)
        dtype, kind = dtype_of(result.type.element_type), result.type.element_type
        rows, length = self._shape(result), loop[-1]
        lanes = self._temporary(result, [*rows, integer(LANES)])
        others = generic.reduction_dims[:-1]
        identity = expressions.number(identity_element(combiner, kind), dtype)

        def update(at: Indices, k: Indices) -> Expr:
            place = _place([*axes, *others], [*at[: len(axes)], *k[:-1]])
            place[generic.rank - 1] = tirx.Add(tirx.Mul(k[-1], integer(LANES)), at[-1])
            return self._body(generic, place, self._read(lanes, dtype, at))

        def guard(at: Indices, k: Indices, statement: Expr) -> Expr:
            if length.is_Integer and int(length) % LANES == 0:
                return statement
            return tirx.IfThenElse(_likely(tirx.LT(tirx.Add(tirx.Mul(k[-1], integer(LANES)), at[-1]), self.size(length))), statement, None)

        extents = [*[self.size(loop[dim]) for dim in others], self.size(ceil_div(length, LANES))]
        name = f"lanes{len(self.stmts)}"
        self._reduction(name, [*rows, integer(LANES)], extents, lanes, dtype, update, lambda _: identity, guard)
        total = self._buffers[result] = self._temporary(result)

        def combine(at: Indices, k: Indices) -> Expr:
            return expressions.combined(combiner, self._read(total, dtype, at), self._read(lanes, dtype, [*at, *k]), dtype)

        last = f"sum{len(self.stmts)}"
        self._reduction(last, rows, [integer(LANES)], total, dtype, combine, self._initial(generic))
        self.row_sums += [name, last]
        self.num_row_axes = len(self.dispatch.shapes.shape(result))

    def _initial(self, generic: Generic) -> Element:
        return lambda at: self.load(generic.inits[0], at)

    def _reduction(
        self,
        name: str,
        extents: Sequence[Expr],
        reduced: Sequence[Expr],
        buffer: Expr,
        dtype: str,
        update: Callable[[Indices, Indices], Expr],
        initial: Element,
        guard: Callable[[Indices, Indices, Expr], Expr] = lambda _, __, statement: statement,
    ) -> None:
        count = len(extents)

        def body(at: Indices) -> Expr:
            return guard(at[:count], at[count:], self._store(buffer, update(at[:count], at[count:]), dtype, at[:count]))

        def init(at: Indices) -> Expr:
            return self._store(buffer, initial(at[:count]), dtype, at[:count])

        kinds = [SPATIAL] * count + [REDUCTION] * len(reduced)
        self._block(name, [*extents, *reduced], kinds, body, init)

    def _block(self, name: str, extents: Sequence[Expr], kinds: int | Sequence[int], body: Element, init: Element | None = None) -> str:
        kinds = [kinds] * len(extents) if isinstance(kinds, int) else kinds
        loops = [tirx.Var(f"i{n}", INDEX) for n in range(len(extents))]
        axes = [
            tirx.IterVar(tvm_ir.Range(integer(0), extent), tirx.Var(f"v{n}", INDEX), kind)
            for n, (extent, kind) in enumerate(zip(extents, kinds, strict=True))
        ]
        at = [axis.var for axis in axes]
        stmt, first = body(at), init(at) if init is not None else None
        used = {buffer: buffer for buffer in [*self._buffers.values(), *self._allocated, self._result]}
        reads, writes, _ = s_tir.analysis.get_sblock_access_region(s_tir.SBlock(axes, [], [], name, stmt, init=first), used)
        realized = s_tir.SBlockRealize(loops, True, s_tir.SBlock(axes, reads, writes, name, stmt, init=first))
        for loop, extent in zip(reversed(loops), reversed(extents), strict=True):
            realized = tirx.For(loop, integer(0), extent, tirx.ForKind.SERIAL, realized)
        self.stmts.append(realized)
        return name

    # -- elements
    def _body(self, generic: Generic, place: Mapping[int | None, Expr], accumulator: Expr | None) -> Expr:
        """The one value that a generic yields at a place of its loop."""
        values: dict[ir.Value, Expr] = {}
        arguments = list(generic.body.arguments)
        for argument, operand, affine in zip(arguments, generic.op.operands, generic.maps, strict=True):
            is_init = argument == arguments[-1]
            if is_init and accumulator is not None:
                values[argument] = accumulator
            elif any(True for _ in argument.uses):
                is_tensor = isinstance(operand.type, ir.RankedTensorType)
                values[argument] = self.load(operand, self._at(affine, place)) if is_tensor else self._scalar(operand)
        bound: list[tuple[Expr, Expr]] = []
        ops = [op.operation for op in generic.body.operations]
        for argument in [each for each in arguments if each in values and sum(1 for _ in each.uses) > 1]:
            values[argument] = _bind(values[argument], bound)
        for op in ops[:-1]:
            if op.name == "linalg.index":
                values[op.results[0]] = place[ir.IntegerAttr(op.attributes["dim"]).value]
                continue
            if op.name == "arith.constant":
                values[op.results[0]] = constant(op.attributes["value"], op.results[0].type)
                continue
            made = expressions.operation(op, [values[each] if each in values else self._scalar(each) for each in op.operands])
            values[op.results[0]] = _bind(made, bound) if sum(1 for _ in op.results[0].uses) > 1 else made
        self._count(generic, len(bound))
        yielded = ops[-1].operands[0]
        result = values[yielded] if yielded in values else self._scalar(yielded)
        for variable, value in reversed(bound):
            result = tirx.Let(variable, value, result)
        return result

    def _count(self, generic: Generic, num_bound: int) -> None:
        """Keep the time of TVM's passes in bounds, which doubles with each nested variable of an expression."""
        inside = max((self._num_bound.get(operand, 0) for operand in generic.op.operands), default=0)
        if inside + num_bound > MAX_BOUND:
            raise UnsupportedError("an element with too many values that are read several times")
        self._num_bound[generic.op.results[0]] = 0 if generic.reduction_dims else inside + num_bound

    def _scalar(self, value: ir.Value) -> Expr:
        """A scalar of the dispatch, outside of its generics."""
        if not isinstance(value.owner, ir.Block) and value.owner.name == "arith.constant":
            return constant(value.owner.attributes["value"], value.type)
        if self.dispatch.shapes.has_index(value):
            return tirx.Cast(dtype_of(value.type), self.size(self.dispatch.shapes.index(value)))
        raise UnsupportedError("a scalar that data decides")

    def _at(self, affine: ir.AffineMap, place: Mapping[int | None, Expr]) -> list[Expr]:
        return [_affine(expr, place) for expr in affine.results]

    # -- moves
    def _slice(self, op: ir.Operation) -> Element:
        offsets, _, strides = slice_parameters(self.dispatch.shapes, op, 1)
        if offsets is None or strides is None:
            raise UnsupportedError("a slice that data decides")
        kept = dims_of_slice(op)

        def element(at: Indices) -> Expr:
            index = dict(zip(kept, at, strict=False))
            zero = integer(0)
            steps = zip(offsets, strides, range(len(offsets)), strict=True)
            return self.load(op.operands[0], [tirx.Add(self.size(o), tirx.Mul(index.get(d, zero), self.size(s))) for o, s, d in steps])

        return element

    def _expand(self, op: ir.Operation) -> Element:
        groups, shape = reassociation(op), self._shape(op.results[0])
        return lambda at: self.load(op.operands[0], [_linear([at[d] for d in group], [shape[d] for d in group]) for group in groups])

    def _collapse(self, op: ir.Operation) -> Element:
        groups, shape = reassociation(op), self._shape(op.operands[0])

        def element(at: Indices) -> Expr:
            source = [each for group, flat in zip(groups, at, strict=False) for each in _split(flat, [shape[d] for d in group])]
            return self.load(op.operands[0], source or [integer(0)] * len(shape))

        return element

    def _cast(self, op: ir.Operation) -> Element:
        return lambda at: self.load(op.operands[0], at)

    def _pad(self, op: ir.Operation) -> Element:
        low, _ = pad_parameters(self.dispatch.shapes, op)
        source, number = self._shape(op.operands[0]), list(op.regions[0].blocks[0].operations)[-1].operands[0]
        if dtype_of(op.results[0].type.element_type) == "bool":
            raise UnsupportedError("a padding of bools")

        def element(at: Indices) -> Expr:
            index = [tirx.Sub(i, self.size(before)) for i, before in zip(at, low, strict=True)]
            inside = [each for i, n in zip(index, source, strict=True) for each in (tirx.GE(i, integer(0)), tirx.LT(i, n))]
            condition = inside[0]
            for each in inside[1:]:
                condition = tirx.And(condition, each)
            return tirx.if_then_else(condition, self.load(op.operands[0], index), self._scalar(number))

        return element


_MOVES: Mapping[str, Callable[[BlockEmitter, ir.Operation], Element]] = {
    "tensor.extract_slice": BlockEmitter._slice,
    "tensor.expand_shape": BlockEmitter._expand,
    "tensor.collapse_shape": BlockEmitter._collapse,
    "tensor.cast": BlockEmitter._cast,
    "tensor.pad": BlockEmitter._pad,
}


def _place(dims: Sequence[int | None], indices: Indices) -> dict[int | None, Expr]:
    """Where each loop dim is."""
    return dict(zip(dims, indices, strict=True))


def _bind(value: Expr, bound: list[tuple[Expr, Expr]]) -> Expr:
    """A variable that holds a value which is read several times.

    Of an integer it holds the bits as a float: in the place of an integer variable TVM's simplifier puts its value again, each time.
    """
    if isinstance(value, (tirx.FloatImm, tirx.IntImm, tirx.Var)):
        return value
    dtype = value.ty.dtype
    held = expressions.as_bits(value)
    variable = tirx.Var(f"x{len(bound)}", held.ty.dtype)
    bound.append((variable, held))
    return variable if held is value else tirx.reinterpret(dtype, variable)


def _likely(condition: Expr) -> Expr:
    """A condition that loops are split by."""
    return tirx.op.likely(condition)


def _linear(indices: Indices, shape: Sequence[Expr | int]) -> Expr:
    """The row-major number of an element."""
    flat: Expr = integer(0)
    for index, dim in zip(indices, shape, strict=True):
        flat = tirx.Add(tirx.Mul(flat, integer(dim) if isinstance(dim, int) else dim), index)
    return flat


def _split(flat: Expr, shape: Sequence[Expr]) -> list[Expr]:
    """The indices of the element with a row-major number."""
    indices: list[Expr] = []
    for dim in reversed(shape[1:]):
        indices.insert(0, tirx.floormod(flat, dim))
        flat = tirx.floordiv(flat, dim)
    return [flat, *indices]


def _affine(expr: ir.AffineExpr, place: Mapping[int | None, Expr]) -> Expr:
    """An index expression of a map at a place of the loop."""
    if isinstance(expr, ir.AffineDimExpr):
        return place[expr.position]
    if isinstance(expr, ir.AffineConstantExpr):
        return integer(expr.value)
    combine = _AFFINE.get(type(expr))
    if combine is None:
        raise UnsupportedError(f"an index {expr}")
    return combine(_affine(expr.lhs, place), _affine(expr.rhs, place))


_AFFINE = {ir.AffineAddExpr: tirx.Add, ir.AffineMulExpr: tirx.Mul, ir.AffineFloorDivExpr: tirx.floordiv, ir.AffineModExpr: tirx.floormod}
