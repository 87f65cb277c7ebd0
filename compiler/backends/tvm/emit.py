"""The stages of the TVM backend: those of the CPU backend, with the tiles that TVM compiled linked into the LLVM IR."""

from __future__ import annotations

from collections.abc import Mapping

from llmos.compiler.backends.base import Stage
from llmos.compiler.backends.cpu import emit as cpu
from llmos.compiler.backends.cpu.program import emit_dispatch, emit_kernels
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.tvm.kernel import emit_tiles
from llmos.compiler.backends.tvm.lowering import linked
from llmos.compiler.backends.tvm.planned import TvmPlanned
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Launch
from llmos.compiler.ir.attributes import LLVM_IR, text_of
from llmos.compiler.ir.bindings import ir
from llmos.passes import PipelineOptions, run_pipeline
from llmos.passes.expand_math import ExpandMath


def make_kernels(planned: TvmPlanned, target: CpuTarget, options: CompileOptions) -> ir.Module:
    """Return kernels and the host function; tiles that TVM compiled are declared, with their LLVM IR as an attribute.

    Raises UnsupportedError for a dispatch that no kernel fits.
    """

    def emit(module: ir.Module, dispatch: Dispatch, _: CpuTarget) -> Launch:
        made = planned.tiles(dispatch, target)
        return emit_tiles(module, dispatch, made) if made is not None else emit_dispatch(module, dispatch, target)

    kernels = emit_kernels(planned.program, target, emit)
    run_pipeline(kernels, [ExpandMath()], options=PipelineOptions(None, options.repro))
    return kernels


def make_llvm_ir(kernels: ir.Module, target: CpuTarget, options: CompileOptions) -> str:
    """Return LLVM IR text of all kernels. The module is rewritten to the LLVM dialect. Raises PassError."""
    texts = []
    for op in kernels.body.operations:
        if LLVM_IR in op.operation.attributes:
            texts.append(text_of(op.operation.attributes, LLVM_IR))
            del op.operation.attributes[LLVM_IR]
    text = cpu.make_llvm_ir(kernels, target, options)
    return linked(text, texts) if texts else text


STAGES: Mapping[str, Stage] = {**cpu.STAGES, "kernels.mlir": Stage(make_kernels, ir.Module), "ll": Stage(make_llvm_ir, str)}
