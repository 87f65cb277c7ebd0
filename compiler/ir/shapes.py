"""Shapes of values: every dimension of every tensor of a function as an expression over the program's symbols (compiler/ir/sizes.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy

from llmos.compiler.ir.attributes import (
    COMPUTED,
    COMPUTES,
    EXPR,
    INDUCTION_VARIABLE,
    SHAPE,
    SHAPES,
    argument_attributes,
    read_shape,
    text_of,
)
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.rounded_sizes import FloorMul, FloorMulF32
from llmos.compiler.ir.size_text import floor_mod, truncated
from llmos.compiler.ir.sizes import Expr, Shape, SymbolTable, decide
from llmos.runtime.errors import UnsupportedError, UserError


@dataclass
class Shapes:
    """Sizes of the values of one function; `shape` for tensors, `index` for index and integer scalars. Filled in program order."""

    table: SymbolTable
    _shapes: dict[ir.Value, Shape] = field(default_factory=dict)
    _scalars: dict[ir.Value, Expr | None] = field(default_factory=dict)

    @classmethod
    def of(cls, func: ir.Operation, table: SymbolTable) -> Shapes:
        """Return the sizes of a function's arguments and, op by op, of its block's values.

        Raises UserError where attributes name sizes that the module doesn't list.
        """
        shapes = cls(table)
        for argument, attributes in zip(func.regions[0].blocks[0].arguments, argument_attributes(func), strict=True):
            shapes._enter(argument, attributes)
        for op in func.regions[0].blocks[0].operations:
            shapes.visit(op.operation)
        return shapes

    def shape(self, value: ir.Value) -> Shape:
        """Return the sizes of a tensor, one expression a dim. Raises UnsupportedError if they depend on data."""
        found = self._shapes.get(value)
        if found is None:
            raise UnsupportedError(f"the size of a value depends on data: {_short(value)}")
        return found

    def index(self, value: ir.Value) -> Expr:
        """Return an index or integer scalar as an expression over the symbols. Raises UnsupportedError if it depends on data."""
        found = self._scalars.get(value)
        if found is None:
            raise UnsupportedError(f"a size depends on data: {_short(value)}")
        return found

    def has_index(self, value: ir.Value) -> bool:
        """Whether a value is an index or integer scalar with a known expression."""
        return self._scalars.get(value) is not None

    def _enter(self, argument: ir.Value, attributes: Mapping[str, ir.Attribute]) -> None:
        if EXPR in attributes:
            self._scalars[argument] = self.table.parse(ir.StringAttr(attributes[EXPR]).value)
        elif isinstance(argument.type, ir.RankedTensorType):
            dims = read_shape(attributes[SHAPE]) if SHAPE in attributes else list(argument.type.shape)
            self._shapes[argument] = tuple(self.table.parse(dim) for dim in dims)

    def visit(self, op: ir.Operation) -> None:
        """Record the sizes of one op's results; those of its operands are known. A size that depends on data is left out."""
        rule = _RULES.get(op.name)
        if rule is not None:
            rule(self, op)
        for result in op.results:
            if isinstance(result.type, ir.RankedTensorType) and result not in self._shapes:
                self._default(op, result)

    def _default(self, op: ir.Operation, result: ir.OpResult) -> None:
        if result.type.has_static_shape:
            self._shapes[result] = tuple(sympy.Integer(size) for size in result.type.shape)
        elif (init := _destination(op, result)) is not None and init in self._shapes:
            self._shapes[result] = self._shapes[init]

    def mixed(self, static: Sequence[int], dynamic: Iterator[ir.Value]) -> Shape | None:
        """Return a list of sizes that MLIR keeps as static numbers, with an operand where the number is DYNAMIC; None if one depends on
        data.
        """
        sizes: list[Expr] = []
        for size in static:
            value = self._scalars.get(next(dynamic)) if size == DYNAMIC else sympy.Integer(size)
            if value is None:
                return None
            sizes.append(value)
        return tuple(sizes)


DYNAMIC = -(2**63)


def _short(value: ir.Value) -> str:
    text = str(value.owner) if not isinstance(value.owner, ir.Block) else str(value)
    return text.strip().splitlines()[0][:120]


def _destination(op: ir.Operation, result: ir.OpResult) -> ir.Value | None:
    """The `outs` operand that a result of a destination-style op (linalg, tm_tensor) shares its shape with."""
    if "operandSegmentSizes" in op.attributes:
        sizes = list(ir.DenseI32ArrayAttr(op.attributes["operandSegmentSizes"]))
        if len(sizes) == 2 and sizes[1] == len(op.results):
            return op.operands[sizes[0] + result.result_number]
    if op.name in ("scf.for",):
        return op.operands[3 + result.result_number]
    return None


