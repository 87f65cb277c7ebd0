"""The sides of a contraction as 8-bit integers, past the moves and the padding between a product and what dequantizes its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmos.compiler.analysis.contraction import Contraction
from llmos.compiler.analysis.generic import Generic, dim_positions, padding_number, permuted_operand
from llmos.compiler.ir.bindings import ir
from llmos.passes._graph import owner_of
from llmos.passes.quant._generics import Read, after, axis_sizes, constant, elementwise
from llmos.passes.quant._integers import Integers, integers_of, is_i8, scalar_zero_point
from llmos.passes.quant._products import summed_axes


def side_of(contraction: Contraction, side: int) -> Integers | None:
    """Match one operand of a contraction whose parameters don't vary along the sums; else None.

    Where the operand is a permutation or a padding of the dequantized tensor, the same is built of the numbers.
    """
    value, factor = contraction.generic.inputs[side], contraction.factors[side]
    found: Integers | None
    if is_i8(value):
        zero_point = scalar_zero_point(factor.zero_point)
        found = None if factor.is_unsigned is None or zero_point is None else Integers(value, factor.is_unsigned, zero_point)
    else:
        found = None if factor.zero_point is not None else _moved_integers(value)
    return None if found is None or found.parameters_vary_along(_without_parameters(contraction, side)) else found


def _without_parameters(contraction: Contraction, side: int) -> list[int]:
    """Axes along which parameters may not vary: those of the sums, and those that aren't read at a loop dim."""
    positions = dim_positions(contraction.generic.maps[side])
    return [*summed_axes(contraction, side), *[axis for axis, position in enumerate(positions) if position is None]]


def _moved_integers(value: ir.Value) -> Integers | None:
    owner = owner_of(value)
    if owner is None:
        return None
    if owner.name == "tensor.pad":
        return _padded(owner)
    source = permuted_operand(owner)
    return integers_of(value) if source is None else _permuted(owner, source)


def _padded(pad: ir.Operation) -> Integers | None:
    """The numbers with their zero point around them, where the tensor has zeros around it: each product there is 0 again."""
    inner = _moved_integers(pad.operands[0])
    if inner is None or padding_number(pad) != 0 or inner.parameters_vary_along(range(pad.results[0].type.rank)):
        return None
    zero, (low, high) = inner.zero_point, inner.range
    if zero.read is not None or not low <= zero.offset <= high:
        return None
    with after(pad.results[0]):
        return replace(inner, numbers=padded_like(pad, inner.numbers, zero.offset))


def padded_like(pad: ir.Operation, numbers: ir.Value, number: int, more: tuple[int, int] = (0, 0)) -> ir.Value:
    """Build the padding of another tensor as `pad` has it, with another number around it. more: an axis, and what is added at its end."""
    axis, extra = more
    element = numbers.type.element_type
    padding = constant((number + 128) % 256 - 128 if is_i8(numbers) else number, element)
    attributes = {name: pad.attributes[name] for name in pad.attributes}
    high, shape = list(ir.DenseI64ArrayAttr(pad.attributes["static_high"])), list(pad.results[0].type.shape)
    high[axis] += extra
    shape[axis] += extra if shape[axis] >= 0 else 0
    attributes["static_high"] = ir.DenseI64ArrayAttr.get(high)
    made = ir.Operation.create(
        "tensor.pad",
        results=[ir.RankedTensorType.get(shape, element)],
        operands=[numbers, *list(pad.operands)[1:]],
        attributes=attributes,
        regions=1,
    )
    block = made.regions[0].blocks.append(*[ir.IndexType.get()] * numbers.type.rank)
    with ir.InsertionPoint(block):
        ir.Operation.create("tensor.yield", operands=[padding])
    return made.results[0]


def _permuted(op: ir.Operation, source: int) -> Integers | None:
    """The numbers in another order of axes, and the parameters read there."""
    generic = Generic(op)
    inner = _moved_integers(generic.inputs[source])
    axes = [_axis_of(position, generic) for position in dim_positions(generic.maps[source])]
    if inner is None or None in axes or sorted(axes) != list(range(op.results[0].type.rank)):  # type: ignore[type-var]
        return None
    with after(op.results[0]):
        sizes = [axis_sizes(inner.numbers)[axes.index(axis)] for axis in range(len(axes))]
        read = Read.at(inner.numbers, axes)  # type: ignore[arg-type]
        numbers = elementwise([read], sizes, inner.numbers.type.element_type, lambda each: each)
    zero = replace(inner.zero_point, read=_moved(inner.zero_point.read, axes))
    scale = _moved(inner.scale, axes) if isinstance(inner.scale, Read) else inner.scale
    return replace(inner, numbers=numbers, zero_point=zero, scale=scale)


def _axis_of(position: int | None, generic: Generic) -> int | None:
    """The axis of the result that a loop dim is."""
    out = dim_positions(generic.maps[generic.num_inputs])
    return out.index(position) if position is not None and position in out else None


def _moved(read: Read | None, axes: Sequence[int | None]) -> Read | None:
    """A read over the axes of a tensor, as one over those of its permutation. axes: where each of its axes is."""
    if read is None:
        return None
    return Read(read.value, tuple(ir.AffineExpr.get_dim(axes[e.position]) if isinstance(e, ir.AffineDimExpr) else e for e in read.exprs))
