"""Kernels of everything that is not a contraction: elementwise chains, moves, gathers, and reductions over a row.

A dispatch with reductions over its inner dims (softmax, layer norm, RMS norm, L2 norm, pooling of the last dims) becomes one loop over
rows; a row is walked once per level: level 0 reduces what depends on inputs alone, level 1 what depends on the first reductions, and so
on, while the row stays in L1.
What a later level needs and is dear to compute again is kept in a row of scratch, or read back from the output that holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import sympy

from llmos.compiler.codegen.access import Accesses, group_dims
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.columns import columns_in, emit_columns
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.evaluate import neutral_element, simple_combiners
from llmos.compiler.codegen.kernel import Frame, Launch, ceil_div, kernel, product, split_index
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.codegen.tile import TileShape
from llmos.compiler.ir import ir
from llmos.compiler.linalg import Form, Generic, is_fill
from llmos.compiler.symbolic import Expr
from llmos.compiler.widening import is_widened_argument

CHUNK = 4096  # elements of one tile of a long elementwise loop
DEAR = ("math.", "arith.divf", "arith.remf")


@dataclass
class RowPlan:
    """What a dispatch computes at which level."""

    dispatch: Dispatch
    num_outer: int
    sizes: tuple[Expr, ...]  # of the full loop space: outer dims, then inner dims
    generics: list[Generic] = field(default_factory=list)
    _levels: dict[Value, int] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return len(self.sizes)

    def level(self, value: Value) -> int:
        """The number of reductions that must end before `value` can be evaluated inside a row."""
        owner = value.owner
        if isinstance(owner, ir.Block):
            return 0
        if value not in self._levels:
            inputs = [self.level(operand) for operand in owner.operands if isinstance(operand.type, ir.RankedTensorType)]
            inputs += [self.level(tensor) for tensor in _extracted(owner.operation)]
            own = max(inputs, default=0)
            self._levels[value] = own + 1 if self.is_row_reduction(owner.operation) else own
        return self._levels[value]

    def is_row_reduction(self, op: ir.Operation) -> bool:
        if op.name != "linalg.generic" or is_fill(op):
            return False
        generic = Generic(op)
        return self.num_outer < self.rank and generic.reduction_dims == list(range(self.num_outer, self.rank)) and generic.rank == self.rank

    def is_outer(self, value: Value) -> bool:
        """Whether a value has one element a row."""
        shape = self.dispatch.shapes.shape(value)
        if len(shape) == self.num_outer:
            return True
        return (
            len(shape) == self.rank
            and all(size == 1 for size in shape[self.num_outer :])
            and any(s != 1 for s in self.sizes[self.num_outer :])
        )

    def is_read_by_rows(self, value: Value) -> bool:
        """Whether every use of a value of the outer dims' rank reads it at the row; a vector along the row has that rank as well."""
        if self.level(value) > 0:
            return True  # one number of this row's reductions
        outer = [ir.AffineExpr.get_dim(dim) for dim in range(self.num_outer)]
        for use in value.uses:
            owner = use.owner.operation if not isinstance(use.owner, ir.Operation) else use.owner
            if owner.name != "linalg.generic":
                return bool(owner.name == "func.return")
            if list(Generic(owner).maps[use.operand_number].results)[: len(outer)] != outer:
                return False
            if any(len(self.dispatch.shapes.shape(r)) == self.num_outer and not self.is_read_by_rows(r) for r in owner.results):
                return False
        return True

    def reductions_at(self, level: int) -> list[Generic]:
        return [g for g in self.generics if self.is_row_reduction(g.op) and self.level(g.op.results[0]) == level + 1]

    @property
    def last_level(self) -> int:
        return max((self.level(value) for g in self.generics for value in g.op.results), default=0)

    def kept_at(self, level: int) -> list[Value]:
        """Full rows computed at `level` that a later level uses and that are dear to compute again."""
        values = [value for generic in self.generics if generic.is_elementwise for value in generic.op.results]
        full = [value for value in values if self.level(value) == level and not self.is_outer(value)]
        return [value for value in full if self._used_later(value, level) and self._is_dear(value)]

    def _used_later(self, value: Value, level: int) -> bool:
        for use in value.uses:
            owner = use.owner.operation if not isinstance(use.owner, ir.Operation) else use.owner
            if owner.name != "linalg.generic":
                continue
            phase = self.level(owner.results[0]) - (1 if self.is_row_reduction(owner) else 0)
            if phase > level:
                return True
        return False

    def _is_dear(self, value: Value) -> bool:
        """Two or more reads, a data-dependent read, or a slow operation."""
        reads, dear = self._cost(value, self.level(value))
        return dear or reads >= 2

    def _cost(self, value: Value, level: int) -> tuple[int, bool]:
        owner = value.owner
        if isinstance(owner, ir.Block):
            return (0 if self.is_outer(value) else 1), False
        if self.level(value) < level or is_fill(owner.operation) or owner.name != "linalg.generic":
            return 1, False
        generic = Generic(owner.operation)
        if not generic.is_elementwise:
            return 0, False
        dear = any(op.name.startswith(DEAR) or op.name == "tensor.extract" for op in generic.body.operations)
        reads = 0
        for operand, argument in zip(generic.op.operands, generic.body.arguments, strict=True):
            if isinstance(operand.type, ir.RankedTensorType) and any(True for _ in argument.uses):
                more, also = self._cost(operand, level)
                reads, dear = reads + more, dear or also
        return reads, dear


