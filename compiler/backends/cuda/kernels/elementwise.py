"""Kernels of elementwise chains, moves, gathers, and of reductions whose outputs are computed one by one.

Each thread computes neighbors along the last dims that memory holds in order, as many as one access of 16 bytes moves.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.backends.cuda.kernel import Grid, is_multiple, kernel, num_blocks
from llmos.compiler.codegen.access import group_dims
from llmos.compiler.codegen.builder import byte_width
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import product, split_index
from llmos.compiler.codegen.loop_space import RowPlan, accesses_of, plan_rows, spread
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

THREADS = 256
ACCESS_BYTES = 16


def emit_elementwise(module: ir.Module, dispatch: Dispatch) -> Grid:
    """Append the kernel of an `elementwise` dispatch."""
    plan = plan_rows(dispatch)
    groups = group_dims(accesses_of(plan), plan.sizes, range(plan.rank))
    return emit_points(module, plan, groups)


def emit_points(module: ir.Module, plan: RowPlan, groups: Sequence[Sequence[int]]) -> Grid:
    """Append a kernel that computes the results of a dispatch point by point. groups: dims of its loop space that are walked as one."""
    extents = [product([plan.sizes[dim] for dim in group]) for group in groups]
    width, total = _width(plan.dispatch, extents), product(extents)
    with kernel(module, plan.dispatch, THREADS, width) as frame:
        b, ev = frame.b, frame.emitter
        number = b.add(b.mul(frame.block, b.index(THREADS)), frame.thread)
        flat = b.mul(number, b.index(width))
        with b.when(b.compare("slt", flat, ev.sizes(total))), ev.scope():
            *outer, last = split_index(b, ev.sizes, flat, extents) or [b.index(0)]
            at: list[Coord] = [*outer, Lane(last) if width > 1 else last][: len(extents)]
            place = spread(plan, groups, at, b.index(0))
            coords = [place.get(dim, b.index(0)) for dim in range(plan.rank)]
            for value, buffer in zip(plan.dispatch.results, frame.outputs, strict=True):
                ev.memory.store(ev.value(value, coords), buffer, coords)
    return Grid(num_tiles=num_blocks(total, THREADS * width), threads=THREADS)


def _width(dispatch: Dispatch, extents: Sequence[Expr]) -> int:
    """Elements that a thread handles: 16 bytes of the widest result, where the last dims are a multiple of that."""
    widest = max(byte_width(value.type.element_type) for value in dispatch.results)
    width = ACCESS_BYTES // widest
    return width if widest >= 2 and extents and is_multiple(extents[-1], width) else 1
