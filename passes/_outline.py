"""Moving fusion groups into dispatch functions, and the host function into the order in which they run."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmos.compiler.analysis.contraction import root_contraction
from llmos.compiler.analysis.loops import is_loop
from llmos.compiler.ir.attributes import (
    DEQUANTIZE,
    DISPATCH,
    EXPR,
    GROUPED_ROWS,
    OUTER,
    PAGED_ATTENTION,
    SHAPE,
    SHAPES,
    integer,
    shape_attribute,
    strip,
)
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import create_private, name_of
from llmos.compiler.ir.sizes import Expr
from llmos.passes._graph import FusionGroup, Graph, among, captured, erase_dead, is_tensor, owner_of


@dataclass
class Outliner:
    """Builds one dispatch function from one fusion group."""

    graph: Graph
    group: FusionGroup
    order: list[ir.Operation] = field(default_factory=list)
    tensors: dict[ir.Value, None] = field(default_factory=dict)
    sizes: dict[Expr, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for op in self.group.ops:
            self._need(op)

    def _need(self, op: ir.Operation) -> None:
        """Put an op and what is cloned along with it in order."""
        if op in self.order:
            return
        for value in captured(op):
            self._need_value(value)
        self.order.append(op)

    def _need_value(self, value: ir.Value) -> None:
        graph = self.graph
        owner = owner_of(value)
        if not is_tensor(value) and graph.shapes.has_index(value) and not _is_constant(owner):
            self.sizes.setdefault(graph.shapes.index(value), value)
        elif owner is None:
            if is_tensor(value):
                self.tensors.setdefault(value)
        elif owner in self.group.ops or graph.is_free(owner) or (owner not in graph.groups and graph.is_inlined(owner)):
            self._need(owner)
        else:
            self.tensors.setdefault(value)

    @property
    def results(self) -> list[ir.Value]:
        """Return the results that ops outside the fusion group use, in program order."""
        members = set(self.group.ops)
        made = [result for op in self.group.ops for result in op.results]
        return [result for result in made if any(user not in members for user in self.graph.users(result))]

    def build(self, name: str, module: ir.Module) -> ir.Operation:
        """Append the dispatch `func.func private @name` to the module and return it; its arguments are tensors, then sizes."""
        graph, results = self.graph, self.results
        index = ir.IndexType.get()
        kinds = [*[t.type for t in self.tensors], *[index] * len(self.sizes)]
        attributes = [ir.DictAttr.get({SHAPE: shape_attribute(graph.shapes.shape(t))}) for t in self.tensors]
        attributes += [ir.DictAttr.get({EXPR: ir.StringAttr.get(str(expr))}) for expr in self.sizes]
        marks: dict[str, ir.Attribute] = {DISPATCH: ir.StringAttr.get(self.group.kind)}
        if self.group.kind == "row_reduction":
            marks[OUTER] = integer(self.group.num_outer)
        func = create_private(module, name, ir.FunctionType.get(kinds, [r.type for r in results]), attributes, marks)
        block, dequantized = func.regions[0].blocks[0], dequantized_in(self.group)
        mapping: dict[ir.Value, ir.Value] = dict(zip(self.tensors, list(block.arguments)[: len(self.tensors)], strict=True))
        by_expr = dict(zip(self.sizes, list(block.arguments)[len(self.tensors) :], strict=True))
        with ir.InsertionPoint(block):
            for op in self.order:
                copy = op.clone()
                strip(copy, keep=(DEQUANTIZE,) if op in dequantized else (PAGED_ATTENTION, GROUPED_ROWS))
                self._remap(copy, mapping, by_expr)
                mapping.update(zip(op.results, copy.results, strict=True))
            ir.Operation.create("func.return", operands=[mapping[r] for r in results])
        return func

    def _remap(self, op: ir.Operation, mapping: dict[ir.Value, ir.Value], by_expr: dict[Expr, ir.Value]) -> None:
        """Point the operands of a clone, and of what is inside it, at the dispatch's own values."""
        for i, operand in enumerate(op.operands):
            if operand in mapping:
                op.operands[i] = mapping[operand]
            elif not is_tensor(operand) and self.graph.shapes.has_index(operand) and not _is_constant(owner_of(operand)):
                op.operands[i] = self._as_type(by_expr[self.graph.shapes.index(operand)], operand.type, op)
        for region in op.regions:
            for block in region.blocks:
                for inner in block.operations:
                    self._remap(inner.operation, mapping, by_expr)

    def _as_type(self, value: ir.Value, kind: ir.Type, before: ir.Operation) -> ir.Value:
        if value.type == kind:
            return value
        with ir.InsertionPoint(before):
            return ir.Operation.create("arith.index_cast", results=[kind], operands=[value]).results[0]


def _is_constant(owner: ir.Operation | None) -> bool:
    return owner is not None and owner.name == "arith.constant"


