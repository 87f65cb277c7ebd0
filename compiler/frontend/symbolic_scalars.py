"""Numbers computed from input sizes (`x * x.shape[1]`, `alpha=h / w`): known at run time, emitted where an op uses them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.utils._sympy import functions as torch_sympy

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.float_sizes import is_single
from llmos.compiler.frontend.scalars import Deferred, Number, Scalar
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.rounded_sizes import FloorMul
from llmos.runtime.errors import UnsupportedError

Index = Callable[[Dim], ir.Value]
INT, FLOAT, BOOL = torch.int64, torch.float64, torch.bool


@dataclass(frozen=True, eq=False)
class SymbolicScalar(Deferred):
    """A Python int (int64), float (float64) or bool as an expression over the program's symbols.

    Like a Python number, it takes the dtype that the op computes in. Python arithmetic returns another SymbolicScalar. A use that needs
    the value (a branch, a conversion) raises UnsupportedError.
    """

    expr: sympy.Basic
    dtype: torch.dtype
    index: Index

    def scalar(self) -> Scalar:
        """Emit the number at the current insertion point. Raises UnsupportedError for an infinite one, or another function of sizes."""
        if self.expr.has(sympy.oo, -sympy.oo, sympy.nan):
            raise UnsupportedError(f"a number that follows from input sizes is not finite ({self.expr})")
        return _emitted(self.expr, self.index).to(self.dtype)

    def _with(self, other: object, function: Callable[[Any, Any], Any], dtype: torch.dtype | None = None) -> SymbolicScalar:
        if not isinstance(other, bool | int | float | sympy.Expr | SymbolicScalar):
            return NotImplemented  # type: ignore[no-any-return]
        expr, kind = (other.expr, other.dtype) if isinstance(other, SymbolicScalar) else _of_number(other)
        wider = FLOAT if FLOAT in (kind, self.dtype) else INT
        return SymbolicScalar(function(self.expr, expr), dtype or wider, self.index)

    def __add__(self, other: object) -> SymbolicScalar:
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: object) -> SymbolicScalar:
        return self._with(other, lambda a, b: a - b)

    def __rsub__(self, other: object) -> SymbolicScalar:
        return self._with(other, lambda a, b: b - a)

    def __mul__(self, other: object) -> SymbolicScalar:
        return self._with(other, lambda a, b: a * b)

    def __truediv__(self, other: object) -> SymbolicScalar:
        return self._with(other, torch_sympy.FloatTrueDiv, FLOAT)

    def __rtruediv__(self, other: object) -> SymbolicScalar:
        return self._with(other, lambda a, b: torch_sympy.FloatTrueDiv(b, a), FLOAT)

    def __pow__(self, other: object) -> SymbolicScalar:
        return self._with(other, torch_sympy.FloatPow, FLOAT)

    def __rpow__(self, other: object) -> SymbolicScalar:
        return self._with(other, lambda a, b: torch_sympy.FloatPow(b, a), FLOAT)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> SymbolicScalar:
        return self * -1

    def _unknown(self, *_: object) -> Any:
        raise UnsupportedError(
            f"an argument must be known when the model is compiled, and {self.expr} depends on input sizes: fix the size"
        )

    __bool__ = __float__ = __int__ = __index__ = _unknown


def _of_number(value: Number | sympy.Expr) -> tuple[sympy.Expr, torch.dtype]:
    return sympy.sympify(value), FLOAT if isinstance(value, float) else INT


def _emitted(expr: sympy.Basic, index: Index) -> Scalar:
    """Emit the number at the current insertion point: int64, float64 or bool."""
    if expr.is_Integer:
        return s.constant(int(expr), INT)
    if expr.is_number:
        return s.constant(float(expr), FLOAT)
    if expr in (sympy.true, sympy.false):
        return s.constant(expr == sympy.true, BOOL)
    if _is_size(expr):
        return s.from_index(index(expr), INT)
    if isinstance(expr, sympy.Piecewise):
        return _piecewise(expr, index)
    if is_single(expr):
        return _emitted(expr.args[0], index).to(torch.float32).to(FLOAT)
    rule = next((rule for kind, rule in _RULES.items() if isinstance(expr, kind)), None)
    if rule is None:
        raise UnsupportedError(f"a number that follows from input sizes by {type(expr).__name__} ({expr}) isn't supported")
    return rule(*[_emitted(argument, index) for argument in expr.args])


def _is_size(expr: sympy.Basic) -> bool:
    """Whether it is pure integer arithmetic, which is computed in index values."""
    parts = sympy.preorder_traversal(expr)
    return all(isinstance(each, (sympy.Symbol, sympy.Integer, *_INTEGER_ARITHMETIC)) or _is_power(each) for each in parts)


def _is_power(expr: sympy.Basic) -> bool:
    return isinstance(expr, sympy.Pow) and expr.exp.is_Integer and expr.exp > 0


def _piecewise(expr: sympy.Piecewise, index: Index) -> Scalar:
    *first, (last, _) = expr.args
    chosen = _emitted(last, index)
    for value, condition in reversed(first):
        chosen = _selected(_emitted(condition, index), _emitted(value, index), chosen)
    return chosen


def _alike(function: Callable[[Scalar, Scalar], Scalar]) -> Callable[..., Scalar]:
    """Extend a function of two numbers to many, in float64 if any of them is."""

    def rule(*values: Scalar) -> Scalar:
        kind = FLOAT if any(each.is_float for each in values) else INT
        return functools.reduce(function, [each.to(kind) for each in values])

    return rule


def _in_floats(function: Callable[..., Scalar]) -> Callable[..., Scalar]:
    return lambda *values: function(*[each.to(FLOAT) for each in values])


def _relation(name: str) -> Callable[..., Scalar]:
    return _alike(lambda a, b: s.compare(name, a, b))


def _selected(condition: Scalar, a: Scalar, b: Scalar) -> Scalar:
    kind = FLOAT if a.is_float or b.is_float else INT
    return s.select(condition, a.to(kind), b.to(kind))


def _rounded(value: Scalar, digits: Scalar) -> Scalar:
    scale = s.power(s.constant(10.0, FLOAT), digits.to(FLOAT))
    return s.round_even(value.to(FLOAT) * scale) / scale


def _floor_quotient(a: Scalar, b: Scalar) -> Scalar:
    from llmos.compiler.frontend.ops.elementwise import floor_quotient

    return floor_quotient(a, b)


def _modulo(a: Scalar, b: Scalar) -> Scalar:
    from llmos.compiler.frontend.ops.elementwise import modulo

    return modulo(a, b)


def _to_integer(function: Callable[[Scalar], Scalar]) -> Callable[[Scalar], Scalar]:
    return lambda value: function(value.to(FLOAT)).to(INT)


_INTEGER_ARITHMETIC = (
    sympy.Add, sympy.Mul, sympy.Min, sympy.Max, torch_sympy.Min, torch_sympy.Max, torch_sympy.CeilDiv, torch_sympy.FloorDiv,
    torch_sympy.CleanDiv, torch_sympy.Mod, torch_sympy.PythonMod, sympy.Mod, FloorMul,
)  # fmt: skip
_RULES: Mapping[Any, Callable[..., Scalar]] = {
    sympy.Add: _alike(lambda a, b: a + b),
    sympy.Mul: _alike(lambda a, b: a * b),
    (sympy.Min, torch_sympy.Min): _alike(lambda a, b: a.min(b)),
    (sympy.Max, torch_sympy.Max): _alike(lambda a, b: a.max(b)),
    (torch_sympy.FloorDiv, torch_sympy.CleanDiv): _alike(_floor_quotient),
    torch_sympy.CeilDiv: _alike(lambda a, b: -_floor_quotient(-a, b)),
    (torch_sympy.Mod, torch_sympy.PythonMod, sympy.Mod): _alike(_modulo),
    (torch_sympy.FloatTrueDiv, torch_sympy.IntTrueDiv): _in_floats(lambda a, b: a / b),
    (sympy.Pow, torch_sympy.FloatPow, torch_sympy.PowByNatural): _in_floats(s.power),
    torch_sympy.ToFloat: _in_floats(lambda a: a),
    torch_sympy.TruncToFloat: _in_floats(s.trunc),
    torch_sympy.TruncToInt: _to_integer(s.trunc),
    torch_sympy.FloorToInt: _to_integer(s.floor),
    torch_sympy.CeilToInt: _to_integer(s.ceil),
    torch_sympy.RoundToInt: _to_integer(s.round_even),
    torch_sympy.RoundDecimal: _rounded,
    sympy.Abs: s.absolute,
    torch_sympy.Where: _selected,
    sympy.Eq: _relation("eq"),
    sympy.Ne: _relation("ne"),
    sympy.Lt: _relation("lt"),
    sympy.Le: _relation("le"),
    sympy.Gt: _relation("gt"),
    sympy.Ge: _relation("ge"),
    sympy.And: lambda *values: functools.reduce(lambda a, b: a & b, values),
    sympy.Or: lambda *values: functools.reduce(lambda a, b: a | b, values),
    sympy.Not: lambda value: ~value,
    torch_sympy.OpaqueUnaryFn_sqrt: _in_floats(s.sqrt),
    torch_sympy.LShift: lambda a, b: a << b,
    torch_sympy.RShift: lambda a, b: a >> b,
}
