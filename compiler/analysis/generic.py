"""Analysis of linalg.generic ops: roles of dims, reductions, and tracing of values through them. Doesn't change IR."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import sympy

from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import Shape

Value: TypeAlias = ir.Value

COMBINERS = frozenset(
    f"arith.{name}"
    for name in (
        "addf",
        "mulf",
        "maximumf",
        "maxnumf",
        "minimumf",
        "minnumf",
        "addi",
        "muli",
        "maxsi",
        "minsi",
        "maxui",
        "minui",
        "andi",
        "ori",
        "xori",
    )
)


@dataclass(frozen=True)
class Generic:
    """One linalg.generic."""

    op: ir.Operation

    @cached_property
    def maps(self) -> list[ir.AffineMap]:
        """Return the indexing maps, one an operand: inputs first, then outputs."""
        return [ir.AffineMapAttr(attr).value for attr in ir.ArrayAttr(self.op.attributes["indexing_maps"])]

    @cached_property
    def iterators(self) -> list[str]:
        """Return the type of each loop dim: "parallel" or "reduction"."""
        return ["reduction" if "reduction" in str(attr) else "parallel" for attr in ir.ArrayAttr(self.op.attributes["iterator_types"])]

    @cached_property
    def num_inputs(self) -> int:
        """Return the number of inputs, tensors and scalars."""
        return int(ir.DenseI32ArrayAttr(self.op.attributes["operandSegmentSizes"])[0])

    @property
    def inputs(self) -> list[ir.Value]:
        """Return the operands of `ins`."""
        return list(self.op.operands)[: self.num_inputs]

    @property
    def inits(self) -> list[ir.Value]:
        """Return the operands of `outs`, in which reductions start."""
        return list(self.op.operands)[self.num_inputs :]

    @property
    def body(self) -> ir.Block:
        """Return the block that computes one element; its last op is the yield."""
        return self.op.regions[0].blocks[0]

    @property
    def rank(self) -> int:
        """Return the number of loop dims."""
        return len(self.iterators)

    @property
    def reduction_dims(self) -> list[int]:
        """Return the loop dims that are reduced, ascending."""
        return [dim for dim, kind in enumerate(self.iterators) if kind == "reduction"]

    @property
    def parallel_dims(self) -> list[int]:
        """Return the loop dims that index the results, ascending."""
        return [dim for dim, kind in enumerate(self.iterators) if kind == "parallel"]

    @property
    def is_elementwise(self) -> bool:
        """Whether no loop dim is reduced."""
        return not self.reduction_dims

    def output_map(self, result: ir.Value) -> ir.AffineMap:
        """Return the indexing map by which `result` is written."""
        return self.maps[self.num_inputs + ir.OpResult(result).result_number]

    def loop_sizes(self, shapes: Shapes) -> Shape:
        """Return the size of each loop dim, from the operands that index it directly. Raises UnsupportedError if one depends on data."""
        sizes: list[sympy.Expr | None] = [None] * self.rank
        for operand, affine in zip(self.op.operands, self.maps, strict=True):
            if not isinstance(operand.type, ir.RankedTensorType):
                continue
            for axis, expr in enumerate(affine.results):
                if isinstance(expr, ir.AffineDimExpr) and sizes[expr.position] is None:
                    sizes[expr.position] = shapes.shape(operand)[axis]
        assert all(size is not None for size in sizes), f"a loop dim without a direct access: {self.op}"
        return tuple(size for size in sizes if size is not None)


def dim_positions(affine: ir.AffineMap) -> list[int | None]:
    """Return the dim of each result of a map, or None for another expression (a constant, a sum)."""
    return [expr.position if isinstance(expr, ir.AffineDimExpr) else None for expr in affine.results]


def is_identity(affine: ir.AffineMap) -> bool:
    """Whether a map is (d0, d1, ...) -> (d0, d1, ...)."""
    return dim_positions(affine) == list(range(affine.n_dims))


def is_fill(op: ir.Operation) -> bool:
    """Whether a generic only yields a scalar from outside, as a generalized linalg.fill does."""
    if op.name == "linalg.fill":
        return True
    if op.name != "linalg.generic":
        return False
    generic = Generic(op)
    ops = list(generic.body.operations)
    if len(ops) != 1 or generic.reduction_dims or len(op.results) != 1:
        return False
    return fill_value(op) is not None


def fill_value(op: ir.Operation) -> ir.Value | None:
    """Return the scalar that a fill writes, a value outside the op; None if it isn't one. `op` satisfies `is_fill`, or is a linalg.fill."""
    if op.name == "linalg.fill":
        return op.operands[0]
    generic = Generic(op)
    yielded = list(generic.body.operations)[-1].operands[0]
    for argument, operand in zip(generic.body.arguments, op.operands, strict=True):
        if yielded == argument:
            return operand if not isinstance(operand.type, ir.RankedTensorType) else None
    return yielded if yielded.owner != generic.body else None