def _extracted(op: ir.Operation) -> list[Value]:
    """Tensors that a body reads by `tensor.extract`."""
    if op.name != "linalg.generic":
        return []
    return [inner.operands[0] for inner in Generic(op).body.operations if inner.name == "tensor.extract"]


def plan_rows(dispatch: Dispatch) -> RowPlan:
    """Read the loop space of a `row` or `elementwise` dispatch."""
    ops = [op.operation for op in dispatch.block.operations if op.name == "linalg.generic" and not is_fill(op.operation)]
    # a widened argument may have any shape, a table's for example: it is no part of the row, but read where something asks for it
    generics = [Generic(op) for op in ops if not is_widened_argument(op.results[0])]
    if "llmos.outer" not in dispatch.func.attributes:
        shape = dispatch.shapes.shape(dispatch.results[0])
        return RowPlan(dispatch, len(shape), shape, generics)
    num_outer = ir.IntegerAttr(dispatch.func.attributes["llmos.outer"]).value
    reduction = next(g for g in generics if g.reduction_dims and g.reduction_dims == list(range(num_outer, g.rank)))
    return RowPlan(dispatch, num_outer, reduction.loop_sizes(dispatch.shapes), generics)


def emit_rows(module: ir.Module, dispatch: Dispatch, shape: TileShape) -> Launch:
    """Append the kernel of a `row` or `elementwise` dispatch. `shape`: the processor's register tile."""
    columns = columns_in(dispatch) if dispatch.kind == "elementwise" else None
    if columns is not None:
        return emit_columns(module, columns, shape)
    plan = plan_rows(dispatch)
    accesses = _accesses(plan)
    outer = group_dims(accesses, plan.sizes, range(plan.num_outer))
    if plan.num_outer == plan.rank:
        return _emit_elementwise(module, plan, outer)
    inner = group_dims(accesses, plan.sizes, range(plan.num_outer, plan.rank))
    return _RowEmitter(plan, outer, inner).emit(module)


def _accesses(plan: RowPlan) -> Accesses:
    accesses = Accesses(plan.dispatch)
    made = {value for generic in plan.generics for value in generic.op.results}
    for value in plan.dispatch.results:
        if value not in made:  # a slice, a pad, a concatenation
            shape = plan.dispatch.shapes.shape(value)
            forms: list[Form] = [{dim: 1} if size != 1 else {} for dim, size in enumerate(shape)]
            accesses.trace(value, forms)
            accesses.leaves.append((shape, forms))
    for generic in plan.generics:
        for value in generic.op.results:
            if plan.is_row_reduction(generic.op):
                continue
            shape = plan.dispatch.shapes.shape(value)
            forms = [{dim: 1} if size != 1 else {} for dim, size in enumerate(shape)]
            accesses.trace(value, forms)
            if value in plan.dispatch.results:
                accesses.leaves.append((shape, list(forms)))
        if plan.is_row_reduction(generic.op):
            for operand, affine in zip(generic.inputs, generic.maps, strict=False):
                if isinstance(operand.type, ir.RankedTensorType):
                    accesses.trace(operand, [{e.position: 1} if isinstance(e, ir.AffineDimExpr) else {} for e in affine.results])
            for op in generic.body.operations:
                if op.name == "linalg.index":
                    accesses.pinned.add(ir.IntegerAttr(op.attributes["dim"]).value)
    return accesses


