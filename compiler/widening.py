"""bfloat16 in memory, float32 in registers: the elementwise ops between, made (by narrow-activations) and recognised."""

from __future__ import annotations

from llmos.compiler.ir import ir
from llmos.compiler.linalg import Generic, is_identity

WIDEN = "arith.extf"
NARROW = "arith.truncf"


def with_element(kind: ir.Type, element: ir.Type) -> ir.RankedTensorType:
    """The tensor type of that shape with other elements."""
    tensor = ir.RankedTensorType(kind)
    return ir.RankedTensorType.get(tensor.shape, element, tensor.encoding)


def convert(value: ir.Value, name: str, element: ir.Type) -> ir.Value:
    """`value` with each element through the op `name` to `element`: an identity linalg.generic at the insertion point."""
    kind = with_element(value.type, element)
    rank = len(kind.shape)
    sizes = [_dim(value, axis) for axis in range(rank) if kind.is_dynamic_dim(axis)]
    empty = ir.Operation.create("tensor.empty", results=[kind], operands=sizes).results[0]
    identity = ir.AffineMapAttr.get(ir.AffineMap.get_identity(rank))
    made = ir.Operation.create(
        "linalg.generic",
        results=[kind],
        operands=[value, empty],
        attributes={
            "indexing_maps": ir.ArrayAttr.get([identity, identity]),
            "iterator_types": ir.ArrayAttr.get([ir.Attribute.parse("#linalg.iterator_type<parallel>")] * rank),
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, 1]),
        },
        regions=1,
    )
    block = made.regions[0].blocks.append(ir.RankedTensorType(value.type).element_type, element)
    with ir.InsertionPoint(block):
        converted = ir.Operation.create(name, results=[element], operands=[block.arguments[0]])
        ir.Operation.create("linalg.yield", operands=[converted.results[0]])
    return made.results[0]


def _dim(value: ir.Value, axis: int) -> ir.Value:
    index = ir.IndexType.get()
    position = ir.Operation.create("arith.constant", results=[index], attributes={"value": ir.IntegerAttr.get(index, axis)})
    return ir.Operation.create("tensor.dim", results=[index], operands=[value, position.results[0]]).results[0]


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
