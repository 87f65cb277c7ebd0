"""Symbolic sizes: every dimension of every tensor as an expression over the program's named symbols.

Expressions are sympy integers, symbols (positive), sums, products, `floor`, `Min`, `Max` and `FloorMul`; as text
(compiler/ir/size_text.py) they are what `llmos.shape` attributes and the manifest hold ("batch*tokens", "tokens//2").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import sympy

from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.rounded_sizes import FloorMul
from llmos.compiler.ir.size_text import floor_mod, size_text, truncated
from llmos.runtime.errors import UnsupportedError, UserError

Expr: TypeAlias = sympy.Expr
Shape: TypeAlias = tuple[Expr, ...]
T = TypeVar("T")
_FUNCTIONS: Mapping[str, Any] = {
    "floor": sympy.floor,
    "min": sympy.Min,
    "max": sympy.Max,
    "Min": sympy.Min,
    "Max": sympy.Max,
    "Mod": floor_mod,
    "FloorMul": FloorMul,
    "floor_mul": FloorMul,
}

COUNTERS = "llmos.counters"  # of a module: the counters of its loops, with their ranges
COUNTER = "llmos.counter"  # of a loop: the name of its counter
COMPUTED = "llmos.computed"  # of a module: the sizes that the program computes from data
COMPUTES = "llmos.computes"  # of a tensor.extract: the name of the size that it reads

MAX_BOUND = 2**31 - 1  # a computed size that may be larger has no bound that an output could be allocated by


@dataclass(frozen=True)
class Symbol:
    """A named dynamic dimension, `min <= value <= max`."""

    name: str
    min: int
    max: int

    @property
    def expr(self) -> Expr:
        return sympy.Symbol(self.name, integer=True, nonnegative=True if self.min >= 0 else None, positive=True if self.min > 0 else None)


@dataclass(frozen=True)
class ComputedSymbol(Symbol):
    """A size (or a number that sizes are made of) that the entry computes from data, while it runs.

    `bound`: an expression of symbols known before that it never exceeds; what outputs are allocated by follows from it. `equals`: an
    expression that it must be equal to, or "".
    """

    bound: str
    equals: str = ""


@dataclass(frozen=True)
class SymbolTable:
    """The program's symbols, in manifest order; those that it computes; the counters of its loops, which only loops may read."""

    symbols: tuple[Symbol, ...]
    counters: tuple[Symbol, ...] = ()
    computed: tuple[ComputedSymbol, ...] = ()

    @classmethod
    def of(cls, module: ir.Module) -> SymbolTable:
        return cls(_ranges(module, "llmos.symbols"), _ranges(module, COUNTERS), _computed(module))

    @property
    def sizes(self) -> tuple[Symbol, ...]:
        """What the host function knows, in the order in which kernels find their values."""
        return (*self.symbols, *self.computed)

    @property
    def names(self) -> tuple[Symbol, ...]:
        """All that an expression may hold, in the order in which kernels find their values."""
        return (*self.sizes, *self.counters)

    def parse(self, dim: str | int) -> Expr:
        """The expression of one entry of `llmos.shape`."""
        if isinstance(dim, int):
            return sympy.Integer(dim)
        names: dict[str, Any] = {symbol.name: symbol.expr for symbol in self.names}
        # sympy runs what it is given, and makes symbols of names that it doesn't know.
        unknown = set(re.findall(r"[^\W\d]\w*", dim)) - set(names) - set(_FUNCTIONS)
        if unknown or not re.fullmatch(r"[\w\s()+*/%,-]+", dim):
            raise UserError(f"the size {dim!r} is no expression of {', '.join(names) or 'numbers'}")
        try:
            return self.simplify(_without_mod(sympy.sympify(dim, locals={**_FUNCTIONS, **names})))
        except (sympy.SympifyError, TypeError, ValueError) as error:
            raise UserError(f"the size {dim!r} can't be read: {error}") from None

    def bounds(self, expr: Expr) -> tuple[Expr, Expr]:
        """Lower and upper bound of an expression, by interval arithmetic."""
        ranges = {symbol.expr: (sympy.Integer(symbol.min), sympy.Integer(symbol.max)) for symbol in self.names}
        low, high = _interval(expr, ranges)
        if not expr.has(sympy.floor):
            return low, high
        # floor(x) is x less a fraction: what is rounded and what is not may cancel, as in a remainder.
        fractions: dict[Expr, tuple[Expr, Expr]] = {}

        def unrounded(x: Expr) -> Expr:
            fraction, divisor = sympy.Dummy(), sympy.fraction(sympy.together(x))[1]
            fractions[fraction] = (sympy.S.Zero, 1 - 1 / divisor if divisor.is_Integer else sympy.S.One)
            return x - fraction

        other_low, other_high = _interval(sympy.expand(expr.replace(sympy.floor, unrounded)), {**ranges, **fractions})
        return sympy.Max(low, sympy.ceiling(other_low)), sympy.Min(high, sympy.floor(other_high))

    def computed_in(self, expr: Expr) -> list[ComputedSymbol]:
        """The computed symbols that an expression depends on."""
        free = expr.free_symbols if self.computed else ()
        return [symbol for symbol in self.computed if symbol.expr in free]

    def upper_bound(self, expr: Expr) -> Expr:
        """What an expression never exceeds, over the symbols of the inputs alone."""
        bound = self._largest(expr)
        if bound.has(sympy.oo, -sympy.oo, sympy.nan):
            raise UnsupportedError(
                f"an output's size ({expr}) depends on data and has no bound that memory could be taken by: give it one in the model, "
                "such as torch._check(x.shape[0] <= 1000)"
            )
        return bound

    def at_most(self, expr: Expr) -> Expr:
        """As `upper_bound`; where there is none, the expression at the least of what data can give."""
        bound = self._largest(expr)
        if not bound.has(sympy.oo, -sympy.oo, sympy.nan):
            return bound
        return self.simplify(expr.subs({symbol.expr: symbol.min for symbol in self.computed}))

    def _largest(self, expr: Expr) -> Expr:
        """As `upper_bound`; infinity where there is none."""
        computed = self.computed_in(expr)
        if not computed:
            return expr
        ranges = {symbol.expr: (symbol.expr, symbol.expr) for symbol in self.symbols}
        ranges |= {symbol.expr: (sympy.Integer(symbol.min), self._bound_of(symbol)) for symbol in computed}
        return self.simplify(_interval(sympy.expand(expr), ranges)[1])

    def _bound_of(self, symbol: ComputedSymbol) -> Expr:
        bound = self._largest(self.parse(symbol.bound))
        return sympy.oo if bound.is_Integer and bound > MAX_BOUND else bound

    def simplify(self, expr: Expr) -> Expr:
        """The expression without the branches that the ranges of its symbols rule out."""
        expr = sympy.expand(expr)
        if not expr.has(sympy.Min, sympy.Max, sympy.floor):
            return expr
        return expr.replace(lambda e: isinstance(e, (sympy.Min, sympy.Max)), self._resolve)

    def _resolve(self, choice: Expr) -> Expr:
        kept = list(choice.args)
        smaller = isinstance(choice, sympy.Min)

        def wins(a: Expr, b: Expr) -> bool:
            return bool(self.bounds(b - a if smaller else a - b)[0] >= 0)

        for a in choice.args:
            kept = [b for b in kept if b == a or a not in kept or not wins(a, b)]
        return choice.func(*kept)


