"""Ops with data-dependent result sizes."""

from __future__ import annotations

import math

import torch

from llmos.compiler.frontend.onnx.registry import op
from llmos.compiler.frontend.suppression import non_max_suppression


@op("NonZero", since=9)
def nonzero(x: torch.Tensor) -> torch.Tensor:
    """Lower NonZero: return the indices of nonzero elements in row-major order, int64 [rank, count]."""
    if x.dtype in (torch.uint16, torch.uint32, torch.uint64):  # eager torch doesn't support these
        x = x != 0
    return torch.nonzero(x.reshape(1) if x.ndim == 0 else x).T


@op("NonMaxSuppression", since=10)
def suppress(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    max_output_boxes_per_class: torch.Tensor | None = None,
    iou_threshold: torch.Tensor | None = None,
    score_threshold: torch.Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> torch.Tensor:
    """Lower NonMaxSuppression: return int64 [count, 3] (batch, class, box), as frontend/suppression.py specifies.

    Without a limit nothing is selected, as ONNX specifies.
    """
    most = torch.full((), 0, dtype=torch.int64) if max_output_boxes_per_class is None else max_output_boxes_per_class.reshape(())
    overlap, least = _number(iou_threshold, 0.0), _number(score_threshold, -math.inf)
    chosen: torch.Tensor = non_max_suppression(boxes, scores, most, overlap, least, bool(center_point_box))
    return chosen


def _number(value: torch.Tensor | None, default: float) -> torch.Tensor:
    return torch.full((), default) if value is None else value.reshape(())


@op("Unique", since=11)
def unique(x: torch.Tensor, *, axis: int | None = None, sorted: int = 1) -> tuple[torch.Tensor, ...]:
    """Lower Unique: return (values, indices of first occurrences, inverse indices, counts), by value or by first occurrence."""
    if axis is None:
        x, axis = x.reshape(-1), 0
        values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    else:
        axis %= x.ndim
        values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    first = torch.argsort(inverse, stable=True).index_select(0, counts.cumsum(0) - counts)
    if sorted:
        return values, first, inverse, counts
    order = torch.argsort(first)
    return values.index_select(axis, order), first.index_select(0, order), torch.argsort(order).index_select(0, inverse), counts[order]
