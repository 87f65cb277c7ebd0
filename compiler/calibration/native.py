"""A model compiled for this machine and run inside the compiler."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmos.compiler.backends.base import CompiledModel
from llmos.compiler.backends.lowering import lower
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import plan_quantized
from llmos.compiler.backends.registry import get_backend
from llmos.compiler.execution.native import CompiledCode, aligned_copy
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.verify.accuracy import run_entry
from llmos.compiler.verify.samples import Signature
from llmos.passes import Pass

HOST = "cpu"  # backend whose code runs in the compiler's process


@dataclass(frozen=True)
class NativeProgram:
    """Code in this process with its weights in memory. weights: by name, of the model's own and of packed ones."""

    compiled: CompiledModel
    code: CompiledCode
    weights: dict[str, np.ndarray]
    signature: Signature

    @classmethod
    def of(cls, prepared: ImportedModel, passes: Sequence[Pass], options: CompileOptions) -> NativeProgram:
        """Compile what `before_quantizing` gave, with `passes` in the place of quantize-contractions. Raises PassError."""
        host = get_backend(HOST)
        own = replace(options, backend=HOST, target="native", from_stage="", stop_after="", dump_ir=None)
        signature = Signature.of(prepared.module)
        planned = plan_quantized(prepared, passes, own, host)
        code = lower(planned, host.targets("native")[0], own, host)
        assert isinstance(code, bytes)
        record = planned.record
        return cls(record, CompiledCode(code), {name: aligned_copy(each.load()) for name, each in record.weights.items()}, signature)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of a call; bfloat16 as uint16. Raises ToleranceError if the code reports an error."""
        return run_entry(self.code, self.compiled, list(self.weights.values()), inputs, self.signature.sizes_of(inputs))

    def seconds(self, inputs: Sequence[np.ndarray]) -> float:
        """Return how long one call took."""
        start = time.perf_counter()
        self.run(inputs)
        return time.perf_counter() - start
