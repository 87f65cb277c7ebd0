"""From dispatch functions to one module of kernels and the host function, for one target."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmos.compiler.backends.cpu.arithmetic.register_tile import register_tile
from llmos.compiler.backends.cpu.calls import CpuCalls
from llmos.compiler.backends.cpu.cost import COSTS
from llmos.compiler.backends.cpu.kernels.attention_bf16 import emit_attention
from llmos.compiler.backends.cpu.kernels.contraction import emit_contraction
from llmos.compiler.backends.cpu.kernels.contraction_window import emit_contraction_window
from llmos.compiler.backends.cpu.kernels.elementwise import emit_elementwise
from llmos.compiler.backends.cpu.kernels.fallback import emit_fallback
from llmos.compiler.backends.cpu.kernels.grouped_contraction import emit_grouped_contraction
from llmos.compiler.backends.cpu.kernels.insert import emit_insert
from llmos.compiler.backends.cpu.kernels.paged_attention import emit_paged_attention
from llmos.compiler.backends.cpu.kernels.row_reduction import emit_rows
from llmos.compiler.backends.cpu.kernels.scan import emit_scan
from llmos.compiler.backends.cpu.kernels.scatter import emit_scatter
from llmos.compiler.backends.cpu.kernels.sort import emit_sort
from llmos.compiler.backends.cpu.kernels.winograd import emit_winograd
from llmos.compiler.backends.cpu.loops import LoopPlan, emit_loop
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.host import emit_host
from llmos.compiler.codegen.host_calls import EntryPlan
from llmos.compiler.codegen.kernel import Kernel, Launch
from llmos.compiler.codegen.program import Program, identity
from llmos.compiler.codegen.work import describe_work
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

Emit = Callable[[ir.Module, Dispatch, CpuTarget], Launch]

EMITTERS: Mapping[str, Emit] = {
    "attention": emit_attention,
    "paged_attention": emit_paged_attention,
    "contraction": emit_contraction,
    "contraction_window": emit_contraction_window,
    "grouped_contraction": emit_grouped_contraction,
    "winograd": emit_winograd,
    "row_reduction": lambda module, dispatch, _: emit_rows(module, dispatch),
    "scan": lambda module, dispatch, _: emit_scan(module, dispatch),
    "sort": lambda module, dispatch, _: emit_sort(module, dispatch),
    "elementwise": lambda module, dispatch, target: emit_elementwise(module, dispatch, register_tile(target.vector_bits)),
    "scatter": lambda module, dispatch, _: emit_scatter(module, dispatch),
    "insert": lambda module, dispatch, _: emit_insert(module, dispatch),
    "fallback": lambda module, dispatch, _: emit_fallback(module, dispatch),
}


def emit_dispatch(module: ir.Module, dispatch: Dispatch, target: CpuTarget) -> Launch:
    """Append the kernel of a dispatch. Raises UnsupportedError for one that no kernel fits."""
    return EMITTERS[dispatch.kind](module, dispatch, target)


def emit_kernels(program: Program, target: CpuTarget, emit: Emit = emit_dispatch) -> ir.Module:
    """Return a module with one function for each distinct dispatch, and the host function: the `kernels` stage.

    emit: appends the kernel of a dispatch. Raises UnsupportedError for a dispatch that no kernel fits.
    """
    with program.module.context, ir.Location.unknown():
        module = ir.Module.create()
        kernels: dict[str, Kernel] = {}
        known: dict[str, Kernel] = {}
        for dispatch in program.dispatches:
            text = identity(dispatch)
            if text not in known:
                known[text] = Kernel(dispatch.name, emit(module, dispatch, target))
            kernels[dispatch.name] = known[text]
        for unit in program.loops:
            costs = {each.name: _cost_ns(each) for each in unit.dispatches}
            plan = LoopPlan(unit.name, unit.loop, program.table, kernels, costs)
            kernels[unit.induction_variable] = Kernel(unit.name, emit_loop(module, plan))
        emit_host(module, EntryPlan(program.main, program.table, kernels, program.weights, program.first_kernel), CpuCalls)
    return module


def _cost_ns(dispatch: Dispatch) -> Expr:
    """About what a dispatch takes on one thread."""
    work = describe_work(dispatch)
    return COSTS.duration_ns(dispatch.kind, work.flops, work.num_bytes)
