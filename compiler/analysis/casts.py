"""Elementwise casts between bfloat16 in memory and float32 in registers: their construction and recognition."""

from __future__ import annotations

from llmos.compiler.analysis.generic import Generic, is_identity, map_elements
from llmos.compiler.ir.bindings import ir

EXTEND = "arith.extf"
TRUNCATE = "arith.truncf"


def with_element(kind: ir.Type, element: ir.Type) -> ir.RankedTensorType:
    """Return a tensor type of the same shape with another element type."""
    tensor = ir.RankedTensorType(kind)
    return ir.RankedTensorType.get(tensor.shape, element, tensor.encoding)


def convert(value: ir.Value, name: str, element: ir.Type) -> ir.Value:
    """Apply the cast op `name` (such as "arith.extf") to each element of `value`, as an identity linalg.generic at the insertion point."""
    return map_elements(value, element, lambda each: ir.Operation.create(name, results=[element], operands=[each]).results[0])


def extended(value: ir.Value) -> ir.Value | None:
    """Return the bfloat16 tensor that `value` extends to float32, else None."""
    if isinstance(value.owner, ir.Block) or value.owner.name != "linalg.generic":
        return None
    generic = Generic(value.owner.operation)
    body = list(generic.body.operations)
    if len(body) != 2 or body[0].name != EXTEND or generic.num_inputs != 1 or not all(is_identity(affine) for affine in generic.maps):
        return None
    source = generic.inputs[0]
    return source if isinstance(source.type.element_type, ir.BF16Type) else None


def is_extended_argument(value: ir.Value) -> bool:
    """Whether a value is a function argument extended to float32."""
    source = extended(value)
    return source is not None and isinstance(source.owner, ir.Block)
