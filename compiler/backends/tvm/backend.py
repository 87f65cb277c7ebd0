"""The TVM backend: the CPU backend with TVM as the compiler of the kernels that it can hold (docs/tvm.md)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import ClassVar

from llmos.compiler.backends.base import Stage
from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.weights import Weight

if importlib.util.find_spec("tvm") is None:
    raise ImportError("apache-tvm is missing: pip install 'llmos[tvm]'")

from llmos.compiler.backends.tvm.emit import STAGES
from llmos.compiler.backends.tvm.planned import TvmPlanned


class TvmBackend(CpuBackend):
    """Targets, passes, memory, the host function and the thread pool are the CPU backend's."""

    name: ClassVar[str] = "tvm"
    stages: ClassVar[Mapping[str, Stage]] = STAGES

    def plan(self, module: ir.Module, weights: Mapping[str, Weight], passes: Sequence[str]) -> TvmPlanned:
        """Return a module that the passes have left, as all stages read it."""
        return TvmPlanned(module, weights, tuple(passes))
