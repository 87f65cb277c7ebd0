"""The CPU backend: linalg on tensors to shared objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from llmos.compiler.backends.base import CompiledModel, CompileObserver, Planned, Stage, Target
from llmos.compiler.backends.cpu import pipeline
from llmos.compiler.backends.cpu.cost import COSTS
from llmos.compiler.backends.cpu.emit import STAGES
from llmos.compiler.backends.cpu.entries import lower_entries
from llmos.compiler.backends.cpu.planned import CpuPlanned
from llmos.compiler.backends.cpu.target import TARGETS, CpuTarget, code_targets, resolve
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.weights import Weight
from llmos.passes import Pass, PassContext
from llmos.runtime.artifact.writer import CodeVariant


class CpuBackend:
    """Kernels and a host function for each target, as LLVM IR, as an object, and linked."""

    name: ClassVar[str] = "cpu"
    stages: ClassVar[Mapping[str, Stage]] = STAGES
    known_targets: ClassVar[Sequence[CpuTarget]] = TARGETS

    def targets(self, text: str) -> list[CpuTarget]:
        """Return the targets of a text such as "portable" or "x86-64-v3,native", best first. Raises UserError for an unknown name."""
        return resolve(text)

    def code_targets(self, text: str, targets: Sequence[Target], plans: Sequence[Planned]) -> list[CpuTarget]:
        """Return the targets that code of these plans differs for (`target.code_targets`)."""
        multiplied = {each for plan in plans if isinstance(plan, CpuPlanned) for each in plan.multiplied}
        return code_targets(text, [target for target in targets if isinstance(target, CpuTarget)], multiplied)

    def parse_target(self, name: str) -> CpuTarget:
        """Return the target that a `CpuTarget.name` names. Raises ValueError."""
        return CpuTarget.parse(name)

    def dispatch_passes(self, options: CompileOptions) -> list[Pass]:
        """Return the passes from linalg to dispatches."""
        return pipeline.dispatch_passes(options)

    def plan_passes(self, options: CompileOptions) -> list[Pass]:
        """Return the passes from dispatches to tiles, packed weights and the arena."""
        return pipeline.plan_passes(options)

    def context(self, options: CompileOptions) -> PassContext:
        """Return what the passes are told: the costs on a CPU and the precision."""
        return PassContext(COSTS, options.precision)

    def plan(self, module: ir.Module, weights: Mapping[str, Weight], passes: Sequence[str]) -> CpuPlanned:
        """Return a module that the passes have left, as all stages read it."""
        return CpuPlanned(module, weights, tuple(passes))

    def lower_entries(
        self, plans: Mapping[str, Planned], targets: Sequence[Target], options: CompileOptions, observer: CompileObserver
    ) -> CompiledModel:
        """Lower the entries of one artifact for all targets. Raises UnsupportedError, PassError."""
        return lower_entries(plans, targets, options, self, observer)

    def member(self, target: str, code: bytes) -> CodeVariant:
        """Return the code member of one target; `code`: a shared object."""
        made_for = CpuTarget.parse(target)
        return CodeVariant(made_for.name, made_for.arch, made_for.required, code)
