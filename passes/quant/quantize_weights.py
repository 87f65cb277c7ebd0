"""quantize-weights: weights of products in 4 or 8 bits, activations in float (W4A16, W8A16, fp8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.analysis.quantization import FLOAT8, Numbers, Role, mark, range_of
from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.passes._context import PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes.quant._candidates import MIN_N, Product, weight_products_of
from llmos.passes.quant._fitted import NUMBERS, SCALE, SMOOTH, ZERO_POINT, divided, drop_unused, fitted_of, multiplied
from llmos.passes.quant._float8 import decoded, float8
from llmos.passes.quant._generics import Read, after, axis_sizes, elementwise
from llmos.passes.quant._nibbles import asymmetric_nibbles
from llmos.passes.quant._products import summed_axes
from llmos.passes.quant._rounding import LARGEST, Quantized, symmetric
from llmos.runtime.errors import UserError


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
    costs a byte a group. 8 bits have a scale a channel, max|w| / 127, or max|w| / 448 of floats (_float8.py), and no zero point.

    Weights of the module say what calibration has fitted (passes/quant/_fitted.py): where there is a `quant.numbers.<number>`, it takes the
    place of %q, and `quant.scale.<number>` and `quant.zero_point.<number>` those of %s and %z (GPTQ). By `quant.smooth.<number>` x is
    divided along the sums before, and w multiplied (AWQ).

    Left in float are products of two activations, convolutions, sums whose k isn't a multiple of the group, and those below the options.
    What a model stores in as few bits stays as it is.
    A group of zeros has the scale 1, one with a NaN or an infinity NaN.

    bits: of a weight, 4 or 8. float8: whether 8 bits are a float, E4M3. group: of 4 bits, how many weights share a scale.
    min_n: of a contraction that is quantized, columns; of 8 bits also k.
    rounding: "", "gptq" or "awq": what calibration has fitted. The pass takes what the module has; this says it in an artifact's record.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({WEIGHTS_BEHIND_INPUTS})

    bits: int = 4
    group: int = 128
    min_n: int = MIN_N
    rounding: str = ""
    float8: bool = False

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Quantize the weight of every contraction that is large enough.

        Raises ValueError for bits and groups that no kernel has, UserError for groups that divide no contraction's sums.
        """
        if self.bits not in (4, 8) or self.group < 8 or self.group % 8 or (self.float8 and self.bits != 8):
            raise ValueError(f"quantize-weights has 4 or 8 bits and groups of a multiple of 8, and floats of 8 bits, not {self}")
        for func in public_functions(module):
            entry = EntryFunc(func)
            fitted = _Fitted(*(fitted_of(entry, prefix) for prefix in (SMOOTH, NUMBERS, SCALE, ZERO_POINT)))
            divided_by: dict[tuple[ir.Value, int], ir.Value] = {}
            made: dict[tuple[ir.Value, int, ir.Value | None], ir.Value] = {}
            products = weight_products_of(entry, context.costs, 0 if self.bits == 8 else self.group, self.min_n)
            if not products and self.bits == 4:
                self._refuse_group(weight_products_of(entry, context.costs, 1, self.min_n))
            for each in products:
                x, k_axis = each.contraction.lhs, summed_axes(each.contraction, each.contraction.right)[0]
                vector = fitted.smooth.get(each.activation)
                key = each.contraction.rhs, k_axis, vector
                if key not in made:
                    made[key] = self._dequantized(each.contraction.rhs, k_axis, vector, fitted.weight(each.weight))
                op = each.contraction.generic.op
                op.operands[each.contraction.right] = made[key]
                if vector is not None:
                    axis = summed_axes(each.contraction, each.contraction.left)[0]
                    if (x, axis) not in divided_by:
                        divided_by[x, axis] = divided(x, vector, axis)
                    op.operands[each.contraction.left] = divided_by[x, axis]
            drop_unused(entry)

    def _refuse_group(self, others: Sequence[Product]) -> None:
        depths = sorted({each.contraction.static_size(each.contraction.right, each.contraction.k) for each in others})
        if depths:
            raise UserError(
                f"groups of {self.group} weights divide no product's sums here, which are over {', '.join(map(str, depths))} weights: "
                "choose another size of groups, or a scheme of 8 bits"
            )

    def _dequantized(self, weight: ir.Value, k_axis: int, vector: ir.Value | None, fitted: Quantized | None) -> ir.Value:
        """The weight as numbers that are scaled, right after what makes it."""
        if vector is not None:
            weight = multiplied(weight, vector, k_axis)
        if self.bits == 8:
            made = float8(weight, (k_axis,)) if self.float8 else symmetric(weight, (k_axis,), "int8")
            return _dequantize(made, [ir.AffineExpr.get_dim(1 - k_axis)], FLOAT8 if self.float8 else "int8")
        exprs = [ir.AffineExpr.get_dim(axis) for axis in range(2)]
        exprs[k_axis] = ir.AffineExpr.get_floor_div(exprs[k_axis], self.group)
        return _dequantize(fitted or asymmetric_nibbles(weight, k_axis, self.group), exprs, "uint4")


@dataclass(frozen=True)
class _Fitted:
    """What calibration has fitted: vectors by `Product.activation`, the rest by `Product.weight`."""

    smooth: Mapping[int, ir.Value]
    numbers: Mapping[int, ir.Value]
    scale: Mapping[int, ir.Value]
    zero_point: Mapping[int, ir.Value]

    def weight(self, number: int) -> Quantized | None:
        if number not in self.numbers:
            return None
        return Quantized(self.numbers[number], self.scale[number], (0, 1), self.zero_point[number])


def _dequantize(made: Quantized, exprs: Sequence[ir.AffineExpr], dtype: str) -> ir.Value:
    """(numbers - zero point) * scale, where scale and zero point are read at `exprs`."""
    f32, zero = ir.F32Type.get(), made.zero_point
    reads = [Read.whole(made.numbers), Read(made.scale, tuple(exprs)), *([Read(zero, tuple(exprs))] if zero is not None else [])]

    def body(number: ir.Value, scale: ir.Value, *zeros: ir.Value) -> ir.Value:
        convert = arith.uitofp if zeros else arith.sitofp
        value = decoded(number) if dtype == FLOAT8 else convert(f32, number)
        return arith.mulf(arith.subf(value, arith.uitofp(f32, zeros[0])) if zeros else value, scale)

    with after(made.numbers):
        result = elementwise(reads, axis_sizes(made.numbers), f32, body)
    roles: tuple[Role, ...] = ("input", "scale", "zero_point") if zero is not None else ("input", "scale")
    mark(result.owner.operation, "dequantize", Numbers(dtype, (-LARGEST, LARGEST) if dtype == "int8" else range_of(dtype), roles))
    return result
