"""quantize-activations: rows in int8 beside weights that stay in 4 bits (W4A8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.analysis.contraction import Contraction, float_contraction_of
from llmos.compiler.analysis.quantized_weights import LONGEST_SUM, NIBBLE, quantized_weight_of
from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.passes._context import PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes._weight_only import weight_only_values
from llmos.passes.quant._generics import Read, axis_sizes, constant, elementwise, filled, generic
from llmos.passes.quant._products import is_matrix_product, is_zero, over_result, summed_axes
from llmos.passes.quant._rounding import Quantized, symmetric
from llmos.runtime.errors import UnsupportedError


@dataclass(frozen=True)
class QuantizeActivations(Pass):
    """A float32 contraction by a dequantized weight of 4 bits multiplies rows of int8, and scales its sums.

    Before:
        %w = linalg.generic {(q - z) * s} attrs = {llmos.dequantize = uint4}               // tensor<3072x768xf32>
        %y = linalg.generic {acc + x * w} ins(%x, %w : tensor<?x768xf32>, tensor<3072x768xf32>)
    After:
        %sx = linalg.generic {max|x| / 127}                                                // tensor<?xf32>, a scale a row
        %qx = linalg.generic {round(x / sx)} attrs = {llmos.quantize = int8}               // tensor<?x768xi8>
        %a = linalg.generic {acc + sitofp(qx) * w} ins(%qx, %w : tensor<?x768xi8>, tensor<3072x768xf32>)
        %y = linalg.generic {a * sx}

    The kernel sums the products of a group in integers (compiler/backends/cpu/arithmetic/int4.py). Activations that several contractions
    read are quantized once, right after they are made. A row of zeros has the scale 1; one with a NaN or an infinity has the scale NaN,
    so that what is computed from it is NaN. Left as they are: weights in 8 bits or float, and those that no kernel multiplies as integers.

    required: whether a model without a weight of 4 bits is refused.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})

    required: bool = False

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Quantize the left side of every contraction by a weight of 4 bits. Raises UnsupportedError where one is required and missing."""
        found = [_quantize(func, context) for func in public_functions(module)]
        if self.required and not any(found):
            raise UnsupportedError("--quant w4a8: the model has no weight in 4 bits; w4a8:g128 makes them of floats")


def _quantize(func: ir.Operation, context: PassContext) -> int:
    """Quantize in one function. Returns the number of contractions."""
    block, weights = func.regions[0].blocks[0], {each.value for each in EntryFunc(func).arguments.weights}
    known = weight_only_values(block, weights)
    contractions = [each for op in block.operations if (each := float_contraction_of(op.operation)) is not None]
    found = [each for each in contractions if each.rhs in known and each.lhs not in known and _applies(each, context)]
    made: dict[tuple[ir.Value, tuple[int, ...]], Quantized] = {}
    for each in found:
        key = each.lhs, summed_axes(each, each.left)
        if key not in made:
            made[key] = symmetric(*key, "int8")
        _replace(each, made[key])
    return len(found)


def _applies(contraction: Contraction, context: PassContext) -> bool:
    if not is_matrix_product(contraction) or not context.costs.pays_as_contraction(contraction):
        return False
    weight = quantized_weight_of(contraction)
    return weight is not None and weight.format.bits == NIBBLE and weight.format.run <= LONGEST_SUM


def _replace(contraction: Contraction, left: Quantized) -> None:
    """Multiply the rounded rows, and scale the sums."""
    old, f32 = contraction.generic, ir.F32Type.get()
    with ir.InsertionPoint(old.op), old.op.location:
        sums, init = _products(contraction, left.numbers), old.inits[0]
        reads = [Read.whole(sums), over_result(contraction, contraction.left, Read.at(left.scale, left.kept))]
        if not is_zero(init):
            reads.append(Read.whole(init))

        def scaled(acc: ir.Value, scale: ir.Value, *start: ir.Value) -> ir.Value:
            product = arith.mulf(acc, scale)
            return arith.addf(start[0], product) if start else product

        made = elementwise(reads, axis_sizes(init), f32, scaled)
    old.op.results[0].replace_all_uses_with(made)
    old.op.erase()


def _products(contraction: Contraction, numbers: ir.Value) -> ir.Value:
    """The contraction of int8 rows by the same right side, from 0; loop dims and maps as before."""
    old, f32 = contraction.generic, ir.F32Type.get()
    sides = (numbers, contraction.rhs) if contraction.left == 0 else (contraction.rhs, numbers)
    reads = [Read(value, tuple(affine.results)) for value, affine in zip(sides, old.maps, strict=False)]
    init = filled(constant(0.0, f32), axis_sizes(old.inits[0]))

    def body(first: ir.Value, second: ir.Value, acc: ir.Value) -> ir.Value:
        factors = [arith.sitofp(f32, each) if place == contraction.left else each for place, each in enumerate((first, second))]
        return arith.addf(acc, arith.mulf(*factors))

    return generic(reads, Read(init, tuple(contraction.out_map.results)), old.reduction_dims, old.rank, body)
