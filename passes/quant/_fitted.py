"""What calibration has fitted, as weights of a module.

`quant.smooth.<number>`: float32 [k], the vector that an activation is divided by, and the weights that it meets multiplied by
(SmoothQuant, arXiv 2211.10438); the number is `Product.activation`.
`quant.correct.<number>`: float32 [n], what is added to each row of a quantized product, the mean of its error (bias correction,
arXiv 1906.04721); the number is `Product.number`.
`quant.numbers.<number>`: uint8, of a weight's shape, its numbers of 4 bits, `quant.scale.<number>`: float32, and
`quant.zero_point.<number>`: uint8, both with groups in the place of the axis of the sums; or int8 numbers of 8 bits and float32 scales
[n] (GPTQ, arXiv 2210.17323); the number is `Product.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from llmos.compiler.ir.attributes import WEIGHT, items, tensor_attributes
from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.functions import Argument, EntryFunc
from llmos.compiler.ir.weights import Weight
from llmos.passes.quant._generics import Read, after, axis_sizes, constant, elementwise

SMOOTH, CORRECT = "quant.smooth.", "quant.correct."
NUMBERS, SCALE, ZERO_POINT = "quant.numbers.", "quant.scale.", "quant.zero_point."


def add_fitted(entry: EntryFunc, prefix: str, arrays: Mapping[int, np.ndarray]) -> dict[str, Weight]:
    """Append an argument, float32 or of 8 bits, for each array; return what they are bound to, by name. prefix: one of the five."""
    found = {f"{prefix}{number}": Weight.of(array) for number, array in arrays.items()}
    with entry.op.context, ir.Location.unknown():
        for name, weight in found.items():
            element = ir.F32Type.get() if weight.dtype == "float32" else ir.IntegerType.get_signless(8)
            attributes = items(tensor_attributes(name, weight.dtype, kind=WEIGHT))
            entry.add_argument(ir.RankedTensorType.get(list(weight.shape), element), attributes)
    return found


def fitted_of(entry: EntryFunc, prefix: str) -> dict[int, ir.Value]:
    """Return what a module has of one kind, by number. prefix: one of the five."""
    return {number: each.value for number, each in _fitted(entry, prefix)}


def drop_unused(entry: EntryFunc) -> None:
    """Remove what nothing reads."""
    found = [each for prefix in (SMOOTH, CORRECT, NUMBERS, SCALE, ZERO_POINT) for _, each in _fitted(entry, prefix)]
    entry.drop_arguments(each.position for each in found if not any(True for _ in each.value.uses))


def divided(x: ir.Value, vector: ir.Value, axis: int) -> ir.Value:
    """Divide float32 x [..., k, ...] by float32 [k] along an axis, right after what makes x; the reciprocals are a weight's to fold."""
    f32 = ir.F32Type.get()
    with after(x):
        inverse = elementwise([Read.whole(vector)], axis_sizes(vector), f32, lambda each: arith.divf(constant(1.0, f32), each))
        return elementwise([Read.whole(x), Read.at(inverse, [axis])], axis_sizes(x), f32, arith.mulf)


def multiplied(w: ir.Value, vector: ir.Value, axis: int) -> ir.Value:
    """Multiply float32 w [..., k, ...] by float32 [k] along an axis, right after what makes w."""
    with after(w):
        return elementwise([Read.whole(w), Read.at(vector, [axis])], axis_sizes(w), ir.F32Type.get(), arith.mulf)


def _fitted(entry: EntryFunc, prefix: str) -> Iterator[tuple[int, Argument]]:
    for each in entry.arguments.weights:
        number = each.name.removeprefix(prefix)
        if each.name.startswith(prefix) and number.isdecimal():
            yield int(number), each
