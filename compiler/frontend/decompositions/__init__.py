"""Ops that torch-mlir doesn't know, said in other torch ops: functions that export's decomposition traces, by overload.

Formulas follow torch's documentation of each op. Sizes may be symbolic unless a function says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmos.compiler.frontend.decompositions import (
    bags,
    counts,
    distances,
    linalg,
    norms,
    resampling,
    result_types,
    sampling,
    scatters,
    spectral,
)


def own_decompositions() -> Mapping[Any, Callable[..., Any]]:
    """Every decomposition here, by the overload that it stands for. One may return NotImplemented: the op is then left as it is."""
    files = (distances, counts, scatters, bags, linalg, norms, sampling, resampling, spectral, result_types)
    return {op: body for each in files for op, body in each.TABLE.items()}
