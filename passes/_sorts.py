"""Sorts as dispatches: what computes the keys runs where they are read, and slices of the results say which places are wanted."""

from __future__ import annotations

from llmos.compiler.analysis.generic import Generic, is_fill
from llmos.compiler.analysis.sorts import is_sort, range_of
from llmos.compiler.ir.bindings import ir
from llmos.passes._graph import FusionGroup, Graph, is_evaluable, owner_of


def sort_groups(graph: Graph) -> list[FusionGroup]:
    """Return one fusion group for each sort that the kernel takes."""
    found = [op for op in graph.ops if op not in graph.groups and is_sort(op)]
    return [_group(graph, op) for op in found]


def _group(graph: Graph, sort: ir.Operation) -> FusionGroup:
    group = FusionGroup("sort", [])
    graph.assign(group, [sort, *_slices(graph, sort)])
    take_producer(graph, group, sort.operands[0])
    return group


def take_producer(graph: Graph, group: FusionGroup, value: ir.Value) -> None:
    """Let an elementwise op that makes `value` for this fusion group alone run where it is read."""
    op = owner_of(value)
    if op is None or op.name != "linalg.generic" or is_fill(op) or op in graph.groups or graph.is_inlined(op):
        return
    generic = Generic(op)
    alone = len(op.results) == 1 and graph.users(op.results[0]) == [group.ops[0]]
    if alone and generic.is_elementwise and is_evaluable(generic) and graph.may_join(op, group):
        graph.assign(group, [op])


def _slices(graph: Graph, sort: ir.Operation) -> list[ir.Operation]:
    """All that reads a sort, if that is slices of one range of places."""
    users = list(dict.fromkeys(user for result in sort.results for user in graph.users(result)))
    ranges = {range_of(user, graph.shapes) for user in users}
    return users if len(ranges) == 1 and None not in ranges else []
