"""fuse-dequantize: products of dequantized integers are summed as integers, and scaled once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.analysis.contraction import Contraction, contraction_of
from llmos.compiler.analysis.quantization import Numbers, Role, mark
from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.passes._context import PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._graph import erase_dead
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes._weight_only import weight_only_values
from llmos.passes.quant._bias import add_bias_as_integer
from llmos.passes.quant._generics import Read, axis_sizes, constant, elementwise, filled, generic
from llmos.passes.quant._groups import sum_in_integers
from llmos.passes.quant._integers import Integers, as_i32
from llmos.passes.quant._products import has_matrix_weight, is_zero, over_result
from llmos.passes.quant._sides import side_of

MAX_K = (1 << 31) // 255**2  # the sum of so many products of 8-bit numbers less their zero points fits in int32


@dataclass(frozen=True)
class FuseDequantize(Pass):
    """A float contraction of two dequantized tensors, the right one a weight, becomes an integer contraction whose sums are scaled.

    Before:
        %a = linalg.generic {(x - zx) * sx} attrs = {llmos.dequantize = uint8}           // tensor<?x64xf32>
        %b = linalg.generic {(w - zw) * sw} attrs = {llmos.dequantize = int8}            // tensor<64x32xf32>, of a weight
        %y = linalg.generic {acc + a * b} ins(%a, %b)
    After:
        %a = linalg.generic {x - zx} attrs = {llmos.dequantize = uint8}                  // tensor<?x64xi32>
        %b = linalg.generic {w - zw} attrs = {llmos.dequantize = int8}
        %acc = linalg.generic {acc + a * b} ins(%a, %b : tensor<?x64xi32>, tensor<64x32xi32>)
        %y = linalg.generic {(sitofp(acc) * sx) * sw}

    A bias of int32 that is added to sums without scales is added in integers.
    The left side may be a convolution's image, padded with zeros: the zero point then lies around its numbers.
    Scales may vary along rows and columns, not along the sums (weights in groups stay in float), and the sums fit in int32. Then both
    compute the same real number; the integer sum has no rounding until it is a float. lower-zero-points does the rest.
    Convolutions in groups, depthwise ones among them, become sums of whole numbers, which are scaled once, too: in float32 where that
    holds all of them, up to 258 products of 8-bit numbers, and in int32 beyond (passes/quant/_groups.py).
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Rewrite every product of two dequantized tensors that is exact in integers."""
        for func in public_functions(module):
            block, weights = func.regions[0].blocks[0], {each.value for each in EntryFunc(func).arguments.weights}
            known = weight_only_values(block, weights)
            for op in list(block.operations):
                found = contraction_of(op.operation)
                if found is not None and found.rhs in known and found.lhs not in known and _is_supported(found):
                    _fuse(found)
                else:
                    sum_in_integers(op.operation, known)
            erase_dead(func)


def _is_supported(contraction: Contraction) -> bool:
    return (
        has_matrix_weight(contraction)
        and contraction.types in [(kind,) * 3 for kind in (ir.F32Type.get(), ir.F64Type.get())]
        and contraction.static_size(contraction.right, contraction.k) <= MAX_K
    )


def _fuse(contraction: Contraction) -> None:
    left, right = side_of(contraction, contraction.left), side_of(contraction, contraction.right)
    if left is None or right is None or not all(map(_zero_is_in_range, (left, right))):
        return
    old, kind = contraction.generic, contraction.types[2]
    with ir.InsertionPoint(old.op), old.op.location:
        acc = _sums(contraction, _centered(left), _centered(right))
        scales = [(contraction.left, left.scale), (contraction.right, right.scale)]
        reads = [Read.whole(acc), *(over_result(contraction, side, scale) for side, scale in scales if isinstance(scale, Read))]
        init = old.inits[0]
        if not is_zero(init):
            reads.append(Read.whole(init))

        def scaled(acc: ir.Value, *read: ir.Value) -> ir.Value:
            rest, value = list(read), arith.sitofp(kind, acc)
            for _, scale in scales:
                if scale is not None:
                    value = arith.mulf(value, rest.pop(0) if isinstance(scale, Read) else constant(scale, kind))
            return arith.addf(rest[0], value) if rest else value

        made = elementwise(reads, axis_sizes(init), kind, scaled)
    old.op.results[0].replace_all_uses_with(made)
    old.op.erase()
    if len(reads) == 1 and all(scale is None for _, scale in scales):
        add_bias_as_integer(acc, made)


def _zero_is_in_range(side: Integers) -> bool:
    """Whether the zero point is surely one of the stored numbers, so that a difference has 8 bits and a sign."""
    zero, (low, high) = side.zero_point, side.range
    if zero.read is None:
        return low <= zero.offset <= high
    return zero.read.value.type.element_type == ir.IntegerType.get_signless(8) and zero.is_unsigned == side.is_unsigned


def _centered(side: Integers) -> ir.Value:
    """The numbers less their zero point, in i32, right after the numbers or their zero points."""
    zero = side.zero_point

    def difference(number: ir.Value, *read: ir.Value) -> ir.Value:
        wide = as_i32(number, side.is_unsigned)
        return wide if zero.is_zero else arith.subi(wide, zero.number(read))

    reads = [Read.whole(side.numbers), *zero.reads]
    made = elementwise(reads, axis_sizes(side.numbers), ir.IntegerType.get_signless(32), difference)
    roles: list[Role] = ["input", *(["zero_point"] if zero.reads else [])]  # type: ignore[list-item]
    known = zero.offset if not zero.reads and zero.offset else None
    mark(made.owner.operation, "dequantize", Numbers("uint8" if side.is_unsigned else "int8", side.range, tuple(roles), zero_point=known))
    return made


def _sums(contraction: Contraction, lhs: ir.Value, rhs: ir.Value) -> ir.Value:
    """The contraction of two i32 tensors, from 0."""
    old = contraction.generic
    init = filled(constant(0, ir.IntegerType.get_signless(32)), axis_sizes(old.inits[0]))
    values = (lhs, rhs) if contraction.left == 0 else (rhs, lhs)
    reads = [Read(value, tuple(affine.results)) for value, affine in zip(values, old.maps, strict=False)]
    out = Read(init, tuple(contraction.out_map.results))
    return generic(reads, out, old.reduction_dims, old.rank, lambda a, b, acc: arith.addi(acc, arith.muli(a, b)))
