"""Sizes that go through floats (int(h * 0.7), math.ceil(h / 3), round(h * 1.5)) as integer arithmetic of the same results.

torch computes them in float64; ONNX graphs, and ONNX's scales, in float32. A SymFloat has no such type: there float32 is
`round(x, 300)`, which changes no float64. Of float32, sizes up to MAX_TRIED are tried before an integer quotient is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import sympy
import torch
from torch.utils._sympy import functions as torch_sympy

from llmos.compiler.ir.rounded_sizes import EXACT, FloorMul, FloorMulF32, is_floor_of_ratio
from llmos.runtime.errors import UnsupportedError

Bounds: TypeAlias = Callable[[sympy.Expr], tuple[int | float, int | float]]

ROUNDINGS = (torch_sympy.TruncToInt, torch_sympy.FloorToInt, torch_sympy.CeilToInt, torch_sympy.RoundToInt)
MAX_TRIED = 2**20
_SINGLE_DIGITS = 300  # decimal places beyond those of any float64: marks a product that is rounded to float32


def single(value: float | torch.SymFloat) -> Any:
    """Return a float rounded to float32, also where it follows from sizes."""
    if isinstance(value, torch.SymFloat):
        return value if _is_short(value.node.expr) else round(value, _SINGLE_DIGITS)  # type: ignore[call-overload]
    return FloorMulF32.rounded(value)


def is_single(expr: sympy.Basic) -> bool:
    """Whether an expression is what `single` makes."""
    return isinstance(expr, torch_sympy.RoundDecimal) and expr.args[1] == _SINGLE_DIGITS


def floor_of_float32_product(n: Any, scale: float) -> Any:
    """Return floor(n * scale) in float32 of a symbolic size.

    It is an integer division where that gives the same for all n up to MAX_TRIED.
    """
    tried, ratio = np.arange(MAX_TRIED + 1), FloorMulF32.ratio(scale)
    is_held = ratio.numerator < 2**31
    if is_held and _fits(tried, np.floor(tried.astype(np.float32) * np.float32(scale)), ratio, Fraction(0)):
        return n * ratio.numerator // ratio.denominator
    return math.trunc(single(torch.sym_float(n) * scale))  # type: ignore[no-untyped-call]


def _is_short(expr: sympy.Expr) -> bool:
    """Whether float32 holds the float exactly at each size up to MAX_TRIED: n times at most 15 / 16ths, and a small number."""
    numbers, factors = zip(*[term.as_coeff_Mul() for term in sympy.Add.make_args(expr)], strict=True)
    scales = [Fraction(float(number)) for number in numbers]
    is_plain = all(factor == 1 or isinstance(factor, torch_sympy.ToFloat) for factor in factors)
    return is_plain and all(each.denominator <= 16 and abs(each.numerator) < 16 for each in scales)


@dataclass(frozen=True)
class _Floor:
    """Of a float x: floor(times * x) for times 1, -1, 2 and -2, which are exact products; whether 2 * x may be odd."""

    of: Callable[[int], sympy.Expr]
    has_halves: bool = True


@dataclass(frozen=True)
class _Linear:
    """The float n * scale + offset, or n / scale + offset: each operation is rounded to float64, or to float32.

    inner: what is scaled in place of n, in float32 alone.
    """

    n: sympy.Expr
    scale: float
    offset: float = 0.0
    divides: bool = False
    is_single: bool = False
    inner: _Linear | None = None

    @property
    def product(self) -> type[FloorMul]:
        return FloorMulF32 if self.is_single else FloorMul

    @property
    def exact(self) -> Fraction:
        return 1 / Fraction(self.scale) if self.divides else Fraction(self.scale)

    @property
    def ratio(self) -> Fraction:
        own = 1 / self.product.ratio(self.scale) if self.divides else self.product.ratio(self.scale)
        return own * self.inner.ratio if self.inner else own

    @property
    def shift(self) -> Fraction:
        if self.inner is None:
            return Fraction(self.offset)
        own = 1 / self.product.ratio(self.scale) if self.divides else self.product.ratio(self.scale)
        return own * self.inner.shift + self.product.ratio(self.offset)

    def at(self, n: np.ndarray) -> np.ndarray:
        dtype = np.dtype(np.float32 if self.is_single else np.float64)
        given, scale = (self.inner.at(n) if self.inner else n).astype(dtype), np.asarray(self.scale, dtype)
        shifted: np.ndarray = (given / scale if self.divides else given * scale) + np.asarray(self.offset, dtype)
        return shifted.astype(np.float64)


def rounded_size(rounding: sympy.Expr, bounds: Bounds) -> sympy.Expr:
    """Rewrite a rounding to integer arithmetic. Raises UnsupportedError if no integer arithmetic is equal to it at every size."""
    floor = _floor_of(rounding, bounds)
    if isinstance(rounding, torch_sympy.CeilToInt):
        return -floor.of(-1)
    return _nearest(floor) if isinstance(rounding, torch_sympy.RoundToInt) else floor.of(1)


def _nearest(floor: _Floor) -> sympy.Expr:
    """Round x to the nearest integer, halves to even: floor(x + 1/2), minus 1 if 2 * x is an integer that is 1 modulo 4."""
    doubled = floor.of(2)
    nearest = torch_sympy.FloorDiv(doubled + 1, 2)
    if not floor.has_halves:
        return nearest
    fraction = -floor.of(-2) - doubled  # 0 if 2 * x is an integer, else 1
    is_one = torch_sympy.FloorDiv(torch_sympy.PythonMod(doubled + 2, 4), 3)
    return nearest - (1 - fraction) * is_one


def _floor_of(rounding: sympy.Expr, bounds: Bounds) -> _Floor:
    value = rounding.args[0]
    if isinstance(value, torch_sympy.IntTrueDiv):
        numerator, denominator = value.args
        _require_exact(rounding, numerator, bounds)
        # Below 2^53 a non-integer quotient doesn't round past the next integer.
        return _Floor(lambda times: torch_sympy.FloorDiv(times * numerator, denominator), not denominator.is_odd)
    linear = _linear(value)
    if linear is None or linear.scale == 0:
        raise _refusal(rounding)
    largest = _require_exact(rounding, linear.n, bounds)
    if isinstance(rounding, torch_sympy.TruncToInt) and not (linear.ratio > 0 and linear.shift >= 0):
        raise _refusal(rounding)
    has_halves = bool(linear.shift) or linear.ratio.denominator % 2 == 0 or not all(_is_exact(linear, sign, largest) for sign in (1, -1))
    return _Floor(lambda times: _multiple(linear, times, bounds(linear.n), rounding), has_halves)


def _multiple(linear: _Linear, times: int, limits: tuple[int | float, int | float], rounding: sympy.Expr) -> sympy.Expr:
    """Return floor(times * x)."""
    if _is_exact(linear, times, int(limits[1])):
        return _quotient(linear, times)
    if linear.shift or linear.divides or linear.inner:
        return _fitted(linear, times, limits, rounding)
    return linear.product.by(linear.n, times * linear.scale)


def _require_exact(rounding: sympy.Expr, n: sympy.Expr, bounds: Bounds) -> int:
    """Return the largest value of n. Raises UnsupportedError if float64 can't represent it exactly."""
    low, high = bounds(n)
    if low < 0 or high >= EXACT:
        raise _refusal(rounding)
    return int(high)


