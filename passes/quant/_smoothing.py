"""SmoothQuant's vectors in a module: weights `quant.smooth.<number>`, one for each activation that has one (arXiv 2211.10438).

x / s and w · s have the product of x and w, and smaller outliers in x. An activation's number is `Product.activation`.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmos.compiler.ir.attributes import WEIGHT, items, tensor_attributes
from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.functions import Argument, EntryFunc
from llmos.passes.quant._generics import Read, after, axis_sizes, constant, elementwise

PREFIX = "quant.smooth."


def add_smoothing(entry: EntryFunc, lengths: Mapping[int, int]) -> dict[int, str]:
    """Append an argument, float32 [length], for the vector of each activation; return their names by the same numbers."""
    names = {number: f"{PREFIX}{number}" for number in lengths}
    with entry.op.context, ir.Location.unknown():
        for number, length in lengths.items():
            attributes = items(tensor_attributes(names[number], "float32", kind=WEIGHT))
            entry.add_argument(ir.RankedTensorType.get([length], ir.F32Type.get()), attributes)
    return names


def smoothing_of(entry: EntryFunc) -> dict[int, ir.Value]:
    """Return the vectors that a module has, by the number of the activation."""
    return {int(each.name[len(PREFIX) :]): each.value for each in _vectors(entry)}


def drop_unused_smoothing(entry: EntryFunc) -> None:
    """Remove the vectors that nothing reads."""
    entry.drop_arguments(each.position for each in _vectors(entry) if not any(True for _ in each.value.uses))


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


def _vectors(entry: EntryFunc) -> list[Argument]:
    return [each for each in entry.arguments.weights if each.name.startswith(PREFIX) and each.name[len(PREFIX) :].isdecimal()]
