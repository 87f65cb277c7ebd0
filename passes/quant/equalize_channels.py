"""equalize-channels: pairs of products have channels of like ranges (cross-layer equalization)."""

from __future__ import annotations

import math as pymath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from llmos.compiler.analysis.generic import Generic
from llmos.compiler.ir.bindings import arith, ir, math
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.passes._context import PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._graph import erase_dead
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes._weight_only import weight_only_ops, weight_only_values
from llmos.passes.quant._generics import Body, Read, axis_sizes, constant, elementwise, generic, reduced
from llmos.passes.quant._homogeneous import Channels, channels_through
from llmos.passes.quant._integers import number_of
from llmos.passes.quant._rounding import bounded
from llmos.passes.quant._static import StaticProduct, static_products

FURTHEST = 60  # the exponent of a factor, at most


@dataclass(frozen=True)
class EqualizeChannels(Pass):
    """What the channels between two products hold gets the range of their weights' geometric mean (arXiv 1906.04721, section 4.1).

    Before:
        %y = linalg.generic {acc + x * w1} ins(%x, %w1 : tensor<?x8xf32>, tensor<16x8xf32>)
        %z = linalg.generic {max(y + b, 0)} ins(%y, %b)
        %o = linalg.generic {acc + z * w2} ins(%z, %w2 : tensor<?x16xf32>, tensor<4x16xf32>)
    After, with t[c] = 2^-round(log2(max|w1[c]| / max|w2[, c]|) / 2), from weights alone:
        %y = linalg.generic {acc + x * w1'}                       // w1[c] * t[c]
        %z = linalg.generic {max(y + b', 0)}                      // b[c] * t[c]
        %o = linalg.generic {acc + z * w2'}                       // w2[, c] / t[c]

    Powers of two keep every bit of the function. Between the two may lie what lets a positive factor through (_homogeneous.py): biases,
    batch norms, whose gains count as w1's, ReLU, leaky ReLU, maxima and means of windows, moves of axes, and bounds such as ReLU6's, which
    become numbers of each channel. Nothing else may read what lies between. Depthwise convolutions are equalized on either side.

    sweeps: over all pairs, in program order; a product between two others is part of both.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})

    sweeps: int = 3

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Equalize every pair, in every public function."""
        for func in public_functions(module):
            entry = EntryFunc(func)
            for _ in range(self.sweeps):
                _sweep(entry)
            erase_dead(func)


def _sweep(entry: EntryFunc) -> None:
    """Equalize every pair once. What follows from weights is computed first: factors of channels need what is read later."""
    weights = {each.value for each in entry.arguments.weights}
    done = weight_only_ops(entry.block, weights)
    known = weight_only_values(entry.block, weights)
    ahead = set(done)
    place = next(op for op in entry.ops if op not in ahead)
    for op in done:
        op.move_before(place)
    products = static_products(entry)
    by_op = {each.op: each for each in products}
    for first in products:
        pair = _pair_of(first, by_op, known)
        if pair is not None:
            with ir.InsertionPoint(place), first.op.location:
                _equalize(pair)


@dataclass
class _Pair:
    """Two products, axes of their weights along the channels between, and the ops there with what each makes of these."""

    first: StaticProduct
    second: StaticProduct
    first_axis: int
    second_axis: int
    between: list[tuple[ir.Operation, Channels]] = field(default_factory=list)


def _pair_of(first: StaticProduct, products: Mapping[ir.Operation, StaticProduct], known: set[ir.Value]) -> _Pair | None:
    """The pair that a product forms with the one that alone reads its result."""
    between: list[tuple[ir.Operation, Channels]] = []
    found = _result_axis(first)
    if found is None:
        return None
    first_axis, axis = found
    value = first.op.results[0]
    while True:
        users = list(_readers(value))
        if len(users) != 1:
            return None
        if users[0] in products:
            second = products[users[0]]
            second_axis = _weight_axis(second, Generic(second.op).maps[1 - second.weight].results[axis])
            is_activation = second.op.operands[1 - second.weight] == value and second.op.operands[second.weight] != value
            return _Pair(first, second, first_axis, second_axis, between) if is_activation and second_axis is not None else None
        through = channels_through(users[0], value, axis, known)
        if through is None:
            return None
        between.append((users[0], through))
        value, axis = users[0].results[0], through.axis


def _readers(value: ir.Value) -> Iterator[ir.Operation]:
    return (use.owner.operation for use in value.uses if use.owner.operation.name != "tensor.dim")


def _result_axis(product: StaticProduct) -> tuple[int, int] | None:
    """The axes of weight and result that are the channels which the weight makes; None where there isn't one of each."""
    old = Generic(product.op)
    out = [str(expr) for expr in old.maps[old.num_inputs].results]
    shape = product.op.operands[product.weight].type.shape
    found = [
        (axis, out.index(str(expr)))
        for axis, expr in enumerate(old.maps[product.weight].results)
        if isinstance(expr, ir.AffineDimExpr) and str(expr) in out and shape[axis] > 1
    ]
    return found[0] if len(found) == 1 and old.num_inputs == 2 and number_of(old.inits[0]) == 0 else None


