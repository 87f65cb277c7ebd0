"""Distances and losses based on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _power_distance(difference: Tensor, p: float) -> Tensor:
    """Return the p-norm over the last dimension; half floats in float32."""
    if difference.dtype in (torch.float16, torch.bfloat16):
        return _power_distance(difference.float(), p).to(difference.dtype)
    size = difference.abs()
    if p == 0:
        return (size != 0).to(size.dtype).sum(-1)
    if p == math.inf:
        return size.amax(-1) if size.shape[-1] else size.sum(-1)
    return size.sum(-1) if p == 1 else (size * size).sum(-1).sqrt() if p == 2 else size.pow(p).sum(-1).pow(1 / p)


def _cdist(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    difference = x.unsqueeze(-2) - y.unsqueeze(-3)
    if p == math.inf:  # torch's maximum ignores NaN, in this op only
        difference = torch.where(difference.isnan(), 0.0, difference)
    return _power_distance(difference, p)


def _dist(x: Tensor, y: Tensor, p: float = 2.0) -> Tensor:
    return _power_distance((x - y).reshape(-1), p)


def _pdist(x: Tensor, p: float = 2.0) -> Tensor:
    first, second = torch.triu_indices(int(x.shape[0]), int(x.shape[0]), 1).unbind(0)
    return _power_distance(x.index_select(0, first) - x.index_select(0, second), p)


def _addbmm(x: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if not x.dtype.is_floating_point:
        beta, alpha = int(beta), int(alpha)
    product = (left @ right).sum(0) * alpha
    return product if beta == 0 else x * beta + product


def _multilabel_margin_loss(x: Tensor, target: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    """Compare the target classes of each row, up to the first -1, with all other classes."""
    rows, wanted = (x.reshape(1, -1), target.reshape(1, -1)) if x.dim() < 2 else (x, target)
    given = (wanted >= 0).to(torch.int64).cumprod(-1) > 0
    places = torch.where(given, wanted, 0)
    is_target = ((places.unsqueeze(-1) == torch.arange(rows.shape[-1])) & given.unsqueeze(-1)).any(-2)
    margins = (1 - rows.gather(-1, places).unsqueeze(-1) + rows.unsqueeze(-2)).clamp(min=0)
    counted = given.unsqueeze(-1) & ~is_target.unsqueeze(-2)
    loss = torch.where(counted, margins, 0.0).sum((-1, -2)) / rows.shape[-1]
    loss = loss.reshape(()) if x.dim() < 2 else loss
    reduced = loss.mean() if reduction == 1 else loss.sum() if reduction == 2 else loss
    return reduced, is_target.reshape(target.shape).to(x.dtype)


TABLE: dict[Any, Callable[..., Any]] = {
    aten.cdist.default: _cdist,
    aten._cdist_forward.default: _cdist,
    aten.dist.default: _dist,
    aten.addbmm.default: _addbmm,
    aten.multilabel_margin_loss_forward.default: _multilabel_margin_loss,
    aten.pdist.default: _pdist,
    aten._pdist_forward.default: _pdist,
}
