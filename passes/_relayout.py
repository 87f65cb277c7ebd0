"""Giving tensors of a function another storage order, in place: types and maps are permuted, moves added where an op needs the old one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmos.compiler.analysis.generic import Generic, dim_positions, is_fill
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.ops import REMATERIALIZABLE, RESHAPES
from llmos.compiler.ir.shapes import DYNAMIC, reassociation
from llmos.passes._channels import (
    SAME_AXES,
    Channels,
    Convolution,
    Order,
    carries,
    channels_last,
    convolution_of,
    extracts,
    is_in_order,
    is_layout_tensor,
    moves_nothing,
    reshaped,
)
from llmos.passes._graph import owner_of


@dataclass
class Relayout:
    """Rewrites one function. `channels`: of the values that get them last; `weights`: values that are known at compile time."""

    func: ir.Operation
    channels: Mapping[ir.Value, Channels]
    weights: frozenset[ir.Value]
    _orders: dict[ir.Value, Order] = field(default_factory=dict)  # of values whose own type has changed
    _moved: dict[tuple[ir.Value, Order], ir.Value] = field(default_factory=dict)

    def run(self) -> None:
        """Rewrite the ops in program order; each takes the orders of its operands on, or reads them moved back."""
        for op in [op.operation for op in self.func.regions[0].blocks[0].operations]:
            with ir.InsertionPoint(op):
                if op.name == "linalg.generic" and not is_fill(op):
                    self._generic(Generic(op))
                elif op.name in SAME_AXES or op.name in RESHAPES:
                    self._structural(op)
                elif op.name == "tensor.dim":
                    self._dim(op)
                else:
                    for i, operand in enumerate(list(op.operands)):
                        op.operands[i] = self._as(operand, None)

    # -- values in an order
    def _order(self, value: ir.Value) -> Order:
        return self._orders.get(value, tuple(range(value.type.rank)))

    def _wanted(self, value: ir.Value) -> Order | None:
        """The order a value was given, or None."""
        return channels_last(self.channels[value], value.type.rank) if value in self.channels else None

    def _read(self, value: ir.Value) -> tuple[ir.Value, Order]:
        """A tensor as an op that takes any order reads it: in the order it was given, or else as it is."""
        wanted = self._wanted(value)
        if wanted is None:
            return value, self._order(value)
        return self._as(value, wanted), wanted

    def _as(self, value: ir.Value, order: Order | None) -> ir.Value:
        """The value in a storage order (None: its axes in order), moved if it has another."""
        if not isinstance(value.type, ir.RankedTensorType):
            return value
        order = order if order is not None else tuple(range(value.type.rank))
        have = self._order(value)
        if have == order:
            return value
        owner = owner_of(value)
        if owner is not None and _is_filled(owner):
            return _refilled(owner, order)
        if (value, order) not in self._moved:
            self._moved[value, order] = _move(value, have, order)
        return self._moved[value, order]

    def _give(self, result: ir.Value, order: Order) -> None:
        """Change the type of a result whose op is being rewritten."""
        if not is_in_order(order):
            result.set_type(_permuted(result.type, order))
            self._orders[result] = order

    # -- ops
    def _dim(self, op: ir.Operation) -> None:
        source, axis = op.operands
        if source not in self._orders:
            return
        owner = owner_of(axis)
        if owner is None or owner.name != "arith.constant":
            op.operands[0] = self._as(source, None)
            return
        at = self._orders[source].index(ir.IntegerAttr(owner.attributes["value"]).value)
        index = ir.IndexType.get()
        number = ir.Operation.create("arith.constant", results=[index], attributes={"value": ir.IntegerAttr.get(index, at)})
        op.operands[1] = number.results[0]

    def _structural(self, op: ir.Operation) -> None:
        """Pads, concatenations, slices, casts and reshapes: their sources in the order that fits the result's."""
        result = op.results[0]
        channels = self.channels.get(result, ())
        if channels and not carries(op, channels):
            channels = ()
        sources = list(op.operands) if op.name == "tensor.concat" else [op.operands[0]]
        of_source = reshaped(op, channels, forward=False) if op.name in RESHAPES else channels
        for i, source in enumerate(sources):
            op.operands[i] = self._as(source, channels_last(of_source, source.type.rank))
        if not channels:
            return
        order = channels_last(channels, result.type.rank)
        if op.name in RESHAPES:
            _permute_reshape(op, channels_last(of_source, sources[0].type.rank), order)
        elif op.name == "tensor.concat":
            dim = ir.IntegerAttr(op.attributes["dim"])
            op.attributes["dim"] = ir.IntegerAttr.get(dim.type, order.index(dim.value))
        else:
            _permute_lists(op, order)
        self._give(result, order)

    def _generic(self, generic: Generic) -> None:
        op, convolution = generic.op, convolution_of(generic.op)
        reads = [self._read(v) if is_layout_tensor(v) else (v, None) for v in generic.inputs]
        orders = [self._wanted(result) or tuple(range(result.type.rank)) for result in op.results]
        taken = [self._read(extract.operands[0]) if is_layout_tensor(extract.operands[0]) else None for extract in extracts(op)]
        given = [order for _, order in [*reads, *[t for t in taken if t is not None]] if order is not None]
        if all(is_in_order(order) for order in (*given, *orders)):
            return
        every = [order for _, order in reads] + orders
        maps = [_results(affine, order) for affine, order in zip(generic.maps, every, strict=True)]
        loops = _loop_order(generic, maps)
        for i, (value, _) in enumerate(reads):
            op.operands[i] = value
        if convolution is not None:
            loops = _without_unit_taps(convolution, loops)
            self._weight_last(convolution, loops, maps)
        for i, (init, order) in enumerate(zip(generic.inits, orders, strict=True)):
            op.operands[generic.num_inputs + i] = self._as(init, order)
        for extract, found in zip(extracts(op), taken, strict=True):
            if found is not None:
                indices = list(extract.operands)[1:]
                for i, operand in enumerate([found[0], *[indices[axis] for axis in found[1]]]):
                    extract.operands[i] = operand
        _renumber(generic, maps, loops)
        for result, order in zip(op.results, orders, strict=True):
            self._give(result, order)

    def _weight_last(self, convolution: Convolution, loops: Sequence[int], maps: list[list[ir.AffineExpr]]) -> None:
        """A constant weight as [taps..., input channels, output channels]: moved at compile time."""
        generic = convolution.generic
        weight = generic.inputs[convolution.weight]
        if weight not in self.weights:
            return
        positions = dim_positions(generic.maps[convolution.weight])
        inner = [*[d for d in loops if d in generic.reduction_dims], *[d for d in loops if d not in generic.reduction_dims]]
        place = {dim: i for i, dim in enumerate(inner)}
        order = tuple(sorted(range(len(positions)), key=lambda axis: place.get(positions[axis], -1)))  # type: ignore[arg-type]
        generic.op.operands[convolution.weight] = self._as(weight, order)
        maps[convolution.weight] = _results(generic.maps[convolution.weight], order)