def _refusal(rounding: sympy.Expr) -> UnsupportedError:
    return UnsupportedError(f"the size {rounding} is rounded as a floating-point number, which sizes can't follow exactly")


def _linear(value: sympy.Expr) -> _Linear | None:
    if is_single(value):
        return _single_linear(value.args[0])
    if isinstance(value, torch_sympy.ToFloat):
        return _Linear(value.args[0], 1.0)
    if isinstance(value, torch_sympy.FloatTrueDiv) and isinstance(value.args[0], torch_sympy.ToFloat) and value.args[1].is_Float:
        return _Linear(value.args[0].args[0], float(value.args[1]), divides=True)
    if isinstance(value, sympy.Mul) and value.args[0].is_number and all(isinstance(each, torch_sympy.ToFloat) for each in value.args[1:]):
        linear = _Linear(sympy.Mul(*[each.args[0] for each in value.args[1:]]), float(value.args[0]))
        # With several factors the order of the rounded multiplications is unknown.
        return linear if len(value.args) == 2 or linear.exact.denominator <= 2**10 else None
    if isinstance(value, sympy.Add) and len(value.args) == 2 and value.args[0].is_number:
        inner = _linear(value.args[1])
        return inner and _Linear(inner.n, inner.scale, inner.offset + float(value.args[0]), inner.divides)
    return None


