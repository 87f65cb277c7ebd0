"""Epilogues: the elementwise ops that join the dispatch of the op they follow."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.analysis.generic import Generic, dim_positions, is_fill, is_identity
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Shape
from llmos.passes._graph import MOVES, FusionGroup, Graph, among, captured, is_evaluable, owner_of, reads_table_of


def absorb_epilogue(graph: Graph, group: FusionGroup, root: ir.Value, keep_last: bool) -> None:
    """Add the elementwise ops that follow a root and can run while its result is in registers.

    All that could follow is taken first; then whatever follows a value that is needed outside anyway is given back, so that a dispatch
    writes each value once and the ops behind it go where they save a pass over memory.
    """
    taken = _without_leaks(graph, group, root, _following(graph, group, root, keep_last))
    written = [op for op in taken if _leaks(graph, op, group, taken)]
    if not keep_last and len({graph.shapes.shape(op.results[0]) for op in written}) > 1:  # one loop space writes them all
        taken = _without_leaks(graph, group, root, _following(graph, group, root, keep_last, graph.shapes.shape(root)))
    graph.assign(group, taken)


def release_dequantizations(graph: Graph, group: FusionGroup) -> None:
    """Take out of a fusion group what dequantizes bytes that it makes, where only others read the floats.

    They read the bytes instead, a quarter of the memory.
    """
    for op in reversed(list(group.ops)):
        users = [user for result in op.results for user in graph.users(result)]
        is_last = graph.is_dequantization(op) and any(among(owner_of(value), group.ops) for value in op.operands)
        if is_last and not any(user in group.ops or _needs_memory(user) for user in users):
            graph.release(group, op)


def _needs_memory(user: ir.Operation) -> bool:
    """Whether an op reads what it uses in memory."""
    return user.name not in ("linalg.generic", *MOVES)


def _following(graph: Graph, group: FusionGroup, root: ir.Value, keep_last: bool, shape: Shape | None = None) -> list[ir.Operation]:
    """Every op that could follow; of `shape` only, if given."""
    taken: list[ir.Operation] = []
    for op in graph.ops[graph.position[group.ops[0]] :]:
        if _follows(graph, op, group, root, taken, keep_last) and shape in (None, graph.shapes.shape(op.results[0])):
            taken.append(op)
    return taken


def _without_leaks(graph: Graph, group: FusionGroup, root: ir.Value, taken: list[ir.Operation]) -> list[ir.Operation]:
    while True:
        leaking = [op for op in [owner_of(root), *taken] if op is not None and _leaks(graph, op, group, taken)]
        behind = [op for op in taken if any(_is_behind(op, leak, taken) for leak in leaking)]
        if not behind:
            return taken
        taken = [op for op in taken if op not in behind]


def _leaks(graph: Graph, op: ir.Operation, group: FusionGroup, taken: Sequence[ir.Operation]) -> bool:
    return any(user not in taken and user not in group.ops for result in op.results for user in graph.users(result))


def _is_behind(op: ir.Operation, leak: ir.Operation, taken: Sequence[ir.Operation]) -> bool:
    owners = [owner_of(operand) for operand in op.operands]
    return any((owner is not None and owner == leak) or (among(owner, taken) and _is_behind(owner, leak, taken)) for owner in owners)


def _follows(graph: Graph, op: ir.Operation, group: FusionGroup, root: ir.Value, taken: Sequence[ir.Operation], keep_last: bool) -> bool:
    if op in graph.groups or op.name != "linalg.generic" or is_fill(op) or len(op.results) != 1:
        return False
    if not any(operand == root or among(owner_of(operand), taken) for operand in op.operands):
        return False  # most ops of a function, told before their regions are read
    generic = Generic(op)
    if not generic.is_elementwise or not is_evaluable(generic) or not is_identity(generic.output_map(op.results[0])):
        return False
    inside = [
        (operand, affine)
        for operand, affine in zip(generic.inputs, generic.maps, strict=False)
        if operand == root or among(owner_of(operand), taken)
    ]
    if not inside or not all(_rearranges(graph, generic, operand, affine, keep_last) for operand, affine in inside):
        return False
    if any(operand == root or among(owner_of(operand), taken) for operand in generic.inits):
        return False
    trial = FusionGroup(group.kind, [*group.ops, *taken])
    if reads_table_of(op, trial.ops):
        return False
    return all(among(owner_of(v), trial.ops) or not graph.would_depend(v, trial) for v in captured(op))


def _rearranges(graph: Graph, generic: Generic, operand: ir.Value, affine: ir.AffineMap, keep_last: bool) -> bool:
    """Whether a map reads each element of `operand` exactly once: a permutation, up to dims of size 1."""
    sizes = generic.loop_sizes(graph.shapes)
    shape = graph.shapes.shape(operand)
    positions = dim_positions(affine)
    if any(p is None and size != 1 for p, size in zip(positions, shape, strict=True)):
        return False
    read = [p for p, size in zip(positions, shape, strict=True) if p is not None and size != 1]
    if sorted(read) != [dim for dim, size in enumerate(sizes) if size != 1]:
        return False
    return not keep_last or not read or read[-1] == max(read)
