"""What the manifest says of a program: entries, symbols, kernels and the order of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmos.compiler.analysis.attention import parts_of
from llmos.compiler.analysis.casts import is_extended_argument
from llmos.compiler.analysis.contraction import root_contraction
from llmos.compiler.analysis.independence import Function
from llmos.compiler.backends.base import CompiledModel
from llmos.compiler.backends.entry import computed_by_outputs, describe_entry, symbols_of
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.program import LoopUnit, Program
from llmos.compiler.codegen.work import Work, describe_loop, describe_work
from llmos.compiler.ir.functions import DispatchFunc, EntryFunc
from llmos.compiler.ir.sizes import SymbolTable
from llmos.compiler.ir.weights import Weight
from llmos.runtime.artifact.manifest import KernelSpec


def describe(program: Program, weights: Mapping[str, Weight], bound: Mapping[str, Weight], passes: Sequence[str]) -> CompiledModel:
    """Return the manifest's part of a compiled model; no code yet. bound: the weights of the code, in the order of its arguments."""
    functions = {dispatch.name: Function(dispatch.func, dispatch.shapes) for dispatch in program.dispatches}
    entry = describe_entry(program.main, program.table, functions)
    main = EntryFunc(program.main)
    return CompiledModel(
        entries=(entry,),
        symbols=symbols_of(program.table),
        weights={**bound, **{name: weights[name] for name in entry.states}},
        kernels=tuple(_kernel_specs(program)),
        plan={"slots": main.slots},
        passes=tuple(passes),
        computed=computed_by_outputs(program.main, program.table),
    )


def _kernel_specs(program: Program) -> list[KernelSpec]:
    """One for each unit of the host function; the dispatches of a loop are part of it."""
    specs = []
    for unit in program.units:
        if isinstance(unit, LoopUnit):
            label = f"loop({', '.join(_label(dispatch) for dispatch in unit.dispatches)})"
            specs.append(_kernel_spec(program.table, unit.name, "loop", label, describe_loop(unit)))
        else:
            spec = _kernel_spec(program.table, unit.name, unit.kind, _label(unit), describe_work(unit))
            arithmetic = _arithmetic(unit)
            specs.append(replace(spec, details={**spec.details, "arithmetic": arithmetic}) if arithmetic else spec)
    return specs


def _arithmetic(dispatch: Dispatch) -> str:
    """What the products of a dispatch are of, where that isn't float32: "int8", or "bf16" where both sides lie in memory as that."""
    if dispatch.kind == "attention":
        parts = parts_of([op.operation for op in dispatch.block.operations])
        products = [parts.scores, parts.values]
        sides = [parts.scores.lhs, parts.scores.rhs, parts.values.generic.inputs[1 - parts.weights]]
    elif dispatch.kind in ("contraction", "grouped_contraction"):
        products = [root_contraction(dispatch.ops)]
        sides = [products[0].lhs, products[0].rhs]
    else:
        return ""
    if all(each.is_bytes for each in products):
        return "int8"
    return "bf16" if all(is_extended_argument(side) for side in sides) else ""


def _kernel_spec(table: SymbolTable, name: str, kind: str, label: str, work: Work) -> KernelSpec:
    """Its work by the sizes of the inputs alone: at most that, where data decides sizes."""
    flops, num_bytes = (str(table.at_most(count)) for count in (work.flops, work.num_bytes))
    return KernelSpec(name, kind, {"label": label, "flops": flops, "bytes": num_bytes})


def _label(dispatch: Dispatch) -> str:
    return DispatchFunc(dispatch.func).label or dispatch.kind