def _single_linear(value: sympy.Expr) -> _Linear | None:
    """One operation in float32, of a size or of what other such operations give."""
    scale, offset, operand, divides = 1.0, 0.0, value, False
    if isinstance(value, torch_sympy.FloatTrueDiv) and value.args[1].is_Float:
        operand, scale, divides = value.args[0], float(value.args[1]), True
    elif isinstance(value, (sympy.Mul, sympy.Add)) and len(value.args) == 2 and value.args[0].is_number:
        operand, number = value.args[1], float(value.args[0])
        scale, offset = (number, 0.0) if isinstance(value, sympy.Mul) else (1.0, number)
    if isinstance(operand, torch_sympy.ToFloat):
        return _Linear(operand.args[0], scale, offset, divides, is_single=True)
    inner = _linear(operand) if operand != value else None
    return inner and _Linear(inner.n, scale, offset, divides, True, inner)


def _is_exact(linear: _Linear, times: int, largest: int) -> bool:
    """Whether the float is rounded nowhere, or nowhere that the integer division would not be."""
    if linear.is_single:
        if not _is_held(linear, times, largest):
            return False
        tried = np.arange(min(largest, MAX_TRIED) + 1)
        return _fits(tried, np.floor(times * linear.at(tried)), times * linear.ratio, times * linear.shift)
    if linear.offset == 0:
        return is_floor_of_ratio(times * linear.exact, times * linear.ratio, largest)
    parts = (Fraction(linear.offset), linear.exact)
    unit = max(part.denominator for part in parts)
    return not linear.divides and sum(abs(part) * unit * size for part, size in zip(parts, (1, largest), strict=True)) < EXACT


def _fits(n: np.ndarray, wanted: np.ndarray, ratio: Fraction, offset: Fraction) -> bool:
    """Whether floor(n * ratio + offset) is what is wanted."""
    unit = math.lcm(ratio.denominator, offset.denominator)
    return np.array_equal(wanted, (n * int(ratio * unit) + int(offset * unit)) // unit)


def _is_held(linear: _Linear, times: int, largest: int) -> bool:
    """Whether int64 holds the numerator of the quotient at each size."""
    unit = math.lcm(linear.ratio.denominator, linear.shift.denominator)
    return abs(times) * unit * (abs(linear.ratio) * largest + abs(linear.shift)) < 2**62


def _quotient(linear: _Linear, times: int) -> sympy.Expr:
    """floor(times * (n * ratio + offset))."""
    ratio, offset = times * linear.ratio, times * linear.shift
    unit = sympy.ilcm(ratio.denominator, offset.denominator)
    return torch_sympy.FloorDiv(int(ratio * unit) * linear.n + int(offset * unit), unit)


def _fitted(linear: _Linear, times: int, limits: tuple[int | float, int | float], rounding: sympy.Expr) -> sympy.Expr:
    """Search for a quotient (p * n + r) // q that is equal at every size in range, by exhaustive test."""
    if limits[1] > MAX_TRIED:
        raise UnsupportedError(f"the size {rounding} is rounded as a floating-point number: give its dimension a range up to {MAX_TRIED:,}")
    if not _is_held(linear, times, int(limits[1])):
        raise _refusal(rounding)
    n = np.arange(int(limits[0]), int(limits[1]) + 1)
    wanted = np.floor(times * linear.at(n)).astype(np.int64)
    ratio = times * linear.ratio
    unit = int(sympy.ilcm(ratio.denominator, (linear.shift if linear.is_single else FloorMul.ratio(linear.offset)).denominator))
    rest = unit * wanted - int(ratio * unit) * n
    if rest.max() > rest.min() + unit - 1:
        raise _refusal(rounding)
    return torch_sympy.FloorDiv(int(ratio * unit) * linear.n + int(rest.max()), unit)
