"""Seeded miscompiles: passes, emitters and packing that do their work and then one thing wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from llmos.compiler.backends import folding, planning
from llmos.compiler.backends.cpu import program as kernels
from llmos.compiler.backends.cpu import weights
from llmos.compiler.ir.bindings import ir
from llmos.compiler.verify import bisect as bisection
from llmos.passes import Pass, PassContext
from llmos.passes.plan_memory import PlanMemory

# Damages one op of a function; False where it is not the kind of op that it looks for.
Damage = Callable[[ir.Operation], bool]


@dataclass(frozen=True)
class Faulty(Pass):
    """A pass of the pipeline with a fault behind it; it keeps the pass's name."""

    step: Pass
    fault: Callable[[ir.Module], None]

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.step.name

    def run(self, module: ir.Module, context: PassContext) -> None:
        self.step.run(module, context)
        self.fault(module)

    def __str__(self) -> str:
        return str(self.step)


def with_fault(pipeline: Sequence[Pass], name: str, fault: Callable[[ir.Module], None]) -> tuple[Pass, ...]:
    """The pipeline with a fault in the last pass of that name."""
    place = max(i for i, step in enumerate(pipeline) if step.name == name)
    return (*pipeline[:place], Faulty(pipeline[place], fault), *pipeline[place + 1 :])


def plant_fault(monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[[ir.Module], None]) -> None:
    """Put a fault behind the last pass of that name in every compile; weights are folded by right passes."""
    original = planning.passes_of
    monkeypatch.setattr(planning, "passes_of", lambda options, backend: with_fault(original(options, backend), name, fault))


def walk(root: ir.Operation) -> list[ir.Operation]:
    """All ops, those inside regions included, in order."""
    found: list[ir.Operation] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        found.append(op)
        return ir.WalkResult.ADVANCE

    root.walk(visit)
    return found


@dataclass(frozen=True)
class Expected:
    """What a bisection must say: the kind, the pass or stage, and the dispatch, or an op with a part of its place in the model."""

    kind: str
    stage: str
    dispatch: str
    place: str = ""


@dataclass(frozen=True)
class InPass:
    """Damage done behind a pass to the op of the `share`-th part (0 to 1) of those that `damage` takes."""

    pass_name: str
    damage: Damage
    kind: str = ""  # of the dispatch whose ops are looked at; "" takes any function
    share: float = 0.6

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Expected]:
        done: list[Expected] = []

        def fault(module: ir.Module) -> None:
            candidates = [op for op in self._ops(module) if self._would(op)]
            assert candidates, "nothing to damage"
            op = candidates[int(self.share * len(candidates))]
            assert self.damage(op)
            done.append(self._expected(op))

        plant_fault(monkeypatch, self.pass_name, fault)
        return lambda: done[0]

    def _ops(self, module: ir.Module) -> list[ir.Operation]:
        functions = [op.operation for op in module.body.operations if "llmos.fold" not in op.operation.attributes]
        wanted = [
            f
            for f in functions
            if not self.kind or ("llmos.dispatch" in f.attributes and self.kind == ir.StringAttr(f.attributes["llmos.dispatch"]).value)
        ]
        return [op for function in wanted for op in walk(function)]

    def _would(self, op: ir.Operation) -> bool:
        """Whether the damage takes an op: tried on a copy of its function."""
        function = enclosing(op, "func.func")
        position = walk(function).index(op)
        holder = ir.Module.create()
        with ir.InsertionPoint(holder.body):
            copy = function.clone()
        return self.damage(walk(copy)[position])

    def _expected(self, op: ir.Operation) -> Expected:
        function = enclosing(op, "func.func")
        if "llmos.dispatch" in function.attributes:
            return Expected(bisection.PASS, self.pass_name, ir.StringAttr(function.attributes["sym_name"]).value)
        while op.parent.operation != function:
            op = op.parent.operation
        return Expected(bisection.PASS, self.pass_name, op.name, str(op.location)[5:-2])


def enclosing(op: ir.Operation, name: str) -> ir.Operation:
    while op.name != name:
        op = op.parent.operation
    return op


# -- what may go wrong in a pass


def swap_operands(name: str) -> Damage:
    def damage(op: ir.Operation) -> bool:
        if op.name != name or op.operands[0] == op.operands[1]:
            return False
        op.operands[0], op.operands[1] = op.operands[1], op.operands[0]
        return True

    return damage