def _results(affine: ir.AffineMap, order: Order | None) -> list[ir.AffineExpr]:
    """A map's expressions, one an axis, in a storage order."""
    exprs = list(affine.results)
    return exprs if order is None else [exprs[axis] for axis in order]


def _loop_order(generic: Generic, maps: Sequence[Sequence[ir.AffineExpr]]) -> list[int]:
    """Loop dims in the order in which the result lies in memory; then, for reductions, that of the first input."""
    found: dict[int, None] = {}
    for exprs in (maps[generic.num_inputs], *maps):
        for expr in exprs:
            for dim in _mentioned(expr):
                parallel = generic.iterators[dim] == "parallel"
                if not (parallel and exprs is not maps[generic.num_inputs]):
                    found.setdefault(dim)
    rest = [dim for dim in range(generic.rank) if dim not in found]
    return [dim for dim in (*found, *rest) if generic.iterators[dim] == "parallel"] + [
        dim for dim in (*found, *rest) if generic.iterators[dim] != "parallel"
    ]


def _mentioned(expr: ir.AffineExpr) -> list[int]:
    if isinstance(expr, ir.AffineDimExpr):
        return [int(expr.position)]
    return [*_mentioned(expr.lhs), *_mentioned(expr.rhs)] if isinstance(expr, ir.AffineBinaryExpr) else []


