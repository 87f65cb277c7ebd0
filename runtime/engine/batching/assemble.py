"""Concatenation of several requests' arrays into one call, and splitting of its outputs."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

import numpy as np

from llmos.runtime.engine.batching.policy import Limits
from llmos.runtime.engine.model import Array, Batching, Signature


def describe(arrays: Sequence[Array], batching: Batching) -> tuple[int, int, Hashable]:
    """Return the rows, the length and the group of one call's arrays, as QueuedRequest has them."""
    if batching.batch_symbol is None:
        return 1, 1, None
    if batching.length_symbol is not None:
        return len(arrays[0]), arrays[0].shape[1], "padded"
    return len(arrays[0]), 1, tuple(array.shape[1:] for array in arrays)


def split_rows(arrays: list[Array], batching: Batching, limits: Limits) -> list[list[Array]]:
    """Return a call in parts of as many rows as a batch may hold, views of its arrays; whole if its rows are not independent.

    Between the parts of a large call other requests run, and its deadline is looked at.
    """
    rows, length, _ = describe(arrays, batching)
    size = max(1, min(limits.max_rows, limits.max_padded_tokens // max(1, length)))
    if batching.batch_symbol is None or rows <= size:
        return [arrays]
    return [[array[start : start + size] for array in arrays] for start in range(0, rows, size)]


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
