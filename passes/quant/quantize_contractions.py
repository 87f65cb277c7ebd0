"""quantize-contractions: products of activations and weights in int8, with scales that follow from the activations at run time (W8A8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from llmos.compiler.analysis.contraction import Contraction, contraction_of
from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.passes._context import PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes._weight_only import weight_only_values, weight_sources
from llmos.passes.quant._generics import Read, after, axis_sizes, constant, elementwise, reduced
from llmos.passes.quant._products import integer_sums, is_matrix_product, is_zero, over_result, summed_axes
from llmos.passes.quant._rounding import LARGEST, STEPS, ZERO_POINT, Quantized, asymmetric, symmetric

MAX_K = (1 << 31) // (STEPS * LARGEST)  # the sum of so many products fits in int32


@dataclass(frozen=True)
class QuantizeContractions(Pass):
    """A float32 contraction of an activation and a weight becomes one of 8-bit integers, summed in int32 (W8A8).

    Before:
        %y = linalg.generic {acc + x * w} ins(%x, %w : tensor<?x768xf32>, tensor<3072x768xf32>) outs(%zeros : tensor<?x3072xf32>)
    After:
        %sw = linalg.generic {max|w| / 127}                                        // tensor<3072xf32>, from the weight alone
        %qw = linalg.generic {round(w / sw)} attrs = {llmos.quantize = int8}       // tensor<3072x768xi8>
        %total = linalg.generic {acc + extsi(qw)}                                  // tensor<3072xi32>
        %sx = linalg.generic {max(x, 0) / 255 - min(x, 0) / 255}                   // tensor<?xf32>, a scale a row
        %zx = linalg.generic {round(-min(x, 0) / sx)}                              // tensor<?xi32>, a zero point a row
        %ux = linalg.generic {round(x / sx) + zx} attrs = {llmos.quantize = uint8} // tensor<?x768xi8>
        %acc = linalg.generic {acc + extui(ux) * extsi(qw)} ins(%ux, %qw : tensor<?x768xi8>, tensor<3072x768xi8>) outs(... xi32)
        %y = linalg.generic {(sitofp(acc - zx * total) * sx) * sw}

    Activations that several contractions read are quantized once, right after they are made. Not quantized are products of two
    activations, convolutions, contractions inside loops, and those below the options: their weights save little, and each row costs a
    pass over its elements.

    A row or column of zeros has the scale 1. A row of activations, or a column of a weight, with a NaN or an infinity has the scale NaN,
    so that what is computed from it is NaN.

    symmetric: sx is max|x| / 127 and zx is 128 in all rows, so that zx * total is computed at compile time. That costs half of the
    numbers where a row's largest element has no opposite.
    min_k, min_n: of a contraction that is quantized, number of products in a sum and number of columns.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})

    symmetric: bool = False
    min_k: int = 64
    min_n: int = 32

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Quantize every contraction of an activation and a weight that is large enough."""
        for func in public_functions(module):
            block, weights = func.regions[0].blocks[0], {each.value for each in EntryFunc(func).arguments.weights}
            known = weight_only_values(block, weights)
            found = [c for op in block.operations if (c := contraction_of(op.operation)) is not None]
            tensors = _Tensors(self.symmetric)
            for each in found:
                if each.rhs in known and each.lhs not in known and weight_sources(each.rhs, weights) and self._applies(each, context):
                    _quantize(each, tensors)

    def _applies(self, contraction: Contraction, context: PassContext) -> bool:
        sizes = [contraction.static_size(contraction.right, dims) for dims in (contraction.k, contraction.n)]
        return (
            is_matrix_product(contraction)
            and all(isinstance(kind, ir.F32Type) for kind in contraction.types)
            and self.min_k <= sizes[0] <= MAX_K
            and sizes[1] >= self.min_n
            and context.costs.pays_as_contraction(contraction)
        )


@dataclass
class _Tensors:
    """What is quantized already, by the tensor and the axes that share a scale."""

    symmetric: bool
    left: dict[tuple[ir.Value, tuple[int, ...]], Quantized] = field(default_factory=dict)
    right: dict[tuple[ir.Value, tuple[int, ...]], tuple[Quantized, ir.Value]] = field(default_factory=dict)

    def of_left(self, contraction: Contraction) -> Quantized:
        key = contraction.lhs, summed_axes(contraction, contraction.left)
        if key not in self.left:
            self.left[key] = symmetric(*key, "uint8") if self.symmetric else asymmetric(*key)
        return self.left[key]

    def of_right(self, contraction: Contraction) -> tuple[Quantized, ir.Value]:
        """The quantized weight, and the sums of its columns: what a zero point of 1 on the left adds to the products'."""
        key = contraction.rhs, summed_axes(contraction, contraction.right)
        if key not in self.right:
            made = symmetric(*key, "int8")
            self.right[key] = made, _totals(made.numbers, key[1], ZERO_POINT if self.symmetric else 1)
        return self.right[key]


def _totals(numbers: ir.Value, axes: tuple[int, ...], factor: int) -> ir.Value:
    """The sums of numbers along axes, times a factor."""
    i32 = ir.IntegerType.get_signless(32)

    def body(each: ir.Value, acc: ir.Value) -> ir.Value:
        wide = arith.extsi(i32, each)
        return arith.addi(acc, wide if factor == 1 else arith.muli(wide, constant(factor, i32)))

    with after(numbers):
        return reduced(numbers, axes, constant(0, i32), body)


def _quantize(contraction: Contraction, tensors: _Tensors) -> None:
    left, (right, totals) = tensors.of_left(contraction), tensors.of_right(contraction)
    old = contraction.generic
    with ir.InsertionPoint(old.op), old.op.location:
        sums = integer_sums(contraction, left.numbers, right.numbers)
        reads = [
            Read.whole(sums),
            over_result(contraction, contraction.right, Read.at(totals, right.kept)),
            over_result(contraction, contraction.left, Read.at(left.scale, left.kept)),
            over_result(contraction, contraction.right, Read.at(right.scale, right.kept)),
        ]
        init = old.inits[0]
        if left.zero_point is not None:
            reads.append(over_result(contraction, contraction.left, Read.at(left.zero_point, left.kept)))
        if not is_zero(init):
            reads.append(Read.whole(init))
        made = elementwise(reads, axis_sizes(init), ir.F32Type.get(), partial(_dequantized, left.zero_point is not None))
    old.op.results[0].replace_all_uses_with(made)
    old.op.erase()


def _dequantized(has_zero_point: bool, acc: ir.Value, total: ir.Value, left: ir.Value, right: ir.Value, *rest: ir.Value) -> ir.Value:
    """(acc - zero point * total) * left * right, and what the sum starts from. rest: the zero point and the start, if there are any."""
    others = list(rest)
    shift = arith.muli(total, others.pop(0)) if has_zero_point else total
    product = arith.mulf(arith.mulf(arith.sitofp(ir.F32Type.get(), arith.subi(acc, shift)), left), right)
    return arith.addf(others[0], product) if others else product
