"""Ops on the bits and the divisors of numbers: signs, neighbours, mantissas, common divisors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.scalars import Scalar, select
from llmos.compiler.ir import arith

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_MANTISSA_BITS = {torch.float32: 23, torch.float64: 52}


def bits_of(v: Scalar) -> Scalar:
    """A float's bits as a signed integer."""
    return s.bitcast(v, _INTEGERS[v.dtype])


def signbit(v: Scalar) -> Scalar:
    """Whether the sign is minus, of -0.0 and NaN too."""
    return bits_of(v) < 0 if v.is_float else s.constant(False, torch.bool) if v.is_unsigned else v < 0


def angle(v: Scalar) -> Scalar:
    return select(v.differs(v), v, select(v < 0, v.like(math.pi), v.like(0.0)))


def hypot(v: Scalar, w: Scalar) -> Scalar:
    """Scaled by the larger, so that no square overflows."""
    a, c = s.absolute(v), s.absolute(w)
    large, small = a.max(c), a.min(c)
    ratio = small / select(large.equals(0), large.like(1.0), large)
    value = large * s.sqrt(ratio * ratio + 1.0)
    infinite = a.equals(math.inf) | c.equals(math.inf)
    return select(infinite, large.like(math.inf), value)


def fmax(v: Scalar, w: Scalar) -> Scalar:
    """The larger; a NaN only where both are."""
    if not v.is_float:
        return v.max(w)
    return select(v.differs(v), w, select(w.differs(w), v, v.max(w)))


def fmin(v: Scalar, w: Scalar) -> Scalar:
    if not v.is_float:
        return v.min(w)
    return select(v.differs(v), w, select(w.differs(w), v, v.min(w)))


def nextafter(v: Scalar, w: Scalar) -> Scalar:
    """The neighbour of v on the way to w: one step of its bits, which order as the numbers do on either side of zero."""
    bits = bits_of(v)
    away = (w > v) ^ (v < 0)
    stepped = s.bitcast(select(away, bits + 1, bits - 1), v.dtype)
    tiny = s.copysign(s.bitcast(bits.like(1), v.dtype), w)
    moved = select(v.equals(0), tiny, stepped)
    return select(v.differs(v) | w.differs(w), v + w, select(v.equals(w), w, moved))


def gcd(v: Scalar, w: Scalar) -> Scalar:
    """Euclid's algorithm, as many steps as the worst pair (neighbouring Fibonacci numbers) takes."""
    a, c = s.absolute(v), s.absolute(w)
    for _ in range({1: 13, 2: 25, 4: 48, 8: 93}[v.dtype.itemsize]):
        zero = c.equals(0)
        rest = Scalar((arith.remui if v.is_unsigned else arith.remsi)(a.value, select(zero, c.like(1), c).value), a.dtype)
        a, c = select(zero, a, c), select(zero, c, rest)
    return a


def lcm(v: Scalar, w: Scalar) -> Scalar:
    divisor = gcd(v, w)
    return select(divisor.equals(0), divisor, s.absolute(v / select(divisor.equals(0), divisor.like(1), divisor) * w))


def frexp(b: Builder, result: Sequence[Meta], x: Tensor) -> list[Tensor]:
    """(mantissa of [0.5, 1), int32 exponent)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    size, top = _MANTISSA_BITS[wide], 1022 if wide == torch.float64 else 126

    def parts(v: Scalar) -> tuple[Scalar, Scalar]:
        v = v.to(wide)
        plain = v.equals(0) | v.differs(v) | s.absolute(v).equals(math.inf)
        small = s.absolute(v) < 2.0 ** -(top - 1)  # a denormal number: scaled first
        scaled = select(small, v * 2.0 ** (size + 2), v)
        bits = bits_of(scaled)
        field = (bits >> size) & (2 * top + 3)
        exponent = field - top - select(small, field.like(size + 2), field.like(0))
        mantissa = s.bitcast((bits & ~((2 * top + 3) << size)) | (top << size), wide)
        return select(plain, v, mantissa), select(plain, exponent.like(0), exponent)

    return [
        b.elementwise(lambda v: parts(v)[0], [x], result[0].dtype),
        b.elementwise(lambda v: parts(v)[1].to(torch.int32), [x], torch.int32),
    ]
