"""Concatenation of several requests' arrays into one call, and splitting of its outputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from llmos.runtime.engine.model import Array, Batching, Signature


def join(signature: Signature, batching: Batching, requests: Sequence[Sequence[Array]]) -> list[Array]:
    """Concatenate each input of all requests along the batch dimension, padded at the end to the longest if the model allows it.

    requests: for each request its arrays in the entry's order, [rows, ...]. A single request is not copied.
    """
    if len(requests) == 1:
        return list(requests[0])
    joined = []
    for index, spec in enumerate(signature.inputs):
        arrays = [request[index] for request in requests]
        if len({array.shape[1:] for array in arrays}) == 1:
            joined.append(np.concatenate(arrays))
        else:
            joined.append(_pad(arrays, batching.pad_values.get(spec.name, 0)))
    return joined


def _pad(arrays: Sequence[Array], value: int) -> Array:
    """Pad and concatenate arrays [rows, length] of different lengths to [sum of rows, longest]."""
    shape = (sum(len(array) for array in arrays), max(array.shape[1] for array in arrays))
    padded = np.full(shape, value, dtype=arrays[0].dtype)
    start = 0
    for array in arrays:
        padded[start : start + len(array), : array.shape[1]] = array
        start += len(array)
    return padded


def split(outputs: Sequence[Array], rows: Sequence[int]) -> list[list[Array]]:
    """Return the outputs of each request as views of the batch's outputs. rows: number of rows of each request, in batch order."""
    if len(rows) == 1:
        return [list(outputs)]
    bounds = np.cumsum([0, *rows]).tolist()
    return [[output[start:end] for output in outputs] for start, end in itertools.pairwise(bounds)]
