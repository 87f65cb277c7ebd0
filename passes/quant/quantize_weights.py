"""quantize-weights: weights of products in 4 or 8 bits, activations in float (W4A16, W8A16)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.analysis.contraction import Contraction, contraction_of
from llmos.compiler.analysis.quantization import Numbers, Role, mark
from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.passes._context import PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes._weight_only import weight_only_values, weight_sources
from llmos.passes.quant._generics import Read, after, axis_sizes, elementwise
from llmos.passes.quant._nibbles import asymmetric_nibbles
from llmos.passes.quant._products import is_matrix_product, summed_axes
from llmos.passes.quant._rounding import Quantized, symmetric


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """The weight of a float32 contraction becomes the dequantization of integers that are computed at compile time.

    Before:
        %y = linalg.generic {acc + x * w} ins(%x, %w : tensor<?x768xf32>, tensor<3072x768xf32>) outs(%zeros : tensor<?x3072xf32>)
    After, of 4 bits in groups of 128:
        %g = tensor.expand_shape %w                                                // tensor<3072x6x128xf32>
        %s = linalg.generic {max(w, 0) / 15 - min(w, 0) / 15}                      // tensor<3072x6xf32>
        %z = linalg.generic {round(-min(w, 0) / s)}                                // tensor<3072x6xi8>
        %q = linalg.generic {round(w / s) + z}                                     // tensor<3072x768xi8>, after a tensor.collapse_shape
        %d = linalg.generic {(q - z) * s} attrs = {llmos.dequantize = uint4}       // tensor<3072x768xf32>
        %y = linalg.generic {acc + x * d} ins(%x, %d)

    Groups of 4 bits have a zero point: their smallest and largest numbers rarely are opposites, and of 16 numbers none is left over; it
    costs a byte a group. 8 bits have a scale a channel, max|w| / 127, and no zero point.

    Left in float are products of two activations, convolutions, sums whose k isn't a multiple of the group, and those below the options.
    A group of zeros has the scale 1, one with a NaN or an infinity NaN.

    bits: of a weight, 4 or 8. group: of 4 bits, how many weights share a scale.
    min_n: of a contraction that is quantized, columns; of 8 bits also k.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({WEIGHTS_BEHIND_INPUTS})

    bits: int = 4
    group: int = 128
    min_n: int = 32

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Quantize the weight of every contraction that is large enough. Raises ValueError for bits and groups that no kernel has."""
        if self.bits not in (4, 8) or self.group < 8 or self.group % 8:
            raise ValueError(f"quantize-weights has 4 or 8 bits and groups of a multiple of 8, not {self.bits} and {self.group}")
        for func in public_functions(module):
            block, weights = func.regions[0].blocks[0], {each.value for each in EntryFunc(func).arguments.weights}
            known = weight_only_values(block, weights)
            found = [c for op in block.operations if (c := contraction_of(op.operation)) is not None]
            made: dict[tuple[ir.Value, int], ir.Value] = {}
            for each in found:
                if each.rhs in known and each.lhs not in known and weight_sources(each.rhs, weights) and self._applies(each, context):
                    key = each.rhs, summed_axes(each, each.right)[0]
                    if key not in made:
                        made[key] = self._dequantized(*key)
                    each.generic.op.operands[each.right] = made[key]

    def _applies(self, contraction: Contraction, context: PassContext) -> bool:
        depth, columns = (contraction.static_size(contraction.right, dims) for dims in (contraction.k, contraction.n))
        return (
            is_matrix_product(contraction)
            and all(isinstance(kind, ir.F32Type) for kind in contraction.types)
            and (len(contraction.n), len(contraction.k), contraction.rhs.type.rank) == (1, 1, 2)
            and columns >= self.min_n
            and (depth % self.group == 0 if self.bits == 4 else depth >= self.min_n)
            and context.costs.pays_as_contraction(contraction)
        )

    def _dequantized(self, weight: ir.Value, k_axis: int) -> ir.Value:
        """The weight as numbers that are scaled, right after what makes it."""
        if self.bits == 8:
            return _dequantize(symmetric(weight, (k_axis,), "int8"), [ir.AffineExpr.get_dim(1 - k_axis)])
        exprs = [ir.AffineExpr.get_dim(axis) for axis in range(2)]
        exprs[k_axis] = ir.AffineExpr.get_floor_div(exprs[k_axis], self.group)
        return _dequantize(asymmetric_nibbles(weight, k_axis, self.group), exprs)


def _dequantize(made: Quantized, exprs: Sequence[ir.AffineExpr]) -> ir.Value:
    """(numbers - zero point) * scale, where scale and zero point are read at `exprs`."""
    f32, zero = ir.F32Type.get(), made.zero_point
    reads = [Read.whole(made.numbers), Read(made.scale, tuple(exprs)), *([Read(zero, tuple(exprs))] if zero is not None else [])]

    def body(number: ir.Value, scale: ir.Value, *zeros: ir.Value) -> ir.Value:
        convert = arith.uitofp if zeros else arith.sitofp
        value = convert(f32, number)
        return arith.mulf(arith.subf(value, arith.uitofp(f32, zeros[0])) if zeros else value, scale)

    with after(made.numbers):
        result = elementwise(reads, axis_sizes(made.numbers), f32, body)
    roles: tuple[Role, ...] = ("input", "scale", "zero_point") if zero is not None else ("input", "scale")
    mark(
        result.owner.operation, "dequantize", Numbers("uint4", (0, 15), roles) if zero is not None else Numbers("int8", (-127, 127), roles)
    )
    return result
