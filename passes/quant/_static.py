"""What quantize-static takes: float32 sums of products of an activation and a weight, and the activations that they read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llmos.compiler.analysis.contraction import is_sum_of_products
from llmos.compiler.analysis.generic import Generic, combiner_of, dim_positions, dims_of_expr, padding_number
from llmos.compiler.analysis.quantization import quantization_of
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.passes._graph import owner_of
from llmos.passes._weight_only import weight_only_values, weight_sources
from llmos.passes.quant._moves import moved_tensors

MIN_PRODUCTS = 4  # of one sum
MAX_PRODUCTS = (1 << 31) // (255 * 127)  # the sum of so many fits in int32


@dataclass(frozen=True)
class StaticProduct:
    """A contraction, or a convolution, in groups or not, whose sides are quantized by scales that are known at compile time.

    weight: the number of the input that is the weight. source: the activation that its other input holds the elements of, besides zeros
    around them: before moves, padding, and the maxima of windows. label: names of the weights.
    """

    op: ir.Operation
    weight: int
    source: ir.Value
    label: str

    @property
    def summed_axes(self) -> tuple[int, ...]:
        """Return the axes of the weight along which products are summed, those that no loop dim indexes (a kernel's one tap) included."""
        generic = Generic(self.op)
        exprs = generic.maps[self.weight].results
        return tuple(axis for axis, expr in enumerate(exprs) if dims_of_expr(expr) <= set(generic.reduction_dims))


def static_products(entry: EntryFunc) -> list[StaticProduct]:
    """Return what quantize-static takes of an entry, in program order."""
    weights = {each.value: each.name for each in entry.arguments.weights}
    known = weight_only_values(entry.block, set(weights))
    return [each for op in entry.ops if (each := _product(op, weights, known)) is not None]


def activations_of(products: list[StaticProduct]) -> list[ir.Value]:
    """Return the distinct activations that products read, in the order of these: their numbers are those of the recorded ranges."""
    return list(dict.fromkeys(each.source for each in products))


def _product(op: ir.Operation, weights: dict[ir.Value, str], known: set[ir.Value]) -> StaticProduct | None:
    if not is_sum_of_products(op) or any(not isinstance(value.type.element_type, ir.F32Type) for value in op.operands):
        return None
    generic = Generic(op)
    weight = next((side for side in (0, 1) if generic.inputs[side] in known), None)
    if weight is None or generic.inputs[1 - weight] in known:
        return None
    sizes = dict(zip(dim_positions(generic.maps[weight]), generic.inputs[weight].type.shape, strict=True))
    found = [sizes.get(dim, -1) for dim in generic.reduction_dims]
    if min(found) < 1 or not MIN_PRODUCTS <= math.prod(found) <= MAX_PRODUCTS:
        return None
    names = sorted(weights[each] for each in weight_sources(generic.inputs[weight], set(weights)))
    source = _source(generic.inputs[1 - weight])
    owner = owner_of(source)
    is_quantized = owner is not None and quantization_of(owner) is not None
    return StaticProduct(op, weight, source, ", ".join(names)) if names and not is_quantized else None


def _source(value: ir.Value) -> ir.Value:
    for before in _before(value):
        value = before
    return value


def _before(value: ir.Value) -> Iterator[ir.Value]:
    """What a value holds the elements of, step by step."""
    owner = owner_of(value)
    while owner is not None:
        tensors = moved_tensors(owner)
        if owner.name == "tensor.pad" and padding_number(owner) in (0, -math.inf):
            tensors = [owner.operands[0]]
        elif not tensors:
            tensors = _pooled(owner)
        if len(tensors) != 1:
            return
        yield tensors[0]
        owner = owner_of(tensors[0])


def _pooled(op: ir.Operation) -> list[ir.Value]:
    """The image of which an op finds the maxima of windows."""
    generic = Generic(op) if op.name == "linalg.generic" and len(op.results) == 1 else None
    combiner = combiner_of(generic, 0) if generic is not None and generic.reduction_dims else None
    if generic is None or combiner is None or combiner.name != "arith.maximumf" or len(list(generic.body.operations)) != 2:
        return []
    return [value for value, argument in zip(generic.inputs, generic.body.arguments, strict=False) if argument == combiner.value]
