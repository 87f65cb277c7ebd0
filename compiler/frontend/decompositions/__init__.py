"""Decompositions of ops that torch-mlir doesn't lower into other torch ops: functions, by overload, that export traces.

Formulas follow torch's documentation of each op. Sizes may be symbolic unless a function says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from llmos.compiler.frontend.decompositions import (
    bags,
    counts,
    distances,
    linalg,
    norms,
    quantization,
    resampling,
    result_types,
    sampling,
    scatters,
    spectral,
)
from llmos.runtime.errors import UnsupportedError


def own_decompositions() -> Mapping[Any, Callable[..., Any]]:
    """Return every decomposition by overload. A decomposition may return NotImplemented to leave the op unchanged."""
    files = (distances, counts, scatters, bags, linalg, norms, sampling, resampling, spectral, quantization, result_types)
    complex_too = (scatters, spectral, result_types)
    return {op: body if each in complex_too else _of_reals(op, body) for each in files for op, body in each.TABLE.items()}


def _of_reals(op: Any, body: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a decomposition that holds for real numbers only; raises UnsupportedError for complex ones."""

    def decompose(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(each, torch.Tensor) and each.is_complex() for each in pytree.tree_leaves((args, kwargs))):
            raise UnsupportedError(f"{op}: not supported for complex numbers")
        return body(*args, **kwargs)

    return decompose
