"""What is fitted to activations, as weights of a model: vectors that smooth them, and corrections of the products that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from llmos.compiler.calibration.statistics import Activation, Step
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.ir.weights import Weight
from llmos.compiler.quant.smoothing import correction, smoothing_vector
from llmos.passes.quant._fitted import CORRECT, SMOOTH, add_vectors, drop_unused_vectors


@dataclass(frozen=True)
class Vectors:
    """smooth: float32 [k], of each activation that one helps, by its number; correct: float32 [n], of each product, by its number."""

    smooth: dict[int, np.ndarray] = field(default_factory=dict)
    correct: dict[int, np.ndarray] = field(default_factory=dict)


def fitted_vectors(activations: Mapping[int, Activation], step: Step) -> Vectors:
    """Return what makes the quantized products nearest to those of floats."""
    found = Vectors()
    for done, (number, each) in enumerate(activations.items(), 1):
        vector = smoothing_vector(each.largest, each.rows, np.concatenate(list(each.weights.values())))
        if vector is not None:
            found.smooth[number] = vector
        for product, weight in each.weights.items():
            found.correct[product] = correction(each.rows, weight, vector)
        step(done, len(activations))
    return found


def with_vectors(imported: ImportedModel, vectors: Vectors) -> ImportedModel:
    """Return a copy of the model, whose module has the vectors as weights that quantize-contractions reads."""
    added: dict[str, Weight] = {}
    with imported.module.context, ir.Location.unknown():
        module = ir.Module.parse(str(imported.module))
        drop_unused_vectors(EntryFunc.of(module))  # of an earlier fit, in a saved stage
        for prefix, group in ((SMOOTH, vectors.smooth), (CORRECT, vectors.correct)):
            names = add_vectors(EntryFunc.of(module), prefix, {number: len(vector) for number, vector in group.items()})
            added |= {names[number]: Weight.of(vector) for number, vector in group.items()}
    return replace(imported, module=module, weights={**imported.weights, **added})
