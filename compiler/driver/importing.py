"""A model as its source gives it, and what its user should know of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver.import_repro import reproducible
from llmos.compiler.driver.packaging import weights_with_nan
from llmos.compiler.driver.sources import import_entries, import_source
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.stored_scales import check_stored_scales
from llmos.runtime.artifact.manifest import QUANT


class ModelWarning(UserWarning):
    """Something that the user should know of a model that compiles."""


def import_with_warnings(source: Any, example_args: Sequence[Any] | None, dynamic_shapes: Any, options: CompileOptions) -> ImportedModel:
    """Brings a model in, and says what its user should know of it. Raises UserError for scales of quantization that say nothing."""
    with reproducible(options.repro):
        imported = import_source(source, example_args, dynamic_shapes, options)
    _warn([imported])
    return imported


def import_entries_with_warnings(source: Any, options: CompileOptions) -> dict[str, ImportedModel]:
    """As `import_with_warnings`, of a source of several entries."""
    with reproducible(options.repro):
        entries = import_entries(source, options)
    _warn(list(entries.values()))
    return entries


def _warn(models: Sequence[ImportedModel]) -> None:
    """Says of models what their user should know, once. models: those of one source."""
    for imported in models:
        check_stored_scales(imported)
    for note in dict.fromkeys(str(note) for imported in models for note in imported.metadata.get("notes", ())):
        say(note)
    with_nan = next((found for imported in models if (found := weights_with_nan(imported.weights))), [])
    if with_nan:
        more = f" and {len(with_nan) - 1} more" if len(with_nan) > 1 else ""
        say(f"the model has NaN in its weights: {with_nan[0]}{more}; was it saved after training diverged?")


def described(metadata: Mapping[str, Any], options: CompileOptions) -> dict[str, Any]:
    """Returns a model's metadata with what the compile adds to it."""
    return {**metadata, **({QUANT: options.quant} if options.quant else {})}


def say(note: str) -> None:
    """Warns of a model, with one line."""
    warnings.warn(note, ModelWarning, 5)
