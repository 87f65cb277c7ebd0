"""bfloat16 in memory, float32 in registers: the elementwise ops between, made (by narrow-activations) and recognised."""

from __future__ import annotations

from llmos.compiler.analysis.generic import Generic, is_identity, map_elements
from llmos.compiler.ir.bindings import ir

WIDEN = "arith.extf"
NARROW = "arith.truncf"


def with_element(kind: ir.Type, element: ir.Type) -> ir.RankedTensorType:
    """The tensor type of that shape with other elements."""
    tensor = ir.RankedTensorType(kind)
    return ir.RankedTensorType.get(tensor.shape, element, tensor.encoding)


def convert(value: ir.Value, name: str, element: ir.Type) -> ir.Value:
    """`value` with each element through the op `name` to `element`: an identity linalg.generic at the insertion point."""
    return map_elements(value, element, lambda each: ir.Operation.create(name, results=[element], operands=[each]).results[0])


def widened(value: ir.Value) -> ir.Value | None:
    """The bfloat16 tensor that `value` is, element by element, in float32; None for anything else."""
    if isinstance(value.owner, ir.Block) or value.owner.name != "linalg.generic":
        return None
    generic = Generic(value.owner.operation)
    body = list(generic.body.operations)
    if len(body) != 2 or body[0].name != WIDEN or generic.num_inputs != 1 or not all(is_identity(affine) for affine in generic.maps):
        return None
    source = generic.inputs[0]
    return source if isinstance(source.type.element_type, ir.BF16Type) else None


def is_widened_argument(value: ir.Value) -> bool:
    """Whether a value is nothing but an argument of its function, widened."""
    source = widened(value)
    return source is not None and isinstance(source.owner, ir.Block)