def forward_operand(name: str, number: int) -> Damage:
    """Uses operand `number` of an op in its place: of a select, that is a lost mask."""

    def damage(op: ir.Operation) -> bool:
        if op.name != name or op.parent.name != "linalg.generic":
            return False
        op.results[0].replace_all_uses_with(op.operands[number])
        return True

    return damage


def drop_bias(op: ir.Operation) -> bool:
    """An elementwise generic that adds a vector returns its other operand."""
    if op.name != "arith.addf" or op.parent.name != "linalg.generic":
        return False
    generic = op.parent.operation
    ranks = [len(v.type.shape) for v in generic.operands]
    if min(ranks) != 1 or len(list(generic.regions[0].blocks[0].operations)) != 2:
        return False
    vector = ranks.index(1)
    op.results[0].replace_all_uses_with(op.operands[1 - vector])
    return True


def drop_epilogue(holding: str) -> Damage:
    """A dispatch returns what its last elementwise op reads, where that op's body holds one of a name."""

    def damage(op: ir.Operation) -> bool:
        if op.name != "func.return" or len(op.operands) != 1 or isinstance(op.operands[0].owner, ir.Block):
            return False
        last = op.operands[0].owner.operation
        if last.name != "linalg.generic" or holding not in [each.name for each in last.regions[0].blocks[0].operations]:
            return False
        source = last.operands[0]
        if isinstance(source.owner, ir.Block) or source.type != op.operands[0].type or source.owner.operation.name != "linalg.generic":
            return False
        op.operands[0] = source
        return True

    return damage


def with_maps(op: ir.Operation, change: Callable[[list[ir.AffineMap]], list[ir.AffineMap] | None]) -> bool:
    if op.name != "linalg.generic":
        return False
    maps = [ir.AffineMapAttr(each).value for each in ir.ArrayAttr(op.attributes["indexing_maps"])]
    changed = change(maps)
    if changed is None:
        return False
    op.attributes["indexing_maps"] = ir.ArrayAttr.get([ir.AffineMapAttr.get(each) for each in changed])
    return True


def wrong_axis(op: ir.Operation) -> bool:
    """A vector along the last dim of three is read along the one before it (whose size is not known)."""

    def change(maps: list[ir.AffineMap]) -> list[ir.AffineMap] | None:
        for i, each in enumerate(maps):
            if each.n_dims == 3 and len(each.results) == 1 and each.results[0] == ir.AffineDimExpr.get(2):
                return [*maps[:i], ir.AffineMap.get(3, 0, [ir.AffineDimExpr.get(1)]), *maps[i + 1 :]]
        return None

    return with_maps(op, change)


def wrong_broadcast(op: ir.Operation) -> bool:
    """A vector is read at 0 everywhere."""

    def change(maps: list[ir.AffineMap]) -> list[ir.AffineMap] | None:
        for i, each in enumerate(maps):
            if each.n_dims == 3 and len(each.results) == 1 and each.results[0] == ir.AffineDimExpr.get(2):
                return [*maps[:i], ir.AffineMap.get(3, 0, [ir.AffineConstantExpr.get(0)]), *maps[i + 1 :]]
        return None

    return with_maps(op, change)


def scale_constant(low: float, high: float, factor: float) -> Damage:
    """A float constant between two bounds becomes `factor` times itself."""

    def damage(op: ir.Operation) -> bool:
        if op.name != "arith.constant" or str(op.results[0].type) != "f32":
            return False
        value = ir.FloatAttr(op.attributes["value"]).value
        if not low <= value <= high:
            return False
        op.attributes["value"] = ir.FloatAttr.get(op.results[0].type, value * factor)
        return True

    return damage


def wrong_identity(op: ir.Operation) -> bool:
    """A sum along rows that starts at 0 starts at 1."""
    if op.name != "linalg.generic" or len(list(op.operands)) != 2 or isinstance(op.operands[0].type, ir.RankedTensorType):
        return False
    constant = op.operands[0].owner
    if len(op.results[0].type.shape) != 2 or isinstance(constant, ir.Block) or constant.operation.name != "arith.constant":
        return False
    if ir.FloatAttr(constant.operation.attributes["value"]).value != 0.0:
        return False
    with ir.InsertionPoint(op):
        attributes = {"value": ir.FloatAttr.get(op.operands[0].type, 1.0)}
        one = ir.Operation.create("arith.constant", results=[op.operands[0].type], attributes=attributes)
    op.operands[0] = one.results[0]
    return True


