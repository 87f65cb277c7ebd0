"""Sizes computed in floats by torch (int(h * 0.7), math.ceil(h / 3), round(h * 1.5)), rewritten to equal integer arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import sympy
from torch.utils._sympy import functions as torch_sympy

from llmos.compiler.ir.rounded_sizes import EXACT, FloorMul, is_floor_of_ratio, nearest_ratio
from llmos.runtime.errors import UnsupportedError

Bounds: TypeAlias = Callable[[sympy.Expr], tuple[int | float, int | float]]

ROUNDINGS = (torch_sympy.TruncToInt, torch_sympy.FloorToInt, torch_sympy.CeilToInt, torch_sympy.RoundToInt)
MAX_TRIED = 2**20


@dataclass(frozen=True)
class _Floor:
    """Of a float x: floor(times * x) for times 1, -1, 2 and -2, which are exact products; whether 2 * x may be odd."""

    of: Callable[[int], sympy.Expr]
    has_halves: bool = True


@dataclass(frozen=True)
class _Linear:
    """The float n * scale + offset, or n / scale + offset: each operation is rounded to float64."""

    n: sympy.Expr
    scale: float
    offset: float = 0.0
    divides: bool = False

    @property
    def exact(self) -> Fraction:
        return 1 / Fraction(self.scale) if self.divides else Fraction(self.scale)

    @property
    def ratio(self) -> Fraction:
        return 1 / nearest_ratio(self.scale) if self.divides else nearest_ratio(self.scale)

    def at(self, n: np.ndarray) -> np.ndarray:
        given = n.astype(np.float64)
        shifted: np.ndarray = (given / self.scale if self.divides else given * self.scale) + self.offset
        return shifted


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
    if isinstance(rounding, torch_sympy.TruncToInt) and not (linear.scale > 0 and linear.offset >= 0):
        raise _refusal(rounding)
    has_halves = bool(linear.offset) or linear.ratio.denominator % 2 == 0 or not all(_is_exact(linear, sign, largest) for sign in (1, -1))
    return _Floor(lambda times: _multiple(linear, times, bounds(linear.n), rounding), has_halves)


def _multiple(linear: _Linear, times: int, limits: tuple[int | float, int | float], rounding: sympy.Expr) -> sympy.Expr:
    """Return floor(times * x)."""
    if _is_exact(linear, times, int(limits[1])):
        return _quotient(linear, times)
    if linear.offset or linear.divides:
        return _fitted(linear, times, limits, rounding)
    return FloorMul.by(linear.n, times * linear.scale)


def _require_exact(rounding: sympy.Expr, n: sympy.Expr, bounds: Bounds) -> int:
    """Return the largest value of n. Raises UnsupportedError if float64 can't represent it exactly."""
    low, high = bounds(n)
    if low < 0 or high >= EXACT:
        raise _refusal(rounding)
    return int(high)


def _refusal(rounding: sympy.Expr) -> UnsupportedError:
    return UnsupportedError(f"the size {rounding} is rounded as a floating-point number, which sizes can't follow exactly")


def _linear(value: sympy.Expr) -> _Linear | None:
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


def _is_exact(linear: _Linear, times: int, largest: int) -> bool:
    """Whether rounding in float64 doesn't change the integer result."""
    if linear.offset == 0:
        return is_floor_of_ratio(times * linear.exact, times * linear.ratio, largest)
    parts = (Fraction(linear.offset), linear.exact)
    unit = max(part.denominator for part in parts)
    return not linear.divides and sum(abs(part) * unit * size for part, size in zip(parts, (1, largest), strict=True)) < EXACT


def _quotient(linear: _Linear, times: int) -> sympy.Expr:
    """Return floor(times * (n * ratio + offset))."""
    ratio, offset = times * linear.ratio, times * Fraction(linear.offset)
    unit = sympy.ilcm(ratio.denominator, offset.denominator)
    return torch_sympy.FloorDiv(int(ratio * unit) * linear.n + int(offset * unit), unit)


def _fitted(linear: _Linear, times: int, limits: tuple[int | float, int | float], rounding: sympy.Expr) -> sympy.Expr:
    """Search for a quotient (p * n + r) // q that is equal at every size in range, by exhaustive test."""
    if limits[1] > MAX_TRIED:
        raise UnsupportedError(f"the size {rounding} is rounded as a floating-point number: give its dimension a range up to {MAX_TRIED:,}")
    n = np.arange(int(limits[0]), int(limits[1]) + 1)
    wanted = np.floor(times * linear.at(n)).astype(np.int64)
    ratio = times * linear.ratio
    unit = int(sympy.ilcm(ratio.denominator, nearest_ratio(linear.offset).denominator))
    rest = unit * wanted - int(ratio * unit) * n
    if rest.max() > rest.min() + unit - 1:
        raise _refusal(rounding)
    return torch_sympy.FloorDiv(int(ratio * unit) * linear.n + int(rest.max()), unit)