def _without_mod(expr: Expr) -> Expr:
    """Of what text with % in it is parsed to."""
    return expr.replace(sympy.Mod, floor_mod)


def _ranges(module: ir.Module, attribute: str) -> tuple[Symbol, ...]:
    if attribute not in module.operation.attributes:
        return ()
    table = ir.DictAttr(module.operation.attributes[attribute])
    ranges = {named.name: [int(bound) for bound in ir.DenseI64ArrayAttr(named.attr)] for named in (table[i] for i in range(len(table)))}
    return tuple(Symbol(name, low, high) for name, (low, high) in ranges.items())


def _computed(module: ir.Module) -> tuple[ComputedSymbol, ...]:
    if COMPUTED not in module.operation.attributes:
        return ()
    table = ir.DictAttr(module.operation.attributes[COMPUTED])
    found = []
    for named in (table[i] for i in range(len(table))):
        fields = ir.DictAttr(named.attr)
        low, high = (int(bound) for bound in ir.DenseI64ArrayAttr(fields["range"]))
        found.append(ComputedSymbol(named.name, low, high, ir.StringAttr(fields["bound"]).value, ir.StringAttr(fields["equals"]).value))
    return tuple(found)


def _interval(expr: Expr, ranges: Mapping[Expr, tuple[Expr, Expr]]) -> tuple[Expr, Expr]:
    if expr in ranges:
        return ranges[expr]
    if not expr.args:
        return (expr, expr) if expr.is_number else (-sympy.oo, sympy.oo)
    parts = [_interval(arg, ranges) for arg in expr.args]
    if isinstance(expr, FloorMul):
        low, high = (end if end.is_infinite else FloorMul(end, *expr.args[1:]) for end in parts[0])
        return (low, high) if expr.scale > 0 else (-high if high.is_infinite else high, -low if low.is_infinite else low)
    if isinstance(expr, sympy.Add):
        return sympy.Add(*[low for low, _ in parts]), sympy.Add(*[high for _, high in parts])
    if isinstance(expr, (sympy.Min, sympy.Max, sympy.floor)):
        return expr.func(*[low for low, _ in parts]), expr.func(*[high for _, high in parts])
    if isinstance(expr, sympy.Mul):
        low, high = parts[0]
        for other in parts[1:]:
            ends = [sympy.S.Zero if a == 0 or b == 0 else a * b for a in (low, high) for b in other]  # not NaN where one is infinite
            low, high = sympy.Min(*ends), sympy.Max(*ends)
        return low, high
    if isinstance(expr, sympy.Pow) and expr.exp.is_Integer and parts[0][0] >= (0 if expr.exp > 0 else 1):
        ends = [end**expr.exp for end in parts[0]]
        return (ends[0], ends[1]) if expr.exp > 0 else (ends[1], ends[0])
    return -sympy.oo, sympy.oo


