"""What is fitted to activations: vectors that smooth them, and corrections of the products that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from llmos.compiler.calibration.statistics import Activation, Step
from llmos.compiler.quant.smoothing import correction, smoothing_vector


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
