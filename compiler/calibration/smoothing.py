"""What is fitted to activations of products in 8 bits: vectors that smooth them, and corrections of the products that read them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmos.compiler.calibration.statistics import Activation, Step
from llmos.compiler.quant.int8 import Int8Weight
from llmos.compiler.quant.smoothing import correction, smoothing_vector


def smoothing_vectors(activations: Mapping[int, Activation], step: Step) -> dict[int, np.ndarray]:
    """Return float32 [k] of each activation that one helps, by its number."""
    found: dict[int, np.ndarray] = {}
    for done, (number, each) in enumerate(activations.items(), 1):
        vector = smoothing_vector(each.largest, each.rows, np.concatenate(list(each.weights.values())))
        if vector is not None:
            found[number] = vector
        step(done, len(activations))
    return found


def corrections(
    activations: Mapping[int, Activation], smooth: Mapping[int, np.ndarray], rounded: Mapping[int, Int8Weight]
) -> dict[int, np.ndarray]:
    """Return float32 [n] of each product, by its number. rounded: weights that aren't to nearest, by `Product.weight`."""
    found: dict[int, np.ndarray] = {}
    for number, each in activations.items():
        vector = smooth.get(number)
        for product, weight in each.weights.items():
            made = rounded.get(each.numbers[product]) or Int8Weight.nearest(weight if vector is None else weight * vector)
            found[product] = correction(each.rows, weight, vector, made.values)
    return found
