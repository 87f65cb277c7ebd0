"""Ops on the bits and the divisors of numbers: signs, adjacent floats, mantissas, common divisors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.ops.elementwise import fmod
from llmos.compiler.frontend.ops.loops import Loops
from llmos.compiler.frontend.scalars import Scalar, select

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_MANTISSA_BITS = {torch.float32: 23, torch.float64: 52}


def bits_of(v: Scalar) -> Scalar:
    """Bitcast a float to a signed integer of the same width."""
    return s.bitcast(v, _INTEGERS[v.dtype])


def signbit(v: Scalar) -> Scalar:
    """Test the sign bit, also of -0.0 and NaN."""
    return bits_of(v) < 0 if v.is_float else s.constant(False, torch.bool) if v.is_unsigned else v < 0


def angle(v: Scalar) -> Scalar:
    """Lower aten.angle of a real number: pi below 0, else 0; NaN stays NaN."""
    return select(v.differs(v), v, select(v < 0, v.like(math.pi), v.like(0.0)))


def hypot(v: Scalar, w: Scalar) -> Scalar:
    """sqrt(v² + w²), scaled by the larger magnitude so that no square overflows."""
    a, c = s.absolute(v), s.absolute(w)
    large, small = a.max(c), a.min(c)
    ratio = small / select(large.equals(0), large.like(1.0), large)
    value = large * s.sqrt(ratio * ratio + 1.0)
    infinite = a.equals(math.inf) | c.equals(math.inf)
    return select(infinite, large.like(math.inf), value)


def fmax(v: Scalar, w: Scalar) -> Scalar:
    """Return the larger number; NaN only if both are NaN."""
    if not v.is_float:
        return v.max(w)
    return select(v.differs(v), w, select(w.differs(w), v, v.max(w)))


def fmin(v: Scalar, w: Scalar) -> Scalar:
    """Return the smaller number; NaN only if both are NaN."""
    if not v.is_float:
        return v.min(w)
    return select(v.differs(v), w, select(w.differs(w), v, v.min(w)))


def nextafter(v: Scalar, w: Scalar) -> Scalar:
    """Return the float next to v toward w: its bits plus or minus 1, since bit patterns of one sign order by magnitude."""
    bits = bits_of(v)
    away = (w > v) ^ (v < 0)
    stepped = s.bitcast(select(away, bits + 1, bits - 1), v.dtype)
    tiny = s.copysign(s.bitcast(bits.like(1), v.dtype), w)
    moved = select(v.equals(0), tiny, stepped)
    return select(v.differs(v) | w.differs(w), v + w, select(v.equals(w), w, moved))


# Byte width -> the most steps of Euclid's algorithm (reached by consecutive Fibonacci numbers).
_EUCLID_STEPS = {1: 13, 2: 25, 4: 48, 8: 93}


def gcd(b: Builder, result: Meta, x: Tensor, y: Tensor) -> Tensor:
    """Lower aten.gcd of integers by Euclid's algorithm; both operands are cast to the result's dtype."""
    count = b.sizes.product(result.shape)
    flat = {name: b.reshape(b.expand(b.cast(each, result.dtype), result.shape), (count,)) for name, each in (("x", x), ("y", y))}
    loops = Loops(b, flat, {"out": ((count,), result.dtype, 0), "w": ((2,), result.dtype, 0)})

    def step(_: Scalar) -> None:
        larger, smaller = loops.get("w", 0), loops.get("w", 1)
        loops.set("w", [0], smaller)
        loops.set("w", [1], fmod(larger, smaller))

    def element(i: Scalar) -> None:
        for place, name in enumerate("xy"):
            loops.set("w", [place], s.absolute(loops.get(name, i)))
        loops.loop(0, _EUCLID_STEPS[result.dtype.itemsize], lambda _: loops.loop(0, loops.get("w", 1).differs(0).to(torch.int64), step))
        loops.set("out", [i], loops.get("w", 0))

    loops.loop(0, count, element)
    return b.reshape(loops.result("out"), result.shape)


def lcm(b: Builder, result: Meta, x: Tensor, y: Tensor) -> Tensor:
    """Lower aten.lcm of integers: |x / gcd(x, y) * y|, and 0 where both are 0."""

    def body(divisor: Scalar, v: Scalar, w: Scalar) -> Scalar:
        none = divisor.equals(0)
        return select(none, divisor, s.absolute(v / select(none, divisor.like(1), divisor) * w))

    return b.elementwise(body, [gcd(b, result, x, y), b.cast(x, result.dtype), b.cast(y, result.dtype)], result.dtype)


def frexp(b: Builder, result: Sequence[Meta], x: Tensor) -> list[Tensor]:
    """Lower aten.frexp: return (mantissa in [0.5, 1), int32 exponent) of a float; zeros, infinities and NaN keep their value."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    size, top = _MANTISSA_BITS[wide], 1022 if wide == torch.float64 else 126

    def parts(v: Scalar) -> tuple[Scalar, Scalar]:
        v = v.to(wide)
        plain = v.equals(0) | v.differs(v) | s.absolute(v).equals(math.inf)
        small = s.absolute(v) < 2.0 ** -(top - 1)  # subnormal: scaled first
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
