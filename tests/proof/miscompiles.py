"""Seeded miscompiles: passes that do their work and then one thing wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmos.compiler.ir import ir
from llmos.passes import Pass

Fault = Callable[[ir.Module], bool]  # damages a module once, and says whether it found where


@dataclass(frozen=True)
class Faulty(Pass):
    """A pass of the pipeline with a fault behind it; it keeps the pass's name."""

    step: Pass
    fault: Fault

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.step.name

    def run(self, module: ir.Module) -> None:
        self.step.run(module)
        assert self.fault(module), "the fault found nothing to damage"

    def __str__(self) -> str:
        return str(self.step)


def with_fault(pipeline: Sequence[Pass], name: str, fault: Fault) -> tuple[Pass, ...]:
    """The pipeline with a fault in the last pass of that name."""
    place = max(i for i, step in enumerate(pipeline) if step.name == name)
    return (*pipeline[:place], Faulty(pipeline[place], fault), *pipeline[place + 1 :])


def walk(module: ir.Module) -> list[ir.Operation]:
    """All ops, those inside regions included, in order."""
    found: list[ir.Operation] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        found.append(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


def swap_operands(op_name: str, number: int = 0) -> Fault:
    """Exchanges the operands of the `number`-th op of a name."""

    def fault(module: ir.Module) -> bool:
        ops = [op for op in walk(module) if op.name == op_name]
        if len(ops) <= number:
            return False
        op = ops[number]
        op.operands[0], op.operands[1] = op.operands[1], op.operands[0]
        return True

    return fault
