"""Several models as entries of one artifact: the way of driver/compile.py for each, and what they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmos.compiler.backends.base import CompileObserver
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import run_passes
from llmos.compiler.backends.registry import backend_of
from llmos.compiler.calibration.fit import needs_data
from llmos.compiler.driver.importing import described, import_entries_with_warnings, import_with_warnings, say
from llmos.compiler.driver.packaging import contents
from llmos.compiler.driver.renaming import rename
from llmos.compiler.driver.saved import Sidecar
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.attributes import COMPUTED, SYMBOLS
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.ir.limits import require_addressable
from llmos.compiler.ir.weights import is_same_weight
from llmos.compiler.support.progress import Progress
from llmos.compiler.verify.accuracy import AccuracyCheck, gather, is_logits, joined, with_loaded_weights
from llmos.compiler.verify.perplexity import GENERATION
from llmos.passes.quant.quantize_tables import lookups_of
from llmos.runtime.artifact.accuracy import AccuracyReport
from llmos.runtime.artifact.manifest import ENTRIES
from llmos.runtime.artifact.writer import ArtifactContents
from llmos.runtime.errors import UnsupportedError, UserError


def compile_entries(
    sources: Mapping[str, Any], example_args: Any, dynamic_shapes: Any, options: CompileOptions, progress: Progress
) -> ArtifactContents:
    """The contents of an artifact with an entry for each source, by its name.

    example_args, dynamic_shapes: mappings by the names of the sources, of what `compile` takes for one.
    A symbol of one name and another range in another entry gets the entry's name behind its own. Assets are those of all.
    Raises UserError for what can't be read or a name that is none, UnsupportedError for what can't be compiled.
    """
    _check_names(sources, example_args, dynamic_shapes)
    _check_options(options)
    progress.phase("import")
    models = {
        name: import_with_warnings(source, example_args.get(name), dynamic_shapes.get(name), options) for name, source in sources.items()
    }
    return _compiled(models, options, progress)


def compile_language_model(source: str | Path, options: CompileOptions, progress: Progress) -> ArtifactContents:
    """The contents of an artifact of a causal language model that generates, by its entry `main`, and embeds texts, by `embed`.

    Raises as `compile_entries`.
    """
    _check_options(options)
    progress.phase("import")
    return _compiled(import_entries_with_warnings(source, options), options, progress)


def _compiled(models: Mapping[str, ImportedModel], options: CompileOptions, progress: Progress) -> ArtifactContents:
    backend = backend_of(options)
    _check_states(models)
    _separate(models)
    for model in models.values():
        require_addressable(model.module)
    own = {name: _options_of(name, models, options) for name in models}
    progress.phase("reference")
    checks = {name: gather(model, own[name], say).of_entry(name) for name, model in models.items() if options.accuracy_report}
    progress.phase("passes")
    plans = {name: run_passes(model, own[name], backend) for name, model in models.items()}
    progress.phase("code")
    targets = backend.code_targets(options.target, backend.targets(options.target), list(plans.values()))
    compiled = backend.lower_entries(plans, targets, options, CompileObserver())
    sidecar = Sidecar(
        options.name or _default(models).name,
        {},
        described(_metadata(models), options),
        {key: data for model in models.values() for key, data in model.assets.items()},
    )
    if not checks:
        return contents(sidecar, compiled, backend)
    progress.phase("accuracy report")
    compiled = with_loaded_weights(compiled)
    return contents(sidecar, compiled, backend, joined([_accuracy_report(check, compiled) for check in checks.values()]))


def _default(models: Mapping[str, ImportedModel]) -> ImportedModel:
    """The model of the entry that a program calls where none is named."""
    return models.get("main") or next(iter(models.values()))


def _metadata(models: Mapping[str, ImportedModel]) -> dict[str, Any]:
    """That of the default entry, and in `entries` what the others have."""
    default = _default(models)
    others = {name: dict(model.metadata) for name, model in models.items() if model is not default and model.metadata}
    return {**default.metadata, **({ENTRIES: others} if others else {})}


def _options_of(entry: str, models: Mapping[str, ImportedModel], options: CompileOptions) -> CompileOptions:
    """With dumps and repros in folders of an entry's own, and without what is of others: a perplexity, budgets of logits."""
    dump_ir, repro = (folder / entry if folder else None for folder in (options.dump_ir, options.repro))
    own = replace(options, dump_ir=dump_ir, repro=repro, keep_tables=_multiplied_elsewhere(entry, models) if options.quant else ())
    if GENERATION not in models[entry].metadata and any(GENERATION in model.metadata for model in models.values()):
        own = replace(own, perplexity=None)
    if not _has_logits(models[entry]) and any(map(_has_logits, models.values())):
        own = replace(own, max_kl=None, min_top1=None)
    return own


