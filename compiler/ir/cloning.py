"""Copies of ops at another place, reading other values."""

from __future__ import annotations

from collections.abc import Iterable

from llmos.compiler.ir.bindings import ir


def clone_ops(ops: Iterable[ir.Operation], mapping: dict[ir.Value, ir.Value]) -> None:
    """Clone ops, in order, at the insertion point. mapping: what the clones read for a value; it gets their results."""
    for op in ops:
        copy = op.clone()
        _remap(copy, mapping)
        mapping.update(zip(op.results, copy.results, strict=True))


def _remap(op: ir.Operation, mapping: dict[ir.Value, ir.Value]) -> None:
    """Replace the operands of an op, and of the ops inside it."""
    for i, operand in enumerate(op.operands):
        if operand in mapping:
            op.operands[i] = mapping[operand]
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                _remap(inner.operation, mapping)
