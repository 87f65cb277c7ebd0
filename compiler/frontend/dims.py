"""Symbolic sizes of the program being imported: torch's size expressions under the user's names, and their index arithmetic.

A size is an `int` or a sympy expression over the program's symbols.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import sympy
import torch
from torch.utils._sympy import functions as torch_sympy
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

import llmos.compiler.frontend.floor_division  # noqa: F401, corrects what torch makes of sizes
from llmos.compiler.frontend.float_sizes import ROUNDINGS, rounded_size
from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.rounded_sizes import FloorMul, FloorMulF32
from llmos.compiler.ir.sizes import Symbol
from llmos.runtime.errors import UnsupportedError

Dim: TypeAlias = "int | sympy.Expr"
Shape: TypeAlias = tuple[Dim, ...]

MAX_SIZE = 2**31 - 1  # the largest size of an unbounded dimension
INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class InputSymbol(Symbol):
    """A symbol that is read from dimension `axis` of input number `argument`."""

    argument: int
    axis: int


@dataclass(frozen=True)
class DataSize(Symbol):
    """A number read from data that sizes depend on: export's unbacked symbol. `bounds`: upper bounds that the model asserts."""

    bounds: tuple[sympy.Expr, ...] = ()


@dataclass(frozen=True)
class ComputedSize:
    """A DataSize that an op computes. `bound`: its upper bound over earlier sizes; `equals`: the size it is checked against."""

    size: DataSize
    bound: Dim
    equals: Dim | None = None


NO_SIZES: Mapping[sympy.Symbol, DataSize] = MappingProxyType({})


