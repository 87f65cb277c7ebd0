"""The CPU backend: linalg on tensors to shared objects."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import sympy

from llmos.compiler.analysis.independence import Function, row_independence
from llmos.compiler.backends.base import CompiledModel, CompileObserver
from llmos.compiler.backends.cpu.emit import emitter
from llmos.compiler.backends.cpu.link import link_shared
from llmos.compiler.backends.cpu.packing import (
    pack_pairs,
    pack_panels,
    pack_winograd,
    packed_pairs_shape,
    packed_shape,
    packed_winograd_shape,
    to_bfloat16,
)
from llmos.compiler.backends.cpu.program import LoopUnit, Program, Work, describe_loop, describe_work, emit_kernels
from llmos.compiler.backends.cpu.target import Target, resolve
from llmos.compiler.backends.cpu.worker import compile_in_child
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.lowering import lower_to_llvm_dialect, to_llvm_ir
from llmos.compiler.execution.native import call_entry
from llmos.compiler.frontend.model import STATE, ImportedModel
from llmos.compiler.ir.attributes import argument_attributes, callers_shape, read_shape, result_attributes
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.guards import guards_of
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.size_text import size_text
from llmos.compiler.ir.sizes import SymbolTable
from llmos.compiler.ir.updates import output_numbers, updated_arguments
from llmos.compiler.ir.weights import Weight
from llmos.passes import Pass, PipelineOptions, Upstream, run_pipeline
from llmos.passes.channels_last import ChannelsLast
from llmos.passes.expand_math import ExpandMath
from llmos.passes.fold_weight_computation import FOLD, FoldWeightComputation
from llmos.passes.form_dispatches import FormDispatches
from llmos.passes.fuse_loops import FuseLoops
from llmos.passes.hoist_widening import HoistWidening
from llmos.passes.label_dispatches import LABEL, LabelDispatches
from llmos.passes.narrow_activations import NarrowActivations
from llmos.passes.pack_weights import PackWeights
from llmos.passes.plan_memory import PlanMemory
from llmos.passes.recognise_attention import RecogniseAttention
from llmos.passes.split_reductions import SplitReductions
from llmos.passes.tile_dispatches import TileDispatches
from llmos.passes.update_in_place import UpdateInPlace
from llmos.passes.winograd import Winograd
from llmos.runtime.artifact.manifest import ComputedSymbol, EntrySpec, GuardSpec, KernelSpec, Symbol, TensorSpec
from llmos.runtime.artifact.safetensors import is_reserved

DISPATCHES: tuple[Pass, ...] = (
    RecogniseAttention(),
    FuseLoops(),
    FormDispatches(),
    Winograd(),
    LabelDispatches(),
    PackWeights(),
    UpdateInPlace(),
    PlanMemory(),
)

PIPELINE: tuple[Pass, ...] = (
    Upstream("canonicalize"),
    Upstream("cse"),
    Upstream("convert-elementwise-to-linalg", anchor="func.func"),
    Upstream("linalg-generalize-named-ops", anchor="func.func"),
    Upstream("canonicalize"),  # again: generalizing leaves constants and dead destinations behind
    Upstream("cse"),
    HoistWidening(),
    ChannelsLast(),
    Upstream("canonicalize"),  # again: moves that undo each other
    Upstream("cse"),
    FoldWeightComputation(),
    SplitReductions(),
    *DISPATCHES,
)


def pipeline(options: CompileOptions) -> tuple[Pass, ...]:
    """The passes of one compile."""
    narrow = [NarrowActivations()] if options.precision == "bf16" else []
    tile = [TileDispatches(options.tilings)] if options.tilings else []
    place = PIPELINE.index(PackWeights())  # before the weights are packed
    passes = (*PIPELINE[:place], *narrow, *tile, *PIPELINE[place:])
    return passes if options.winograd and not narrow else tuple(each for each in passes if not isinstance(each, Winograd))


def compile_module(imported: ImportedModel, targets: Sequence[Target], options: CompileOptions, observer: CompileObserver) -> CompiledModel:
    """All of a model for all targets. Raises UnsupportedError for a model that has no kernels, PassError for an error of the compiler."""
    program, record = planned(imported, options, observer)
    observer.described(record)
    objects = emitter(options).objects(_lowered_for(program, targets, options, observer), observer.code_progress)
    code: dict[str, bytes] = {}
    for target, data in zip(targets, objects, strict=True):
        observer.stage_finished("o", data, target.name)
        code[target.name] = link_shared([data])
        observer.stage_finished("so", code[target.name], target.name)
    return replace(record, code=code)


def planned(imported: ImportedModel, options: CompileOptions, observer: CompileObserver) -> tuple[Program, CompiledModel]:
    """A model after its passes, and what the manifest says of it. Raises as `compile_module`."""
    module = imported.module
    weights = dict(imported.weights)
    if options.from_stage != "fused.mlir":
        run_pipeline(module, pipeline(options), options=PipelineOptions(options.dump_ir, options.repro), observer=observer)
        weights.update(folded_weights(module, weights, options))
        observer.stage_finished("fused.mlir", module, weights=weights)
    with module.context, ir.Location.unknown():
        program = Program.of(module)
        return program, describe(program, weights, pipeline(options))


def _lowered_for(
    program: Program, targets: Sequence[Target], options: CompileOptions, observer: CompileObserver
) -> Iterator[tuple[Target, str]]:
    """LLVM IR for each target, made while the one before is compiled."""
    for target in targets:
        kernels = emit_kernels(program, target)
        run_pipeline(kernels, [ExpandMath()], options=PipelineOptions(None, options.repro))
        observer.stage_finished("kernels.mlir", kernels, target.name)
        lower_to_llvm_dialect(kernels)
        text = to_llvm_ir(kernels)
        observer.stage_finished("ll", text, target.name)
        yield target.code_target(options.precision), text


def describe(program: Program, weights: Mapping[str, Weight], pipeline: Sequence[Pass]) -> CompiledModel:
    """The manifest's part of a compiled model; no code yet."""
    table = program.table
    shapes = Shapes.of(program.main, table)
    arguments = argument_attributes(program.main)
    results = result_attributes(program.main)
    inputs = [a for a in arguments if ir.StringAttr(a["llmos.kind"]).value == "input"]
    returned = list(list(program.main.regions[0].blocks[0].operations)[-1].operands)
    name = ir.StringAttr(program.main.attributes["sym_name"]).value
    outputs = tuple(
        _spec(results[i], f"output{i}", [manifest_dim(d) for d in shapes.shape(returned[i])]) for i in output_numbers(program.main)
    )
    updated = updated_arguments(program.main).values()
    given = tuple(replace(_spec(a, "", read_shape(a["llmos.shape"])), updated=position in updated) for position, a in enumerate(inputs))
    guards = guards_of(program.module.operation, table)
    functions = {dispatch.name: Function(dispatch.func, dispatch.shapes) for dispatch in program.dispatches}
    entry = EntrySpec(
        name,
        f"__tvm_ffi_{name}",
        f"__llmos_shapes_{name}",
        given,
        outputs,
        tuple(_text(a, STATE, "") for a in inputs if STATE in a),
        row_independence(Function(program.main, shapes), functions, given, outputs, guards),
        GuardSpec(f"__llmos_guards_{name}", tuple(guard.text for guard in guards)) if guards else None,
    )
    slots = [ir.StringAttr(size).value for size in ir.ArrayAttr(program.main.attributes["llmos.slots"])]
    return CompiledModel(
        entries=(entry,),
        symbols=tuple(Symbol(s.name, s.min, s.max) for s in table.symbols),
        weights={**_bound_weights(arguments, weights), **{name: weights[name] for name in entry.states}},
        kernels=tuple(_kernel_specs(program)),
        plan={"slots": slots},
        passes=tuple(str(step) for step in pipeline),
        computed=_computed_by_outputs(table, [dim for value in returned for dim in shapes.shape(value)]),
    )