def wrong_pad(op: ir.Operation) -> bool:
    """A pad of the lowest number, for a maximum, pads with 0."""
    if op.name != "tensor.yield" or op.parent.name != "tensor.pad" or isinstance(op.operands[0].owner, ir.Block):
        return False
    constant = op.operands[0].owner.operation
    if constant.name != "arith.constant" or ir.FloatAttr(constant.attributes["value"]).value > -1e30:
        return False
    with ir.InsertionPoint(constant):
        zero = ir.Operation.create(
            "arith.constant", results=[op.operands[0].type], attributes={"value": ir.FloatAttr.get(op.operands[0].type, 0.0)}
        )
    op.operands[0] = zero.results[0]
    return True


def round_to_bfloat16(op: ir.Operation) -> bool:
    """What a generic yields goes through bfloat16."""
    if op.name != "linalg.yield" or str(op.operands[0].type) != "f32" or isinstance(op.operands[0].owner, ir.Block):
        return False
    with ir.InsertionPoint(op):
        narrow = ir.Operation.create("arith.truncf", results=[ir.BF16Type.get()], operands=[op.operands[0]])
        wide = ir.Operation.create("arith.extf", results=[op.operands[0].type], operands=[narrow.results[0]])
    op.operands[0] = wide.results[0]
    return True


# -- what may go wrong elsewhere


@dataclass(frozen=True)
class StaleBuffer:
    """plan-memory gives a result the slot of a value that is read later."""

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Expected]:
        done: list[Expected] = []

        def fault(module: ir.Module) -> None:
            main = next(op.operation for op in module.body.operations if "sym_visibility" not in op.operation.attributes)
            calls = [op.operation for op in main.regions[0].blocks[0].operations if op.operation.name == "func.call"]
            places = [list(ir.DenseI64ArrayAttr(call.attributes["llmos.buffers"])) for call in calls]
            for first in range(len(calls) // 2, len(calls) - 2):
                readers = [i for i, call in enumerate(calls) if calls[first].results[0] in call.operands and i > first + 1]
                alike = calls[first].results[0].type == calls[first + 1].results[0].type
                if readers and alike and places[first][0] >= 0 and places[first + 1][0] >= 0:
                    calls[first + 1].attributes["llmos.buffers"] = ir.DenseI64ArrayAttr.get(places[first])
                    reader = ir.FlatSymbolRefAttr(calls[readers[0]].attributes["callee"]).value
                    done.append(Expected(bisection.MEMORY, "plan-memory", reader))
                    return
            raise AssertionError("no value is read two dispatches later")

        plant_fault(monkeypatch, PlanMemory.name, fault)
        return lambda: done[0]


@dataclass(frozen=True)
class LostTile:
    """An emitter leaves out the last tile of one dispatch: an off-by-one in its grid."""

    kind: str

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Expected]:
        emitters: dict[str, Any] = dict(kernels.EMITTERS)
        original, names = emitters[self.kind], []

        def emit(module: ir.Module, dispatch: Any, target: Any) -> Any:
            launch = original(module, dispatch, target)
            names.append(dispatch.name)
            return replace(launch, num_tiles=launch.num_tiles - 1)

        monkeypatch.setattr(kernels, "EMITTERS", {**emitters, self.kind: emit})
        return lambda: Expected(bisection.KERNEL, "codegen", names[0])


@dataclass(frozen=True)
class WrongPacking:
    """Panels whose columns are one off."""

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Expected]:
        original = weights.pack_panels
        monkeypatch.setattr(weights, "pack_panels", lambda *arguments: np.roll(original(*arguments), 1, axis=-1))
        return lambda: Expected(bisection.WEIGHTS, "packing", "")


@dataclass(frozen=True)
class WrongFold:
    """Weights computed at compile time, and wrongly."""

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Expected]:
        original = folding.call_entry

        def call(code: bytes, symbol: str, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
            original(code, symbol, inputs, outputs)
            outputs[0][...] *= 1.01

        monkeypatch.setattr(folding, "call_entry", call)
        return lambda: Expected(bisection.WEIGHTS, "fold-weight-computation", "fold.0")