def _binary(combine: Callable[[Expr, Expr], Expr]) -> Callable[[Shapes, ir.Operation], None]:
    def rule(shapes: Shapes, op: ir.Operation) -> None:
        a, b = (shapes._scalars.get(operand) for operand in op.operands)
        if a is not None and b is not None:
            shapes._scalars[op.results[0]] = shapes.table.simplify(combine(a, b))

    return rule


def _signed(combine: Callable[[Expr, Expr], Expr], plain: Callable[[Expr, Expr], Expr]) -> Callable[[Shapes, ir.Operation], None]:
    """A rule for signed division: `plain` where neither side is negative, as sizes are; `combine` where the divisor is a number."""

    def rule(shapes: Shapes, op: ir.Operation) -> None:
        a, b = (shapes._scalars.get(operand) for operand in op.operands)
        if a is None or b is None:
            return
        positive = shapes.table.bounds(a)[0] >= 0 and shapes.table.bounds(b)[0] >= 0
        if positive or (b.is_Integer and b != 0):
            shapes._scalars[op.results[0]] = shapes.table.simplify((plain if positive else combine)(a, b))

    return rule


def _unsigned(combine: Callable[[Expr, Expr], Expr]) -> Callable[[Shapes, ir.Operation], None]:
    """A rule for what takes its operands for unsigned: known where neither is negative."""

    def rule(shapes: Shapes, op: ir.Operation) -> None:
        operands = [shapes._scalars.get(operand) for operand in op.operands]
        if all(operand is not None and shapes.table.bounds(operand)[0] >= 0 for operand in operands):
            _binary(combine)(shapes, op)

    return rule


def _floor_div(a: Expr, b: Expr) -> Expr:
    return sympy.floor(a / b)


def _ceil_div(a: Expr, b: Expr) -> Expr:
    return -sympy.floor(-a / b)


def _constant(shapes: Shapes, op: ir.Operation) -> None:
    if isinstance(op.attributes["value"], ir.IntegerAttr):
        shapes._scalars[op.results[0]] = sympy.Integer(ir.IntegerAttr(op.attributes["value"]).value)


def _same_scalar(shapes: Shapes, op: ir.Operation) -> None:
    if (known := shapes._scalars.get(op.operands[0])) is not None:
        shapes._scalars[op.results[0]] = known


def _same_shape(shapes: Shapes, op: ir.Operation) -> None:
    if (known := shapes._shapes.get(op.operands[0])) is not None:
        shapes._shapes[op.results[0]] = known


def _dim(shapes: Shapes, op: ir.Operation) -> None:
    source, axis = shapes._shapes.get(op.operands[0]), shapes._scalars.get(op.operands[1])
    if source is not None and axis is not None:
        shapes._scalars[op.results[0]] = source[int(axis)]


def _floor_of_product(shapes: Shapes, op: ir.Operation) -> None:
    """fptosi(floor(sitofp(n) * constant)) in float64 or float32."""
    chain, value = [], op.operands[0]
    for name in ("math.floor", "arith.mulf", "arith.sitofp"):
        if isinstance(value.owner, ir.Block) or value.owner.name != name:
            return
        chain.append(value.owner)
        value = value.owner.operands[0]
    scale, number = chain[1].operands[1], shapes._scalars.get(value)
    product = {ir.F64Type: FloorMul, ir.F32Type: FloorMulF32}.get(type(scale.type))
    is_constant = not isinstance(scale.owner, ir.Block) and scale.owner.name == "arith.constant"
    if number is not None and product is not None and is_constant:
        shapes._scalars[op.results[0]] = product.by(number, ir.FloatAttr(scale.owner.attributes["value"]).value)


def _extract(shapes: Shapes, op: ir.Operation) -> None:
    """A read of a size that the program has computed."""
    if COMPUTES not in op.attributes:
        return
    name = ir.StringAttr(op.attributes[COMPUTES]).value
    if name not in [symbol.name for symbol in shapes.table.computed]:
        raise UserError(f"{COMPUTES} names {name!r}, which {COMPUTED} of the module doesn't list")
    shapes._scalars[op.results[0]] = shapes.table.parse(name)


def _empty(shapes: Shapes, op: ir.Operation) -> None:
    _set_mixed(shapes, op, op.results[0].type.shape, iter(op.operands))


def _set_mixed(shapes: Shapes, op: ir.Operation, static: Sequence[int], dynamic: Iterator[ir.Value]) -> None:
    known = shapes.mixed(list(static), dynamic)
    if known is not None:
        shapes._shapes[op.results[0]] = known


