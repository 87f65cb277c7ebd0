"""lower-zero-points: integer contractions to the one form that kernels know, unsigned times signed, and corrections of its sums."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from llmos.compiler.analysis.contraction import Contraction, contraction_of
from llmos.compiler.analysis.generic import has_windows, padding_number
from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.passes._context import CostModel, PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._graph import erase_dead, owner_of
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes._weight_only import weight_only_values
from llmos.passes.quant._bias import merge_known_addends
from llmos.passes.quant._generics import Body, Read, after, axis_sizes, constant, elementwise, reduced
from llmos.passes.quant._integers import Integers, ZeroPoint
from llmos.passes.quant._products import has_matrix_weight, integer_sums, is_zero, over_result, summed_axes, window_sums
from llmos.passes.quant._sides import padded_like, side_of
from llmos.passes.quant._whole_words import with_whole_words

HALF = 128  # between the unsigned and the signed number of the same bits but the highest


@dataclass(frozen=True)
class LowerZeroPoints(Pass):
    """An int32 contraction of 8-bit integers with a weight, of any signs and zero points, becomes one of unsigned by signed integers
    without zero points, and corrections of its sums.

    Before:
        %a = linalg.generic {extsi(x) - zx} attrs = {llmos.dequantize = int8}           // tensor<?x64xi32>
        %b = linalg.generic {extui(w) - zw} attrs = {llmos.dequantize = uint8}          // tensor<64x32xi32>, of a weight
        %y = linalg.generic {acc + a * b} ins(%a, %b)
    After, with zx' = zx + 128 and zw' = zw - 128:
        %u = linalg.generic {x xor 0x80}                      // unsigned: x + 128
        %s = linalg.generic {w xor 0x80}                      // signed: w - 128; from here on, %s and what follows from it are weights
        %t = linalg.generic {acc + extsi(s)}, {t - 64 * zw'}  // tensor<32xi32>
        %r = linalg.generic {acc + extui(u)}                  // tensor<?xi32>, only where zw' isn't 0
        %acc = linalg.generic {acc + extui(u) * extsi(s)} ins(%u, %s : tensor<?x64xi8>, tensor<64x32xi8>)
        %y = linalg.generic {acc - zx' * t - zw' * r}

    The results are the same in int32, overflow included. zx' * t is computed at compile time where zx is a weight or a constant of all
    rows. Zero points may vary along rows and columns, not along the sums. The left side may be read through windows: the zero point lies
    around a convolution's image, so that the corrections hold at its edges too. Left as they are: what isn't the product of a matrix that
    is a weight (convolutions in groups), and factors that lie in more than 8 bits.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Rewrite every integer contraction with a weight on its right."""
        for func in public_functions(module):
            block, weights = func.regions[0].blocks[0], {each.value for each in EntryFunc(func).arguments.weights}
            entry = _Entry(weight_only_values(block, weights), context.costs)
            for op in list(block.operations):
                found = contraction_of(op.operation)
                if found is not None:
                    entry.lower(found)
            erase_dead(func)


@dataclass
class _Entry:
    """One function. known: what follows from weights and constants; made: tensors that several contractions share."""

    known: set[ir.Value]
    costs: CostModel
    flipped: dict[ir.Value, ir.Value] = field(default_factory=dict)
    sums: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = field(default_factory=dict)

    def lower(self, contraction: Contraction) -> None:
        if contraction.rhs not in self.known or contraction.lhs in self.known or not has_matrix_weight(contraction):
            return
        left, right = side_of(contraction, contraction.left), side_of(contraction, contraction.right)
        if left is None or right is None or contraction.types[2] != ir.IntegerType.get_signless(32):
            return
        zeros = left.zero_point.plus(0 if left.is_unsigned else HALF), right.zero_point.plus(-HALF if right.is_unsigned else 0)
        if (left.numbers, right.numbers) == (contraction.lhs, contraction.rhs) and all(each.is_zero for each in zeros):
            return  # in that form already
        self._replace(contraction, left, right, *zeros)

    def _replace(self, contraction: Contraction, left: Integers, right: Integers, left_zero: ZeroPoint, right_zero: ZeroPoint) -> None:
        u = left.numbers if left.is_unsigned else self._with_other_sign(left.numbers)
        s = right.numbers if not right.is_unsigned else self._with_other_sign(right.numbers)
        old = contraction.generic
        with ir.InsertionPoint(old.op), old.op.location:
            made = integer_sums(contraction, *with_whole_words(contraction, u, s, self.costs))
            if not left_zero.is_zero:
                made = self._corrected_by_left(contraction, made, s, left_zero, right_zero)
            if not right_zero.is_zero:
                made = self._corrected_by_right(contraction, made, u, right_zero)
            init = old.inits[0]
            if not is_zero(init):
                made = _mapped([made, init], arith.addi)
        old.op.results[0].replace_all_uses_with(made)
        old.op.erase()
        merge_known_addends(made, self.known)

    def _corrected_by_left(
        self, contraction: Contraction, sums: ir.Value, s: ir.Value, left_zero: ZeroPoint, right_zero: ZeroPoint
    ) -> ir.Value:
        """sums - zx' * (sum of s - k * zw')"""
        total, axes = self._summed(contraction, contraction.right, s)
        num_products = contraction.static_size(contraction.right, contraction.k)
        right_reads = [_dropped(read, axes) for read in right_zero.reads]
        is_static = left_zero.read is None or (left_zero.read.value in self.known and not _moves(left_zero.read))
        left_reads = [Read(read.value, read.exprs) for read in left_zero.reads] if is_static else []

        def centered(total: ir.Value, *zeros: ir.Value) -> ir.Value:
            i32 = ir.IntegerType.get_signless(32)
            shift = arith.muli(right_zero.number(zeros[: len(right_reads)]), constant(num_products, i32))
            value = total if right_zero.is_zero else arith.subi(total, shift)
            return arith.muli(value, left_zero.number(zeros[len(right_reads) :])) if is_static else value

        factor = elementwise([Read.whole(total), *right_reads, *left_reads], axis_sizes(total), total.type.element_type, centered)
        kept = [axis for axis in range(s.type.rank) if axis not in axes]
        read = over_result(contraction, contraction.right, Read.at(factor, kept))
        if is_static:
            return _over_sums(sums, [read], arith.subi)
        zero_reads = [over_result(contraction, contraction.left, each) for each in left_zero.reads]
        return _over_sums(sums, [read, *zero_reads], lambda acc, t, *zero: arith.subi(acc, arith.muli(t, left_zero.number(zero))))

    def _corrected_by_right(self, contraction: Contraction, sums: ir.Value, u: ir.Value, right_zero: ZeroPoint) -> ir.Value:
        """sums - zw' * sum of u"""
        if has_windows(contraction.lhs_map):
            reads = [window_sums(contraction, u)]
        else:
            total, axes = self._summed(contraction, contraction.left, u)
            kept = [axis for axis in range(u.type.rank) if axis not in axes]
            reads = [over_result(contraction, contraction.left, Read.at(total, kept))]
        reads += [over_result(contraction, contraction.right, each) for each in right_zero.reads]
        return _over_sums(sums, reads, lambda acc, r, *zero: arith.subi(acc, arith.muli(r, right_zero.number(zero))))

    def _summed(self, contraction: Contraction, side: int, numbers: ir.Value) -> tuple[ir.Value, tuple[int, ...]]:
        """The sums of one side's numbers, and the axes along which they are taken."""
        key = numbers, summed_axes(contraction, side)
        if key not in self.sums:
            extend = arith.extui if side == contraction.left else arith.extsi
            i32 = ir.IntegerType.get_signless(32)
            with after(numbers):
                self.sums[key] = reduced(*key, constant(0, i32), lambda each, acc: arith.addi(acc, extend(i32, each)))
        return self.sums[key], key[1]

    def _with_other_sign(self, numbers: ir.Value) -> ir.Value:
        """What is signed as unsigned, plus 128, or the other way round: the highest bit flipped."""
        if numbers not in self.flipped:
            pad = owner_of(numbers)
            number = padding_number(pad) if pad is not None and pad.name == "tensor.pad" else None
            source = self._with_other_sign(pad.operands[0]) if pad is not None and number is not None else None
            with after(numbers):
                if pad is not None and number is not None and source is not None:
                    self.flipped[numbers] = padded_like(pad, source, int(number) ^ -HALF)
                else:
                    i8 = ir.IntegerType.get_signless(8)
                    self.flipped[numbers] = _mapped([numbers], lambda each: arith.xori(each, constant(-HALF, i8)))
        return self.flipped[numbers]


def _mapped(values: list[ir.Value], body: Body) -> ir.Value:
    """An elementwise op over tensors of one shape and type."""
    return elementwise([Read.whole(value) for value in values], axis_sizes(values[0]), values[0].type.element_type, body)


def _over_sums(sums: ir.Value, reads: list[Read], body: Body) -> ir.Value:
    return elementwise([Read.whole(sums), *reads], axis_sizes(sums), sums.type.element_type, body)


def _moves(read: Read) -> bool:
    """Whether what is read differs along some axis."""
    return any(isinstance(expr, ir.AffineDimExpr) for expr in read.exprs)


def _dropped(read: Read, axes: tuple[int, ...]) -> Read:
    """A read over the axes of a tensor, as one over those that are left when `axes` are summed."""

    def moved(expr: ir.AffineExpr) -> ir.AffineExpr:
        if not isinstance(expr, ir.AffineDimExpr):
            return expr
        return ir.AffineExpr.get_dim(expr.position - sum(axis < expr.position for axis in axes))

    return Read(read.value, tuple(map(moved, read.exprs)))