@dataclass
class Shapes:
    """Sizes of the values of one function; `shape` for tensors, `index` for index and integer scalars. Filled in program order."""

    table: SymbolTable
    _shapes: dict[ir.Value, Shape] = field(default_factory=dict)
    _scalars: dict[ir.Value, Expr | None] = field(default_factory=dict)

    @classmethod
    def of(cls, func: ir.Operation, table: SymbolTable) -> Shapes:
        shapes = cls(table)
        for argument, attributes in zip(func.regions[0].blocks[0].arguments, argument_attributes(func), strict=True):
            shapes._enter(argument, attributes)
        for op in func.regions[0].blocks[0].operations:
            shapes.visit(op.operation)
        return shapes

    def shape(self, value: ir.Value) -> Shape:
        found = self._shapes.get(value)
        if found is None:
            raise UnsupportedError(f"the size of a value depends on data: {_short(value)}")
        return found

    def index(self, value: ir.Value) -> Expr:
        found = self._scalars.get(value)
        if found is None:
            raise UnsupportedError(f"a size depends on data: {_short(value)}")
        return found

    def has_index(self, value: ir.Value) -> bool:
        return self._scalars.get(value) is not None

    def _enter(self, argument: ir.Value, attributes: Mapping[str, ir.Attribute]) -> None:
        if "llmos.expr" in attributes:
            self._scalars[argument] = self.table.parse(ir.StringAttr(attributes["llmos.expr"]).value)
        elif isinstance(argument.type, ir.RankedTensorType):
            dims = read_shape(attributes["llmos.shape"]) if "llmos.shape" in attributes else list(argument.type.shape)
            self._shapes[argument] = tuple(self.table.parse(dim) for dim in dims)

    def visit(self, op: ir.Operation) -> None:
        """Record the sizes of one op's results."""
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
        """A list of sizes as MLIR keeps it: static numbers, and operands where the number is the dynamic sentinel."""
        sizes: list[Expr] = []
        for size in static:
            value = self._scalars.get(next(dynamic)) if size == DYNAMIC else sympy.Integer(size)
            if value is None:
                return None
            sizes.append(value)
        return tuple(sizes)


DYNAMIC = -(2**63)


def argument_attributes(func: ir.Operation) -> list[dict[str, ir.Attribute]]:
    """`arg_attrs` of a function, one dict an argument."""
    count = len(func.regions[0].blocks[0].arguments)
    if "arg_attrs" not in func.attributes:
        return [{} for _ in range(count)]
    return [{named.name: named.attr for named in _items(ir.DictAttr(attr))} for attr in ir.ArrayAttr(func.attributes["arg_attrs"])]


def result_attributes(func: ir.Operation) -> list[dict[str, ir.Attribute]]:
    """`res_attrs` of a function, one dict a result."""
    count = len(ir.FunctionType(ir.TypeAttr(func.attributes["function_type"]).value).results)
    if "res_attrs" not in func.attributes:
        return [{} for _ in range(count)]
    return [{named.name: named.attr for named in _items(ir.DictAttr(attr))} for attr in ir.ArrayAttr(func.attributes["res_attrs"])]


def _items(attr: ir.DictAttr) -> list[ir.NamedAttribute]:
    return [attr[i] for i in range(len(attr))]


