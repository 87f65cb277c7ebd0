"""Interval arithmetic over sizes, in exact rational numbers.

An expression is bounded twice. As it is written, each part is bounded by its own. As a polynomial, floor(x) is x less a fraction of
[0, 1), so that what is rounded and what is not may cancel, as in a remainder: h - 32 * floor(h / 32) is 32 times a fraction. The time is
linear in the number of distinct parts of an expression: each is bounded once, and a polynomial with many terms becomes one variable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from itertools import product
from typing import TypeAlias

import sympy

from llmos.compiler.ir.rounded_sizes import FloorMul

Expr: TypeAlias = sympy.Expr
Number: TypeAlias = Fraction | float  # a float is an infinity
Interval: TypeAlias = tuple[Number, Number]
Monomial: TypeAlias = tuple[tuple[Expr, int], ...]  # powers of variables, in the order in which the variables were made
Polynomial: TypeAlias = dict[Monomial, Fraction]

MAX_TERMS = 64
MAX_POWER = 8
EVERYTHING: Interval = (-math.inf, math.inf)


class Intervals:
    """Bounds of expressions over symbols whose ranges (least, greatest) are known."""

    def __init__(self, ranges: Mapping[Expr, tuple[int, int]]) -> None:
        self._intervals: dict[Expr, Interval] = {symbol: (Fraction(low), Fraction(high)) for symbol, (low, high) in ranges.items()}
        self._polynomials: dict[Expr, Polynomial] = {}
        self._order: dict[Expr, int] = {}

    def bounds(self, expr: Expr) -> tuple[Expr, Expr]:
        """Return the lower and the upper bound of an integer expression, as sympy numbers; -oo and oo where it has none."""
        low, high = self._tightest(expr)
        if expr.has(sympy.floor):  # only of integers
            low, high = _whole(low, math.ceil), _whole(high, math.floor)
        return _to_sympy(low), _to_sympy(high)

    def _tightest(self, expr: Expr) -> Interval:
        """Bounds of an expression as it is written and as a polynomial."""
        low, high = self.interval(expr)
        if low == high or not expr.has(sympy.floor):
            return low, high
        terms = [_times((factor, factor), self._power_product(monomial)) for monomial, factor in self._polynomial(expr).items()]
        return max(low, _sum(term[0] for term in terms)), min(high, _sum(term[1] for term in terms))

    def interval(self, expr: Expr) -> Interval:
        """Return the bounds of an expression as it is written, in rational numbers; each part is bounded once."""
        found = self._intervals.get(expr)
        if found is None:
            found = self._intervals[expr] = self._interval(expr)
        return found

    def _interval(self, expr: Expr) -> Interval:
        if not expr.args:
            return _constant(expr)
        rounds_or_chooses = isinstance(expr, (FloorMul, sympy.Min, sympy.Max, sympy.floor))
        parts = [self._tightest(arg) if rounds_or_chooses else self.interval(arg) for arg in expr.args]
        if isinstance(expr, FloorMul):
            ends = [_rounded(expr, end) for end in (_whole(parts[0][0], math.floor), _whole(parts[0][1], math.ceil))]
            return min(ends), max(ends)
        if isinstance(expr, sympy.Add):
            return _sum(low for low, _ in parts), _sum(high for _, high in parts)
        if isinstance(expr, sympy.Min):
            return min(low for low, _ in parts), min(high for _, high in parts)
        if isinstance(expr, sympy.Max):
            return max(low for low, _ in parts), max(high for _, high in parts)
        if isinstance(expr, sympy.floor):
            return _whole(parts[0][0], math.floor), _whole(parts[0][1], math.floor)
        if isinstance(expr, sympy.Mul):
            found: Interval = (Fraction(1), Fraction(1))
            for part in parts:
                found = _times(found, part)
            return found
        if isinstance(expr, sympy.Pow) and expr.exp.is_Integer:
            return _power(parts[0], int(expr.exp))
        return EVERYTHING

    def _polynomial(self, expr: Expr) -> Polynomial:
        found = self._polynomials.get(expr)
        if found is None:
            found = self._expanded(expr)
            if len(found) > MAX_TERMS:
                found = self._variable(expr)
            self._polynomials[expr] = found
        return found

    def _expanded(self, expr: Expr) -> Polynomial:
        if expr.is_Rational:
            return {(): Fraction(int(expr.p), int(expr.q))}
        if isinstance(expr, sympy.Add):
            total: Polynomial = {}
            for arg in expr.args:
                for monomial, factor in self._polynomial(arg).items():
                    total[monomial] = total.get(monomial, Fraction(0)) + factor
            return {monomial: factor for monomial, factor in total.items() if factor}
        if isinstance(expr, sympy.Mul):
            return self._product([self._polynomial(arg) for arg in expr.args], expr)
        if isinstance(expr, sympy.Pow) and expr.exp.is_Integer:
            if 0 < expr.exp <= MAX_POWER:
                return self._product([self._polynomial(expr.base)] * int(expr.exp), expr)
            if expr.base.is_Symbol and self.interval(expr.base)[0] >= 1:
                self._variable(expr.base)
                return {((expr.base, int(expr.exp)),): Fraction(1)}
        if isinstance(expr, sympy.floor):
            inner = self._polynomial(expr.args[0])
            fraction, divisor = sympy.Dummy(), _denominator(expr.args[0])
            self._intervals[fraction] = (Fraction(0), Fraction(1) if divisor is None else 1 - Fraction(1, divisor))
            return {**inner, **{monomial: -factor for monomial, factor in self._variable(fraction).items()}}
        return self._variable(expr)

    def _product(self, factors: list[Polynomial], expr: Expr) -> Polynomial:
        total: Polynomial = {(): Fraction(1)}
        for factor in factors:
            if len(total) * len(factor) > MAX_TERMS:
                return self._variable(expr)
            made: Polynomial = {}
            for (a, x), (b, y) in product(total.items(), factor.items()):
                powers = dict(a)
                for variable, power in b:
                    powers[variable] = powers.get(variable, 0) + power
                monomial = tuple(sorted(((v, p) for v, p in powers.items() if p), key=lambda each: self._order[each[0]]))
                made[monomial] = made.get(monomial, Fraction(0)) + x * y
            total = {monomial: factor for monomial, factor in made.items() if factor}
        return total

    def _variable(self, expr: Expr) -> Polynomial:
        self._order.setdefault(expr, len(self._order))
        return {((expr, 1),): Fraction(1)}

    def _power_product(self, monomial: Monomial) -> Interval:
        found: Interval = (Fraction(1), Fraction(1))
        for variable, power in monomial:
            found = _times(found, _power(self.interval(variable), power))
        return found


def _constant(expr: Expr) -> Interval:
    if expr.is_Rational:
        value: Number = Fraction(int(expr.p), int(expr.q))
    elif expr in (sympy.oo, -sympy.oo):
        value = math.inf if expr == sympy.oo else -math.inf
    else:
        return EVERYTHING
    return value, value


def _denominator(expr: Expr) -> int | None:
    """A number whose product with the expression is an integer at every size, if one is known."""
    if expr.is_Rational:
        return int(expr.q)
    if expr.is_Symbol or isinstance(expr, (sympy.floor, FloorMul)):
        return 1
    if isinstance(expr, (sympy.Add, sympy.Mul, sympy.Min, sympy.Max)):
        parts = [_denominator(arg) for arg in expr.args]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            return math.prod(known) if isinstance(expr, sympy.Mul) else math.lcm(*known)
    if isinstance(expr, sympy.Pow) and expr.exp.is_Integer and 0 < expr.exp <= MAX_POWER:
        base = _denominator(expr.base)
        return None if base is None else base ** int(expr.exp)
    return None


def _sum(values: Iterable[Number]) -> Number:
    """The sum of lower bounds, or of upper ones: infinities have one sign."""
    total: Number = Fraction(0)
    for value in values:
        if isinstance(total, float) or isinstance(value, float):
            total = total if isinstance(total, float) else value
        else:
            total += value
    return total


def _multiplied(a: Number, b: Number) -> Number:
    if not a or not b:
        return Fraction(0)  # not NaN where the other is infinite
    if isinstance(a, float) or isinstance(b, float):
        return math.inf if (a > 0) == (b > 0) else -math.inf
    return a * b


def _times(a: Interval, b: Interval) -> Interval:
    ends = [_multiplied(x, y) for x in a for y in b]
    return min(ends), max(ends)


def _power(base: Interval, exponent: int) -> Interval:
    low, high = base
    if exponent < 0:
        if low < 1:
            return EVERYTHING
        ends = [Fraction(0) if isinstance(end, float) else end**exponent for end in (high, low)]
        return ends[0], ends[1]
    if exponent > MAX_POWER:
        return (Fraction(1), math.inf) if low >= 1 else (Fraction(0), math.inf) if low >= 0 else EVERYTHING
    found: list[Number] = [Fraction(1), Fraction(1)]
    for _ in range(exponent):
        found = [_multiplied(found[0], low), _multiplied(found[1], high)]
    if low >= 0 or exponent % 2:
        return found[0], found[1]
    return (Fraction(0) if high >= 0 else found[1]), max(found)


def _whole(value: Number, rounding: Callable[[Fraction], int]) -> Number:
    return value if isinstance(value, float) else Fraction(rounding(value))


def _rounded(product: FloorMul, end: Number) -> Number:
    if isinstance(end, float):
        return end if product.scale > 0 else -end
    return Fraction(int(product.func(sympy.Integer(int(end)), *product.args[1:])))


def _to_sympy(value: Number) -> Expr:
    if isinstance(value, float):
        return sympy.oo if value > 0 else -sympy.oo
    return sympy.Rational(value.numerator, value.denominator)