def _without_unit_taps(convolution: Convolution, loops: Sequence[int]) -> list[int]:
    """Loops over one tap go: what is left of a 1x1 convolution is a matrix product."""
    generic = convolution.generic
    shape = generic.inputs[convolution.weight].type.shape
    unit = {p for p, size in zip(dim_positions(generic.maps[convolution.weight]), shape, strict=True) if size == 1}
    return [dim for dim in loops if dim not in unit or dim not in convolution.window]


def _renumber(generic: Generic, maps: Sequence[Sequence[ir.AffineExpr]], loops: Sequence[int]) -> None:
    """Set a generic's maps and loops in their new order; a loop that isn't in `loops` is gone."""
    op, rank = generic.op, generic.rank
    new = [ir.AffineExpr.get_dim(loops.index(d)) if d in loops else ir.AffineExpr.get_constant(0) for d in range(rank)]
    substitution = ir.AffineMap.get(len(loops), 0, new)
    made = [ir.AffineMap.get(len(loops), 0, [expr.compose(substitution) for expr in exprs]) for exprs in maps]
    kinds = list(ir.ArrayAttr(op.attributes["iterator_types"]))
    for inner in generic.body.operations:
        if inner.name == "linalg.index":
            dim = ir.IntegerAttr(inner.attributes["dim"])
            inner.attributes["dim"] = ir.IntegerAttr.get(dim.type, loops.index(dim.value))
    op.attributes["indexing_maps"] = ir.ArrayAttr.get([ir.AffineMapAttr.get(affine) for affine in made])
    op.attributes["iterator_types"] = ir.ArrayAttr.get([kinds[d] for d in loops])


def _permuted(kind: ir.RankedTensorType, order: Order) -> ir.RankedTensorType:
    return ir.RankedTensorType.get([kind.shape[axis] for axis in order], kind.element_type, kind.encoding)


def _permute_lists(op: ir.Operation, order: Order) -> None:
    """The lists of offsets, sizes, strides or paddings of an op, each a number or an operand an axis."""
    names = [name for name in ("static_low", "static_high", "static_offsets", "static_sizes", "static_strides") if name in op.attributes]
    operands = list(op.operands)[1:]
    place = 1
    for name in names:
        static = list(ir.DenseI64ArrayAttr(op.attributes[name]))
        dynamic = [operands.pop(0) if size == DYNAMIC else None for size in static]
        op.attributes[name] = ir.DenseI64ArrayAttr.get([static[axis] for axis in order])
        for value in (dynamic[axis] for axis in order):
            if value is not None:
                op.operands[place] = value
                place += 1


def _permute_reshape(op: ir.Operation, source: Order, result: Order) -> None:
    expands = op.name == "tensor.expand_shape"
    many, few = (result, source) if expands else (source, result)
    groups = reassociation(op)
    i64 = ir.IntegerType.get_signless(64)
    renumbered = [[many.index(axis) for axis in groups[axis_few]] for axis_few in few]
    op.attributes["reassociation"] = ir.ArrayAttr.get(
        [ir.ArrayAttr.get([ir.IntegerAttr.get(i64, a) for a in group]) for group in renumbered]
    )
    if expands:
        static = list(ir.DenseI64ArrayAttr(op.attributes["static_output_shape"]))
        operands = list(op.operands)[1:]
        dynamic = [operands.pop(0) if size == DYNAMIC else None for size in static]
        op.attributes["static_output_shape"] = ir.DenseI64ArrayAttr.get([static[axis] for axis in result])
        for place, value in enumerate((v for v in (dynamic[axis] for axis in result) if v is not None), start=1):
            op.operands[place] = value


def _is_filled(op: ir.Operation) -> bool:
    """Whether an op gives a tensor of one value, or of none yet, that can as well be made in another order."""
    return op.name in REMATERIALIZABLE or (is_fill(op) and owner_of(op.operands[len(op.operands) - 1]) is not None)