class Sizes:
    """The program's symbols, and proofs about sizes."""

    def __init__(
        self,
        symbols: Sequence[InputSymbol],
        torch_names: Mapping[sympy.Symbol, InputSymbol],
        unbacked: Mapping[sympy.Symbol, DataSize] = NO_SIZES,
    ) -> None:
        self.symbols = tuple(symbols)
        self.computed: list[ComputedSize] = []
        self._names: dict[sympy.Symbol, Dim] = {torch_symbol: symbol.expr for torch_symbol, symbol in torch_names.items()}
        self._names |= {torch_symbol: size.expr for torch_symbol, size in unbacked.items()}
        self._pending = {size.expr: size for size in unbacked.values()}
        known: list[Symbol] = [*symbols, *unbacked.values()]
        self._ranges = {each.expr: ValueRanges(each.min, each.max) for each in known}

    def define(self, dim: Dim | None, bound: Dim, is_exact: bool = False) -> sympy.Symbol:
        """Define a symbol for a number that the program computes, at most `bound`. `dim` is torch's name for it, or None.

        If `dim` is already known (another size, a number), the program checks that the new symbol equals it. `is_exact`: `bound` is more
        precise than torch's range. Raises UnsupportedError for a size of data that is computed too late.
        """
        if dim is None:
            size = self._fresh(0, self.bounds(bound)[1])
            self.computed.append(ComputedSize(size, bound))
            return size.expr
        pending = self._pending.pop(dim, None) if not isinstance(dim, int) else None
        size = pending or self._fresh_for(dim)
        if is_exact:
            size = replace(size, max=INT64_MAX, bounds=())
            self._ranges[size.expr] = ValueRanges(size.min, size.max)
        limits = [limit for each in size.bounds if not self.is_pending(limit := each.xreplace(self._names))]
        smallest = self.simplify(sympy.Min(bound, size.max, *limits))
        self.computed.append(ComputedSize(size, smallest, None if pending else dim))
        return size.expr

    def _fresh_for(self, dim: Dim) -> DataSize:
        if self.is_pending(dim):
            raise UnsupportedError(f"the size {dim} depends on data that nothing computes before it is needed")
        return self._fresh(*self.bounds(dim))

    def _fresh(self, low: int | float, high: int | float) -> DataSize:
        taken = {symbol.name for symbol in self._ranges}
        name = next(name for i in itertools.count() if (name := f"c{i}") not in taken)
        size = DataSize(name, max(int(low), 0) if low > -math.inf else 0, int(high) if high < math.inf else INT64_MAX)
        self._ranges[size.expr] = ValueRanges(size.min, size.max)
        return size

    def is_pending(self, dim: Dim) -> bool:
        """Whether a size depends on data that no lowered op has read yet."""
        return not isinstance(dim, int) and not self._pending.keys().isdisjoint(dim.free_symbols)

    def is_computed(self, dim: Dim) -> bool:
        """Whether a size depends on data."""
        return not isinstance(dim, int) and (self.is_pending(dim) or any(each.size.expr in dim.free_symbols for each in self.computed))

    def dim(self, size: int | torch.SymInt | sympy.Expr) -> Dim:
        """Convert a size of torch's metadata to the program's symbols, simplified by their ranges.

        Raises UnsupportedError for a size that depends on data which no op reads.
        """
        if isinstance(size, int):
            return size
        expr = self._renamed(size.node.expr if isinstance(size, torch.SymInt) else size)
        return self.simplify(self._without_floats(expr))

    def expression(self, value: torch.SymFloat | torch.SymBool) -> sympy.Basic:
        """Convert a float or bool of torch's metadata to the program's symbols. Raises UnsupportedError as `dim`."""
        return self._renamed(value.node.expr)

    def _renamed(self, expr: sympy.Basic) -> sympy.Basic:
        expr = sympy.sympify(expr).xreplace(self._names)
        if expr.free_symbols - set(self._ranges):
            raise UnsupportedError(f"a tensor size depends on data ({expr}): only sizes that follow from input sizes can be compiled")
        return expr

    def _without_floats(self, expr: sympy.Expr) -> sympy.Expr:
        """Rewrite float arithmetic in sizes (int(n * 0.5), ceil(n / 3)) to integer arithmetic that is equal at every size."""
        return expr.replace(lambda e: isinstance(e, ROUNDINGS), lambda e: rounded_size(e, self.bounds))

    def shape(self, sizes: Sequence[int | torch.SymInt]) -> Shape:
        """Convert a shape of torch's metadata by `dim`."""
        return tuple(self.dim(size) for size in sizes)

    def bounds(self, dim: Dim) -> tuple[int | float, int | float]:
        """Return the lower and upper bound of a size; infinite if unknown."""
        if isinstance(dim, int):
            return dim, dim
        products: dict[sympy.Symbol, ValueRanges[Any]] = {}
        plain = dim.replace(lambda e: isinstance(e, FloorMul), lambda e: self._stand_in(e, products))
        found = bound_sympy(plain, {**self._ranges, **products})
        return _bound(found.lower), _bound(found.upper)

    def _stand_in(self, product: FloorMul, ranges: dict[sympy.Symbol, ValueRanges[Any]]) -> sympy.Symbol:
        """Return a symbol, with its range, for a function that torch's range analysis doesn't know."""
        ends = sorted(int(product.func(sympy.Integer(end), *product.args[1:])) for end in self.bounds(product.args[0]))
        symbol = sympy.Dummy(integer=True)
        ranges[symbol] = ValueRanges(*ends)
        return symbol

    def simplify(self, dim: Dim) -> Dim:
        """Simplify an expression by the symbols' ranges; return an `int` for a constant."""
        if isinstance(dim, int):
            return dim
        chosen = dim.replace(lambda e: isinstance(e, _CHOICES), self._choose) if dim.has(*_CHOICES) else dim
        expr = sympy.expand(chosen)
        return int(expr) if expr.is_Integer else expr

    def _choose(self, choice: sympy.Expr) -> sympy.Expr:
        smallest = isinstance(choice, (sympy.Min, torch_sympy.Min))
        kept = list(choice.args)
        for a in choice.args:
            for b in list(kept):
                low, high = self.bounds(sympy.expand(b - a)) if a != b else (-1, 1)
                if a in kept and (low >= 0 if smallest else high <= 0):
                    kept.remove(b)
        return choice.func(*kept) if len(kept) > 1 else kept[0]

    def equal(self, a: Dim, b: Dim) -> bool:
        """Whether two sizes are the same for every value of the symbols."""
        return a == b or sympy.expand(sympy.sympify(a) - sympy.sympify(b)) == 0

    def differ(self, a: Dim, b: Dim) -> bool:
        """Whether two sizes differ at one of the sampled values of the symbols."""
        if self.equal(a, b):
            return False
        difference = sympy.sympify(a) - sympy.sympify(b)
        samples = [{s.expr: min(max(s.min, first + 3 * i), s.max) for i, s in enumerate(self.symbols)} for first in (2, 5, 16, 37)]
        found = [difference.subs(sample) for sample in samples]
        return any(each.is_number and each != 0 for each in found)

    def product(self, dims: Sequence[Dim]) -> Dim:
        """Return the number of elements of a shape, simplified."""
        return self.simplify(sympy.expand(sympy.Mul(*dims)))


_CHOICES = (sympy.Min, sympy.Max, torch_sympy.Min, torch_sympy.Max)


