"""Non-maximum suppression as one op."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("llmos::non_max_suppression", mutates_args=())
def non_max_suppression(boxes: Tensor, scores: Tensor, most: Tensor, overlap: Tensor, least: Tensor, is_centered: bool) -> Tensor:
    """Return int64 [count, 3]: (batch, class, box) of each selected box, by batch, class and descending score; the first of equal scores.

    boxes [batch, n, 4] float32: two opposite corners (y, x, y, x), or (x, y, width, height) if `is_centered`.
    scores [batch, classes, n] float32. most: int64 [], the limit per class. A box is selected if its score is above `least` [] and its
    intersection over union with every box selected before is at most `overlap` []. As ONNX's NonMaxSuppression.
    """
    corners = _corners(boxes, is_centered)
    chosen: list[list[int]] = []
    for batch in range(scores.shape[0]):
        for kind in range(scores.shape[1]):
            kept: list[int] = []
            for box in torch.argsort(scores[batch, kind], descending=True, stable=True).tolist():
                if len(kept) >= int(most) or not bool(scores[batch, kind, box] > least):
                    break
                if not any(bool(_overlap(corners[batch, box], corners[batch, other]) > overlap) for other in kept):
                    kept.append(box)
            chosen += [[batch, kind, box] for box in kept]
    return torch.tensor(chosen, dtype=torch.int64).reshape(-1, 3)


@non_max_suppression.register_fake
def _(boxes: Tensor, scores: Tensor, most: Tensor, overlap: Tensor, least: Tensor, is_centered: bool) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(), 3), dtype=torch.int64)


def _corners(boxes: Tensor, is_centered: bool) -> Tensor:
    """Return low y and x, then high y and x."""
    if is_centered:
        middle, half = boxes[..., [1, 0]], boxes[..., [3, 2]] / 2
        return torch.cat([middle - half, middle + half], -1)
    return torch.cat([torch.minimum(boxes[..., :2], boxes[..., 2:]), torch.maximum(boxes[..., :2], boxes[..., 2:])], -1)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union; 0 if one is empty."""
    shared = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
    whole = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared
    return torch.where(whole > 0, shared / whole, 0.0)
