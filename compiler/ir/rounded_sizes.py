"""Sizes that are a size times a float constant, as `int(h * 2.3)`: integer division where it is the same for every size, else FloorMul.

A product in floating point is rounded before it is rounded down: 50 * 2.3 is just below 115 in float64, 10 * 2.3 is 23. No integer
division gives 23, 114 and 138 for 10, 50 and 60.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import sympy

EXACT = 2**53  # float64 holds every whole number up to this one


class FloorMul(sympy.Function):  # type: ignore[misc]
    """floor(n * (p / q)): n, p and q whole, both operations rounded to float64. In text it is floor_mul(n, p, q)."""

    nargs = (3,)
    text = "floor_mul"
    _largest_denominator = 10**6

    @staticmethod
    def rounded(value: int | float) -> float:
        """Round a number to the float type of the function, float64 here."""
        return float(value)

    @classmethod
    def eval(cls, n: sympy.Expr, p: sympy.Expr, q: sympy.Expr) -> sympy.Expr | None:
        """Return the value for an integer n, None for a symbolic one (sympy's protocol for simplification)."""
        if n.is_Integer:
            return sympy.Integer(math.floor(cls.rounded(cls.rounded(int(n)) * cls.rounded(int(p) / int(q)))))
        return None

    def _eval_is_integer(self) -> bool:
        return True

    def _eval_is_nonnegative(self) -> bool | None:
        n, p, q = self.args
        return True if n.is_nonnegative and p * q > 0 else None

    @property
    def scale(self) -> float:
        """Return the constant p / q, rounded to the function's float type."""
        return self.rounded(int(self.args[1]) / int(self.args[2]))

    @classmethod
    def by(cls, n: sympy.Expr, scale: float) -> sympy.Expr:
        """floor(n * scale) of a constant. Raises ValueError for one that no two whole numbers below 2^63 give."""
        ratio = cls.ratio(scale)
        if ratio.denominator >= 2**63 or abs(ratio.numerator) >= 2**63:
            raise ValueError(f"{scale} is out of range")
        return cls(n, sympy.Integer(ratio.numerator), sympy.Integer(ratio.denominator))

    @classmethod
    def ratio(cls, scale: float) -> Fraction:
        """Return the fraction that a constant stands for: one of a small denominator that is rounded to it, such as 23/10, else its
        exact value.
        """
        exact = Fraction(scale)
        near = exact.limit_denominator(cls._largest_denominator)
        return near if cls.rounded(near.numerator / near.denominator) == scale else exact


class FloorMulF32(FloorMul):
    """floor(n * (p / q)): n, the quotient and the product rounded to float32. In text it is floor_mul_f32(n, p, q)."""

    text = "floor_mul_f32"
    _largest_denominator = 10**4

    @staticmethod
    def rounded(value: int | float) -> float:
        """Round a number to float32."""
        return float(np.float32(value))


def is_floor_of_ratio(exact: Fraction, ratio: Fraction, largest: int) -> bool:
    """Whether floor(fl(n * exact)) is floor(n * ratio) for all 0 <= n <= `largest`, where fl rounds to float64 (to nearest, ties to even).

    With e = exact / ratio - 1: where n * ratio is a whole number K, n * exact is K * (1 + e), and half of the spacing of floats below K is
    K * 2^-54 at least: for |e| up to that it is rounded to K. Elsewhere n * ratio is 1 / denominator at least from the next whole number.
    """
    if ratio == 0:
        return exact == 0
    error = exact / ratio - 1
    towards = error if ratio > 0 else -error
    return -Fraction(1, 2**54) <= towards and abs(error) < Fraction(1, 2**52) and abs(ratio.numerator) * largest < 2**51
