"""What calibration has fitted, as weights of a module.

`quant.smooth.<number>`: float32 [k], the vector that an activation is divided by, and the weights that it meets multiplied by
(SmoothQuant, arXiv 2211.10438); the number is `Product.activation`.
`quant.correct.<number>`: float32 [n], what is added to each row of a quantized product, the mean of its error (bias correction,
arXiv 1906.04721); the number is `Product.number`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llmos.compiler.ir.attributes import WEIGHT, items, tensor_attributes
from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.functions import Argument, EntryFunc
from llmos.passes.quant._generics import Read, after, axis_sizes, constant, elementwise

SMOOTH, CORRECT = "quant.smooth.", "quant.correct."


def add_vectors(entry: EntryFunc, prefix: str, lengths: Mapping[int, int]) -> dict[int, str]:
    """Append an argument, float32 [length], for each number; return their names. prefix: SMOOTH or CORRECT."""
    names = {number: f"{prefix}{number}" for number in lengths}
    with entry.op.context, ir.Location.unknown():
        for number, length in lengths.items():
            attributes = items(tensor_attributes(names[number], "float32", kind=WEIGHT))
            entry.add_argument(ir.RankedTensorType.get([length], ir.F32Type.get()), attributes)
    return names


def vectors_of(entry: EntryFunc, prefix: str) -> dict[int, ir.Value]:
    """Return the vectors that a module has, by number. prefix: SMOOTH or CORRECT."""
    return {number: each.value for number, each in _vectors(entry, prefix)}


def drop_unused_vectors(entry: EntryFunc) -> None:
    """Remove the vectors that nothing reads."""
    found = [each for prefix in (SMOOTH, CORRECT) for _, each in _vectors(entry, prefix)]
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


def _vectors(entry: EntryFunc, prefix: str) -> Iterator[tuple[int, Argument]]:
    for each in entry.arguments.weights:
        number = each.name.removeprefix(prefix)
        if each.name.startswith(prefix) and number.isdecimal():
            yield int(number), each
