"""quantize-contractions: products of activations and weights in int8, with scales that follow from the activations at run time (W8A8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from llmos.compiler.analysis.contraction import Contraction
from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.passes._context import PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes.quant._candidates import MIN_K, MIN_N, Product, products_of
from llmos.passes.quant._fitted import CORRECT, NUMBERS, SCALE, SMOOTH, divided, drop_unused, fitted_of, multiplied
from llmos.passes.quant._generics import Read, after, axis_sizes, constant, elementwise, reduced
from llmos.passes.quant._products import integer_sums, is_zero, over_result, summed_axes
from llmos.passes.quant._rounding import ZERO_POINT, Quantized, asymmetric, symmetric
from llmos.passes.quant._switches import chosen, switches_of
from llmos.runtime.errors import UserError


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

    Weights of the module say what calibration has fitted (passes/quant/_fitted.py): by `quant.smooth.<number>` x is divided along the
    sums before, and w multiplied (SmoothQuant), `quant.correct.<number>` is added to each row of a product, and `quant.numbers.<number>`
    and `quant.scale.<number>` take the place of qw and sw (GPTQ). Where there is a weight
    `quant.switches`, each product stays beside its quantized form, and its element of that weight chooses between them at run time: so
    one program measures what each product's rounding costs.

    symmetric: sx is max|x| / 127 and zx is 128 in all rows, so that zx * total is computed at compile time. That costs half of the
    numbers where a row's largest element has no opposite.
    min_k, min_n: of a contraction that is quantized, number of products in a sum and number of columns.
    keep: numbers of contractions that stay in float, counted from 0 in program order among those that the other options leave.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})

    symmetric: bool = False
    min_k: int = MIN_K
    min_n: int = MIN_N
    keep: tuple[int, ...] = ()

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Quantize every contraction of an activation and a weight that is large enough and isn't kept.

        Raises UserError where `keep` has a number that no contraction has.
        """
        for func in public_functions(module):
            entry = EntryFunc(func)
            products = products_of(entry, context.costs, self.min_k, self.min_n)
            self._check(len(products))
            smooth, correct, numbers, scales = (fitted_of(entry, prefix) for prefix in (SMOOTH, CORRECT, NUMBERS, SCALE))
            tensors = _Tensors(self.symmetric, smooth, correct, numbers, scales)
            switches = switches_of(entry)
            for each in products:
                if each.number not in self.keep:
                    _quantize(each, tensors, switches)
            drop_unused(entry)

    def _check(self, num_products: int) -> None:
        beyond = [number for number in self.keep if not 0 <= number < num_products]
        if beyond:
            known = f"the contractions that it takes here are 0 to {num_products - 1}" if num_products else "it takes no contraction here"
            raise UserError(f"quantize-contractions: keep={','.join(map(str, self.keep))} names {', '.join(map(str, beyond))}, and {known}")


@dataclass
class _Tensors:
    """What is quantized already, by the tensor and the axes that share a scale, and for a right side the vector that multiplies it."""

    symmetric: bool
    smoothing: Mapping[int, ir.Value]
    corrections: Mapping[int, ir.Value]
    numbers: Mapping[int, ir.Value]
    scales: Mapping[int, ir.Value]
    left: dict[tuple[ir.Value, tuple[int, ...]], Quantized] = field(default_factory=dict)
    right: dict[tuple[ir.Value, tuple[int, ...], ir.Value | None], tuple[Quantized, ir.Value]] = field(default_factory=dict)

    def of_left(self, product: Product) -> Quantized:
        x, axes = key = product.contraction.lhs, summed_axes(product.contraction, product.contraction.left)
        if key not in self.left:
            vector = self._vector(product)
            x = x if vector is None else divided(x, vector, axes[0])
            self.left[key] = symmetric(x, axes, "uint8") if self.symmetric else asymmetric(x, axes)
        return self.left[key]

    def of_right(self, product: Product) -> tuple[Quantized, ir.Value]:
        """The quantized weight, and the sums of its columns: what a zero point of 1 on the left adds to the products'."""
        vector = self._vector(product)
        w, axes, _ = key = product.contraction.rhs, summed_axes(product.contraction, product.contraction.right), vector
        if key not in self.right:
            made = self._fitted(product) or symmetric(w if vector is None else multiplied(w, vector, axes[0]), axes, "int8")
            self.right[key] = made, _totals(made.numbers, axes, ZERO_POINT if self.symmetric else 1)
        return self.right[key]

    def _fitted(self, product: Product) -> Quantized | None:
        if product.weight not in self.numbers:
            return None
        kept = tuple(axis for axis in range(2) if axis != summed_axes(product.contraction, product.contraction.right)[0])
        return Quantized(self.numbers[product.weight], self.scales[product.weight], kept)

    def _vector(self, product: Product) -> ir.Value | None:
        return self.smoothing.get(product.activation) if product.channel_axes else None


def _totals(numbers: ir.Value, axes: tuple[int, ...], factor: int) -> ir.Value:
    """The sums of numbers along axes, times a factor."""
    i32 = ir.IntegerType.get_signless(32)

    def body(each: ir.Value, acc: ir.Value) -> ir.Value:
        wide = arith.extsi(i32, each)
        return arith.addi(acc, wide if factor == 1 else arith.muli(wide, constant(factor, i32)))

    with after(numbers):
        return reduced(numbers, axes, constant(0, i32), body)


def _quantize(product: Product, tensors: _Tensors, switches: ir.Value | None) -> None:
    old = product.contraction.generic.op
    made = _in_integers(product.contraction, tensors.of_left(product), *tensors.of_right(product), tensors.corrections.get(product.number))
    if switches is not None:
        chosen(old.results[0], made, switches, product.number)
        return
    old.results[0].replace_all_uses_with(made)
    old.erase()


def _in_integers(contraction: Contraction, left: Quantized, right: Quantized, totals: ir.Value, correction: ir.Value | None) -> ir.Value:
    """The product of two quantized sides in float32, in front of the contraction that it is of."""
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
        if correction is not None and len(right.kept) == 1:
            reads.append(over_result(contraction, contraction.right, Read.at(correction, right.kept)))
        if not is_zero(init):
            reads.append(Read.whole(init))
        return elementwise(reads, axis_sizes(init), ir.F32Type.get(), partial(_dequantized, left.zero_point is not None))


def _dequantized(has_zero_point: bool, acc: ir.Value, total: ir.Value, left: ir.Value, right: ir.Value, *rest: ir.Value) -> ir.Value:
    """(acc - zero point * total) * left * right, and what is added. rest: the zero point, if there is one, the correction, the start."""
    others = list(rest)
    shift = arith.muli(total, others.pop(0)) if has_zero_point else total
    product = arith.mulf(arith.mulf(arith.sitofp(ir.F32Type.get(), arith.subi(acc, shift)), left), right)
    for each in others:
        product = arith.addf(each, product)
    return product