def _expand(shapes: Shapes, op: ir.Operation) -> None:
    _set_mixed(shapes, op, ir.DenseI64ArrayAttr(op.attributes["static_output_shape"]), iter(list(op.operands)[1:]))


def reassociation(op: ir.Operation) -> list[list[int]]:
    """Return the groups of dims of an expand_shape or collapse_shape: for each dim of the smaller rank, those of the larger."""
    return [[ir.IntegerAttr(i).value for i in ir.ArrayAttr(group)] for group in ir.ArrayAttr(op.attributes["reassociation"])]


def _collapse(shapes: Shapes, op: ir.Operation) -> None:
    if (source := shapes._shapes.get(op.operands[0])) is not None:
        shapes._shapes[op.results[0]] = tuple(sympy.expand(sympy.Mul(*[source[i] for i in group])) for group in reassociation(op))


def slice_parameters(shapes: Shapes, op: ir.Operation, first: int) -> tuple[Shape | None, Shape | None, Shape | None]:
    """Return (offsets, sizes, strides) of an extract_slice (`first`=1) or insert_slice (`first`=2); None where one depends on data."""
    operands = iter(list(op.operands)[first:])
    parts = [
        shapes.mixed(list(ir.DenseI64ArrayAttr(op.attributes[name])), operands)
        for name in ("static_offsets", "static_sizes", "static_strides")
    ]
    return parts[0], parts[1], parts[2]


def kept_dims(op: ir.Operation, part: ir.Value | None = None) -> list[int]:
    """Return the dims that survive a rank-reducing extract_slice (or those of `part`, which an insert_slice inserts), in order."""
    static = list(ir.DenseI64ArrayAttr(op.attributes["static_sizes"]))
    target = list((part or op.results[0]).type.shape)
    kept: list[int] = []
    for dim, size in enumerate(static):
        wanted = target[len(kept)] if len(kept) < len(target) else None
        remaining, needed = len(static) - dim, len(target) - len(kept)
        matches = wanted is not None and (wanted == size or (size == DYNAMIC and wanted < 0))
        if matches and (size != 1 or remaining == needed or wanted == 1):
            kept.append(dim)
    return kept


def _extract_slice(shapes: Shapes, op: ir.Operation) -> None:
    sizes = slice_parameters(shapes, op, 1)[1]
    if sizes is not None:
        shapes._shapes[op.results[0]] = tuple(sizes[dim] for dim in kept_dims(op))


def _insert_slice(shapes: Shapes, op: ir.Operation) -> None:
    if (known := shapes._shapes.get(op.operands[1])) is not None:
        shapes._shapes[op.results[0]] = known


def pad_parameters(shapes: Shapes, op: ir.Operation) -> tuple[Shape, Shape]:
    """Return (low, high) padding of a tensor.pad, one size a dim. Raises UnsupportedError for a padding that depends on data."""
    operands = iter(list(op.operands)[1:])
    low, high = (shapes.mixed(list(ir.DenseI64ArrayAttr(op.attributes[name])), operands) for name in ("static_low", "static_high"))
    if low is None or high is None:
        raise UnsupportedError("a padding whose size depends on data")
    return low, high


def _pad(shapes: Shapes, op: ir.Operation) -> None:
    source = shapes._shapes.get(op.operands[0])
    if source is not None and all(shapes.has_index(operand) for operand in list(op.operands)[1:]):
        low, high = pad_parameters(shapes, op)
        shapes._shapes[op.results[0]] = tuple(sympy.expand(a + b + c) for a, b, c in zip(source, low, high, strict=True))


def _concat(shapes: Shapes, op: ir.Operation) -> None:
    axis = ir.IntegerAttr(op.attributes["dim"]).value
    sources = [shapes._shapes.get(operand) for operand in op.operands]
    if all(source is not None for source in sources):
        known = list(sources[0] or ())
        known[axis] = sympy.expand(sympy.Add(*[source[axis] for source in sources if source]))
        shapes._shapes[op.results[0]] = tuple(known)


def _apply(shapes: Shapes, op: ir.Operation) -> None:
    operands = [shapes._scalars.get(operand) for operand in op.operands]
    if all(operand is not None for operand in operands):
        affine = ir.AffineMapAttr(op.attributes["map"]).value if hasattr(ir.AffineMapAttr(op.attributes["map"]), "value") else None
        if affine is not None:
            shapes._scalars[op.results[0]] = affine_to_expr(affine.results[0], operands, affine.n_dims)


