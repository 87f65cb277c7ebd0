"""The larger and the smaller of two floats, a NaN if either is one. Of two zeros either may be the result."""

from __future__ import annotations

import math

from llmos.passes._math.expr import Expr, known_number, select


def maximum(x: Expr, y: Expr) -> Expr:
    """Return the larger, exactly: one instruction where an operand is a constant (relu, clamp), else three.

    The processor's own instruction drops a NaN on the left.
    """
    constant, other = (x, y) if is_number(x) else (y, x)
    if is_number(constant):
        return select(constant > other, constant, other)
    return select(x.differs(x), x, select(x > y, x, y))


def minimum(x: Expr, y: Expr) -> Expr:
    """Return the smaller, exactly, as `maximum`."""
    constant, other = (x, y) if is_number(x) else (y, x)
    if is_number(constant):
        return select(constant < other, constant, other)
    return select(x.differs(x), x, select(x < y, x, y))


def is_number(x: Expr) -> bool:
    """Whether a value is a constant that is not NaN, the same in every lane."""
    return not math.isnan(known_number(x.value))