def schedule(graph: Graph) -> list[ir.Operation | FusionGroup]:
    """Return host ops and fusion groups in an order that respects every dependence, as near to the program's own as that allows."""
    units: dict[ir.Operation, ir.Operation | FusionGroup] = {}
    for op in graph.ops[:-1]:
        if op in graph.groups:
            units[op] = graph.groups[op]
        elif graph.is_host(op):
            units[op] = op
    needs: dict[ir.Operation | FusionGroup, set[ir.Operation | FusionGroup]] = {unit: set() for unit in units.values()}
    for unit in needs:
        for op in unit.ops if isinstance(unit, FusionGroup) else [unit]:
            _collect(graph, op, units, unit, needs[unit], set())
    rank = {unit: max(graph.position[op] for op in (unit.ops if isinstance(unit, FusionGroup) else [unit])) for unit in needs}
    return _topological(needs, rank)


def _collect(
    graph: Graph,
    op: ir.Operation,
    units: dict[ir.Operation, ir.Operation | FusionGroup],
    unit: ir.Operation | FusionGroup,
    found: set[ir.Operation | FusionGroup],
    seen: set[ir.Operation],
) -> None:
    """Units that an op needs, through lazy and free ops."""
    for value in captured(op):
        owner = owner_of(value)
        if owner is None or owner in seen or owner not in graph.position:
            continue
        seen.add(owner)
        if owner in units and units[owner] is not unit:
            found.add(units[owner])
        elif owner not in units:
            _collect(graph, owner, units, unit, found, seen)


def _topological(
    needs: dict[ir.Operation | FusionGroup, set[ir.Operation | FusionGroup]], rank: dict[ir.Operation | FusionGroup, int]
) -> list[ir.Operation | FusionGroup]:
    users: dict[ir.Operation | FusionGroup, list[ir.Operation | FusionGroup]] = {unit: [] for unit in needs}
    waiting = {unit: len(before) for unit, before in needs.items()}
    for unit, before in needs.items():
        for needed in before:
            users[needed].append(unit)
    heap = [(rank[unit], i, unit) for i, unit in enumerate(needs) if waiting[unit] == 0]
    numbers = {unit: i for i, unit in enumerate(needs)}
    heapq.heapify(heap)
    order: list[ir.Operation | FusionGroup] = []
    while heap:
        _, _, unit = heapq.heappop(heap)
        order.append(unit)
        for user in users[unit]:
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(heap, (rank[user], numbers[user], user))
    assert len(order) == len(needs), "dispatch formation made a cycle"
    return order


def rebuild(graph: Graph, module: ir.Module, order: Sequence[ir.Operation | FusionGroup], prefix: str) -> None:
    """Replace fusion groups by calls, in order, and drop what they cloned."""
    terminator = graph.ops[-1]
    outliners = {unit: Outliner(graph, unit) for unit in order if isinstance(unit, FusionGroup)}
    funcs = {
        unit: outliner.build(f"{prefix}{i}_{unit.kind}", module)
        for i, (unit, outliner) in enumerate(outliners.items())
        if isinstance(unit, FusionGroup)
    }
    # results are asked for before any use is rewritten
    outputs = {unit: outliner.results for unit, outliner in outliners.items()}
    moved: set[ir.Operation] = set()
    for unit in order:
        if not isinstance(unit, FusionGroup):
            _move(unit, terminator, moved)
            continue
        outliner, results = outliners[unit], outputs[unit]
        sizes = dict(outliner.sizes.items())
        with ir.InsertionPoint(terminator):
            operands = [*outliner.tensors, *[_index(graph, value) for value in sizes.values()]]
            call = ir.Operation.create(
                "func.call",
                results=[r.type for r in results],
                operands=operands,
                attributes={
                    "callee": ir.FlatSymbolRefAttr.get(name_of(funcs[unit])),
                    SHAPES: ir.ArrayAttr.get([shape_attribute(graph.shapes.shape(r)) for r in results]),
                },
            )
        for other in outliners.values():  # operands of later fusion groups follow the rewrite
            for old, new in zip(results, call.results, strict=True):
                if old in other.tensors:
                    other.tensors = {(new if t == old else t): None for t in other.tensors}
        for old, new in zip(results, call.results, strict=True):
            graph.shapes._shapes[new] = graph.shapes.shape(old)
            old.replace_all_uses_with(new)
    erase_dead(graph.func)


def _move(op: ir.Operation, terminator: ir.Operation, moved: set[ir.Operation]) -> None:
    """To the end; a loop along with the empty tensors that its stacks begin as."""
    for operand in op.operands if is_loop(op) else ():
        empty = owner_of(operand)
        if empty is not None and empty.name == "tensor.empty" and empty not in moved:
            empty.move_before(terminator)
            moved.add(empty)
    op.move_before(terminator)


def _index(graph: Graph, value: ir.Value) -> ir.Value:
    if isinstance(value.type, ir.IndexType):
        return value
    return ir.Operation.create("arith.index_cast", results=[ir.IndexType.get()], operands=[value]).results[0]


def dequantized_in(group: FusionGroup) -> list[ir.Operation]:
    """Return what dequantizes the right side of a contraction: the kernel goes by its mark."""
    if group.kind not in ("contraction", "grouped_contraction"):
        return []
    owner = owner_of(root_contraction(group.ops).rhs)
    return [owner] if among(owner, group.ops) and owner is not None else []
