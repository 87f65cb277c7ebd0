"""From an imported model to a planned one: the passes for all targets and those of a backend."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.backends import common
from llmos.compiler.backends.base import Backend, CompileObserver, Planned
from llmos.compiler.backends.common import after_quantization, before_quantization, common_passes, quantized_passes
from llmos.compiler.backends.folding import folded_weights
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.bindings import ir
from llmos.passes import Pass, PipelineOptions, run_pipeline


def run_passes(imported: ImportedModel, options: CompileOptions, backend: Backend, observer: CompileObserver | None = None) -> Planned:
    """All passes of a compile on the model's module, in place.

    Raises UnsupportedError for a model that has no kernels, PassError for an error of the compiler.
    """
    passes = passes_of(options, backend)
    run_pipeline(
        imported.module,
        passes,
        options=PipelineOptions(options.dump_ir, options.repro),
        observer=observer,
        context=backend.context(options),
    )
    return planned_of(_with_folded(imported, options), options, backend)


def planned_of(imported: ImportedModel, options: CompileOptions, backend: Backend) -> Planned:
    """A model whose module the passes have left, such as a saved stage."""
    return backend.plan(imported.module, imported.weights, [str(step) for step in passes_of(options, backend)])


def passes_of(options: CompileOptions, backend: Backend) -> list[Pass]:
    """The passes of one compile, in order."""
    return [*common_passes(options), *backend.dispatch_passes(options), *backend.plan_passes(options)]


def form_dispatches(imported: ImportedModel, options: CompileOptions, backend: Backend) -> ImportedModel:
    """A copy of the model as it is before tiles and layouts are chosen: the first part of `run_passes`."""
    return _with_folded(_transformed(imported, [*common_passes(options), *backend.dispatch_passes(options)], options, backend), options)


def plan_dispatches(formed: ImportedModel, options: CompileOptions, backend: Backend) -> Planned:
    """A copy of what `form_dispatches` gave, planned with options.tilings: the second part of `run_passes`."""
    return planned_of(_transformed(formed, backend.plan_passes(options), options, backend), options, backend)


def before_quantizing(imported: ImportedModel, options: CompileOptions, backend: Backend) -> ImportedModel:
    """A copy of the model as quantize-contractions takes it: a first part of `run_passes`."""
    return _transformed(imported, before_quantization(options), options, backend)


def before_integers(imported: ImportedModel, options: CompileOptions, backend: Backend) -> ImportedModel:
    """A copy of the model as quantize-static takes it: a first part of `run_passes`."""
    return _transformed(imported, common.before_integers(options), options, backend)


def behind_quantizing(imported: ImportedModel, options: CompileOptions, backend: Backend) -> ImportedModel:
    """A copy of the model with all that is quantized in it: a first part of `run_passes`, before weights are computed."""
    return _transformed(imported, quantized_passes(options), options, backend)


def plan_quantized(prepared: ImportedModel, passes: Sequence[Pass], options: CompileOptions, backend: Backend) -> Planned:
    """A copy of what `before_quantizing` gave, behind `passes` in the place of quantize-contractions and all that follow it."""
    rest = [*passes, *after_quantization(), *backend.dispatch_passes(options), *backend.plan_passes(options)]
    done = _with_folded(_transformed(prepared, rest, options, backend), options)
    return backend.plan(done.module, done.weights, [str(step) for step in rest])


def _transformed(imported: ImportedModel, passes: Sequence[Pass], options: CompileOptions, backend: Backend) -> ImportedModel:
    """A copy, behind some passes."""
    with imported.module.context, ir.Location.unknown():
        module = ir.Module.parse(str(imported.module))
    run_pipeline(module, passes, options=PipelineOptions(None, options.repro), context=backend.context(options))
    return ImportedModel(imported.name, module, imported.weights)


def _with_folded(imported: ImportedModel, options: CompileOptions) -> ImportedModel:
    """With the weights that are computed at compile time; the function that computes them leaves the module."""
    folded = folded_weights(imported.module, imported.weights, options)
    return ImportedModel(imported.name, imported.module, {**imported.weights, **folded})