@dataclass(frozen=True)
class Combiner:
    """A reduction whose body is acc' = op(acc, f(inputs)): lanes may be reduced separately and then combined."""

    name: str
    accumulator_index: int
    value: ir.Value  # f(inputs), inside the body


def combiner_of(generic: Generic, result: int) -> Combiner | None:
    """Match how output `result` accumulates; None for another body (such as an arg max)."""
    yielded = list(generic.body.operations)[-1].operands[result]
    accumulator = generic.body.arguments[generic.num_inputs + result]
    owner = yielded.owner
    if isinstance(owner, ir.Block) or owner.name not in COMBINERS:
        return None
    a, b = owner.operands
    if (a == accumulator) == (b == accumulator):
        return None
    if sum(1 for _ in accumulator.uses) != 1:
        return None
    others = [generic.body.arguments[generic.num_inputs + i] for i in range(len(generic.inits)) if i != result]
    value = b if a == accumulator else a
    if any(_depends(value, other, generic.body) for other in others):
        return None
    return Combiner(owner.name, 0 if a == accumulator else 1, value)


def _depends(value: ir.Value, on: ir.Value, body: ir.Block) -> bool:
    if value == on:
        return True
    owner = value.owner
    if isinstance(owner, ir.Block) or owner.operation.block != body:
        return False
    return any(_depends(operand, on, body) for operand in owner.operands)


def has_windows(affine: ir.AffineMap) -> bool:
    """Whether a map has a result that isn't a plain dim, such as a sum of dims."""
    return any(not isinstance(expr, (ir.AffineDimExpr, ir.AffineConstantExpr)) for expr in affine.results)


def dims_of(affine: ir.AffineMap) -> set[int]:
    """Return every loop dim that a map uses."""
    return {dim for expr in affine.results for dim in dims_of_expr(expr)}


def dims_of_expr(expr: ir.AffineExpr) -> set[int]:
    """Return every loop dim that an index expression uses."""
    if isinstance(expr, ir.AffineDimExpr):
        return {expr.position}
    if isinstance(expr, ir.AffineBinaryExpr):
        return dims_of_expr(expr.lhs) | dims_of_expr(expr.rhs)
    return set()


def padded_source(value: Value) -> tuple[Value, ir.Operation | None]:
    """Return the source of a padding of one number that kernels read around, and the pad op; (value, None) if there is none.

    That is 0 around floats, and any number around bytes.
    """
    owner = value.owner
    if isinstance(owner, ir.Block) or owner.name != "tensor.pad":
        return value, None
    number, kind = padding_number(owner.operation), value.type.element_type
    is_byte = isinstance(kind, ir.IntegerType) and kind.width == 8
    reads_around = number is not None and (is_byte or (isinstance(kind, ir.FloatType) and number == 0))
    return (owner.operands[0], owner.operation) if reads_around else (value, None)


def padding_number(pad: ir.Operation) -> float | int | None:
    """Return the constant around a tensor.pad's source; None where it isn't one."""
    padding = list(pad.regions[0].blocks[0].operations)[-1].operands[0].owner
    if isinstance(padding, ir.Block) or padding.name != "arith.constant":
        return None
    attribute = padding.attributes["value"]
    return float(ir.FloatAttr(attribute).value) if isinstance(attribute, ir.FloatAttr) else int(ir.IntegerAttr(attribute).value)


LinearExpr = dict[int, int] | None  # coefficient of each loop dim; None: not linear


def compose(expr: ir.AffineExpr, loop: Sequence[LinearExpr]) -> LinearExpr:
    """Return an index expression over the dims of another loop nest; loop[i] is dim i as a linear expression of them.

    Constants are dropped; None for an expression that isn't linear.
    """
    if isinstance(expr, ir.AffineDimExpr):
        return loop[int(expr.position)]
    if isinstance(expr, ir.AffineConstantExpr):
        return {}
    a, b = compose(expr.lhs, loop), compose(expr.rhs, loop)
    if a is None or b is None:
        return None
    if isinstance(expr, ir.AffineAddExpr):
        return {dim: a.get(dim, 0) + b.get(dim, 0) for dim in a.keys() | b.keys()}
    if isinstance(expr, ir.AffineMulExpr) and isinstance(expr.rhs, ir.AffineConstantExpr):
        return {dim: coefficient * expr.rhs.value for dim, coefficient in a.items()}
    return None