def _computed_by_outputs(table: SymbolTable, dims: Sequence[sympy.Expr]) -> tuple[ComputedSymbol, ...]:
    """What the manifest says of sizes that the entry computes: those that an output shows."""
    named = {symbol.name: symbol for dim in dims for symbol in table.computed_in(dim)}
    return tuple(ComputedSymbol(s.name, s.min, s.max, manifest_dim(table.upper_bound(s.expr))) for s in named.values())


def _spec(attributes: Mapping[str, ir.Attribute], name: str, dims: Sequence[int | str]) -> TensorSpec:
    dtype = _text(attributes, "llmos.dtype", "float32")
    return TensorSpec(_text(attributes, "llmos.name", name), dtype, callers_shape(dtype, dims))


def folded_weights(module: ir.Module, weights: Mapping[str, Weight], options: CompileOptions) -> dict[str, Weight]:
    """What fold-weight-computation put aside, compiled for this machine and run when it is first read; the function leaves the module."""
    with module.context, ir.Location.unknown():
        fold = next((op.operation for op in module.body.operations if FOLD in op.operation.attributes), None)
        if fold is None:
            return {}
        alone = ir.Module.create()
        with ir.InsertionPoint(alone.body):
            main = fold.clone()
        for key in (FOLD, "sym_visibility"):
            del main.attributes[key]
        main.attributes["sym_name"] = ir.StringAttr.get("main")
        fold.erase()
    run_pipeline(alone, DISPATCHES, options=PipelineOptions(None, options.repro))
    with alone.context, ir.Location.unknown():
        program = Program.of(alone)
        record = describe(program, weights, DISPATCHES)
    return _lazily(program, record, weights)


