"""What calibration has fitted, as weights of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.ir.weights import Weight
from llmos.passes.quant._fitted import add_fitted, drop_unused

Fitted = Mapping[str, Mapping[int, np.ndarray]]  # arrays by number, by the prefix of their names (passes/quant/_fitted.py)


def with_fitted(imported: ImportedModel, fitted: Fitted) -> ImportedModel:
    """Return a copy of the model, whose module has the arrays as weights that the passes of `--quant` read."""
    added: dict[str, Weight] = {}
    with imported.module.context, ir.Location.unknown():
        module = ir.Module.parse(str(imported.module))
        drop_unused(EntryFunc.of(module))  # of an earlier fit, in a saved stage
        for prefix, arrays in fitted.items():
            added |= add_fitted(EntryFunc.of(module), prefix, arrays)
    return replace(imported, module=module, weights={**imported.weights, **added})
