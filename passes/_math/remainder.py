"""The remainder of a division (C's fmod), exact."""

from __future__ import annotations

import math

from llmos.passes._math.expr import Expr, convert, copy_sign, f32, f64, fma, select, truncate


def remainder(x: Expr, y: Expr) -> Expr:
    """x - trunc(x / y) y in float32, exact, with the sign of x; NaN for y = 0 or an infinite x.

    In float64, each step takes off the whole multiples of y 2^k: their number is below 2^50, so the product and the difference are exact.
    The quotient of two floats is below 2^277: six steps.
    """
    rest, divisor = convert(abs(x), f64()), convert(abs(y), f64())
    for k in (250, 200, 150, 100, 50, 0):
        multiple = divisor * 2.0**k
        rest = fma(truncate(rest / multiple), -multiple, rest)
        rest = select(rest < 0.0, rest + multiple, rest)  # the quotient was rounded up to a whole number
    result = copy_sign(convert(rest, f32()), x)
    return select(abs(y).equals(math.inf) & (abs(x) < math.inf), x, result)
