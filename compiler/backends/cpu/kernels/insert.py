"""The kernel of a slice that is written into a tensor where it lies: it touches nothing but the slice (passes/update_in_place.py)."""

from __future__ import annotations

import sympy

from llmos.compiler.analysis.generic import LinearExpr
from llmos.compiler.backends.cpu.kernels.walk import Walk
from llmos.compiler.codegen.access import Accesses, group_dims
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Frame, Launch, kernel
from llmos.compiler.codegen.loop_space import RowPlan
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import kept_dims, slice_parameters


def emit_insert(module: ir.Module, dispatch: Dispatch) -> Launch:
    """Append the kernel of an `insert` dispatch: a tensor.insert_slice of step 1 that lies inside its tensor."""
    insert = next(op for op in dispatch.ops if op.name == "tensor.insert_slice")
    walk = _walk(dispatch, insert)
    with kernel(module, dispatch) as frame, frame.tiles() as tile:
        walk.emit(frame, tile, [(insert.operands[0], _part(frame, dispatch, insert))])
    return Launch(walk.num_tiles)


def _walk(dispatch: Dispatch, insert: ir.Operation) -> Walk:
    """Over the slice, its dims together as far as it and the tensor lie in order."""
    source, shape = insert.operands[0], dispatch.shapes.shape(insert.operands[0])
    forms: list[LinearExpr] = [{dim: 1} if size != 1 else {} for dim, size in enumerate(shape)]
    inside = dict(zip(kept_dims(insert, source), forms, strict=True))
    whole = dispatch.shapes.shape(insert.results[0])
    accesses = Accesses(dispatch)
    accesses.trace(source, forms)
    accesses.leaves.append((whole, [inside.get(axis, {}) for axis in range(len(whole))]))
    return Walk(RowPlan(dispatch, len(shape), shape), group_dims(accesses, shape, range(len(shape))))


def _part(frame: Frame, dispatch: Dispatch, insert: ir.Operation) -> Buffer:
    """Where the slice lies in the tensor."""
    whole, b = frame.outputs[0], frame.b
    offsets = slice_parameters(dispatch.shapes, insert, 2)[0]
    assert offsets is not None
    place = sum((offset * stride for offset, stride in zip(offsets, whole.strides, strict=True)), sympy.S.Zero)
    kind = b.i8 if isinstance(whole.kind, ir.IntegerType) and whole.kind.width == 1 else whole.kind
    kept = kept_dims(insert, insert.operands[0])
    pointer = b.address(whole.pointer, frame.emitter.sizes(sympy.expand(place)), kind)
    return Buffer(pointer, whole.kind, tuple(whole.shape[d] for d in kept), tuple(whole.strides[d] for d in kept))