def affine_to_expr(expr: ir.AffineExpr, operands: Sequence[Any], num_dims: int) -> Expr:
    """Return an affine expression over sympy operands, dims first, then symbols; floordiv, ceildiv and mod round as in MLIR's affine
    dialect.
    """
    if isinstance(expr, ir.AffineConstantExpr):
        return sympy.Integer(expr.value)
    if isinstance(expr, ir.AffineDimExpr):
        return operands[expr.position]
    if isinstance(expr, ir.AffineSymbolExpr):
        return operands[num_dims + expr.position]
    a, b = (affine_to_expr(side, operands, num_dims) for side in (expr.lhs, expr.rhs))
    if isinstance(expr, ir.AffineAddExpr):
        return a + b
    if isinstance(expr, ir.AffineMulExpr):
        return a * b
    if isinstance(expr, ir.AffineFloorDivExpr):
        return sympy.floor(a / b)
    if isinstance(expr, ir.AffineCeilDivExpr):
        return -sympy.floor(-a / b)
    return floor_mod(a, b)


def _loop(shapes: Shapes, op: ir.Operation) -> None:
    """A loop whose induction variable has a name: what its body computes has known sizes too. A carried tensor keeps its size."""
    if INDUCTION_VARIABLE not in op.attributes:
        return
    block = op.regions[0].blocks[0]
    induction_variable, *carried = block.arguments
    shapes._scalars[induction_variable] = shapes.table.parse(text_of(op.attributes, INDUCTION_VARIABLE))
    for argument, init in zip(carried, list(op.operands)[3:], strict=True):
        if (known := shapes._shapes.get(init)) is not None:
            shapes._shapes[argument] = known
    for inner in block.operations:
        shapes.visit(inner.operation)


def _call(shapes: Shapes, op: ir.Operation) -> None:
    if SHAPES in op.attributes:
        for result, attr in zip(op.results, ir.ArrayAttr(op.attributes[SHAPES]), strict=True):
            shapes._shapes[result] = tuple(shapes.table.parse(dim) for dim in read_shape(attr))


def _select(shapes: Shapes, op: ir.Operation) -> None:
    """A select of two sizes whose comparison the ranges decide."""
    condition = op.operands[0].owner
    if isinstance(condition, ir.Block) or condition.name != "arith.cmpi":
        return
    a, b = (shapes._scalars.get(operand) for operand in condition.operands)
    yes, no = shapes._scalars.get(op.operands[1]), shapes._scalars.get(op.operands[2])
    if a is None or b is None or yes is None or no is None:
        return
    verdict = decide(shapes.table, ir.IntegerAttr(condition.attributes["predicate"]).value, a - b)
    if verdict is not None:
        shapes._scalars[op.results[0]] = yes if verdict else no


_RULES: Mapping[str, Callable[[Shapes, ir.Operation], None]] = {
    "arith.constant": _constant,
    "arith.index_cast": _same_scalar,
    "arith.extsi": _same_scalar,
    "arith.trunci": _same_scalar,
    "arith.fptosi": _floor_of_product,
    "arith.addi": _binary(lambda a, b: a + b),
    "arith.subi": _binary(lambda a, b: a - b),
    "arith.muli": _binary(lambda a, b: a * b),
    "arith.divsi": _signed(truncated, _floor_div),
    "arith.remsi": _signed(lambda a, b: a - b * truncated(a, b), floor_mod),
    "arith.floordivsi": _binary(_floor_div),
    "arith.ceildivsi": _binary(_ceil_div),
    "arith.divui": _unsigned(_floor_div),
    "arith.remui": _unsigned(floor_mod),
    "arith.ceildivui": _unsigned(_ceil_div),
    "arith.minsi": _binary(sympy.Min),
    "arith.maxsi": _binary(sympy.Max),
    "arith.minui": _unsigned(sympy.Min),
    "arith.maxui": _unsigned(sympy.Max),
    "arith.select": _select,
    "affine.apply": _apply,
    "tensor.dim": _dim,
    "tensor.extract": _extract,
    "tensor.empty": _empty,
    "tensor.cast": _same_shape,
    "tensor.expand_shape": _expand,
    "tensor.collapse_shape": _collapse,
    "tensor.extract_slice": _extract_slice,
    "tensor.insert_slice": _insert_slice,
    "tensor.pad": _pad,
    "tensor.concat": _concat,
    "tensor.generate": _empty,
    "tensor.splat": lambda shapes, op: _set_mixed(shapes, op, op.results[0].type.shape, iter(list(op.operands)[1:])),
    "func.call": _call,
    "scf.for": _loop,
}