def _refilled(op: ir.Operation, order: Order) -> ir.Value:
    """A fill, or an empty destination, again in another order."""
    result = op.results[0]
    kind = _permuted(result.type, order)
    if is_fill(op):
        last = len(op.operands) - 1
        empty = _refilled(op.operands[last].owner.operation, order)
        copy = op.clone()
        copy.operands[last] = empty
        copy.results[0].set_type(kind)
        return copy.results[0]
    copy = op.clone()
    copy.results[0].set_type(kind)
    if op.name == "arith.constant":
        value = ir.DenseElementsAttr(op.attributes["value"])
        copy.attributes["value"] = ir.DenseElementsAttr.get_splat(kind, value.get_splat_value())
        return copy.results[0]
    first = 1 if op.name == "tensor.splat" else 0
    sizes = iter(list(op.operands)[first:])
    dynamic = [next(sizes) if size < 0 else None for size in result.type.shape]
    for place, size in enumerate((v for v in (dynamic[axis] for axis in order) if v is not None), start=first):
        copy.operands[place] = size
    return copy.results[0]


def _move(value: ir.Value, have: Order, want: Order) -> ir.Value:
    """`value` from one storage order to another, at the insertion point."""
    kind = ir.RankedTensorType(value.type)
    order = tuple(have.index(axis) for axis in want)  # of storage axes
    if moves_nothing(kind, order) and any(size != 1 for size in kind.shape):
        return _as_view(value, kind, _permuted(kind, order), order)
    made = _permuted(kind, order)
    sizes = [_size(value, axis) for axis in order if kind.is_dynamic_dim(axis)]
    empty = ir.Operation.create("tensor.empty", results=[made], operands=sizes).results[0]
    reads = ir.AffineMap.get(kind.rank, 0, [ir.AffineExpr.get_dim(order.index(axis)) for axis in range(kind.rank)])
    op = ir.Operation.create(
        "linalg.generic",
        results=[made],
        operands=[value, empty],
        attributes={
            "indexing_maps": ir.ArrayAttr.get([ir.AffineMapAttr.get(m) for m in (reads, ir.AffineMap.get_identity(kind.rank))]),
            "iterator_types": ir.ArrayAttr.get([ir.Attribute.parse("#linalg.iterator_type<parallel>")] * kind.rank),
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, 1]),
        },
        regions=1,
    )
    block = op.regions[0].blocks.append(kind.element_type, kind.element_type)
    with ir.InsertionPoint(block):
        ir.Operation.create("linalg.yield", operands=[block.arguments[0]])
    return op.results[0]


def _as_view(value: ir.Value, kind: ir.RankedTensorType, made: ir.RankedTensorType, order: Order) -> ir.Value:
    """The same bytes under other axes of size 1."""
    sizes = [_size(value, axis) for axis in order if kind.is_dynamic_dim(axis)]
    flat = ir.RankedTensorType.get([size for size in kind.shape if size != 1], kind.element_type)
    if flat.rank != kind.rank:
        groups = {"reassociation": _groups(kind.shape)}
        value = ir.Operation.create("tensor.collapse_shape", results=[flat], operands=[value], attributes=groups).results[0]
    shape = ir.DenseI64ArrayAttr.get([DYNAMIC if made.is_dynamic_dim(axis) else size for axis, size in enumerate(made.shape)])
    attributes = {"reassociation": _groups(made.shape), "static_output_shape": shape}
    return ir.Operation.create("tensor.expand_shape", results=[made], operands=[value, *sizes], attributes=attributes).results[0]


def _groups(shape: Sequence[int]) -> ir.Attribute:
    """Axes in groups of one axis that isn't 1 each."""
    groups: list[list[int]] = [[]]
    for axis, size in enumerate(shape):
        if size != 1 and any(shape[other] != 1 for other in groups[-1]):
            groups.append([])
        groups[-1].append(axis)
    i64 = ir.IntegerType.get_signless(64)
    return ir.ArrayAttr.get([ir.ArrayAttr.get([ir.IntegerAttr.get(i64, axis) for axis in group]) for group in groups])


def _size(value: ir.Value, axis: int) -> ir.Value:
    index = ir.IndexType.get()
    number = ir.Operation.create("arith.constant", results=[index], attributes={"value": ir.IntegerAttr.get(index, axis)})
    return ir.Operation.create("tensor.dim", results=[index], operands=[value, number.results[0]]).results[0]
