"""Numbers of 8 bits in floating point (OCP E4M3, without infinities) as IR, of elements x along the reduced axes.

    scale = max|x| / 448                 code = the number nearest to x / scale, halves to even, below 2^-6 in steps of 2^-9
    x is about number(code) * scale      number(code) = float32 of the bits [sign 0000 magnitude 0...] * 2^120

The last line puts the code's exponent and fraction where those of a float32 lie; 2^120 makes up for the difference of the biases, and is
exact below 2^-6 too. 0x7F and 0xFF, NaN in E4M3, are made of nothing here and would be 480: who brings codes has none of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.analysis.quantization import FLOAT8, Numbers, mark, range_of
from llmos.compiler.ir.bindings import arith, ir, math
from llmos.passes.quant._generics import Read, after, axis_sizes, constant, elementwise, reduced
from llmos.passes.quant._rounding import Quantized, bounded, scale_of_step

LARGEST = range_of(FLOAT8)[1]
PLACE = 20  # of a code's lowest bit in a float32
MASK = 0x87F00000 - (1 << 32)  # sign and magnitude there
FACTOR = 2.0**120  # 127 - 7, the biases of the exponents
SMALLEST_NORMAL = 2.0**-6
STEPS_BELOW = 2.0**9  # of 1 below that


def decoded(code: ir.Value) -> ir.Value:
    """The float32 number of a code in i8, in the body of an op."""
    i32, f32 = ir.IntegerType.get_signless(32), ir.F32Type.get()
    bits = arith.andi(arith.shli(arith.extsi(i32, code), constant(PLACE, i32)), constant(MASK, i32))
    return arith.mulf(arith.bitcast(f32, bits), constant(FACTOR, f32))


def float8(x: ir.Value, axes: Sequence[int]) -> Quantized:
    """Round a float32 tensor to codes with a scale for all elements along `axes`, right after what makes it.

    Where the elements are all 0 the scale is 1; where one is NaN or infinite it is NaN, and the codes mean nothing.
    """
    f32, kept = ir.F32Type.get(), tuple(axis for axis in range(x.type.rank) if axis not in axes)
    with after(x):
        largest = reduced(x, axes, constant(0.0, f32), lambda each, acc: arith.maximumf(acc, math.absf(each)))
        scale = elementwise([Read.whole(largest)], axis_sizes(largest), f32, _scale)
        codes = elementwise([Read.whole(x), Read.at(scale, kept)], axis_sizes(x), ir.IntegerType.get_signless(8), _code)
    mark(codes.owner.operation, "quantize", Numbers(FLOAT8, range_of(FLOAT8), ("input", "scale")))
    return Quantized(codes, scale, kept)


def _scale(largest: ir.Value) -> ir.Value:
    return scale_of_step(arith.divf(largest, constant(float(LARGEST), largest.type)))


def _code(x: ir.Value, scale: ir.Value) -> ir.Value:
    """The code of x / scale, i8."""
    value = bounded(arith.divf(x, scale), -LARGEST, LARGEST)
    i32, f32 = ir.IntegerType.get_signless(32), ir.F32Type.get()

    def number(n: int) -> ir.Value:
        return constant(n, i32)

    bits = arith.bitcast(i32, value)
    magnitude = arith.andi(bits, number(0x7FFFFFFF))
    # half of the last place, or the most below half where that place is even: the carry goes up to the exponent
    odd = arith.andi(arith.shrui(magnitude, number(PLACE)), number(1))
    rounded = arith.shrui(arith.addi(magnitude, arith.addi(odd, number((1 << (PLACE - 1)) - 1))), number(PLACE))
    normal = arith.subi(rounded, number((127 - 7) << 3))
    size = math.absf(value)
    small = arith.fptosi(i32, math.roundeven(arith.mulf(bounded(size, 0, 1), constant(STEPS_BELOW, f32))))
    is_small = arith.cmpf(arith.CmpFPredicate.OLT, size, constant(SMALLEST_NORMAL, f32))
    sign = arith.andi(arith.shrui(bits, number(24)), number(0x80))
    return arith.trunci(ir.IntegerType.get_signless(8), arith.ori(arith.select(is_small, small, normal), sign))
