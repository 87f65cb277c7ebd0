"""A model compiled for this machine and run in this process: every pass and kernel of a real compile, without an artifact.

LLVM doesn't optimize the IR, which is most of a compile's time and is tested elsewhere. It optimizes the choice of instructions in the
whole suites and under `--optimize`, not in `make test`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvmlite
import numpy as np

from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.backends.cpu.emulation import emulate
from llmos.compiler.backends.cpu.target import CpuTarget, resolve
from llmos.compiler.backends.lowering import lower
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import run_passes
from llmos.compiler.codegen import elf
from llmos.compiler.codegen.llvm import LIBC_SYMBOLS, hide_symbols, optimize
from llmos.compiler.execution.native import ERRORS, CompiledCode, aligned_copy, poisoned_array
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.verify.accuracy import given_arrays
from llmos.runtime.artifact.dtypes import DTYPES
from tests.conformance import OPT_LEVEL

OPTIONS = CompileOptions(target="native", cache=False, repro=None)


class Compiled:
    """A compiled model; call it with dense arrays, at any sizes that its symbols allow. The module of `imported` is used up."""

    def __init__(self, imported: ImportedModel) -> None:
        target, backend = resolve(OPTIONS.target)[0], CpuBackend()
        planned = run_passes(imported, OPTIONS, backend)
        self.record = planned.record
        self.entry = self.record.entries[0]
        self._weights = [aligned_copy(weight.array) for weight in self.record.weights.values()]
        self._code = _Loaded(str(lower(planned, target, OPTIONS, backend, until="ll")), target)

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs, then what the entry updates. Raises RuntimeError with the code that it returns."""
        dense = given_arrays(self.entry, inputs)
        outputs = self._outputs(dense)
        status = self._code.call(self.entry.symbol, dense, outputs, self._weights)
        if status:
            raise RuntimeError(f"the entry returned an error: {ERRORS.get(status, status)}")
        return [*outputs, *[dense[position] for position in self.entry.updated]]

    def _outputs(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        ranks = [len(spec.shape) for spec in self.entry.outputs]
        queue = iter(self._code.dims(self.entry.shapes, self._sizes(inputs), sum(ranks)))
        shapes = [tuple(next(queue) for _ in range(rank)) for rank in ranks]
        return [poisoned_array(shape, np.dtype(DTYPES[spec.dtype].storage)) for shape, spec in zip(shapes, self.entry.outputs, strict=True)]

    def _sizes(self, inputs: Sequence[np.ndarray]) -> list[int]:
        values: dict[str, int] = {}
        for spec, array in zip(self.entry.inputs, inputs, strict=True):
            assert array.dtype == np.dtype(DTYPES[spec.dtype].storage) and array.ndim == len(spec.shape)
            for dim, size in zip(spec.shape, array.shape, strict=True):
                if isinstance(dim, str) and dim.isidentifier():
                    values.setdefault(dim, size)
                assert not isinstance(dim, int) or dim == size, f"{spec.name}: size {size} where {dim} is fixed"
        return [values[symbol.name] for symbol in self.record.symbols]


class _Loaded(CompiledCode):
    """LLVM IR text made machine code in this process."""

    def __init__(self, text: str, target: CpuTarget) -> None:
        self._engine = _engine(text, target)
        self._library = self  # type: ignore[assignment]

    def __getattr__(self, symbol: str) -> Any:
        address = self._engine.get_function_address(symbol)
        if not address:
            raise AttributeError(symbol)
        return ctypes.CFUNCTYPE(ctypes.c_int32)(address)


def object_of(text: str, target: CpuTarget, reloc: str, code_model: str) -> bytes:
    """Return an object of LLVM IR text, optimized only where a conversion of bfloat16 would call a function that nothing defines."""
    llvmlite.initialize_all_targets()
    llvmlite.initialize_all_asmprinters()
    machine = _machine(target, reloc, code_model)
    for is_optimized in (False, True):
        module = llvmlite.parse_assembly(emulate(text) if target.emulates else text, llvmlite.create_context())
        module.triple, module.data_layout = target.triple, str(machine.target_data)
        declared = {function.name for function in module.functions}
        hide_symbols(module)
        if is_optimized:
            optimize(module, machine)
        data: bytes = machine.emit_object(module)
        invented = elf.undefined_symbols(data) - LIBC_SYMBOLS - declared
        if not invented:
            return data
    raise AssertionError(f"the generated code calls {invented}")


def _machine(target: CpuTarget, reloc: str, code_model: str) -> llvmlite.TargetMachine:
    chosen = llvmlite.Target.from_triple(target.triple)
    # At level 0 LLVM lowers the matrix tiles of AMX by a pass of its own, which aborts where their sums go round a loop.
    lowest = 1 if target.has("amx-tile") and not target.emulates else 0
    level = max(lowest, int(os.environ.get(OPT_LEVEL, "0")))
    return chosen.create_target_machine(cpu=target.cpu, features=target.features, opt=level, reloc=reloc, codemodel=code_model)


def _engine(text: str, target: CpuTarget) -> llvmlite.ExecutionEngine:
    # Sections may come to lie farther apart than a 32-bit relocation reaches: LLVM would end the process.
    data = object_of(text, target, "static", "large")
    llvmlite.initialize_native_target()
    machine = _machine(target, "static", "large")
    empty = llvmlite.parse_assembly("")
    empty.triple = target.triple
    engine = llvmlite.create_mcjit_compiler(empty, machine)
    engine.add_object_file(llvmlite.ObjectFileRef.from_data(data))
    engine.finalize_object()
    return engine