def depends_on(value: Value, target: Value) -> bool:
    """Whether `value` is computed from `target` inside a dispatch."""
    if value == target:
        return True
    owner = value.owner
    if isinstance(owner, ir.Block) or owner.name != "linalg.generic":
        return False
    return any(depends_on(operand, target) for operand in owner.operands)


def captured(op: ir.Operation) -> Iterator[ir.Value]:
    """Yield the operands of an op and of all ops in its regions that are defined outside it."""
    yield from op.operands
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                for value in captured(inner.operation):
                    if not _defined_inside(value, op):
                        yield value


def _defined_inside(value: ir.Value, op: ir.Operation) -> bool:
    parent = value.owner.owner if isinstance(value.owner, ir.Block) else value.owner.operation.parent
    while parent is not None:
        current = parent.operation
        if current == op:
            return True
        parent = current.parent
    return False


def permuted_operand(op: ir.Operation, through: Collection[str] = ()) -> int | None:
    """Return the number of the operand that a generic only permutes or broadcasts; None for one that computes.

    `through`: ops that are ignored, such as "arith.extf".
    """
    if op.name != "linalg.generic" or is_fill(op):
        return None
    generic = Generic(op)
    ops = list(generic.body.operations)
    if not generic.is_elementwise or len(ops) != 1 + (ops[0].name in through):
        return None
    moved = (i for i, argument in enumerate(generic.body.arguments) if argument == ops[0].operands[0])
    source = next(moved, generic.num_inputs)
    return source if source < generic.num_inputs else None


def trace_to_buffer(value: Value, forms: Sequence[LinearExpr], through: Collection[str] = ()) -> tuple[Value, list[LinearExpr]] | None:
    """Trace `value` to the buffer that it only permutes or broadcasts; return it with the linear index of each of its axes.

    None if an op other than `through` is on the way.
    """
    owner = value.owner
    if isinstance(owner, ir.Block):
        return value, list(forms)
    source = permuted_operand(owner.operation, through)
    if source is None:
        return None
    generic = Generic(owner.operation)
    loop: list[LinearExpr] = [{}] * generic.rank
    for expr, form in zip(generic.output_map(value).results, forms, strict=True):
        if isinstance(expr, ir.AffineDimExpr):
            loop[expr.position] = form
    return trace_to_buffer(generic.inputs[source], [compose(expr, loop) for expr in generic.maps[source].results], through)


def map_elements(value: ir.Value, element: ir.Type, body: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """Map `body` over the elements of `value` to element type `element`, as an identity linalg.generic at the insertion point."""
    source = ir.RankedTensorType(value.type)
    kind = ir.RankedTensorType.get(source.shape, element, source.encoding)
    sizes = [_dim(value, axis) for axis in range(source.rank) if kind.is_dynamic_dim(axis)]
    empty = ir.Operation.create("tensor.empty", results=[kind], operands=sizes).results[0]
    identity = ir.AffineMapAttr.get(ir.AffineMap.get_identity(source.rank))
    made = ir.Operation.create(
        "linalg.generic",
        results=[kind],
        operands=[value, empty],
        attributes={
            "indexing_maps": ir.ArrayAttr.get([identity, identity]),
            "iterator_types": ir.ArrayAttr.get([ir.Attribute.parse("#linalg.iterator_type<parallel>")] * source.rank),
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, 1]),
        },
        regions=1,
    )
    block = made.regions[0].blocks.append(source.element_type, element)
    with ir.InsertionPoint(block):
        ir.Operation.create("linalg.yield", operands=[body(block.arguments[0])])
    return made.results[0]


def _dim(value: ir.Value, axis: int) -> ir.Value:
    if not isinstance(value.owner, ir.Block) and value.owner.name == "tensor.empty":
        dynamic = [i for i in range(value.type.rank) if value.type.is_dynamic_dim(i)]
        return value.owner.operands[dynamic.index(axis)]
    index = ir.IndexType.get()
    position = ir.Operation.create("arith.constant", results=[index], attributes={"value": ir.IntegerAttr.get(index, axis)})
    return ir.Operation.create("tensor.dim", results=[index], operands=[value, position.results[0]]).results[0]
