"""split-reductions: a long reduction to one result becomes one to many, which run side by side, and one of those."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmos.compiler.analysis.contraction import kernel_contraction_of
from llmos.compiler.analysis.generic import Combiner, Generic, combiner_of, dim_positions, has_windows, is_identity
from llmos.compiler.analysis.windows import identity_element
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import public_functions
from llmos.passes._context import PassContext
from llmos.passes._pass import Pass


@dataclass(frozen=True)
class SplitReductions(Pass):
    """A reduction of many elements to one result is one tile of work, for one thread. It is made in parts, whose number follows from
    sizes alone: results have the same bits on any number of threads. The same as IREE's split-reduction.

    Before:
        %1 = linalg.generic {acc + x[i]} ins(%x : tensor<1048576xf32>) outs(%0 : tensor<f32>)
    After:
        %1 = linalg.generic {acc + x[p * 65536 + i]} ins(%x, %loops : ..., tensor<16x65536xi1>) outs(%zeros : tensor<16xf32>)   // p over i
        %2 = linalg.generic {acc + y[p]} ins(%1 : tensor<16xf32>) outs(%0 : tensor<f32>)

    Parts are of equal length, so a number of elements without a divisor near `part` is left as it is, and so are dynamic sizes. Several
    dimensions count as one where they lie in memory; what an elementwise op makes doesn't, and is read where it is made.

    min_elements: of a reduction that is split; part: about how many elements a part has.
    """

    min_elements: int = 1 << 18
    part: int = 1 << 16

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Split the long reductions of every public function."""
        for func in public_functions(module):
            for each in list(func.regions[0].blocks[0].operations):
                if each.operation.name == "linalg.generic":
                    self._split(Generic(each.operation))

    def _split(self, generic: Generic) -> None:
        sizes = _static_sizes(generic)
        if sizes is None or any(sizes[dim] != 1 for dim in generic.parallel_dims) or not _is_splittable(generic):
            return
        combiners = [each for i in range(len(generic.inits)) if (each := combiner_of(generic, i)) is not None]
        length = self._length(math.prod(sizes))
        if len(combiners) < len(generic.inits) or length is None:
            return
        with ir.InsertionPoint(generic.op), generic.op.location:
            read = _read_as_one(generic, sizes, length)
            if read is not None:
                _combine(generic, combiners, _partial(generic, combiners, math.prod(sizes) // length, length, *read))

    def _length(self, size: int) -> int | None:
        """How many elements make a part of so many: the most that aren't too many; None where the reduction stays whole."""
        lengths = [each for each in _divisors(size) if self.part // 4 <= each <= self.part] if size >= self.min_elements else []
        return max(lengths, default=None)


def _divisors(size: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(size) + 1) if size % n == 0]
    return sorted({*small, *(size // n for n in small)})


def _static_sizes(generic: Generic) -> list[int] | None:
    """The length of each loop, where all are known and each is a dimension of some operand."""
    sizes: list[int | None] = [None] * generic.rank
    for operand, affine in zip(generic.op.operands, generic.maps, strict=True):
        if not isinstance(operand.type, ir.RankedTensorType):
            return None
        for axis, dim in enumerate(dim_positions(affine)):
            if dim is not None and sizes[dim] is None and not operand.type.is_dynamic_dim(axis):
                sizes[dim] = operand.type.shape[axis]
    known = [size for size in sizes if size is not None]
    return known if len(known) == generic.rank else None


def _is_splittable(generic: Generic) -> bool:
    """Whether it is a reduction whose elements are read by their loops alone, and whose body doesn't ask where it is."""
    plain = all(not has_windows(affine) for affine in generic.maps[: generic.num_inputs])
    body = all(op.operation.name != "linalg.index" and not list(op.operation.regions) for op in generic.body.operations)
    return bool(generic.reduction_dims) and plain and body and kernel_contraction_of(generic.op) is None


def _read_as_one(generic: Generic, sizes: Sequence[int], length: int) -> tuple[list[ir.Value], list[ir.AffineMap]] | None:
    """The inputs, and their maps over (part, place in it), where the loops can be one loop."""
    place = ir.AffineDimExpr.get(0) * length + ir.AffineDimExpr.get(1)
    longer = [dim for dim, size in enumerate(sizes) if size != 1]
    if len(longer) == 1:
        loops = [place if dim == longer[0] else ir.AffineConstantExpr.get(0) for dim in range(generic.rank)]
        return generic.inputs, [_composed(affine, loops, 2) for affine in generic.maps[: generic.num_inputs]]
    if not all(is_identity(affine) for affine in generic.maps[: generic.num_inputs]) or any(map(_is_elementwise, generic.inputs)):
        return None
    return [_flat(each) for each in generic.inputs], [ir.AffineMap.get(2, 0, [place])] * generic.num_inputs


def _is_elementwise(value: ir.Value) -> bool:
    owner = value.owner
    return not isinstance(owner, ir.Block) and not (owner.name == "linalg.generic" and Generic(owner.operation).reduction_dims)


def _flat(value: ir.Value) -> ir.Value:
    kind = ir.RankedTensorType.get([math.prod(value.type.shape)], value.type.element_type)
    groups = ir.Attribute.parse(f"[[{', '.join(map(str, range(value.type.rank)))}]]")
    return ir.Operation.create("tensor.collapse_shape", results=[kind], operands=[value], attributes={"reassociation": groups}).results[0]


def _partial(
    generic: Generic, combiners: Sequence[Combiner], parts: int, length: int, inputs: Sequence[ir.Value], maps: Sequence[ir.AffineMap]
) -> list[ir.Value]:
    """The reductions of each part [parts], from the number that changes nothing."""
    part = ir.AffineMap.get(2, 0, [ir.AffineDimExpr.get(0)])
    i1 = ir.IntegerType.get_signless(1)
    extents = ir.Operation.create("tensor.empty", results=[ir.RankedTensorType.get([parts, length], i1)]).results[0]
    inits = [_filled(parts, c.name, init.type.element_type) for c, init in zip(combiners, generic.inits, strict=True)]
    maps = [*maps, ir.AffineMap.get_identity(2), *[part] * len(inits)]
    new = _generic([*inputs, extents], inits, maps, ["parallel", "reduction"])
    block = new.regions[0].blocks[0]
    arguments = list(block.arguments)
    values = dict(zip(generic.body.arguments, [*arguments[: len(inputs)], *arguments[len(inputs) + 1 :]], strict=True))
    with ir.InsertionPoint(block):
        for op in generic.body.operations:
            copy = op.operation.clone()
            for i, operand in enumerate(list(copy.operands)):
                copy.operands[i] = values.get(operand, operand)
            values.update(zip(op.operation.results, copy.results, strict=True))
    return list(new.results)


def _combine(generic: Generic, combiners: Sequence[Combiner], parts: Sequence[ir.Value]) -> None:
    """The parts joined with what the reduction started from, in the place of the whole."""
    outputs = generic.maps[generic.num_inputs :]
    order = generic.parallel_dims
    rank, inner = len(order) + 1, {dim: ir.AffineDimExpr.get(i + 1) for i, dim in enumerate(order)}
    loops = [inner.get(dim, ir.AffineConstantExpr.get(0)) for dim in range(generic.rank)]
    results = [list(_composed(affine, loops, rank).results) for affine in outputs]
    maps = [ir.AffineMap.get(rank, 0, [ir.AffineDimExpr.get(0)])] * len(parts)
    maps += [ir.AffineMap.get(rank, 0, exprs) for exprs in results]
    new = _generic(parts, generic.inits, maps, ["reduction", *["parallel"] * len(order)])
    block = new.regions[0].blocks[0]
    with ir.InsertionPoint(block):
        made = []
        for i, combiner in enumerate(combiners):
            part, accumulator = block.arguments[i], block.arguments[len(combiners) + i]
            operands = [accumulator, part] if combiner.accumulator_index == 0 else [part, accumulator]
            made.append(ir.Operation.create(combiner.name, results=[part.type], operands=operands).results[0])
        ir.Operation.create("linalg.yield", operands=made)
    for old, result in zip(generic.op.results, new.results, strict=True):
        old.replace_all_uses_with(result)
    generic.op.erase()


def _composed(affine: ir.AffineMap, loops: Sequence[ir.AffineExpr], rank: int) -> ir.AffineMap:
    """A map of plain dims and constants, over other loops."""
    return ir.AffineMap.get(rank, 0, [loops[e.position] if isinstance(e, ir.AffineDimExpr) else e for e in affine.results])


def _filled(size: int, combiner: str, element: ir.Type) -> ir.Value:
    kind = ir.RankedTensorType.get([size], element)
    splat_constant = identity_element(combiner, element)
    is_float = not isinstance(element, ir.IntegerType)
    number = ir.FloatAttr.get(element, float(splat_constant)) if is_float else ir.IntegerAttr.get(element, int(splat_constant))
    start = ir.Operation.create("arith.constant", results=[element], attributes={"value": number}).results[0]
    empty = ir.Operation.create("tensor.empty", results=[kind]).results[0]
    fill = _generic([start], [empty], [ir.AffineMap.get(1, 0, []), ir.AffineMap.get_identity(1)], ["parallel"])
    block = fill.regions[0].blocks[0]
    with ir.InsertionPoint(block):
        ir.Operation.create("linalg.yield", operands=[block.arguments[0]])
    return fill.results[0]


def _generic(inputs: Sequence[ir.Value], inits: Sequence[ir.Value], maps: Sequence[ir.AffineMap], iterators: Sequence[str]) -> ir.Operation:
    """A linalg.generic at the insertion point whose body is still empty."""
    made = ir.Operation.create(
        "linalg.generic",
        results=[init.type for init in inits],
        operands=[*inputs, *inits],
        attributes={
            "indexing_maps": ir.ArrayAttr.get([ir.AffineMapAttr.get(each) for each in maps]),
            "iterator_types": ir.ArrayAttr.get([ir.Attribute.parse(f"#linalg.iterator_type<{each}>") for each in iterators]),
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get([len(inputs), len(inits)]),
        },
        regions=1,
    )
    made.regions[0].blocks.append(*[getattr(value.type, "element_type", value.type) for value in (*inputs, *inits)])
    return made
