"""A planned module of the TVM backend: which of its dispatches TVM compiles, and why it doesn't compile the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from llmos.compiler.backends.base import CompiledModel
from llmos.compiler.backends.cpu.planned import CpuPlanned
from llmos.compiler.backends.cpu.target import TARGETS, CpuTarget
from llmos.compiler.backends.tvm.kernel import TileKernel, tile_kernel
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.program import LoopUnit, identity
from llmos.compiler.ir.bindings import ir
from llmos.runtime.artifact.manifest import KernelSpec
from llmos.runtime.errors import UnsupportedError

REFERENCE = TARGETS[3]  # what a record, which is of no target, asks whether TVM has a kernel: tiles differ, and what they compute doesn't


@dataclass(frozen=True, eq=False)
class TvmPlanned(CpuPlanned):
    """With what TVM made of its dispatches, by their texts and targets; made once."""

    _made: dict[tuple[str, str], TileKernel | UnsupportedError] = field(default_factory=dict)

    def tiles(self, dispatch: Dispatch, target: CpuTarget) -> TileKernel | None:
        """Return the tiles of a dispatch for a target; None where it keeps the CPU backend's kernel."""
        made = self._outcome(dispatch, target)
        return made if isinstance(made, TileKernel) else None

    def _outcome(self, dispatch: Dispatch, target: CpuTarget) -> TileKernel | UnsupportedError:
        key = (identity(dispatch), f"{target.vector_bits} bits")
        if key not in self._made:
            try:
                self._made[key] = tile_kernel(dispatch, target)
            except UnsupportedError as refusal:
                self._made[key] = refusal
        return self._made[key]

    @cached_property
    def record(self) -> CompiledModel:
        """Return what the artifact says of the model, with the compiler of each kernel; no code yet."""
        record = super().record
        with self.module.context, ir.Location.unknown():
            made: Mapping[str, TileKernel | UnsupportedError] = {
                each.name: self._outcome(each, REFERENCE) for each in self.program.units if not isinstance(each, LoopUnit)
            }
        return replace(record, kernels=tuple(_with_compiler(spec, made.get(spec.name)) for spec in record.kernels))


def _with_compiler(spec: KernelSpec, made: TileKernel | UnsupportedError | None) -> KernelSpec:
    if made is None:
        return spec
    said = {"compiler": "cpu", "because": str(made)} if isinstance(made, UnsupportedError) else {"compiler": "tvm"}
    return replace(spec, details={**spec.details, **said})
