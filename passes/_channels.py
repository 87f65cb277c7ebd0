"""Which axes of a tensor are channels, and how an op carries that from one of its tensors to the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llmos.compiler.analysis.generic import Generic, dim_positions, dims_of, is_fill
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.ops import RESHAPES
from llmos.compiler.ir.shapes import reassociation

Channels: TypeAlias = tuple[int, ...]  # axes in order; () where there are none
Order: TypeAlias = tuple[int, ...]  # storage axis i holds axis order[i]

SAME_AXES = frozenset({"tensor.pad", "tensor.concat", "tensor.extract_slice", "tensor.cast"})


def channels_last(channels: Channels, rank: int) -> Order:
    """Return the storage order of a tensor's axes with the channels innermost."""
    return (*[axis for axis in range(rank) if axis not in channels], *channels)


def is_in_order(order: Order) -> bool:
    """Whether a storage order is that of the axes themselves."""
    return order == tuple(range(len(order)))


def is_layout_tensor(value: ir.Value) -> bool:
    """Whether a value is a tensor with axes enough (3) for a layout to be a choice."""
    return isinstance(value.type, ir.RankedTensorType) and value.type.rank >= 3


@dataclass(frozen=True)
class Convolution:
    """A sum of products of `x`, read through windows, with `weight`: operand numbers, and the channels of x and of the result."""

    generic: Generic
    x: int
    weight: int
    channels_in: Channels
    channels_out: Channels
    window: tuple[int, ...]  # loop dims over the taps


def convolution_of(op: ir.Operation) -> Convolution | None:
    """Match a convolution, dense, grouped or depthwise; None for anything else, pooling included."""
    if op.name != "linalg.generic" or is_fill(op):
        return None
    generic = Generic(op)
    if generic.num_inputs < 2 or len(op.results) != 1 or not _multiplies(generic):
        return None
    window = [i for i, affine in enumerate(generic.maps[:2]) if any(isinstance(e, ir.AffineAddExpr) for e in affine.results)]
    if len(window) != 1:
        return None
    x = window[0]
    weight = 1 - x
    taps = {d for e in generic.maps[x].results if isinstance(e, ir.AffineAddExpr) for d in _dims(e)} & set(generic.reduction_dims)
    shared = dims_of(generic.maps[weight])
    channels_in = tuple(axis for axis, p in enumerate(dim_positions(generic.maps[x])) if p is not None and p in shared)
    channels_out = tuple(axis for axis, p in enumerate(dim_positions(generic.maps[generic.num_inputs])) if p is not None and p in shared)
    return Convolution(generic, x, weight, channels_in, channels_out, tuple(sorted(taps)))


def _dims(expr: ir.AffineExpr) -> set[int]:
    if isinstance(expr, ir.AffineDimExpr):
        return {expr.position}
    return _dims(expr.lhs) | _dims(expr.rhs) if isinstance(expr, ir.AffineBinaryExpr) else set()


def _multiplies(generic: Generic) -> bool:
    """acc + a * b, with or without casts of a and b."""
    names = [op.name for op in generic.body.operations]
    return bool(generic.reduction_dims) and names.count("arith.mulf") + names.count("arith.muli") == 1 and len(names) <= 5


# -- what an op carries along
def extracts(op: ir.Operation) -> Iterator[ir.Operation]:
    """Yield the `tensor.extract`s of a generic's body."""
    if op.name == "linalg.generic":
        yield from (inner.operation for inner in Generic(op).body.operations if inner.name == "tensor.extract")


def linked(op: ir.Operation, value: ir.Value, channels: Channels) -> list[tuple[ir.Value, Channels]]:
    """Return the op's other tensors with their channels, from those of one. A convolution links nothing: its sides are known from
    itself.
    """
    if op.name == "linalg.generic" and not is_fill(op):
        return [] if convolution_of(op) is not None else _linked_generic(Generic(op), value, channels)
    if op.name in SAME_AXES and carries(op, channels):
        sources = list(op.operands) if op.name == "tensor.concat" else [op.operands[0]]
        return [(other, channels) for other in (*sources, *op.results) if other != value]
    if op.name in RESHAPES:
        other, forward = (op.results[0], True) if value == op.operands[0] else (op.operands[0], False)
        found = reshaped(op, channels, forward)
        return [(other, found)] if found else []
    return []


def carries(op: ir.Operation, channels: Channels) -> bool:
    """Whether an op can make its result in a layout with these channels last."""
    if op.name == "linalg.generic":
        return not is_fill(op)
    if op.name == "tensor.pad":
        block = op.regions[0].blocks[0]
        return not any(True for argument in block.arguments for _ in argument.uses)
    if op.name == "tensor.extract_slice":
        return bool(op.results[0].type.rank == op.operands[0].type.rank)
    if op.name in RESHAPES:
        return bool(reshaped(op, channels, forward=False))
    return op.name in SAME_AXES


def reshaped(op: ir.Operation, channels: Channels, forward: bool) -> Channels:
    """Return the channels on the other side of a reshape, from source to result or back; () if it mixes them with other axes."""
    collapses = op.name == "tensor.collapse_shape"
    groups = reassociation(op)
    if collapses == forward:  # from the side with more axes
        whole = [i for i, group in enumerate(groups) if all(axis in channels for axis in group)]
        return tuple(whole) if sum(len(groups[i]) for i in whole) == len(channels) else ()
    return tuple(axis for i in channels for axis in groups[i])


def _linked_generic(generic: Generic, value: ir.Value, channels: Channels) -> list[tuple[ir.Value, Channels]]:
    reads = [*_reads(generic), *[(result, dim_positions(generic.output_map(result))) for result in generic.op.results]]
    loops: set[int] = set()
    for tensor, positions in reads:
        if tensor == value:
            found = [positions[axis] for axis in channels]
            if any(p is None for p in found):
                return []
            loops |= {p for p in found if p is not None}
    made = [(tensor, tuple(axis for axis, p in enumerate(positions) if p in loops)) for tensor, positions in reads if tensor != value]
    return [(tensor, found) for tensor, found in made if found]


def _reads(generic: Generic) -> list[tuple[ir.Value, Sequence[int | None]]]:
    """(tensor, loop dim of each axis) of the inputs, and of what the body extracts at loop indices."""
    inputs = [(v, dim_positions(a)) for v, a in zip(generic.inputs, generic.maps, strict=False) if is_layout_tensor(v)]
    return inputs + [(op.operands[0], [_loop_of(v) for v in list(op.operands)[1:]]) for op in extracts(generic.op)]


def _loop_of(index: ir.Value) -> int | None:
    owner = index.owner
    if isinstance(owner, ir.Block) or owner.name != "linalg.index":
        return None
    return int(ir.IntegerAttr(owner.attributes["dim"]).value)


def moves_nothing(kind: ir.RankedTensorType, order: Order) -> bool:
    """Whether the storage order differs in axes of size 1 alone."""
    real = [axis for axis in order if kind.shape[axis] != 1]
    return real == sorted(real)
