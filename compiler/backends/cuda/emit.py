"""The stages of the CUDA backend: kernels and host functions, LLVM IR of both, and the parts of the code."""

from __future__ import annotations

from collections.abc import Mapping

from llmos.compiler.backends.base import Stage
from llmos.compiler.backends.cuda.llvm import assemble, find_ptxas
from llmos.compiler.backends.cuda.parts import Parts
from llmos.compiler.backends.cuda.planned import CudaPlanned
from llmos.compiler.backends.cuda.program import emit_kernels
from llmos.compiler.backends.cuda.target import CudaTarget
from llmos.compiler.backends.cuda.worker import compile_in_child
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.codegen.link import link_shared
from llmos.compiler.codegen.lowering import lower_to_llvm_dialect, to_llvm_ir
from llmos.compiler.ir.attributes import GPU_KERNEL
from llmos.compiler.ir.bindings import ir
from llmos.passes import PipelineOptions, run_pipeline
from llmos.passes.expand_math import ExpandMath

BETWEEN = "; ---- device above, host below ----\n"


def make_kernels(planned: CudaPlanned, target: CudaTarget, options: CompileOptions) -> ir.Module:
    """Return kernels and host functions, with no math that needs a library. Raises UnsupportedError for a dispatch that no kernel fits."""
    return make_entry_kernels({"main": planned}, target, options)


def make_entry_kernels(plans: Mapping[str, CudaPlanned], target: CudaTarget, options: CompileOptions) -> ir.Module:
    """Return those of several entries, by name, in one module of each kind. Raises UnsupportedError."""
    kernels = emit_kernels({name: planned.program for name, planned in plans.items()}, target)
    run_pipeline(kernels, [ExpandMath()], options=PipelineOptions(None, options.repro))
    return kernels


def make_llvm_ir(kernels: ir.Module, _: CudaTarget, __: CompileOptions) -> str:
    """Return LLVM IR text of the device, a line, and that of the host. Raises PassError."""
    with kernels.context, ir.Location.unknown():
        texts = [_lowered(ir.Module.parse(str(part))) for part in kernels.body.operations]
    return BETWEEN.join(texts)


def make_parts(text: str, target: CudaTarget, _: CompileOptions) -> bytes:
    """Return the `Parts` of the code. Raises UserError without a C compiler, PassError."""
    device, host = text.split(BETWEEN)
    ptx, data = compile_in_child(target.name, device, host)
    ptxas = find_ptxas()
    cubin = assemble(ptx, target.chip, ptxas)[0] if ptxas else b""
    return Parts(link_shared([data]), ptx, cubin).to_bytes()


STAGES: Mapping[str, Stage] = {
    "kernels.mlir": Stage(make_kernels, ir.Module),
    "ll": Stage(make_llvm_ir, str),
    "parts": Stage(make_parts, bytes, compiles=True),
}


def _lowered(module: ir.Module) -> str:
    marked = [op.operation.attributes["sym_name"] for op in module.body.operations if GPU_KERNEL in op.operation.attributes]
    lower_to_llvm_dialect(module)
    for op in module.body.operations:
        if op.operation.name == "llvm.func" and op.operation.attributes["sym_name"] in marked:
            op.operation.attributes["CConv"] = ir.Attribute.parse("#llvm.cconv<ptx_kernelcc>")
    return to_llvm_ir(module)
