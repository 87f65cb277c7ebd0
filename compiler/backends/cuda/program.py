"""From dispatch functions to two modules, for one target: the kernels of the device, and the functions of the host that start them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmos.compiler.backends.cuda.calls import CudaCalls, kernel_names
from llmos.compiler.backends.cuda.kernel import SHARED, Grid
from llmos.compiler.backends.cuda.kernels.contraction import emit_contraction
from llmos.compiler.backends.cuda.kernels.elementwise import emit_elementwise
from llmos.compiler.backends.cuda.kernels.paged_attention import emit_paged_attention
from llmos.compiler.backends.cuda.kernels.row_reduction import emit_rows
from llmos.compiler.backends.cuda.kernels.scatter import emit_scatter
from llmos.compiler.backends.cuda.target import CudaTarget
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.host import emit_host
from llmos.compiler.codegen.host_calls import EntryPlan
from llmos.compiler.codegen.kernel import Kernel
from llmos.compiler.codegen.program import Program, identity
from llmos.compiler.ir.bindings import ir
from llmos.runtime.errors import UnsupportedError
from llmos.runtime.native.abi import ABI_VERSION

ESCAPED_NUL = "\\00"

Emit = Callable[[ir.Module, Dispatch, CudaTarget], Grid]

EMITTERS: Mapping[str, Emit] = {
    "contraction": lambda module, dispatch, _: emit_contraction(module, dispatch),
    "elementwise": lambda module, dispatch, _: emit_elementwise(module, dispatch),
    "paged_attention": lambda module, dispatch, _: emit_paged_attention(module, dispatch),
    "row_reduction": lambda module, dispatch, _: emit_rows(module, dispatch),
    "scatter": lambda module, dispatch, _: emit_scatter(module, dispatch),
}


def emit_kernels(program: Program, target: CudaTarget) -> ir.Module:
    """Return a module of two, @device and @host: the `kernels` stage.

    Raises UnsupportedError for a dispatch that no kernel fits.
    """
    with program.module.context, ir.Location.unknown():
        device, host = ir.Module.create(), ir.Module.create()
        _declare_shared(device)
        kernels: dict[str, Kernel] = {}
        known: dict[str, Kernel] = {}
        for dispatch in program.dispatches:
            text = identity(dispatch)
            if text not in known:
                known[text] = Kernel(dispatch.name, _emit(device, dispatch, target))
            kernels[dispatch.name] = known[text]
        plan = EntryPlan(program.main, program.table, kernels)
        emit_host(host, plan, CudaCalls)
        _export(host, "__llmos_abi_version", "i32", f"{ABI_VERSION} : i32")
        names = "".join(f"{name}{ESCAPED_NUL}" for name in [*kernel_names(plan), ""])
        _export(host, "__llmos_device_kernels", f"!llvm.array<{len(names.replace(ESCAPED_NUL, ' '))} x i8>", f'"{names}"')
        return _nested(device=device, host=host)


def _emit(module: ir.Module, dispatch: Dispatch, target: CudaTarget) -> Grid:
    if dispatch.kind not in EMITTERS:
        raise UnsupportedError(f"the cuda backend has no kernel for {dispatch.kind} yet ({dispatch.name}): compile the model for a CPU")
    return EMITTERS[dispatch.kind](module, dispatch, target)


def _declare_shared(device: ir.Module) -> None:
    text = f"llvm.mlir.global external @{SHARED}() {{addr_space = 3 : i32, alignment = 16 : i64}} : !llvm.array<0 x i8>"
    _append(device, text)


def _export(host: ir.Module, name: str, kind: str, value: str) -> None:
    _append(host, f"llvm.mlir.global external constant @{name}({value}) : {kind}")


def _append(module: ir.Module, text: str) -> None:
    made = ir.Module.parse(text)
    module.body.append(next(iter(made.body.operations)).operation.clone())


def _nested(**parts: ir.Module) -> ir.Module:
    """A module of named ones."""
    module = ir.Module.create()
    for name, part in parts.items():
        part.operation.attributes["sym_name"] = ir.StringAttr.get(name)
        module.body.append(part.operation.clone())
    return module
