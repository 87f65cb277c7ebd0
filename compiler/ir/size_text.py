"""Sizes as text, in Python's grammar and with its meaning: +, -, *, // and % that round down, min, max,
and floor_mul(n, p, q), which is math.floor(n * (p / q)); floor_mul_f32 is the same in float32.

It is what manifests hold and what the C core reads (runtime/native/expression.c). Expressions of `compiler.ir.sizes` have no `%` of their
own: a % b is a - b * floor(a / b).
"""

from __future__ import annotations

import sympy

from llmos.compiler.ir.rounded_sizes import FloorMul

_SUM, _PRODUCT, _ATOM = range(3)  # how tightly a text holds together


def size_text(expr: sympy.Expr) -> str:
    """Return the text of a size of integers, symbols, sums, products, whole powers, floor, Min, Max, FloorMul. Raises ValueError for
    another.
    """
    return _text(expr)[0]


def floor_mod(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    """Return a % b as Python has it: the sign is that of b."""
    return sympy.expand(a - b * sympy.floor(a / b))


def truncated(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    """Return a / b rounded towards zero, as C and arith.divsi have it. b is positive, or a negative number."""
    if b.is_negative:
        return sympy.expand(-truncated(a, -b))
    return sympy.floor(sympy.Max(a, 0) / b) - sympy.floor(sympy.Max(-a, 0) / b)


def _text(expr: sympy.Expr) -> tuple[str, int]:
    if expr.is_Integer:
        return str(int(expr)), _ATOM if expr >= 0 else _SUM
    if expr.is_Symbol:
        return str(expr), _ATOM
    if isinstance(expr, sympy.floor):
        numerator, denominator = sympy.fraction(sympy.together(expr.args[0]))
        return f"{_held(sympy.expand(numerator))}//{_held(denominator)}", _PRODUCT
    if isinstance(expr, (sympy.Min, sympy.Max)):
        name = "min" if isinstance(expr, sympy.Min) else "max"
        return f"{name}({', '.join(sorted(size_text(each) for each in expr.args))})", _ATOM
    if isinstance(expr, FloorMul):
        return f"{expr.text}({', '.join(size_text(each) for each in expr.args)})", _ATOM
    numerator, denominator = sympy.fraction(sympy.together(expr))
    if denominator != 1:  # it divides without a rest
        return f"{_held(sympy.expand(numerator))}//{_held(denominator)}", _PRODUCT
    if isinstance(expr, sympy.Pow) and expr.exp.is_Integer and expr.exp > 0:
        return "*".join([_held(expr.base)] * int(expr.exp)), _PRODUCT
    if isinstance(expr, sympy.Mul):
        return _product(expr)
    if isinstance(expr, sympy.Add):
        return _sum(expr)
    raise ValueError(f"{expr} is no size")


def _held(expr: sympy.Expr) -> str:
    """A text that may stand beside any operator."""
    text, holds = _text(expr)
    return text if holds == _ATOM else f"({text})"


def _product(expr: sympy.Mul) -> tuple[str, int]:
    number, rest = expr.as_coeff_Mul()
    if number < 0:
        return f"-{_held(-expr)}", _SUM
    factors = [factor for factor in sympy.Mul.make_args(rest) for factor in _repeated(factor)]
    return "*".join([*([str(number)] if number != 1 else []), *[_held(factor) for factor in factors]]), _PRODUCT


def _repeated(factor: sympy.Expr) -> list[sympy.Expr]:
    return [factor.base] * int(factor.exp) if isinstance(factor, sympy.Pow) and factor.exp.is_Integer else [factor]


def _sum(expr: sympy.Add) -> tuple[str, int]:
    terms = expr.as_ordered_terms()
    first = next((term for term in terms if not term.could_extract_minus_sign()), terms[0])
    text = _text(first)[0]
    for term in terms:
        if term is not first:
            minus = term.could_extract_minus_sign()
            side, holds = _text(-term if minus else term)
            text += f" {'-' if minus else '+'} {side if holds > _SUM else f'({side})'}"
    return text, _SUM