def plain_text(dim: Dim) -> str:
    """Format a size in the text grammar of the passes (compiler/ir/sizes.py)."""
    if isinstance(dim, int):
        return str(dim)
    plain = dim.replace(lambda e: isinstance(e, torch_sympy.FloorDiv | torch_sympy.CleanDiv), lambda e: sympy.floor(e.args[0] / e.args[1]))
    plain = plain.replace(lambda e: isinstance(e, torch_sympy.CeilDiv), lambda e: -sympy.floor(-e.args[0] / e.args[1]))
    plain = plain.replace(torch_sympy.Min, sympy.Min).replace(torch_sympy.Max, sympy.Max)
    return str(plain.replace(lambda e: isinstance(e, torch_sympy.Mod | torch_sympy.PythonMod), lambda e: sympy.Mod(*e.args)))


def _bound(value: object) -> int | float:
    number = sympy.sympify(value)
    if number.is_Integer:
        return int(number)
    return math.inf if str(number) in ("oo", "int_oo") else -math.inf if str(number) in ("-oo", "-int_oo") else float(number)


class IndexValues:
    """Sizes as index values of the function being built. Each is computed once, at the function's start, from the inputs' dimensions."""

    def __init__(self, anchor: ir.Operation, symbols: Mapping[sympy.Symbol, ir.Value]) -> None:
        self._anchors = [anchor]
        self._computed: dict[sympy.Symbol, int] = {}
        self._values: dict[Dim, ir.Value] = dict(symbols)
        self._index = ir.IndexType.get()

    def value(self, dim: Dim) -> ir.Value:
        """Return the SSA index value of a size. Raises UnsupportedError for one that depends on data not yet read."""
        if dim not in self._values:
            with ir.InsertionPoint(self._anchor_of(dim)):
                self._values[dim] = self._build(dim)
        return self._values[dim]

    def define(self, symbol: sympy.Symbol, value: ir.Value, anchor: ir.Operation) -> None:
        """Bind a symbol, known after `anchor`, to an index value; `anchor` comes after every earlier anchor."""
        self._values[symbol] = value
        self._computed[symbol] = len(self._anchors)
        self._anchors.append(anchor)

    def _anchor_of(self, dim: Dim) -> ir.Operation:
        """Return the op after which all symbols of a size are known."""
        known = [] if isinstance(dim, int) else [self._computed.get(symbol, 0) for symbol in dim.free_symbols]
        return self._anchors[max(known, default=0)]

    def _build(self, dim: Dim) -> ir.Value:
        if isinstance(dim, int) or dim.is_Integer:
            return arith.ConstantOp(self._index, int(dim)).result
        if isinstance(dim, sympy.Symbol):
            raise UnsupportedError(f"the size {dim} depends on data that nothing computes before it is needed")
        if isinstance(dim, sympy.Pow) and dim.exp.is_Integer and dim.exp > 0:
            return self._fold(arith.muli, [dim.base] * int(dim.exp))
        if isinstance(dim, FloorMul):
            return self._rounded_product(dim)
        if isinstance(dim, _REMAINDERS):
            a, b = (self.value(arg) for arg in dim.args)
            return arith.subi(a, arith.muli(arith.floordivsi(a, b), b))
        for kinds, build in _INDEX_OPS:
            if isinstance(dim, kinds):
                return self._fold(build, dim.args)
        raise UnsupportedError(f"the size expression {dim} ({type(dim).__name__}) isn't supported")

    def _rounded_product(self, product: FloorMul) -> ir.Value:
        """Emit the form that the passes recognize (compiler/ir/sizes.py)."""
        from llmos.compiler.ir.bindings import math as math_dialect

        i64, kind = ir.IntegerType.get_signless(64), ir.F32Type.get() if isinstance(product, FloorMulF32) else ir.F64Type.get()
        number = arith.sitofp(kind, arith.index_cast(i64, self.value(product.args[0])))
        rounded = math_dialect.floor(arith.mulf(number, arith.ConstantOp(kind, product.scale).result))
        return arith.index_cast(self._index, arith.fptosi(i64, rounded))

    def _fold(self, build: object, args: Sequence[Dim]) -> ir.Value:
        assert callable(build)
        return functools.reduce(lambda a, b: build(a, b), [self.value(arg) for arg in args])


_INDEX_OPS = (
    (sympy.Add, arith.addi),
    (sympy.Mul, arith.muli),
    ((sympy.Min, torch_sympy.Min), arith.minsi),
    ((sympy.Max, torch_sympy.Max), arith.maxsi),
    (torch_sympy.CeilDiv, arith.ceildivsi),
    ((torch_sympy.FloorDiv, torch_sympy.CleanDiv), arith.floordivsi),
)
_REMAINDERS = (torch_sympy.Mod, torch_sympy.PythonMod, sympy.Mod)  # with the sign of the divisor