def _spread(plan: RowPlan, groups: Sequence[Sequence[int]], indices: Sequence[Coord], zero: Value) -> dict[int, Coord]:
    """Loop coordinates from one index a group: the flat index stands at the group's last dim, whose stride is the smallest."""
    coords: dict[int, Coord] = dict.fromkeys((dim for group in groups for dim in group), zero)
    for group, index in zip(groups, indices, strict=True):
        coords[group[-1]] = index
    return coords


def _emit_elementwise(module: ir.Module, plan: RowPlan, groups: list[list[int]]) -> Launch:
    extents = [product([plan.sizes[dim] for dim in group]) for group in groups]
    lane_extent = extents[-1] if extents else sympy.Integer(1)
    chunks = ceil_div(lane_extent, CHUNK)
    rows = product(extents[:-1])
    with kernel(module, plan.dispatch) as frame, frame.tiles() as tile:
        b, ev = frame.b, frame.evaluator
        row, chunk = (b.div(tile, ev.sizes(chunks)), b.rem(tile, ev.sizes(chunks))) if chunks != 1 else (tile, b.index(0))
        outer = split_index(b, ev.sizes, row, extents[:-1])
        low = b.mul(chunk, b.index(CHUNK))
        high = b.minimum(b.add(low, b.index(CHUNK)), ev.sizes(lane_extent)) if chunks != 1 else ev.sizes(lane_extent)

        def point(lane: Coord, _: Sequence[Value]) -> list[Value]:
            spread = _spread(plan, groups, [*outer, lane] if groups else [], b.index(0))
            coords = [spread.get(dim, b.index(0)) for dim in range(plan.rank)]
            for value, buffer in zip(plan.dispatch.results, frame.outputs, strict=True):
                ev.store(ev.value(value, coords), buffer, coords)
            return []

        if lane_extent == 1:
            point(b.index(0), [])
        else:
            _lane_loop(frame, low, high, point, [], static=int(lane_extent) if lane_extent.is_Integer and chunks == 1 else None)
    return Launch(sympy.expand(rows * chunks))


def _constantly(value: Value) -> Callable[[Sequence[Coord]], Value]:
    """What is one value at every point."""
    return lambda _: value


Step = Callable[[Coord, Sequence[Value]], list[Value]]


def _lane_loop(frame: Frame, low: Value, high: Value, step: Step, carried: list[Value], static: int | None) -> list[Value]:
    """Run `step` over [low, high) a vector at a time, then once under a mask for what is left. `static`: the length, if known."""
    b, ev = frame.b, frame.evaluator
    width = b.index(b.lanes)
    whole = b.add(low, b.mul(b.div(b.sub(high, low), width), width))
    if static is None or static >= b.lanes:
        with b.loop(low, whole, width, carried) as loop, ev.scope():
            loop.yield_(step(Lane(loop.iv), loop.args))
        carried = loop.results
    if static is not None and static % b.lanes == 0:
        return carried
    with b.loop(whole, high, width, carried) as loop, ev.scope():
        with ev.masked(b.tail_mask(b.sub(high, loop.iv))):
            made = step(Lane(loop.iv), loop.args)
        loop.yield_(made)
    return loop.results


def _scalar_loop(frame: Frame, low: Value, high: Value, step: Step, carried: list[Value]) -> list[Value]:
    b = frame.b
    with b.loop(low, high, b.index(1), carried) as loop, frame.evaluator.scope():
        loop.yield_(step(loop.iv, loop.args))
    return loop.results


