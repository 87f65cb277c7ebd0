"""AWQ: channels whose activations are large are multiplied before rounding, so that their weights are rounded more finely.

Lin et al., arXiv 2306.00978: x / s and w · s have the product of x and w. s[k] = a[k]^e, where a is the mean magnitude of the activation's
channel, divided by the root of its largest times its smallest element; of 20 exponents e from 0 to 1 the one is taken that leaves the
least error in the product.
"""

from __future__ import annotations

import numpy as np

from llmos.compiler.quant.nibbles import nearest

NUM_EXPONENTS = 20
SMALLEST, LARGEST = 1e-4, 1e4  # of an element


def scale_search(rows: np.ndarray, weight: np.ndarray, group: int) -> np.ndarray | None:
    """Return the vector s, float32 [k], that leaves the least error of the rounded product; None where none beats no scaling.

    rows: float32 [rows, k], of the activation. weight: float32 [n, k], of all products that read it. group: of weights along k.
    """
    magnitudes = np.abs(rows).mean(0)
    used = magnitudes > 0
    best, least = None, _error(rows, weight, np.ones(len(magnitudes), np.float32), group)
    for step in range(1, NUM_EXPONENTS):
        powers = np.where(used, magnitudes, 1) ** (step / NUM_EXPONENTS)
        middle = np.sqrt(powers[used].max(initial=SMALLEST) * powers[used].min(initial=LARGEST))
        vector = np.where(used, np.clip(powers / middle, SMALLEST, LARGEST), 1).astype(np.float32)
        error = _error(rows, weight, vector, group)
        if error < least:
            best, least = vector, error
    return best


def _error(rows: np.ndarray, weight: np.ndarray, vector: np.ndarray, group: int) -> float:
    """The mean squared error of the product whose weight, multiplied by a vector, is rounded in groups."""
    off = nearest(weight * vector, group).values / vector - weight
    return float(np.mean(np.square(rows @ off.T)))
