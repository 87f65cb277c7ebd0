"""Symbolic sizes: the named symbols of a program, and what is known of expressions over them.

Expressions are sympy integers, symbols (positive), sums, products, `floor`, `Min`, `Max` and `FloorMul`; as text
(compiler/ir/size_text.py) they are what `llmos.shape` attributes and the manifest hold ("batch*tokens", "tokens//2").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import sympy

from llmos.compiler.ir.attributes import COMPUTED, INDUCTION_VARIABLES, SYMBOLS
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.intervals import Intervals
from llmos.compiler.ir.rounded_sizes import FloorMul, FloorMulF32
from llmos.compiler.ir.size_text import floor_mod
from llmos.runtime.errors import UnsupportedError, UserError

Expr: TypeAlias = sympy.Expr
Shape: TypeAlias = tuple[Expr, ...]
_FUNCTIONS: Mapping[str, Any] = {
    "floor": sympy.floor,
    "min": sympy.Min,
    "max": sympy.Max,
    "Min": sympy.Min,
    "Max": sympy.Max,
    "Mod": floor_mod,
    "FloorMul": FloorMul,
    "FloorMulF32": FloorMulF32,
    "floor_mul": FloorMul,
    "floor_mul_f32": FloorMulF32,
}
MAX_BOUND = 2**31 - 1  # a computed size that may be larger has no bound that an output could be allocated by


@dataclass(frozen=True)
class Symbol:
    """A named dynamic dimension, `min <= value <= max`."""

    name: str
    min: int
    max: int

    @property
    def expr(self) -> Expr:
        """Return the sympy symbol, an integer whose sign follows from `min`."""
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
    """The program's symbols, in manifest order; those that it computes; the induction variables of its loops, which only loops may read."""

    symbols: tuple[Symbol, ...]
    induction_variables: tuple[Symbol, ...] = ()
    computed: tuple[ComputedSymbol, ...] = ()

    @classmethod
    def of(cls, module: ir.Module) -> SymbolTable:
        """Read the table from a module's attributes SYMBOLS, COMPUTED and INDUCTION_VARIABLES; empty where they are missing."""
        return cls(_ranges(module, SYMBOLS), _ranges(module, INDUCTION_VARIABLES), _computed(module))

    @property
    def sizes(self) -> tuple[Symbol, ...]:
        """Return what the host function knows, in the order in which kernels find their values."""
        return (*self.symbols, *self.computed)

    @property
    def names(self) -> tuple[Symbol, ...]:
        """Return all that an expression may hold, in the order in which kernels find their values."""
        return (*self.sizes, *self.induction_variables)

    def parse(self, dim: str | int) -> Expr:
        """Return the simplified expression of one entry of `llmos.shape`. Raises UserError for a text that isn't one over the symbols."""
        if isinstance(dim, int):
            return sympy.Integer(dim)
        if dim not in self._parsed:
            self._parsed[dim] = self._read(dim)
        return self._parsed[dim]

    @cached_property
    def _parsed(self) -> dict[str, Expr]:
        """Expressions by text: a module says the same few sizes thousands of times."""
        return {}

    def _read(self, dim: str) -> Expr:
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
        """Return the lower and the upper bound of an expression, by interval arithmetic; -oo and oo where it has none."""
        return self._intervals.bounds(expr)

    @cached_property
    def _intervals(self) -> Intervals:
        return Intervals({symbol.expr: (symbol.min, symbol.max) for symbol in self.names})

    def computed_in(self, expr: Expr) -> list[ComputedSymbol]:
        """Return the computed symbols that an expression depends on, in the table's order."""
        free = expr.free_symbols if self.computed else ()
        return [symbol for symbol in self.computed if symbol.expr in free]

    def upper_bound(self, expr: Expr) -> Expr:
        """Return what an expression never exceeds, over the inputs' symbols alone. Raises UnsupportedError where nothing bounds it."""
        bound = self._largest(expr)
        if bound.has(sympy.oo, -sympy.oo, sympy.nan):
            raise UnsupportedError(
                f"an output's size ({expr}) depends on data and has no bound that memory could be taken by: give it one in the model, "
                "such as torch._check(x.shape[0] <= 1000)"
            )
        return bound

    def at_most(self, expr: Expr) -> Expr:
        """Return `upper_bound`; where there is none, the expression at the least value of each computed symbol."""
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
        return self.simplify(_symbolic_interval(sympy.expand(expr), ranges)[1])

    def _bound_of(self, symbol: ComputedSymbol) -> Expr:
        bound = self._largest(self.parse(symbol.bound))
        return sympy.oo if bound.is_Integer and bound > MAX_BOUND else bound

    def simplify(self, expr: Expr) -> Expr:
        """Return the expanded expression without the branches of Min and Max that the ranges of its symbols rule out."""
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


def _symbolic_interval(expr: Expr, ranges: Mapping[Expr, tuple[Expr, Expr]]) -> tuple[Expr, Expr]:
    """Interval arithmetic whose ends are expressions of other symbols."""
    if expr in ranges:
        return ranges[expr]
    if not expr.args:
        return (expr, expr) if expr.is_number else (-sympy.oo, sympy.oo)
    parts = [_symbolic_interval(arg, ranges) for arg in expr.args]
    if isinstance(expr, FloorMul):
        low, high = sympy.floor(parts[0][0]), sympy.ceiling(parts[0][1])  # the interval of a product may end between integers
        low, high = (end if end.is_infinite else expr.func(end, *expr.args[1:]) for end in (low, high))
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
