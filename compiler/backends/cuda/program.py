"""From dispatch functions to two modules, for one target: the kernels of the device, and the functions of the host that start them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmos.compiler.backends.cuda.calls import CudaCalls, CudaEntryPlan, kernel_names
from llmos.compiler.backends.cuda.kernel import SHARED, Grid
from llmos.compiler.backends.cuda.kernels.contraction import emit_contraction
from llmos.compiler.backends.cuda.kernels.elementwise import emit_elementwise
from llmos.compiler.backends.cuda.kernels.paged_attention import emit_paged_attention
from llmos.compiler.backends.cuda.kernels.row_reduction import emit_rows
from llmos.compiler.backends.cuda.kernels.scatter import emit_scatter
from llmos.compiler.backends.cuda.target import CudaTarget
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.host import emit_host
from llmos.compiler.codegen.kernel import Kernel
from llmos.compiler.codegen.program import Program, identity
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import name_of
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


def emit_kernels(programs: Mapping[str, Program], target: CudaTarget) -> ir.Module:
    """Return a module of two, @device and @host: the `kernels` stage. programs: those of the entries, by name.

    Raises UnsupportedError for a dispatch that no kernel fits.
    """
    names: list[str] = []
    entries = [_emit_entry(name if len(programs) > 1 else "", program, target, names) for name, program in programs.items()]
    with next(iter(programs.values())).module.context, ir.Location.unknown():
        device, host = ir.Module.create(), ir.Module.create()
        for of_device, of_host in entries:
            _append_all(device, of_device)
            _append_all(host, of_host)
        _export(host, "__llmos_abi_version", "i32", f"{ABI_VERSION} : i32")
        listed = "".join(f"{name}{ESCAPED_NUL}" for name in [*names, ""])
        _export(host, "__llmos_device_kernels", f"!llvm.array<{len(listed.replace(ESCAPED_NUL, ' '))} x i8>", f'"{listed}"')
        return _nested(device=device, host=host)


def _emit_entry(entry: str, program: Program, target: CudaTarget, names: list[str]) -> tuple[ir.Module, ir.Module]:
    """Kernels and host functions of one entry, with names of its own if it has one; its kernels join `names`."""
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
        plan = CudaEntryPlan(program.main, program.table, kernels, program.weights, program.first_kernel, first_index=len(names))
        emit_host(host, plan, CudaCalls)
        names += [f"{entry}_{name}" if entry else name for name in kernel_names(plan)]
        if entry:
            _rename(device, lambda name: f"{entry}_{name}")
            _rename(host, lambda name: f"{name.removesuffix(name_of(program.main))}{entry}")
        return device, host


def _rename(module: ir.Module, renamed: Callable[[str], str]) -> None:
    for op in module.body.operations:
        if name_of(op.operation) != SHARED:
            op.operation.attributes["sym_name"] = ir.StringAttr.get(renamed(name_of(op.operation)))


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
    _append_all(module, ir.Module.parse(text))


def _append_all(module: ir.Module, part: ir.Module) -> None:
    """Append the ops of a part, perhaps of another context; what all parts share once."""
    known = {name_of(op.operation) for op in module.body.operations}
    part = part if part.context == module.context else ir.Module.parse(str(part))
    for op in part.body.operations:
        if name_of(op.operation) not in known:
            module.body.append(op.operation.clone())


def _nested(**parts: ir.Module) -> ir.Module:
    """A module of named ones."""
    module = ir.Module.create()
    for name, part in parts.items():
        part.operation.attributes["sym_name"] = ir.StringAttr.get(name)
        module.body.append(part.operation.clone())
    return module
