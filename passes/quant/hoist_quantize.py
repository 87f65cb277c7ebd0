"""hoist-quantize: what only moves a tensor that is quantized moves its 8-bit numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.analysis.generic import is_identity
from llmos.compiler.analysis.quantization import Quantization, mark, quantization_of
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import public_functions
from llmos.passes._context import PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._graph import erase_dead, is_tensor, owner_of
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes.quant._generics import Read, axis_sizes, elementwise
from llmos.passes.quant._moves import moved_like, moved_tensors


@dataclass(frozen=True)
class HoistQuantize(Pass):
    """Quantization with one scale for a tensor runs before the concatenations, reshapes and permutations that make the tensor.

    Before:
        %c = tensor.concat dim(1) %a, %b                                  // float32
        %t = linalg.generic {c[n, j, i]} ins(%c)
        %q = linalg.generic {round(t / s) + z} ins(%t) attrs = {llmos.quantize = uint8}
    After:
        %qa = linalg.generic {round(a / s) + z} ins(%a) attrs = {llmos.quantize = uint8}
        %qb = linalg.generic {round(b / s) + z} ins(%b) attrs = {llmos.quantize = uint8}
        %c = tensor.concat dim(1) %qa, %qb                                // 8 bits
        %q = linalg.generic {c[n, j, i]} ins(%c)

    So bytes are moved instead of floats, and what makes an operand of the concatenation quantizes it before it is written. It is the
    same arithmetic, element by element. Moves that something else reads as well stay as they are, and slices: what they leave out would
    be quantized too.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Hoist every quantization above the moves that it alone reads, in every public function."""
        for func in public_functions(module):
            for op in list(func.regions[0].blocks[0].operations):
                pending = [op.operation]
                while pending:
                    pending += _hoisted(pending.pop())
            erase_dead(func)


def _hoisted(op: ir.Operation) -> list[ir.Operation]:
    """Replace a quantization of a moved tensor by a move of quantized ones; return the new quantizations."""
    found = quantization_of(op)
    move = owner_of(found.input) if found is not None and _is_per_tensor(found) else None
    if found is None or move is None or move.name == "tensor.extract_slice" or len(list(found.input.uses)) != 1:
        return []
    values = moved_tensors(move)
    if not values:
        return []
    with ir.InsertionPoint(op), op.location:
        made = [_quantized_like(found, value) for value in values]
        result = moved_like(move, made)
    op.results[0].replace_all_uses_with(result)
    op.erase()
    move.erase()
    return [each.owner.operation for each in made]


def _is_per_tensor(found: Quantization) -> bool:
    """Whether an op quantizes a tensor in order, with parameters that are one number each."""
    generic = found.generic
    if found.kind != "quantize" or not generic.is_elementwise or not is_identity(generic.output_map(found.result)):
        return False
    inputs = list(zip(generic.inputs, generic.maps, strict=False))
    in_order = all(is_identity(affine) for value, affine in inputs if value == found.input)
    return in_order and all(value == found.input or not is_tensor(value) or value.type.rank == 0 for value, _ in inputs)


def _quantized_like(found: Quantization, value: ir.Value) -> ir.Value:
    """The quantization of another tensor, with the same arithmetic."""
    generic = found.generic
    reads = [Read.whole(value) if operand == found.input else Read(operand, ()) for operand in generic.inputs]

    def body(*elements: ir.Value) -> ir.Value:
        return _copied(generic.body, elements)

    made = elementwise(reads, axis_sizes(value), found.result.type.element_type, body)
    mark(made.owner.operation, "quantize", found.numbers)
    return made


def _copied(block: ir.Block, elements: Sequence[ir.Value]) -> ir.Value:
    """Copy the ops of a body to the insertion point; return what it yields. elements: for its first arguments."""
    mapping = dict(zip(block.arguments, elements, strict=False))
    ops = [op.operation for op in block.operations]
    for op in ops[:-1]:
        copy = op.clone()
        for number, operand in enumerate(copy.operands):
            copy.operands[number] = mapping.get(operand, operand)
        mapping.update(zip(op.results, copy.results, strict=True))
    yielded: ir.Value = ops[-1].operands[0]
    return mapping.get(yielded, yielded)
