"""quantize-static: 8-bit weights and activations, with scales of activations that calibration has recorded (static W8A8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.analysis.quantization import Numbers, mark
from llmos.compiler.ir.attributes import ACTIVATION_RANGES
from llmos.compiler.ir.bindings import arith, ir, math
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.compiler.quant.static import parameters
from llmos.passes._context import PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes.quant._generics import Read, after, axis_sizes, constant, elementwise
from llmos.passes.quant._integers import Integers, ZeroPoint, dequantized
from llmos.passes.quant._rounding import LARGEST, STEPS, as_i8, bounded, symmetric
from llmos.passes.quant._static import activations_of, static_products


@dataclass(frozen=True)
class QuantizeStatic(Pass):
    """Activations and weights of contractions and convolutions are quantized, and dequantized where they are read (QDQ).

    Before, in an entry with llmos.activation_ranges = array<f64: -1.0, 4.1>:
        %y = linalg.generic {acc + x * w} ins(%x, %w : tensor<1x9x9x8xf32>, tensor<3x3x8x16xf32>)
    After, with sx = 5.1 / 255 and zx = round(1.0 / sx):
        %ux = linalg.generic {clamp(round(x * (1 / sx)) + zx)} attrs = {llmos.quantize = uint8}
        %a = linalg.generic {(ux - zx) * sx} attrs = {llmos.dequantize = uint8}      // what all others read, too
        %qw = linalg.generic {round(w / sw)} attrs = {llmos.quantize = int8}         // sw: one number for each column, from the weight
        %b = linalg.generic {qw * sw} attrs = {llmos.dequantize = int8}
        %y = linalg.generic {acc + x * w} ins(%a, %b)

    fuse-dequantize makes products of integers of these. An activation is quantized right after it is made, before it is moved, padded or
    reduced to maxima of windows, and everything but the entry's results reads the quantized one: bytes are all that lies in memory.
    Nothing is quantized in an entry without ranges.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Quantize every contraction and convolution whose activation has a recorded range."""
        for func in public_functions(module):
            if ACTIVATION_RANGES in func.attributes:
                numbers = list(ir.DenseF64ArrayAttr(func.attributes[ACTIVATION_RANGES]))
                _quantize(EntryFunc(func), list(zip(numbers[::2], numbers[1::2], strict=True)))
                del func.attributes[ACTIVATION_RANGES]


def _quantize(entry: EntryFunc, ranges: list[tuple[float, float]]) -> None:
    products = static_products(entry)
    for value, (low, high) in zip(activations_of(products), ranges, strict=True):
        _quantize_activation(value, low, high)
    made: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = {}
    for each in products:
        weight, axes = each.op.operands[each.weight], each.summed_axes
        if (weight, axes) not in made:
            made[weight, axes] = _quantized_weight(weight, axes)
        each.op.operands[each.weight] = made[weight, axes]


def _quantize_activation(value: ir.Value, low: float, high: float) -> None:
    """Let everything but a return read an activation by its numbers."""
    scale, zero = parameters(low, high)
    f32 = ir.F32Type.get()
    uses = [(use.owner.operation, use.operand_number) for use in value.uses]

    def number(each: ir.Value) -> ir.Value:
        rounded = math.roundeven(arith.mulf(each, constant(1.0 / scale, f32)))
        shifted = arith.addf(rounded, constant(float(zero), f32)) if zero else rounded
        return as_i8(bounded(shifted, 0, STEPS))

    with after(value):
        numbers = elementwise([Read.whole(value)], axis_sizes(value), ir.IntegerType.get_signless(8), number)
        mark(numbers.owner.operation, "quantize", Numbers("uint8", (0, STEPS), ("input",), scale, zero or None))
        read = dequantized(Integers(numbers, True, ZeroPoint(zero), scale, (0, STEPS)), f32)
    for op, operand in uses:
        if op.name not in ("func.return", "tensor.dim"):
            op.operands[operand] = read


def _quantized_weight(weight: ir.Value, axes: tuple[int, ...]) -> ir.Value:
    made = symmetric(weight, axes, "int8")
    with ir.InsertionPoint.after(made.numbers.owner.operation):
        scale = Read.at(made.scale, made.kept)
        return dequantized(Integers(made.numbers, False, ZeroPoint(), scale, (-LARGEST, LARGEST)), ir.F32Type.get())
