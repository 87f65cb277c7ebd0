"""Ops on mixed dtypes for which torch's metadata and torch's kernels disagree on the result dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

aten = torch.ops.aten

# The operand whose dtype the kernel's result has.
_TYPE_OF: Mapping[Any, int] = MappingProxyType(
    {
        aten.huber_loss.default: 0,
        aten.soft_margin_loss.default: 0,
        aten.mse_loss_backward.default: 1,
        aten.smooth_l1_loss_backward.default: 1,
        aten.soft_margin_loss_backward.default: 1,
    }
)


def _of_type(op: Any, place: int) -> Callable[..., Tensor]:
    body = get_decompositions([op])[op]

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = body(*args, **kwargs)
        return found.to(args[place].dtype)

    return run


def _threshold_backward(gradient: Tensor, x: Tensor, threshold: Any) -> Tensor:
    kind = torch.result_type(gradient, x)
    return torch.where(x <= threshold, 0, gradient.to(kind))


TABLE = {**{op: _of_type(op, place) for op, place in _TYPE_OF.items()}, aten.threshold_backward.default: _threshold_backward}
