"""The back half of LLVM: IR text -> an object file, for any processor that llvmlite knows. No MLIR here, so that workers start fast.

Numbers: no fast-math flag is set anywhere, and LLVM neither reassociates nor fuses a multiply with an add unless the IR says `fma`. The
same operations therefore give the same bits in every variant of a kernel.

Symbols: only `__tvm_ffi_*` and `__llmos_*` are visible outside of the shared object. Objects may use the few memory functions of the C
library in `LIBC_SYMBOLS` (a fallback kernel's `memref.alloc`, a copy loop that LLVM turns into memcpy), which are in every process.
Nothing may use libm or a compiler runtime: `expand-math` removes what would, and `compile_object` refuses the rest.
"""

from typing import Protocol

import llvmlite.binding as llvmlite

from llmos.compiler.codegen import elf
from llmos.runtime.errors import PassError

__all__ = ["EXPORTED_PREFIXES", "LIBC_SYMBOLS", "CodeTarget", "compile_object", "emit_assembly", "hide_symbols", "optimize"]

EXPORTED_PREFIXES = ("__tvm_ffi_", "__llmos_")
LIBC_SYMBOLS = frozenset({"malloc", "calloc", "free", "aligned_alloc", "memcpy", "memmove", "memset", "memcmp", "bcmp"})


class CodeTarget(Protocol):
    """What the back half reads of a `compiler.target` record."""

    @property
    def triple(self) -> str:
        """LLVM's target triple."""
        ...

    @property
    def cpu(self) -> str:
        """LLVM's name of the processor."""
        ...

    @property
    def features(self) -> str:
        """LLVM's feature string, such as "+avx512f,-prefer-256-bit"."""
        ...


def compile_object(ll_text: str, target: CodeTarget) -> bytes:
    """Optimize LLVM IR text and return a relocatable object (position independent); the same input gives the same bytes.

    Raises PassError if the text is invalid or if the code would call a function that no llmos object defines, such as `expf`.
    """
    machine = _target_machine(target)
    module = _parse(ll_text, target, machine)
    declared = {value.name for value in [*module.functions, *module.global_variables]}
    optimize(module, machine)
    data: bytes = machine.emit_object(module)
    if data.startswith(elf.MAGIC):
        # A name that the code generator made up (exp of a vector becomes calls of expf) is in no declaration of the input.
        invented = elf.undefined_symbols(data) - LIBC_SYMBOLS - declared
        if invented:
            raise PassError(f"the generated code calls {', '.join(sorted(invented))}; run expand-math before the LLVM stage")
    return data


def emit_assembly(ll_text: str, target: CodeTarget) -> str:
    """Return the assembly (or PTX) of what `compile_object` would emit, for people and tests. Raises PassError if the text is invalid."""
    machine = _target_machine(target)
    module = _parse(ll_text, target, machine)
    optimize(module, machine)
    text: str = machine.emit_assembly(module)
    return text


def _target_machine(target: CodeTarget) -> llvmlite.TargetMachine:
    # Cheap and idempotent; done here so that a worker process needs no set-up of its own.
    llvmlite.initialize_all_targets()
    llvmlite.initialize_all_asmprinters()
    return llvmlite.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="default"
    )


def _parse(ll_text: str, target: CodeTarget, machine: llvmlite.TargetMachine) -> llvmlite.ModuleRef:
    try:
        module = llvmlite.parse_assembly(ll_text, llvmlite.create_context())  # of its own: nothing is left of it when it goes
        module.triple = target.triple
        module.data_layout = str(machine.target_data)
        module.verify()
    except RuntimeError as error:
        raise PassError(f"LLVM refuses the generated code: {error}") from error
    return module


def optimize(module: llvmlite.ModuleRef, machine: llvmlite.TargetMachine) -> None:
    """Run LLVM's passes over a parsed module, in place, and hide what it need not export."""
    hide_symbols(module)
    tuning = llvmlite.create_pipeline_tuning_options(speed_level=3)
    # Kernels hold their vectors already. The loop vectorizer takes 2^n steps for a scalar chain of n values that are each used twice.
    tuning.loop_vectorization = False
    tuning.slp_vectorization = True
    builder = llvmlite.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)


def hide_symbols(module: llvmlite.ModuleRef) -> None:
    """Hidden symbols are called directly, without a table that the dynamic linker fills, and can't clash with another artifact's."""
    for value in [*module.functions, *module.global_variables]:
        external = value.name.startswith(("llvm.", *EXPORTED_PREFIXES)) or value.name in LIBC_SYMBOLS
        if not external and value.linkage not in (llvmlite.Linkage.internal, llvmlite.Linkage.private):
            value.visibility = "hidden"