def _lazily(program: Program, record: CompiledModel, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    entry = record.entries[0]

    @functools.cache
    def outputs() -> list[np.ndarray]:
        target = resolve("native")[0]
        code = link_shared([compile_in_child((target, lowered(program, target)))])
        arrays = [np.empty([int(d) for d in spec.shape], numpy_dtype(spec.dtype)) for spec in entry.outputs]
        call_entry(code, entry.symbol, [np.ascontiguousarray(weights[spec.name].array) for spec in entry.inputs], arrays)
        return arrays

    def load(number: int) -> Callable[[], np.ndarray]:
        return lambda: outputs()[number]

    return {spec.name: Weight(spec.dtype, tuple(int(d) for d in spec.shape), load(i)) for i, spec in enumerate(entry.outputs)}


def lowered(program: Program, target: Target) -> str:
    """LLVM IR of a program's kernels and host function."""
    kernels = emit_kernels(program, target)
    run_pipeline(kernels, [ExpandMath()])
    lower_to_llvm_dialect(kernels)
    return to_llvm_ir(kernels)


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(np.uint16 if name == "bfloat16" else name)


def _text(attributes: Mapping[str, ir.Attribute], key: str, default: str) -> str:
    return ir.StringAttr(attributes[key]).value if key in attributes else default


def manifest_dim(dim: sympy.Expr) -> int | str:
    """A size as the manifest writes it: a number, or an expression of symbols."""
    return int(dim) if dim.is_Integer else size_text(dim)


def _kernel_specs(program: Program) -> list[KernelSpec]:
    """One for each unit of the host function; the dispatches of a loop are part of it."""
    specs = []
    for unit in program.units:
        if isinstance(unit, LoopUnit):
            label = f"loop({', '.join(_label(dispatch) for dispatch in unit.dispatches)})"
            specs.append(_kernel_spec(program.table, unit.name, "loop", label, describe_loop(unit)))
        else:
            specs.append(_kernel_spec(program.table, unit.name, unit.kind, _label(unit), describe_work(unit)))
    return specs


def _kernel_spec(table: SymbolTable, name: str, kind: str, label: str, work: Work) -> KernelSpec:
    """Its work by the sizes of the inputs alone: at most that, where data decides sizes."""
    flops, num_bytes = (str(table.at_most(count)) for count in (work.flops, work.num_bytes))
    return KernelSpec(name, kind, {"label": label, "flops": flops, "bytes": num_bytes})


def _label(dispatch: Dispatch) -> str:
    return ir.StringAttr(dispatch.func.attributes[LABEL]).value if LABEL in dispatch.func.attributes else dispatch.kind


def _bound_weights(arguments: Sequence[Mapping[str, ir.Attribute]], weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The weights of the code, in the order of its arguments, packed where a kernel wants that."""
    bound: dict[str, Weight] = {}
    for attributes in arguments:
        if ir.StringAttr(attributes["llmos.kind"]).value != "weight":
            continue
        name = ir.StringAttr(attributes["llmos.name"]).value
        weight = weights[name]
        if _text(attributes, "llmos.dtype", weight.dtype) == "bfloat16" != weight.dtype:
            name, weight = f"{name}#bfloat16", _narrowed(weight)
        if "llmos.packed" in attributes:
            spec = [list(ir.DenseI64ArrayAttr(part)) for part in ir.ArrayAttr(attributes["llmos.packed"])]
            layout = "".join(map(str, spec)).replace(" ", "")
            name, weight = f"{name}#packed{layout}", _packed(weight, *spec)
        bound[_stored_name(name, bound)] = weight
    return bound


def _stored_name(name: str, taken: Collection[str]) -> str:
    """The name itself, or a free one where the file needs it or another weight has it: the code goes by the order."""
    while name in taken or is_reserved(name):
        name = f"{name}_" if name in taken else f"weight.{name}"
    return name


def _packed(weight: Weight, n_axes: list[int], k_axes: list[int], width: Sequence[int] = (), tile: Sequence[int] = ()) -> Weight:
    chosen = width[0] if width else None
    if tile:
        positions = packed_winograd_shape(weight.shape, n_axes, k_axes, tile[0], chosen)
        return Weight(weight.dtype, positions, lambda: pack_winograd(weight.array, n_axes, k_axes, tile[0], chosen))
    if weight.dtype == "bfloat16":
        pairs = packed_pairs_shape(weight.shape, n_axes, k_axes, chosen)
        return Weight(weight.dtype, pairs, lambda: pack_pairs(weight.array, n_axes, k_axes, chosen))
    shape = packed_shape(weight.shape, n_axes, k_axes, chosen)
    return Weight(weight.dtype, shape, lambda: pack_panels(weight.array, n_axes, k_axes, chosen))


def _narrowed(weight: Weight) -> Weight:
    return Weight("bfloat16", weight.shape, lambda: to_bfloat16(weight.array))
