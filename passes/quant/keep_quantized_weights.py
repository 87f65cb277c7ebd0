"""keep-quantized-weights: bring dequantized weights into the form whose integers kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.analysis.casts import EXTEND, convert
from llmos.compiler.analysis.contraction import EXTENSIONS, Contraction, kernel_contraction_of
from llmos.compiler.analysis.generic import Generic, is_fill, is_identity
from llmos.compiler.analysis.quantization import FLOAT8, Numbers, Quantization, Role, mark, quantization_of
from llmos.compiler.analysis.quantized_weights import quantized_weight_of
from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.passes._context import PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._graph import erase_dead, owner_of
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes._weight_only import weight_only_values
from llmos.passes.quant._float8 import decoded
from llmos.passes.quant._generics import Read, axis_sizes, constant, elementwise

ROLES: tuple[Role, ...] = ("input", "scale", "zero_point")  # in the order of a dequantization's operands here


@dataclass(frozen=True)
class KeepQuantizedWeights(Pass):
    """The dequantized weight of each contraction becomes one op of its own, in float32, so that fold-weight-computation leaves it there.

    Before, of scales in float16:
        %w = linalg.generic {truncf((q - z) * extf(s))} attrs = {llmos.dequantize = uint4}    // tensor<96x128xf16>
        %e = linalg.generic {extf} ins(%w)
        %y = linalg.generic {acc + x * e} ins(%x, %e)
    After:
        %t = linalg.generic {extf} ins(%s)                                                     // tensor<96x4xf32>, at compile time
        %e = linalg.generic {(q - z) * t} attrs = {llmos.dequantize = uint4}                   // tensor<96x128xf32>
        %y = linalg.generic {acc + x * e} ins(%x, %e)

    Integers in more than 8 bits, as ONNX's of 4 bits are unpacked, are stored in 8 again. The weight isn't rounded to float16 or bfloat16
    any more: the same real number with one rounding less. Several contractions that read one weight have a dequantization each, of the
    same integers. What no kernel multiplies as integers stays as it is (compiler/analysis/quantized_weights.py).
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({WEIGHTS_BEHIND_INPUTS})

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Rewrite the dequantized right side of every contraction of a public function."""
        for func in public_functions(module):
            block, weights = func.regions[0].blocks[0], {each.value for each in EntryFunc(func).arguments.weights}
            known = weight_only_values(block, weights)
            for op in list(block.operations):
                found = kernel_contraction_of(op.operation)
                if found is not None and found.rhs in known and context.costs.pays_as_contraction(found):
                    _keep(found)
            erase_dead(func)


def _keep(contraction: Contraction) -> None:
    """Give a contraction a dequantization of its own, if its kernel then multiplies integers."""
    before, marked = contraction.rhs, _dequantization(contraction.rhs)
    if marked is None or (quantized_weight_of(contraction) is not None and len(list(before.uses)) == 1):
        return
    op, right = contraction.generic.op, contraction.right
    with ir.InsertionPoint(op), op.location:
        made = _dequantized(marked)
    op.operands[right] = made
    changed = kernel_contraction_of(op)
    if changed is None or quantized_weight_of(changed) is None:
        op.operands[right] = before


def _dequantization(value: ir.Value) -> Quantization | None:
    """What dequantizes a value, rounded to half precision and extended again or not; None for another op."""
    owner = owner_of(value)
    if owner is None or owner.name != "linalg.generic" or is_fill(owner):
        return None
    generic = Generic(owner)
    body = [op.name for op in generic.body.operations]
    if body[0] == EXTEND and len(body) == 2 and generic.num_inputs == 1 and all(map(is_identity, generic.maps)):
        return _dequantization(generic.inputs[0])
    marked = quantization_of(owner)
    if marked is None or marked.kind != "dequantize" or not isinstance(marked.scale, ir.Value):
        return None
    floats, zero = (ir.F32Type, ir.F16Type, ir.BF16Type), marked.zero_point
    is_float = all(isinstance(each.type.element_type, floats) for each in (marked.result, marked.scale))
    return marked if is_float and (not isinstance(zero, ir.Value) or _is_made_of_bytes(zero)) else None


def _is_made_of_bytes(value: ir.Value) -> bool:
    """Whether integers are bytes, extended and masked or not."""
    owner = owner_of(value)
    if isinstance(value.type, ir.RankedTensorType) and value.type.element_type == ir.IntegerType.get_signless(8):
        return True
    if owner is None or owner.name != "linalg.generic" or Generic(owner).num_inputs != 1 or is_fill(owner):
        return False
    names = {op.name for op in Generic(owner).body.operations}
    return names <= {*EXTENSIONS, "arith.andi", "linalg.yield"} and _is_made_of_bytes(Generic(owner).inputs[0])


def _dequantized(marked: Quantization) -> ir.Value:
    """(input - zero point) * scale in float32, the integers in bytes."""
    f32, numbers, generic = ir.F32Type.get(), marked.numbers, marked.generic
    roles = [role for role in ROLES if role in numbers.operands]
    places = [numbers.operands.index(role) for role in roles]
    signs = [_is_signed(marked, place) for place in places]
    reads = [Read(_as_stored(generic.inputs[place]), tuple(generic.maps[place].results)) for place in places]

    def as_float(number: int, element: ir.Value) -> ir.Value:
        return (arith.sitofp if signs[number] else arith.uitofp)(f32, element)

    def body(number: ir.Value, scale: ir.Value, *zeros: ir.Value) -> ir.Value:
        value = decoded(number) if numbers.dtype == FLOAT8 else as_float(0, number)
        if zeros:
            value = arith.subf(value, as_float(2, zeros[0]))
        elif numbers.zero_point:
            value = arith.subf(value, constant(float(numbers.zero_point), f32))
        return arith.mulf(value, scale)

    made = elementwise(reads, axis_sizes(marked.input), f32, body)
    mark(made.owner.operation, "dequantize", Numbers(numbers.dtype, numbers.range, tuple(roles), zero_point=numbers.zero_point))
    return made


def _as_stored(value: ir.Value) -> ir.Value:
    """A scale in float32, integers in 8 bits: what they are is in the range of their type."""
    element = value.type.element_type
    if isinstance(element, ir.IntegerType):
        return value if element.width == 8 else convert(value, "arith.trunci", ir.IntegerType.get_signless(8))
    return value if isinstance(element, ir.F32Type) else convert(value, EXTEND, ir.F32Type.get())


def _is_signed(marked: Quantization, number: int) -> bool:
    """How an integer input is read: of bytes the region says it, what is wider has the sign of the quantized type."""
    if getattr(marked.generic.inputs[number].type.element_type, "width", 8) != 8:
        return not marked.dtype.startswith("u")
    uses = marked.generic.body.arguments[number].uses
    return any(use.owner.operation.name in ("arith.sitofp", "arith.extsi") for use in uses)