@dataclass
class _RowEmitter:
    plan: RowPlan
    outer: list[list[int]]
    inner: list[list[int]]

    def emit(self, module: ir.Module) -> Launch:
        plan = self.plan
        row_elements = product(plan.sizes[plan.num_outer :])
        extents = [product([plan.sizes[dim] for dim in group]) for group in self.outer]
        self.slots = self._assign_slots()
        with kernel(module, plan.dispatch) as frame, frame.tiles() as tile:
            self.frame = frame
            b = frame.b
            outer = _spread(plan, self.outer, split_index(b, frame.evaluator.sizes, tile, extents), b.index(0))
            self.outer_coords: list[Coord] = [outer.get(dim, b.index(0)) for dim in range(plan.num_outer)]
            for level in range(plan.last_level + 1):
                self._level(level)
            self._store_outer()
            for value in list(frame.evaluator.bound):
                del frame.evaluator.bound[value]
        slot_bytes = sum((row_elements * 8 + 64 for _ in self.slots), sympy.Integer(0))
        return Launch(product(extents), sympy.expand(slot_bytes))

    def _assign_slots(self) -> dict[Value, int]:
        """A scratch row for each kept value that no output holds."""
        kept = [v for level in range(self.plan.last_level + 1) for v in self.plan.kept_at(level) if v not in self.plan.dispatch.results]
        return {value: slot for slot, value in enumerate(dict.fromkeys(kept))}

    def _level(self, level: int) -> None:
        plan, ev = self.plan, self.frame.evaluator
        reductions = plan.reductions_at(level)
        targets = self._targets(level)
        if reductions or targets:
            results = self._walk(reductions, targets)
            for generic, values in zip(reductions, results, strict=True):
                for result, value in zip(generic.op.results, values, strict=True):
                    ev.bound[result] = _constantly(value)
        for value, buffer, inner_only in targets:
            ev.bound[value] = self._reader(buffer, inner_only)
        self._bind_outer(level + 1)

    def _targets(self, level: int) -> list[tuple[Value, Buffer, bool]]:
        """(value, where it is written, whether that is a scratch row) of the rows stored at this level."""
        plan = self.plan
        targets: list[tuple[Value, Buffer, bool]] = []
        for value, buffer in zip(plan.dispatch.results, self.frame.outputs, strict=True):
            if plan.level(value) == level and not plan.is_outer(value):
                targets.append((value, buffer, False))
        return targets + [(value, self._scratch_row(value), True) for value in plan.kept_at(level) if value in self.slots]

    def _scratch_row(self, value: Value) -> Buffer:
        frame, b = self.frame, self.frame.b
        inner = self.plan.sizes[self.plan.num_outer :]
        offset = sympy.expand(self.slots[value] * (product(inner) * 8 + 64))
        kind = value.type.element_type
        return Buffer.dense(b.address(frame.scratch, frame.evaluator.sizes(offset), b.i8), kind, inner)

    def _reader(self, buffer: Buffer, inner_only: bool) -> Callable[[Sequence[Coord]], Value]:
        num_outer, ev = self.plan.num_outer, self.frame.evaluator
        return lambda coords: ev.load(buffer, coords[num_outer:] if inner_only else coords)

    def _bind_outer(self, level: int) -> None:
        """Evaluate the one-element-a-row values that are ready, outside the loops over the row."""
        plan, ev = self.plan, self.frame.evaluator
        for generic in plan.generics:
            for value in generic.op.results:
                ready = generic.is_elementwise and value not in ev.bound and plan.level(value) <= level
                if ready and plan.is_outer(value) and plan.is_read_by_rows(value):
                    ev.bound[value] = _constantly(ev.value(value, self._row_point(value)))

    def _row_point(self, value: Value) -> list[Coord]:
        rank = len(self.plan.dispatch.shapes.shape(value))
        return [*self.outer_coords, *[self.frame.b.index(0)] * (rank - self.plan.num_outer)]

    def _walk(self, reductions: list[Generic], targets: list[tuple[Value, Buffer, bool]]) -> list[list[Value]]:
        """One pass over the row: every reduction of a level at once, and the stores."""
        ev, b = self.frame.evaluator, self.frame.b
        simple = [simple_combiners(generic) for generic in reductions]
        vectorized = all(found is not None for found in simple)
        inits = [[self._init(generic, i) for i in range(len(generic.inits))] for generic in reductions]
        if vectorized:
            start = [
                b.neutral(init.type, neutral_element(c.name, init.type))
                for found, row in zip(simple, inits, strict=True)
                for c, init in zip(found or [], row, strict=True)
            ]
        else:
            start = [ev.carried(init) for row in inits for init in row]

        def step(inner: dict[int, Coord], carried: Sequence[Value]) -> list[Value]:
            coords = [*self.outer_coords, *[inner.get(dim, b.index(0)) for dim in range(self.plan.num_outer, self.plan.rank)]]
            made: list[Value] = []
            for generic, found in zip(reductions, simple, strict=True):
                old = list(carried[len(made) : len(made) + len(generic.inits)])
                made += self._combine(generic, found, coords, old) if vectorized else ev.accumulate(generic, coords, old)
            for value, buffer, inner_only in targets:
                ev.store(ev.value(value, coords), buffer, coords[self.plan.num_outer :] if inner_only else coords)
            return made

        ended = self._nest(0, {}, step, start, vectorized)
        rows: list[list[Value]] = []
        position = 0
        for _generic, found, row in zip(reductions, simple, inits, strict=True):
            mine = ended[position : position + len(row)]
            position += len(row)
            if vectorized:
                mine = [ev.combine(c.name, init, ev.horizontal(c.name, v)) for c, init, v in zip(found or [], row, mine, strict=True)]
            else:
                mine = [ev.uncarried(value, init.type) for value, init in zip(mine, row, strict=True)]
            rows.append(mine)
        return rows

    def _init(self, generic: Generic, index: int) -> Value:
        ev = self.frame.evaluator
        loop = [*self.outer_coords, *[self.frame.b.index(0)] * (generic.rank - self.plan.num_outer)]
        return ev.value(generic.inits[index], ev.apply(generic.maps[generic.num_inputs + index], loop))

    def _combine(self, generic: Generic, found: object, coords: list[Coord], old: list[Value]) -> list[Value]:
        ev, b = self.frame.evaluator, self.frame.b
        made: list[Value] = []
        for combiner, accumulator in zip(found or [], old, strict=True):  # type: ignore[call-overload]
            new = ev.combine(combiner.name, accumulator, b.splat(ev.contribution(generic, combiner, coords)))
            made.append(b.select(ev.mask, new, accumulator) if ev.mask is not None else new)
        return made

    def _nest(
        self,
        depth: int,
        inner: dict[int, Coord],
        step: Callable[[dict[int, Coord], Sequence[Value]], list[Value]],
        carried: list[Value],
        vectorized: bool,
    ) -> list[Value]:
        b, ev = self.frame.b, self.frame.evaluator
        if depth == len(self.inner):
            lane: dict[int, Coord] = inner
            if vectorized and not self.inner:  # a row of one element: lane 0 alone
                with ev.masked(b.tail_mask(b.index(1))):
                    return step({self.plan.rank - 1: Lane(b.index(0))}, carried)
            return step(lane, carried)
        group = self.inner[depth]
        extent = product([self.plan.sizes[dim] for dim in group])

        def body(index: Coord, values: Sequence[Value]) -> list[Value]:
            here = {**inner, **dict.fromkeys(group, b.index(0)), group[-1]: index}
            return self._nest(depth + 1, here, step, list(values), vectorized)

        low, high = b.index(0), ev.sizes(extent)
        if vectorized and depth == len(self.inner) - 1:
            return _lane_loop(self.frame, low, high, body, carried, int(extent) if extent.is_Integer else None)
        return _scalar_loop(self.frame, low, high, body, carried)

    def _store_outer(self) -> None:
        plan, ev = self.plan, self.frame.evaluator
        for value, buffer in zip(plan.dispatch.results, self.frame.outputs, strict=True):
            if plan.is_outer(value):
                point = self._row_point(value)
                ev.store(ev.value(value, point), buffer, point)