def _has_logits(model: ImportedModel) -> bool:
    return any(is_logits(each.name) for each in EntryFunc.of(model.module).results)


def _multiplied_elsewhere(entry: str, models: Mapping[str, ImportedModel]) -> tuple[str, ...]:
    """Names of an entry's tables that another multiplies by, such as tied embeddings: quantized here alone they would be stored twice."""
    others = [model for name, model in models.items() if name != entry]
    multiplied = [weight for other in others for name, weight in other.weights.items() if name not in _tables(other.module)]
    own = models[entry]
    return tuple(name for name in _tables(own.module) if any(is_same_weight(own.weights[name], other) for other in multiplied))


def _tables(module: ir.Module) -> list[str]:
    """Names of the weights that are looked up and nothing else."""
    return [each.name for each in EntryFunc.of(module).arguments.weights if lookups_of(each.value)]


def _accuracy_report(check: AccuracyCheck, compiled: Any) -> AccuracyReport:
    own = tuple(entry for entry in compiled.entries if entry.name == check.entry)
    return check.accuracy_report(replace(compiled, entries=own))


def _check_names(sources: Mapping[str, Any], example_args: Any, dynamic_shapes: Any) -> None:
    for name in sources:
        if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
            raise UserError(f"an entry can't be called {name!r}: use letters, digits and _")
    for what, given in (("example_args", example_args), ("dynamic_shapes", dynamic_shapes)):
        if not isinstance(given, Mapping) or set(given) - set(sources):
            raise UserError(f"{what} must be a mapping by the names of the entries: {', '.join(sources)}")
    if not sources:
        raise UserError("there must be at least one entry")


def _check_options(options: CompileOptions) -> None:
    """Refuse what is wrong or not of several entries before minutes of work."""
    if needs_data(options):
        raise UserError("calibration is of one entry: compile several with --quant w8a8 and without data")
    if options.tune is not None or options.stop_after not in ("", "llmos") or options.from_stage:
        raise UserError("stages and searches are of one entry: compile several without --tune, --from and --stop-after")
    backend_of(options).targets(options.target)


def _check_states(models: Mapping[str, ImportedModel]) -> None:
    """A buffer that one entry changes is no other's."""
    for name, model in models.items():
        for state in _states(model):
            others = [other for other, its in models.items() if other != name and state in its.weights]
            if others:
                raise UnsupportedError(
                    f"entry {name!r} changes the buffer {state!r}, which entry {others[0]!r} has too: make it an input of both, which is "
                    "updated where it lies"
                )


def _states(model: ImportedModel) -> list[str]:
    return [each.state for each in EntryFunc.of(model.module).arguments if each.state]


def _separate(models: Mapping[str, ImportedModel]) -> None:
    """Other names for symbols that mean something else in an entry before, and for all sizes that data gives."""
    known: dict[str, tuple[int, ...]] = {}
    for name, model in models.items():
        attributes = model.module.operation.attributes
        with model.module.context:
            ranges = {each.name: tuple(ir.DenseI64ArrayAttr(each.attr)) for each in _items(attributes, SYMBOLS)}
            computed = [each.name for each in _items(attributes, COMPUTED)]
        clashing = [each for each, limits in ranges.items() if known.get(each, limits) != limits]
        clashing += [each for each in computed if each in known] + [each for each in ranges if known.get(each) == ()]
        renaming = {each: f"{each}_{name}" for each in clashing}
        rename(model.module, renaming)
        known |= {renaming.get(each, each): limits for each, limits in ranges.items()}
        known |= dict.fromkeys([renaming.get(each, each) for each in computed], ())


def _items(attributes: Any, key: str) -> list[ir.NamedAttribute]:
    return list(ir.DictAttr(attributes[key])) if key in attributes else []
