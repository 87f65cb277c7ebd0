"""A planned module of the CUDA backend, read once for all targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from llmos.compiler.backends.base import CompiledModel
from llmos.compiler.backends.describe import describe
from llmos.compiler.backends.entries import EntryPlanned
from llmos.compiler.codegen.program import Program
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import Argument, EntryFunc
from llmos.compiler.ir.weights import BoundWeight, Weight
from llmos.runtime.artifact.bfloat16 import to_bfloat16
from llmos.runtime.artifact.safetensors import is_reserved


@dataclass(frozen=True, eq=False)
class CudaPlanned(EntryPlanned):
    """With its dispatches."""

    @cached_property
    def program(self) -> Program:
        """Return the dispatches of the module."""
        with self.module.context, ir.Location.unknown():
            return replace(Program.of(self.module), weights=self.places, first_kernel=self.first_kernel)

    @cached_property
    def record(self) -> CompiledModel:
        """Return what the artifact says of the model; no code yet."""
        with self.module.context, ir.Location.unknown():
            bound = bound_weights(EntryFunc(self.program.main).arguments.weights, self.weights)
            return describe(self.program, self.weights, bound, self.passes)


def bound_weights(arguments: Sequence[Argument], weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the weights of the code, in the order of its arguments, as they lie in the model; narrowed where a kernel wants that."""
    bound: dict[str, Weight] = {}
    for argument in arguments:
        name, weight = argument.name, weights[argument.name]
        if argument.dtype == "bfloat16" != weight.dtype:
            name, weight = f"{name}#bfloat16", _narrowed(weight)
        while name in bound or is_reserved(name):
            name = f"{name}_"
        bound[name] = BoundWeight(weight.dtype, weight.shape, weight.load, argument.name, None)
    return bound


def _narrowed(weight: Weight) -> Weight:
    return Weight("bfloat16", weight.shape, lambda: to_bfloat16(weight.load()))