def read_shape(attr: ir.Attribute) -> list[str | int]:
    """The entries of an `llmos.shape` attribute."""
    return [ir.StringAttr(dim).value if isinstance(dim, ir.StringAttr) else ir.IntegerAttr(dim).value for dim in ir.ArrayAttr(attr)]


def callers_shape(dtype: str, dims: Sequence[T]) -> tuple[T, ...]:
    """The dimensions that a caller sees: the last one of complex numbers holds their two parts, and is none."""
    return tuple(dims[:-1] if dtype.startswith("complex") else dims)


def shape_attribute(shape: Sequence[Expr]) -> ir.Attribute:
    """`llmos.shape` of symbolic sizes."""
    i64 = ir.IntegerType.get_signless(64)
    return ir.ArrayAttr.get([ir.IntegerAttr.get(i64, int(dim)) if dim.is_Integer else ir.StringAttr.get(size_text(dim)) for dim in shape])


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
    """fptosi(floor(sitofp(n) * constant)) in float64."""
    chain, value = [], op.operands[0]
    for name in ("math.floor", "arith.mulf", "arith.sitofp"):
        if isinstance(value.owner, ir.Block) or value.owner.name != name:
            return
        chain.append(value.owner)
        value = value.owner.operands[0]
    scale, number = chain[1].operands[1], shapes._scalars.get(value)
    is_double = isinstance(scale.type, ir.F64Type) and not isinstance(scale.owner, ir.Block)
    if number is not None and is_double and scale.owner.name == "arith.constant":
        shapes._scalars[op.results[0]] = FloorMul.by(number, ir.FloatAttr(scale.owner.attributes["value"]).value)


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
    """The groups of dims of an expand_shape or collapse_shape."""
    return [[ir.IntegerAttr(i).value for i in ir.ArrayAttr(group)] for group in ir.ArrayAttr(op.attributes["reassociation"])]


def _collapse(shapes: Shapes, op: ir.Operation) -> None:
    if (source := shapes._shapes.get(op.operands[0])) is not None:
        shapes._shapes[op.results[0]] = tuple(sympy.expand(sympy.Mul(*[source[i] for i in group])) for group in reassociation(op))


def slice_parameters(shapes: Shapes, op: ir.Operation, first: int) -> tuple[Shape | None, Shape | None, Shape | None]:
    """(offsets, sizes, strides) of an extract_slice (`first`=1) or insert_slice (`first`=2)."""
    operands = iter(list(op.operands)[first:])
    parts = [
        shapes.mixed(list(ir.DenseI64ArrayAttr(op.attributes[name])), operands)
        for name in ("static_offsets", "static_sizes", "static_strides")
    ]
    return parts[0], parts[1], parts[2]


def kept_dims(op: ir.Operation, part: ir.Value | None = None) -> list[int]:
    """The dims that survive a rank-reducing extract_slice (or those of `part`, which an insert_slice inserts), in order."""
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
    """(low, high) padding of a tensor.pad, one size a dim."""
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
    """An affine expression over sympy operands."""
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
    """A loop whose counter has a name: what its body computes has known sizes too. A carried tensor keeps its size."""
    if COUNTER not in op.attributes:
        return
    block = op.regions[0].blocks[0]
    counter, *carried = block.arguments
    shapes._scalars[counter] = shapes.table.parse(ir.StringAttr(op.attributes[COUNTER]).value)
    for argument, init in zip(carried, list(op.operands)[3:], strict=True):
        if (known := shapes._shapes.get(init)) is not None:
            shapes._shapes[argument] = known
    for inner in block.operations:
        shapes.visit(inner.operation)


def _call(shapes: Shapes, op: ir.Operation) -> None:
    if "llmos.shapes" in op.attributes:
        for result, attr in zip(op.results, ir.ArrayAttr(op.attributes["llmos.shapes"]), strict=True):
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


def decide(table: SymbolTable, predicate: int, difference: Expr) -> bool | None:
    """Whether `a <predicate> b` holds for every value of the symbols, from a - b; None if it depends.

    Predicates as arith.cmpi numbers them.
    """
    low, high = table.bounds(table.simplify(difference))
    holds: dict[int, tuple[bool, bool]] = {  # predicate: (always, never)
        0: (low == 0 and high == 0, low > 0 or high < 0),
        1: (low > 0 or high < 0, low == 0 and high == 0),
        2: (high < 0, low >= 0),
        3: (high <= 0, low > 0),
        4: (low > 0, high <= 0),
        5: (low >= 0, high < 0),
    }
    always, never = holds.get(predicate if predicate < 6 else predicate - 4, (False, False))
    return True if always else False if never else None


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
