"""Quantization of a matrix to 4 bits in groups along one of its axes, as IR.

Of the elements w of a group, rounding to nearest, halves to even:

    scale = max(w, 0) / 15 - min(w, 0) / 15     zero_point = round(-min(w, 0) / scale)
    q = clamp(round(w / scale) + zero_point, 0, 15)
"""

from __future__ import annotations

from llmos.compiler.ir.bindings import arith, ir, math
from llmos.passes.quant._generics import Read, after, axis_sizes, constant, elementwise, reductions
from llmos.passes.quant._rounding import Quantized, as_i8, bounded, scale_of_step

STEPS = 15  # between the smallest and the largest number


def asymmetric_nibbles(matrix: ir.Value, axis: int, group: int) -> Quantized:
    """Quantize a float32 matrix, right after what makes it: numbers i8 [.., ..], of its shape; scale f32 and zero point i8 with its
    groups in the place of `axis`. group: divides the size of the axis.

    Where the elements are all 0 the scale is 1; where one is NaN or infinite it is NaN, and the numbers mean nothing.
    """
    f32 = ir.F32Type.get()
    with after(matrix):
        grouped = _grouped(matrix, axis, group)
        inner = axis + 1
        kept = tuple(each for each in range(3) if each != inner)
        zero = constant(0.0, f32)
        low, high = reductions(grouped, [inner], zero, [lambda x, acc: arith.minimumf(acc, x), lambda x, acc: arith.maximumf(acc, x)])
        sizes, steps = axis_sizes(low), float(STEPS)

        def step(low: ir.Value, high: ir.Value) -> ir.Value:
            parts = [arith.divf(each, constant(steps, f32)) for each in (high, low)]
            return scale_of_step(arith.subf(*parts))

        def zero_of(low: ir.Value, scale: ir.Value) -> ir.Value:
            return as_i8(bounded(math.roundeven(arith.divf(arith.negf(low), scale)), 0, STEPS))

        def number(x: ir.Value, scale: ir.Value, zero: ir.Value) -> ir.Value:
            return as_i8(bounded(arith.addf(math.roundeven(arith.divf(x, scale)), arith.uitofp(f32, zero)), 0, STEPS))

        i8 = ir.IntegerType.get_signless(8)
        scale = elementwise([Read.whole(low), Read.whole(high)], sizes, f32, step)
        zero_point = elementwise([Read.whole(low), Read.whole(scale)], sizes, i8, zero_of)
        reads = [Read.whole(grouped), Read.at(scale, kept), Read.at(zero_point, kept)]
        numbers = _flat(elementwise(reads, axis_sizes(grouped), i8, number), axis)
    return Quantized(numbers, scale, kept, zero_point)


def _grouped(matrix: ir.Value, axis: int, group: int) -> ir.Value:
    """The matrix with an axis split into groups."""
    shape = list(matrix.type.shape)
    shape[axis : axis + 1] = [shape[axis] // group, group]
    return _reshaped("tensor.expand_shape", matrix, shape, axis, {"static_output_shape": ir.DenseI64ArrayAttr.get(shape)})


def _flat(grouped: ir.Value, axis: int) -> ir.Value:
    """The inverse."""
    shape = list(grouped.type.shape)
    shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
    return _reshaped("tensor.collapse_shape", grouped, shape, axis, {})


def _reshaped(name: str, value: ir.Value, shape: list[int], axis: int, attributes: dict[str, ir.Attribute]) -> ir.Value:
    i64 = ir.IntegerType.get_signless(64)
    groups = [[0, 1], [2]] if axis == 0 else [[0], [1, 2]]
    parts = ir.ArrayAttr.get([ir.ArrayAttr.get([ir.IntegerAttr.get(i64, each) for each in group]) for group in groups])
    kind = ir.RankedTensorType.get(shape, value.type.element_type)
    return ir.Operation.create(name, results=[kind], operands=[value], attributes={"reassociation": parts, **attributes}).results[0]
