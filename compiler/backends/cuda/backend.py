"""The CUDA backend: linalg on tensors to PTX for NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from llmos.compiler.backends.base import CompiledModel, CompileObserver, Planned, Stage, Target
from llmos.compiler.backends.cuda import pipeline
from llmos.compiler.backends.cuda.cost import COSTS
from llmos.compiler.backends.cuda.emit import STAGES, make_entry_kernels
from llmos.compiler.backends.cuda.parts import Parts
from llmos.compiler.backends.cuda.planned import CudaPlanned
from llmos.compiler.backends.cuda.target import CudaTarget, parse_target, resolve, targets
from llmos.compiler.backends.entries import together
from llmos.compiler.backends.lowering import lower_each
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.weights import Weight
from llmos.passes import Pass, PassContext
from llmos.runtime.artifact.writer import CodeVariant


class CudaBackend:
    """Kernels as PTX and host functions as a shared object, for each target."""

    name: ClassVar[str] = "cuda"
    stages: ClassVar[Mapping[str, Stage]] = STAGES

    @property
    def known_targets(self) -> Sequence[CudaTarget]:
        """Return the targets, best first."""
        return targets()

    def targets(self, text: str) -> list[CudaTarget]:
        """Return the targets of a text such as "cuda:sm_80,cuda:sm_90a", best first. Raises UserError for an unknown name."""
        return resolve(text)

    def code_targets(self, text: str, targets: Sequence[Target], plans: Sequence[Planned]) -> list[Target]:
        """Return all targets."""
        return list(targets)

    def parse_target(self, name: str) -> CudaTarget:
        """Return the target of a name. Raises ValueError."""
        return parse_target(name)

    def dispatch_passes(self, options: CompileOptions) -> list[Pass]:
        """Return the passes from linalg to dispatches."""
        return pipeline.dispatch_passes(options)

    def plan_passes(self, options: CompileOptions) -> list[Pass]:
        """Return the passes from dispatches to the arena."""
        return pipeline.plan_passes(options)

    def context(self, options: CompileOptions) -> PassContext:
        """Return what the passes are told: the costs on a GPU and the precision."""
        return PassContext(COSTS, options.precision)

    def plan(self, module: ir.Module, weights: Mapping[str, Weight], passes: Sequence[str]) -> CudaPlanned:
        """Return a module that the passes have left, as all stages read it."""
        return CudaPlanned(module, weights, tuple(passes))

    def lower_entries(
        self, plans: Mapping[str, Planned], targets: Sequence[Target], options: CompileOptions, observer: CompileObserver
    ) -> CompiledModel:
        """Lower the entries of one artifact for all targets. Raises UnsupportedError, PassError."""
        placed, record = together({name: plan for name, plan in plans.items() if isinstance(plan, CudaPlanned)})
        made = [(make_entry_kernels(placed, target, options), target) for target in targets if isinstance(target, CudaTarget)]
        return record.with_code(targets, lower_each(made, options, self, observer, after="kernels.mlir"))

    def member(self, target: str, code: bytes) -> CodeVariant:
        """Return the code members of one target; `code`: its `Parts`."""
        made_for, parts = parse_target(target), Parts.of(code)
        device = {"ptx": parts.ptx.encode(), **({"cubin": parts.cubin} if parts.cubin else {})}
        return CodeVariant(made_for.name, made_for.host.arch, (made_for.chip,), parts.host, device)
