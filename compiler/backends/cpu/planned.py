"""A planned module of the CPU backend, read once for all targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from llmos.compiler.analysis.contraction import root_contraction
from llmos.compiler.backends.base import CompiledModel
from llmos.compiler.backends.cpu.weights import bound_weights
from llmos.compiler.backends.describe import describe
from llmos.compiler.backends.entries import EntryPlanned
from llmos.compiler.codegen.program import Program
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc, EntryFunc


@dataclass(frozen=True, eq=False)
class CpuPlanned(EntryPlanned):
    """With its dispatches."""

    @cached_property
    def program(self) -> Program:
        """Return the dispatches of the module."""
        with self.module.context, ir.Location.unknown():
            return replace(Program.of(self.module), weights=self.places, first_kernel=self.first_kernel)

    @cached_property
    def multiplied(self) -> frozenset[str]:
        """What its kernels multiply beside float32: "bf16", "int8"."""
        with self.module.context, ir.Location.unknown():
            arguments = [argument for each in self.program.dispatches for argument in DispatchFunc(each.func).arguments]
            tensors = [each for each in arguments if isinstance(each.value.type, ir.RankedTensorType)]
            found = {"bf16" for each in tensors if isinstance(each.value.type.element_type, ir.BF16Type)}
            packed = [each for each in tensors if each.packed is not None and each.packed.k_per_word is None]
            found |= {"int8" for each in packed if isinstance(each.value.type.element_type, ir.IntegerType)}
            kinds = ("contraction", "grouped_contraction")
            contractions = [each for each in self.program.dispatches if DispatchFunc(each.func).kind in kinds]
            found |= {"int8" for each in contractions if root_contraction(each.ops).has_byte_rows}
        return frozenset(found)

    @cached_property
    def record(self) -> CompiledModel:
        """Return what the artifact says of the model; no code yet."""
        with self.module.context, ir.Location.unknown():
            bound = bound_weights(EntryFunc(self.program.main).arguments.weights, self.weights)
            return describe(self.program, self.weights, bound, self.passes)
