"""What the passes of this folder build IR of: linalg.generic ops over some dims, at the insertion point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llmos.compiler.ir.bindings import arith, ir

Size: TypeAlias = "int | ir.Value"  # a static size, or an index
Body: TypeAlias = Callable[..., ir.Value]


@dataclass(frozen=True)
class Read:
    """A tensor that an op reads, and where: an index expression for each of its axes."""

    value: ir.Value
    exprs: tuple[ir.AffineExpr, ...]

    @staticmethod
    def at(value: ir.Value, dims: Iterable[int]) -> Read:
        """At loop dims, one for each axis."""
        return Read(value, tuple(ir.AffineExpr.get_dim(dim) for dim in dims))

    @staticmethod
    def whole(value: ir.Value) -> Read:
        """Read a tensor at the loop dims in order."""
        return Read.at(value, range(value.type.rank))


def generic(reads: Sequence[Read], init: Read, reduction_dims: Iterable[int], rank: int, body: Body) -> ir.Value:
    """Build an op over `rank` loop dims. body: takes an element of each read tensor, then of `init`, and gives that of the result."""
    return generics(reads, [init], reduction_dims, rank, lambda *elements: [body(*elements)])[0]


def generics(
    reads: Sequence[Read], inits: Sequence[Read], reduction_dims: Iterable[int], rank: int, body: Callable[..., Sequence[ir.Value]]
) -> list[ir.Value]:
    """Build an op of several results, as `generic` builds one."""
    operands = [*reads, *inits]
    reduced = set(reduction_dims)
    maps = [ir.AffineMapAttr.get(ir.AffineMap.get(rank, 0, list(each.exprs))) for each in operands]
    kinds = ["reduction" if dim in reduced else "parallel" for dim in range(rank)]
    made = ir.Operation.create(
        "linalg.generic",
        results=[init.value.type for init in inits],
        operands=[each.value for each in operands],
        attributes={
            "indexing_maps": ir.ArrayAttr.get(maps),
            "iterator_types": ir.ArrayAttr.get([ir.Attribute.parse(f"#linalg.iterator_type<{kind}>") for kind in kinds]),
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get([len(reads), len(inits)]),
        },
        regions=1,
    )
    block = made.regions[0].blocks.append(*[getattr(each.value.type, "element_type", each.value.type) for each in operands])
    with ir.InsertionPoint(block):
        ir.Operation.create("linalg.yield", operands=list(body(*block.arguments)))
    return list(made.results)


def elementwise(reads: Sequence[Read], sizes: Sequence[Size], element: ir.Type, body: Body) -> ir.Value:
    """Build an op over the axes of its result. body: takes an element of each read tensor."""
    init = empty(sizes, element)
    return generic(reads, Read.whole(init), (), len(sizes), lambda *elements: body(*elements[:-1]))


def reduced(value: ir.Value, axes: Sequence[int], start: ir.Value, body: Body) -> ir.Value:
    """Reduce a tensor along axes. body: takes an element and the accumulator; start: a scalar."""
    return reductions(value, axes, start, [body])[0]


def reductions(value: ir.Value, axes: Sequence[int], start: ir.Value, bodies: Sequence[Body]) -> list[ir.Value]:
    """Reduce a tensor along axes in several ways at once, as `reduced` does in one."""
    rank = value.type.rank
    kept = [axis for axis in range(rank) if axis not in axes]
    sizes = axis_sizes(value)
    init = Read.at(filled(start, [sizes[axis] for axis in kept]), kept)

    def body(each: ir.Value, *accumulators: ir.Value) -> list[ir.Value]:
        return [step(each, accumulator) for step, accumulator in zip(bodies, accumulators, strict=True)]

    return generics([Read.whole(value)], [init] * len(bodies), axes, rank, body)


def filled(number: ir.Value, sizes: Sequence[Size]) -> ir.Value:
    """Build a tensor of one number."""
    init = empty(sizes, number.type)
    return generic([Read(number, ())], Read.whole(init), (), len(sizes), lambda scalar, _: scalar)


def empty(sizes: Sequence[Size], element: ir.Type) -> ir.Value:
    """Build a tensor.empty of some sizes."""
    shape = [size if isinstance(size, int) else ir.ShapedType.get_dynamic_size() for size in sizes]
    kind = ir.RankedTensorType.get(shape, element)
    return ir.Operation.create("tensor.empty", results=[kind], operands=[s for s in sizes if not isinstance(s, int)]).results[0]


def axis_sizes(value: ir.Value) -> list[Size]:
    """Return the size of each axis of a tensor."""
    kind = ir.RankedTensorType(value.type)
    return [_index(value, axis) if kind.is_dynamic_dim(axis) else kind.shape[axis] for axis in range(kind.rank)]


def _index(value: ir.Value, axis: int) -> ir.Value:
    """Return a dynamic size: that of the destination, where an op writes the tensor."""
    owner = None if isinstance(value.owner, ir.Block) else value.owner.operation
    if owner is not None and owner.name == "linalg.generic":
        return _index(owner.operands[len(owner.operands) - len(owner.results) + ir.OpResult(value).result_number], axis)
    if owner is not None and owner.name == "tensor.empty":
        return owner.operands[sum(value.type.is_dynamic_dim(before) for before in range(axis))]
    index = ir.IndexType.get()
    position = arith.ConstantOp(index, ir.IntegerAttr.get(index, axis)).result
    return ir.Operation.create("tensor.dim", results=[index], operands=[value, position]).results[0]


def constant(number: float, kind: ir.Type) -> ir.Value:
    """Build a scalar constant of an integer or float type."""
    attribute = ir.IntegerAttr.get(kind, int(number)) if isinstance(kind, ir.IntegerType) else ir.FloatAttr.get(kind, number)
    return arith.ConstantOp(kind, attribute).result


def after(value: ir.Value) -> ir.InsertionPoint:
    """Return the place right after what makes a value."""
    if isinstance(value.owner, ir.Block):
        return ir.InsertionPoint.at_block_begin(value.owner)
    return ir.InsertionPoint.after(value.owner.operation)
