"""The stages of the CPU backend: kernels, LLVM IR, object, shared object, each made from the one before."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

from llmos.compiler.backends.base import Stage
from llmos.compiler.backends.cpu.planned import CpuPlanned
from llmos.compiler.backends.cpu.program import emit_kernels
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.backends.cpu.worker import compile_in_child
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.codegen.link import link_shared
from llmos.compiler.codegen.lowering import lower_to_llvm_dialect, to_llvm_ir
from llmos.compiler.ir.bindings import ir
from llmos.compiler.support.cache import Cache, cache_key
from llmos.compiler.support.environment import read_environment
from llmos.passes import PipelineOptions, run_pipeline
from llmos.passes.expand_math import ExpandMath


def make_kernels(planned: CpuPlanned, target: CpuTarget, options: CompileOptions) -> ir.Module:
    """Return kernels and the host function, with no math that needs libm. Raises UnsupportedError for a dispatch that no kernel fits."""
    kernels = emit_kernels(planned.program, target)
    run_pipeline(kernels, [ExpandMath()], options=PipelineOptions(None, options.repro))
    return kernels


def make_llvm_ir(kernels: ir.Module, _: CpuTarget, __: CompileOptions) -> str:
    """Return LLVM IR text. The module is rewritten to the LLVM dialect. Raises PassError."""
    lower_to_llvm_dialect(kernels)
    return to_llvm_ir(kernels)


def make_object(text: str, target: CpuTarget, options: CompileOptions) -> bytes:
    """Return an object, compiled in a process of its own; nothing is compiled twice where options.cache allows. Raises PassError."""
    # Threads alone would not do: LLVM's Python binding holds one lock for all of them, and LLVM may end its process.
    if not options.cache:
        return compile_in_child((target, text))
    cache, key = Cache(read_environment().cache), _key(target, text)
    cached = cache.get(key)
    if cached is None:
        cached = compile_in_child((target, text))
        cache.put(key, cached)
    return cached


def make_shared_object(data: bytes, _: CpuTarget, __: CompileOptions) -> bytes:
    """Return one object, linked. Raises UserError, PassError as `link_shared`."""
    return link_shared([data])


STAGES: Mapping[str, Stage] = {
    "kernels.mlir": Stage(make_kernels, ir.Module),
    "ll": Stage(make_llvm_ir, str),
    "o": Stage(make_object, bytes, compiles=True),
    "so": Stage(make_shared_object, bytes),
}


def _key(target: CpuTarget, text: str) -> str:
    revision = [importlib.metadata.version("llmos"), importlib.metadata.version("llvmlite")]
    return cache_key(["object", *revision, target.triple, target.cpu, target.features, *target.emulates, text])
