"""Small integers in 32-bit words, the first in the lowest bits, and the order of a weight's columns."""

from __future__ import annotations

import numpy as np
import torch

from llmos.runtime.errors import UserError


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [rows, words] -> uint8 [rows, words * 32 / bits]; bits 2, 4 or 8."""
    data = np.ascontiguousarray(words.numpy(), dtype="<i4").view(np.uint8)
    each = 8 // bits
    fields = np.empty((*data.shape, each), np.uint8)
    for place in range(each):
        fields[..., place] = (data >> (bits * place)) & ((1 << bits) - 1)
    return torch.from_numpy(fields.reshape(data.shape[0], -1))


def require_words(name: str, tensor: torch.Tensor) -> None:
    """Raises UserError for a tensor that is no matrix of 32-bit words."""
    if tensor.dtype != torch.int32 or tensor.ndim != 2 or not tensor.numel():
        raise UserError(f"{name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}, not a matrix of packed int32")


def column_order(name: str, group_index: torch.Tensor, group_size: int) -> torch.Tensor | None:
    """The columns sorted by group, int64 [columns]; None where they lie so.

    `group_index` holds each column's group. Raises UserError where the groups aren't each of `group_size` columns.
    """
    columns, groups = group_index.shape[0], group_index.shape[0] // group_size
    index = group_index.to(torch.int64)
    outside = index[(index < 0) | (index >= groups)]
    if outside.numel():
        raise UserError(f"{name} names the group {int(outside[0])}, and there are {groups}")
    counts = torch.bincount(index, minlength=groups)
    if bool((counts != group_size).any()):
        group = int((counts != group_size).nonzero()[0])
        raise UserError(f"{name} puts {int(counts[group])} columns into group {group}, and a group has {group_size}")
    order = torch.argsort(index, stable=True)
    return None if torch.equal(order, torch.arange(columns)) else order
