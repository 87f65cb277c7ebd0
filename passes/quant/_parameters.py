"""Scales and zero points of a tensor that is moved: where they vary along an axis, they are moved alike."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.analysis.generic import dims_of_expr
from llmos.compiler.ir.bindings import ir
from llmos.passes.quant._generics import Read, constant, elementwise, filled
from llmos.passes.quant._moves import permutation_of

Parameter = Read | float  # of all elements of a tensor: one number, or what is read over its axes

CONCAT, SLICE, EXPAND, COLLAPSE = "tensor.concat", "tensor.extract_slice", "tensor.expand_shape", "tensor.collapse_shape"


def can_move(op: ir.Operation, parameters: Sequence[Parameter], tensors: Sequence[ir.Value]) -> bool:
    """Whether `moved` can build a parameter of what `op` makes of `tensors`. parameters: one for each of them."""
    axes = _axes(op, parameters, tensors)
    if not axes or permutation_of(op) is not None:
        return True
    sizes = [value.type.shape[axis] for value in (*tensors, *op.results) for axis in range(value.type.rank)]
    return min(sizes) >= 0 and (op.name != SLICE or _is_static(op))


def moved(op: ir.Operation, parameters: Sequence[Parameter], tensors: Sequence[ir.Value], element: ir.Type) -> Parameter:
    """Build, at the insertion point, a parameter of what `op` makes of `tensors`, of which `can_move` holds. element: i32 or f32."""
    axes, first = _axes(op, parameters, tensors), parameters[0]
    if not axes:
        return first
    order = permutation_of(op)
    if order is not None:
        assert isinstance(first, Read)
        return Read(first.value, tuple(ir.AffineExpr.get_dim(order[e.position]) if _is_dim(e) else e for e in first.exprs))
    spread = [_spread(each, axes, value, element) for each, value in zip(parameters, tensors, strict=True)]
    if op.name == CONCAT:
        dim = axes.index(ir.IntegerAttr(op.attributes["dim"]).value)
        return Read.at(_concatenated(spread, dim), axes)
    if op.name == SLICE:
        return Read.at(_sliced(op, spread[0], axes), axes)
    groups = [list(map(int, group)) for group in ir.ArrayAttr(op.attributes["reassociation"])]
    if op.name == EXPAND:
        return _expanded(op, spread[0], [groups[axis] for axis in axes])
    return _collapsed(spread[0], axes, groups)


def is_same(a: Parameter, b: Parameter) -> bool:
    """Whether two parameters are the same number, or the same tensor read alike."""
    if isinstance(a, Read) and isinstance(b, Read):
        return a.value == b.value and list(a.exprs) == list(b.exprs)
    return not isinstance(a, Read) and not isinstance(b, Read) and a == b


def varying_axes(parameter: Parameter) -> set[int]:
    """Return the axes along which a parameter varies."""
    return set().union(*map(dims_of_expr, parameter.exprs)) if isinstance(parameter, Read) else set()


def _axes(op: ir.Operation, parameters: Sequence[Parameter], tensors: Sequence[ir.Value]) -> list[int]:
    """The axes of the tensors over which a tensor of parameters is needed; none where the result's parameter is that of the source."""
    axes = set().union(*map(varying_axes, parameters))
    if op.name == CONCAT and ((len(parameters) > 1 and not all(is_same(each, parameters[0]) for each in parameters)) or axes):
        axes.add(ir.IntegerAttr(op.attributes["dim"]).value)
    if op.name == COLLAPSE:
        shape = tensors[0].type.shape
        for group in ir.ArrayAttr(op.attributes["reassociation"]):
            members = set(map(int, group))
            axes |= {axis for axis in members if shape[axis] != 1} if axes & members else set()
    return sorted(axes)


def _is_dim(expr: ir.AffineExpr) -> bool:
    return isinstance(expr, ir.AffineDimExpr)


def _is_static(op: ir.Operation) -> bool:
    return len(op.operands) == 1


def _spread(parameter: Parameter, axes: Sequence[int], tensor: ir.Value, element: ir.Type) -> ir.Value:
    """A tensor over some axes of what the parameter is of."""
    sizes = [tensor.type.shape[axis] for axis in axes]
    if not isinstance(parameter, Read):
        return filled(constant(parameter, element), sizes)
    exprs = tuple(ir.AffineExpr.get_dim(axes.index(e.position)) if _is_dim(e) else e for e in parameter.exprs)
    return elementwise([Read(parameter.value, exprs)], sizes, element, lambda each: each)


def _concatenated(values: Sequence[ir.Value], dim: int) -> ir.Value:
    shape = list(values[0].type.shape)
    shape[dim] = sum(value.type.shape[dim] for value in values)
    attributes = {"dim": ir.IntegerAttr.get(ir.IntegerType.get_signless(64), dim)}
    return _made(CONCAT, shape, list(values), attributes)


def _sliced(op: ir.Operation, value: ir.Value, axes: Sequence[int]) -> ir.Value:
    names = ("static_offsets", "static_sizes", "static_strides")
    attributes = {
        name: ir.DenseI64ArrayAttr.get([list(ir.DenseI64ArrayAttr(op.attributes[name]))[axis] for axis in axes]) for name in names
    }
    attributes["operandSegmentSizes"] = ir.DenseI32ArrayAttr.get([1, 0, 0, 0])
    return _made(SLICE, [op.results[0].type.shape[axis] for axis in axes], [value], attributes)


def _expanded(op: ir.Operation, value: ir.Value, groups: Sequence[Sequence[int]]) -> Read:
    axes = [axis for group in groups for axis in group]
    shape = [op.results[0].type.shape[axis] for axis in axes]
    attributes = {"reassociation": _reassociation(groups, axes), "static_output_shape": ir.DenseI64ArrayAttr.get(shape)}
    return Read.at(_made(EXPAND, shape, [value], attributes), axes)


def _collapsed(value: ir.Value, axes: Sequence[int], groups: Sequence[Sequence[int]]) -> Read:
    kept = [(number, [axis for axis in group if axis in axes]) for number, group in enumerate(groups)]
    kept = [(number, group) for number, group in kept if group]
    sizes = dict(zip(axes, value.type.shape, strict=True))
    shape = [1] * len(kept)
    for place, (_, group) in enumerate(kept):
        for axis in group:
            shape[place] *= sizes[axis]
    if len(shape) < len(axes):
        value = _made(COLLAPSE, shape, [value], {"reassociation": _reassociation([group for _, group in kept], axes)})
    return Read.at(value, [number for number, _ in kept])


def _reassociation(groups: Sequence[Sequence[int]], axes: Sequence[int]) -> ir.ArrayAttr:
    i64 = ir.IntegerType.get_signless(64)
    places = list(axes)
    return ir.ArrayAttr.get([ir.ArrayAttr.get([ir.IntegerAttr.get(i64, places.index(axis)) for axis in group]) for group in groups])


def _made(name: str, shape: Sequence[int], operands: Sequence[ir.Value], attributes: dict[str, ir.Attribute]) -> ir.Value:
    kind = ir.RankedTensorType.get(list(shape), operands[0].type.element_type)
    return ir.Operation.create(name, results=[kind], operands=list(operands), attributes=attributes).results[0]
