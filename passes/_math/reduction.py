"""Arguments of sin, cos and tan that are too large for multiples of pi/2 to be taken off by a few multiply-adds (Payne and Hanek, "Radian
reduction for trigonometric functions", ACM SIGNUM Newsletter 18(1), 1983).

x 2/pi is a sum of products with chunks of 2/pi. Of each product, which float64 holds exactly, what is a multiple of 4 is taken off, exactly
too: only whole turns go. The loop over the chunks runs where some lane needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from llmos.compiler.ir.bindings import ir
from llmos.passes._math.expr import Expr, bits, float_of_bits, floor, fma, operation, select

CHUNK_BITS = 26  # so that half of a float64 times a chunk is exact
NUM_CHUNKS = 47  # bits down to 2^-1222: of 2^1024, 198 behind the point
SCALE = 200  # a power of two that arguments are divided by and chunks multiplied with: 2^-1222 is no float64
LOW_BITS = (1 << 27) - 1  # of a float64, so that what is left has 26
HALF_PI, HALF_PI_LOW = 1.5707963267948966, 6.123233995736766e-17
PI_TERMS = 1300  # bits


class Rotated(NamedTuple):
    """x = quarters * pi/2 + high + low, with |high| <= pi/4 and quarters in -4 to 4, as float64."""

    high: Expr
    low: Expr
    quarters: Expr


def where_large(is_large: Expr, x: Expr, simple: Sequence[Expr], made: Callable[[Rotated], Sequence[Expr]]) -> list[Expr]:
    """Return `simple`, and on lanes that are large `made` of the reduction of x, float64 numbers of 2^27 and more; its error is 2^-90.

    Nothing is computed where no lane is large.
    """

    def patched() -> list[Expr]:
        transposed, is_negative = _reduce(abs(x)), x < 0.0
        parts = made(Rotated(*(select(is_negative, -part, part) for part in transposed)))
        return [select(is_large, part, other) for part, other in zip(parts, simple, strict=True)]

    return _if_any(is_large, patched, simple)


def _reduce(x: Expr) -> Rotated:
    x = x * 2.0**-SCALE
    upper = float_of_bits(bits(x) & ~LOW_BITS)
    parts = [upper, x - upper]
    zero = x.constant(0.0)

    def add(chunk: Expr, carried: Sequence[Expr]) -> list[Expr]:
        total, rest = carried
        for part in parts:
            total, lost = _exact_sum(total, _below_4(part * chunk))
            total, rest = _below_4(total), rest + lost
        return [total, rest]

    total, rest = _for_each_chunk(add, [zero, zero])
    quarters = floor(total + 0.5)
    fraction, low = _exact_sum(total - quarters, rest)
    high = fraction * HALF_PI
    return Rotated(high, fma(fraction, HALF_PI, -high) + fma(fraction, HALF_PI_LOW, low * HALF_PI), quarters)


def _below_4(x: Expr) -> Expr:
    """x less a multiple of 4, in [0, 4); exact."""
    return fma(floor(x * 0.25), -4.0, x)


def _exact_sum(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """The sum and what its rounding lost (Knuth)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _chunks() -> list[float]:
    """2/pi by 26 bits, each times 2^SCALE."""
    numerator = int(Fraction(2) / _pi() * (1 << CHUNK_BITS * NUM_CHUNKS))
    found = []
    for i in range(NUM_CHUNKS):
        digit = numerator >> CHUNK_BITS * (NUM_CHUNKS - 1 - i) & ((1 << CHUNK_BITS) - 1)
        found.append(digit * 2.0 ** (SCALE - CHUNK_BITS * (i + 1)))
    return found


def _pi() -> Fraction:
    """To PI_TERMS bits: 16 atan(1/5) - 4 atan(1/239) (Machin)."""
    one = 1 << PI_TERMS + 32

    def arctangent_of_reciprocal(n: int) -> int:
        total = term = one // n
        k = 1
        while term:
            term //= -n * n
            k += 2
            total += term // k
        return total

    return Fraction(16 * arctangent_of_reciprocal(5) - 4 * arctangent_of_reciprocal(239), one)


def _for_each_chunk(body: Callable[[Expr, Sequence[Expr]], list[Expr]], start: Sequence[Expr]) -> list[Expr]:
    f64, index = ir.F64Type.get(), ir.IndexType.get()
    values = [ir.FloatAttr.get(f64, chunk) for chunk in _chunks()]
    table = operation(
        "arith.constant",
        ir.VectorType.get([NUM_CHUNKS], f64),
        value=ir.DenseElementsAttr.get(values, ir.VectorType.get([NUM_CHUNKS], f64)),
    )
    bounds = [operation("arith.constant", index, value=ir.IntegerAttr.get(index, number)) for number in (0, NUM_CHUNKS, 1)]
    operands = [each.value for each in (*bounds, *start)]
    loop = ir.Operation.create("scf.for", results=[each.type for each in start], operands=operands, regions=1)
    block = loop.regions[0].blocks.append(index, *(each.type for each in start))
    with ir.InsertionPoint(block):
        position, *carried = block.arguments
        place = ir.DenseI64ArrayAttr.get([ir.ShapedType.get_dynamic_size()])
        chunk = operation("vector.extract", f64, table, Expr(position), static_position=place)
        kind = start[0].type
        lanes = operation("vector.broadcast", kind, chunk) if isinstance(kind, ir.VectorType) else chunk
        ir.Operation.create("scf.yield", operands=[each.value for each in body(lanes, [Expr(value) for value in carried])])
    return [Expr(result) for result in loop.results]


def _if_any(condition: Expr, body: Callable[[], Sequence[Expr]], otherwise: Sequence[Expr]) -> list[Expr]:
    """What `body` makes if the condition holds on some lane."""
    if isinstance(condition.type, ir.VectorType):
        kind = ir.Attribute.parse("#vector.kind<or>")
        condition = operation("vector.reduction", condition.element, condition, kind=kind)
    choice = ir.Operation.create("scf.if", results=[each.type for each in otherwise], operands=[condition.value], regions=2)
    with ir.InsertionPoint(choice.regions[0].blocks.append()):
        ir.Operation.create("scf.yield", operands=[each.value for each in body()])
    with ir.InsertionPoint(choice.regions[1].blocks.append()):
        ir.Operation.create("scf.yield", operands=[each.value for each in otherwise])
    return [Expr(result) for result in choice.results]
