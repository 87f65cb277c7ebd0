"""What calibration fits to activations and weights in 8 bits: SmoothQuant's vectors, and corrections of what rounding leaves.

SmoothQuant (Xiao et al., arXiv 2211.10438): s[k] = a[k]^e / b[k]^(1 - e); x / s and w · s have the product of x and w. The paper takes for
a and b the largest magnitudes of a channel on both sides. Here b is the root mean square of w, and a the largest magnitude of x, its root
mean square, or their geometric mean, whichever leaves the least error: where one row has an outlier, it says little of the others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llmos.compiler.quant.int8 import Int8Weight

EXPONENTS = (0.3, 0.4, 0.5, 0.6)
SMALLEST, LARGEST = 1e-5, 1e5  # of an element


def smoothing_vector(largest: np.ndarray, rows: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """Return the vector, float32 [k], whose quantized product is nearest to the product of floats; None where none beats no smoothing.

    largest: float32 [k], of the activation's magnitudes. rows: float32 [rows, k], of the activation. weight: float32 [n, k], of all
    products that read it.
    """
    exact = rows @ weight.T
    best, least = None, product_error(rows, weight, exact)
    for vector in _candidates(largest, rows, weight):
        error = product_error(rows * (1 / vector), weight * vector, exact)
        if error < least:
            best, least = vector, error
    return best


def correction(rows: np.ndarray, weight: np.ndarray, vector: np.ndarray | None, rounded: np.ndarray) -> np.ndarray:
    """Return the mean error of each column of the W8A8 product of float32 [rows, k] and [n, k], smoothed by `vector`: float32 [n].

    rounded: float32 [n, k], what weight * vector is rounded to. Added to the product, the correction leaves errors of mean 0 (Nagel et
    al., arXiv 1906.04721).
    """
    smooth = np.ones(rows.shape[1], np.float32) if vector is None else vector
    got = rounded_rows(rows * (1 / smooth)) @ rounded.T
    mean: np.ndarray = (rows @ weight.T - got).mean(0, dtype=np.float64)
    return mean.astype(np.float32)


def product_error(rows: np.ndarray, weight: np.ndarray, exact: np.ndarray) -> float:
    """Return the mean squared error of the W8A8 product of float32 [rows, k] and [n, k] against `exact`, [rows, n]."""
    got = rounded_rows(rows) @ Int8Weight.nearest(weight).values.T
    return float(np.mean(np.square(got - exact)))


def rounded_rows(x: np.ndarray) -> np.ndarray:
    """Return float32 [rows, k] as the asymmetric 8-bit numbers of each row give it."""
    low, high = x.min(1, keepdims=True, initial=0), x.max(1, keepdims=True, initial=0)
    scale = _nonzero(high / 255 - low / 255)
    zero = np.round(-low / scale)
    rounded: np.ndarray = (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale
    return rounded


def _candidates(largest: np.ndarray, rows: np.ndarray, weight: np.ndarray) -> Iterator[np.ndarray]:
    """Channels that are 0 on a side keep their scale."""
    spread, weights = _root_mean_square(rows), _root_mean_square(weight)
    for magnitudes in (largest, spread, np.sqrt(largest * spread)):
        used = (magnitudes > 0) & (weights > 0)
        x, w = np.where(used, magnitudes, 1), np.where(used, weights, 1)
        for exponent in EXPONENTS:
            yield np.where(used, np.clip(x**exponent / w ** (1 - exponent), SMALLEST, LARGEST), 1).astype(np.float32)


def _root_mean_square(values: np.ndarray) -> np.ndarray:
    """Of each column."""
    found: np.ndarray = np.sqrt(np.square(values).mean(0))
    return found


def _nonzero(scale: np.ndarray) -> np.ndarray:
    return np.where(scale == 0, np.float32(1), scale)
