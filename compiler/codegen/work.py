"""What a dispatch does, whatever the target: operations and bytes, for profiles and for what pays."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from llmos.compiler.analysis.attention import parts_of
from llmos.compiler.analysis.casts import extended
from llmos.compiler.analysis.contraction import root_contraction
from llmos.compiler.analysis.conv3x3 import conv3x3_of
from llmos.compiler.analysis.generic import Generic, is_fill
from llmos.compiler.analysis.grouped_rows import GroupedRows, is_grouped_rows
from llmos.compiler.analysis.paged_attention import BLOCK_SIZE, OPERANDS, is_paged_attention
from llmos.compiler.analysis.winograd import TAPS
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import product
from llmos.compiler.codegen.program import LoopUnit
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc
from llmos.compiler.ir.sizes import Expr


@dataclass(frozen=True)
class Work:
    """What a dispatch does, for profiles: floating-point operations and bytes of memory it must touch, over the symbols."""

    flops: Expr
    num_bytes: Expr


def describe_loop(unit: LoopUnit) -> Work:
    """Return the arithmetic and the traffic of all iterations."""
    works = [describe_work(dispatch) for dispatch in unit.dispatches]
    flops, num_bytes = (sum(parts, sympy.S.Zero) for parts in ([w.flops for w in works], [w.num_bytes for w in works]))
    return Work(sympy.expand(unit.loop.trip_count * flops), sympy.expand(unit.loop.trip_count * num_bytes))


def describe_work(dispatch: Dispatch) -> Work:
    """Arithmetic and traffic of one dispatch: each operand and result once; of a table that is gathered from, what is read.

    In place, what is given is read and written, and the tensor that it is written into is not counted. Attention over a paged cache is
    counted as if every request filled its row of the block tables.
    """
    shapes = dispatch.shapes
    if dispatch.kind == "paged_attention":
        return _paged_attention_work(dispatch)
    in_place = DispatchFunc(dispatch.func).in_place
    if in_place is not None:
        given = [product(shapes.shape(value)) * _width(value) for i, value in enumerate(dispatch.tensors) if i != in_place]
        return Work(sympy.expand(_flops(dispatch)), sympy.expand(2 * sum(given, sympy.S.Zero)))
    sizes = [_elements_read(dispatch, value) * _width(value) for value in dispatch.tensors]
    sizes += [product(shapes.shape(value)) * _width(value) for value in dispatch.results]
    gathered = [product(shapes.shape(value)) * _width(value) for value in _gathered(dispatch)]
    written = product(shapes.shape(dispatch.results[0])) * _width(dispatch.results[0])
    num_bytes = sum(sizes, sympy.Integer(0)) - sum(gathered, sympy.Integer(0)) + written * len(gathered)
    if dispatch.kind == "winograd":
        flops, more_bytes = _winograd_work(dispatch)
        return Work(flops, sympy.expand(num_bytes + more_bytes))
    return Work(sympy.expand(_flops(dispatch)), sympy.expand(num_bytes))


def _paged_attention_work(dispatch: Dispatch) -> Work:
    """Both products of all tokens over the positions of a row of the block tables; of the cache, the blocks that these list."""
    op = next(op for op in dispatch.ops if is_paged_attention(op))
    operands = dict(zip(OPERANDS, Generic(op).inputs, strict=False))
    shape = {name: dispatch.shapes.shape(value) for name, value in operands.items()}
    flops = 4 * product(shape["query"]) * shape["block_tables"][1] * BLOCK_SIZE
    num_bytes = product(shape["block_tables"]) * product(shape["cache"][1:]) * _width(operands["cache"])
    others = [value for value in (*dispatch.tensors, *dispatch.results) if value != operands["cache"]]
    num_bytes += sum((product(dispatch.shapes.shape(value)) * _width(value) for value in others), sympy.S.Zero)
    return Work(sympy.expand(flops), sympy.expand(num_bytes))


def _elements_read(dispatch: Dispatch, tensor: ir.Value) -> Expr:
    """All of a tensor, or the slices of it that are taken."""
    users = list({use.owner.operation for use in tensor.uses})
    slices = [op.results[0] for op in users if op.name == "tensor.extract_slice"]
    whole = product(dispatch.shapes.shape(tensor))
    return whole if len(slices) < len(users) or not slices else sum((product(dispatch.shapes.shape(v)) for v in slices), sympy.S.Zero)


def _width(value: ir.Value) -> int:
    return max(1, int(getattr(ir.RankedTensorType(value.type).element_type, "width", 64)) // 8)


def _gathered(dispatch: Dispatch) -> list[ir.Value]:
    found: dict[ir.Value, None] = {}
    for op in dispatch.block.operations:
        if op.name == "linalg.generic":
            tables = [inner.operands[0] for inner in Generic(op.operation).body.operations if inner.name == "tensor.extract"]
            found.update({extended(table) or table: None for table in tables})
    return [value for value in found if value in dispatch.tensors]


def _flops(dispatch: Dispatch) -> Expr:
    if dispatch.kind == "attention":
        parts = parts_of(dispatch.ops)
        return sum((2 * product(c.generic.loop_sizes(dispatch.shapes)) for c in (parts.scores, parts.values)), sympy.Integer(0))
    if dispatch.kind == "grouped_contraction":
        (groups,) = (GroupedRows(op).num_groups for op in dispatch.ops if is_grouped_rows(op))
        return 2 * product(root_contraction(dispatch.ops).generic.loop_sizes(dispatch.shapes)) / groups
    if dispatch.kind == "contraction":
        return 2 * product(root_contraction(dispatch.ops).generic.loop_sizes(dispatch.shapes))
    total: Expr = sympy.Integer(0)
    for op in dispatch.ops:
        if op.name == "linalg.generic" and not is_fill(op):
            generic = Generic(op)
            if dispatch.kind == "contraction_window" and generic.is_elementwise:
                continue  # an epilogue, as of a contraction
            arithmetic = sum(1 for inner in generic.body.operations if inner.name.endswith("f") or inner.name.startswith("math."))
            total += arithmetic * product(generic.loop_sizes(dispatch.shapes))
    return total


def _winograd_work(dispatch: Dispatch) -> tuple[Expr, int]:
    """The floating-point operations of the products, and the bytes by which the transformed weight is larger than the plain one."""
    conv, m = conv3x3_of(root_contraction(dispatch.ops), dispatch.shapes), DispatchFunc(dispatch.func).winograd_tile
    assert conv is not None and m is not None
    weights, positions = conv.channels * conv.columns, (m + TAPS - 1) ** 2
    tiles = conv.batch * product([sympy.Integer(size) for size in conv.tiles(m)])
    return sympy.expand(2 * tiles * positions * weights), 4 * (positions - TAPS**2) * weights