def _weight_axis(product: StaticProduct, dim: ir.AffineExpr) -> int | None:
    if not isinstance(dim, ir.AffineDimExpr):
        return None
    exprs = [str(each) for each in Generic(product.op).maps[product.weight].results]
    return exprs.index(str(dim)) if exprs.count(str(dim)) == 1 else None


def _equalize(pair: _Pair) -> None:
    """Multiply what makes the channels by factors, and divide what reads them; at the insertion point what follows from weights."""
    first, second = pair.first.op.operands[pair.first.weight], pair.second.op.operands[pair.second.weight]
    made = _range(first, pair.first_axis)
    for op, through in pair.between:
        for place, multiplies in through.gains.items():
            made = _with_gain(made, op.operands[place], arith.mulf if multiplies else arith.divf)
    factors = _over([made, _range(second, pair.second_axis)], _factor)
    pair.first.op.operands[pair.first.weight] = _scaled(first, pair.first_axis, factors, arith.mulf)
    pair.second.op.operands[pair.second.weight] = _scaled(second, pair.second_axis, factors, arith.divf)
    for op, through in pair.between:
        for place in through.shifts:
            vector = op.operands[place]
            axis = next(axis for axis, expr in enumerate(Generic(op).maps[place].results) if isinstance(expr, ir.AffineDimExpr))
            op.operands[place] = _scaled(vector, axis, factors, arith.mulf)
        if through.constants:
            _scale_constants(op, through, factors)


def _range(weight: ir.Value, axis: int) -> ir.Value:
    """The largest magnitude of each channel."""
    others = [each for each in range(weight.type.rank) if each != axis]
    zero = constant(0.0, ir.F32Type.get())
    return reduced(weight, others, zero, lambda each, acc: arith.maximumf(acc, math.absf(each)))


def _with_gain(found: ir.Value, gain: ir.Value, body: Body) -> ir.Value:
    """The range of what a number, or one of each channel, multiplies or divides."""
    is_vector = pymath.prod(gain.type.shape) > 1
    exprs = [ir.AffineExpr.get_dim(0) if is_vector and size > 1 else ir.AffineExpr.get_constant(0) for size in gain.type.shape]
    reads = [Read.whole(found), Read(gain, tuple(exprs))]
    return elementwise(reads, axis_sizes(found), ir.F32Type.get(), lambda each, by: body(each, math.absf(by)))


def _over(values: Sequence[ir.Value], body: Body) -> ir.Value:
    return elementwise([Read.whole(each) for each in values], axis_sizes(values[0]), ir.F32Type.get(), body)


def _factor(made: ir.Value, read: ir.Value) -> ir.Value:
    """The power of two next to sqrt(read / made); 1 where one of both is 0 or isn't finite."""
    f32, i32 = ir.F32Type.get(), ir.IntegerType.get_signless(32)
    half = arith.mulf(arith.subf(math.log2(read), math.log2(made)), constant(0.5, f32))
    exponent = bounded(math.roundeven(half), -FURTHEST, FURTHEST)
    is_finite = arith.cmpf(arith.CmpFPredicate.OLT, math.absf(half), constant(pymath.inf, f32))
    number = arith.fptosi(i32, arith.select(is_finite, exponent, constant(0.0, f32)))
    return arith.bitcast(f32, arith.shli(arith.addi(number, constant(127, i32)), constant(23, i32)))


def _scaled(tensor: ir.Value, axis: int, factors: ir.Value, body: Body) -> ir.Value:
    reads = [Read.whole(tensor), Read.at(factors, [axis])]
    return elementwise(reads, axis_sizes(tensor), ir.F32Type.get(), body)


def _scale_constants(op: ir.Operation, through: Channels, factors: ir.Value) -> None:
    """Read a number of each channel in the place of each constant that is added or a bound."""
    old, f32 = Generic(op), ir.F32Type.get()
    dim = old.maps[old.num_inputs].results[through.axis]
    vectors = [
        elementwise([Read.whole(factors)], axis_sizes(factors), f32, lambda each, value=value: arith.mulf(each, constant(value, f32)))
        for value in [number_of(inner.operands[place]) or 0.0 for inner, place in through.constants]
    ]
    reads = [Read(value, tuple(affine.results)) for value, affine in zip(old.inputs, old.maps, strict=False)]
    places = [(inner, place) for inner, place in through.constants]

    def body(*elements: ir.Value) -> ir.Value:
        given, bounds = elements[: old.num_inputs], elements[old.num_inputs : -1]
        mapping = dict(zip(old.body.arguments, (*given, elements[-1]), strict=True))
        for inner in list(old.body.operations)[:-1]:
            copy = inner.operation.clone()
            for number, operand in enumerate(copy.operands):
                copy.operands[number] = mapping.get(operand, operand)
            for bound, (other, place) in zip(bounds, places, strict=True):
                if other == inner.operation:
                    copy.operands[place] = bound
            mapping.update(zip(inner.operation.results, copy.results, strict=True))
        return mapping[list(old.body.operations)[-1].operands[0]]

    with ir.InsertionPoint(op), op.location:
        out = Read(old.inits[0], tuple(old.maps[old.num_inputs].results))
        made = generic([*reads, *[Read(vector, (dim,)) for vector in vectors]], out, old.reduction_dims, old.rank, body)
    op.results[0].replace_all_uses_with(made)
    op.erase()
