"""Reductions, argument reductions, cumulative sums, softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from llmos.compiler.frontend.onnx.dtypes import wide
from llmos.compiler.frontend.onnx.registry import Ints, Sizes, op

Reduction = Callable[[torch.Tensor, tuple[int, ...], bool], torch.Tensor]


def _wide_sum(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _product(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    product = wide(x)
    for axis in sorted(axes, reverse=True):
        product = torch.prod(product, axis, keepdim=keep, dtype=product.dtype)
    return product.to(x.dtype)


def _mean(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keepdim=keep)
    # Towards zero, as onnxruntime divides integers.
    count = math.prod(x.shape[axis] for axis in axes)
    return torch.div(_wide_sum(x, axes, keep), torch.scalar_tensor(count, dtype=x.dtype), rounding_mode="trunc").to(x.dtype)


def _extreme(function: Any) -> Reduction:
    def reduce(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
        if any(x.shape[axis] == 0 for axis in axes):
            return _empty_extreme(x, axes, keep, function is torch.amin)
        if x.dtype == torch.bool:
            return function(x.to(torch.uint8), axes, keepdim=keep).to(torch.bool)  # type: ignore[no-any-return]
        return function(x, axes, keepdim=keep)  # type: ignore[no-any-return]

    return reduce


def _empty_extreme(x: torch.Tensor, axes: tuple[int, ...], keep: bool, of_minimum: bool) -> torch.Tensor:
    """Return the identity of min or max, ONNX's result for an empty set."""
    shape = [1 if i in axes else size for i, size in enumerate(x.shape) if keep or i not in axes]
    if x.is_floating_point():
        return torch.full(shape, float("inf") if of_minimum else float("-inf"), dtype=x.dtype)
    if x.dtype == torch.bool:
        return torch.full(shape, of_minimum, dtype=x.dtype)
    info = torch.iinfo(x.dtype)
    return torch.full(shape, info.max if of_minimum else info.min, dtype=x.dtype)


def _log_sum_exp(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return torch.logsumexp(_floating(x), axes, keepdim=keep).to(x.dtype)


def _l2(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    w = _floating(x)
    return torch.sqrt(torch.sum(w * w, axes, keepdim=keep)).to(x.dtype)


def _log_sum(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return torch.log(_floating(_wide_sum(wide(x), axes, keep))).to(x.dtype)


def _sum_of_squares(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    w = wide(x)
    return _wide_sum(w * w, axes, keep).to(x.dtype)


REDUCTIONS: tuple[tuple[str, Reduction], ...] = (
    ("ReduceSum", _wide_sum),
    ("ReduceProd", _product),
    ("ReduceMean", _mean),
    ("ReduceMax", _extreme(torch.amax)),
    ("ReduceMin", _extreme(torch.amin)),
    ("ReduceL1", lambda x, axes, keep: _wide_sum(torch.abs(x), axes, keep)),
    ("ReduceL2", _l2),
    ("ReduceLogSum", _log_sum),
    ("ReduceLogSumExp", _log_sum_exp),
    ("ReduceSumSquare", _sum_of_squares),
)


def _by_attribute(name: str, reduction: Reduction) -> Callable[..., torch.Tensor]:
    @op(name)
    def reduce(x: torch.Tensor, *, axes: tuple[int, ...] = (), keepdims: int = 1) -> torch.Tensor:
        return _reduce(reduction, x, axes, keepdims, False)

    return reduce


def _by_input(name: str, reduction: Reduction) -> Callable[..., torch.Tensor]:
    @op(name, since=13 if name == "ReduceSum" else 18)
    def reduce(x: torch.Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> torch.Tensor:
        return _reduce(reduction, x, axes or (), keepdims, bool(noop_with_empty_axes))

    return reduce


BY_ATTRIBUTE = tuple(_by_attribute(name, reduction) for name, reduction in REDUCTIONS)
BY_INPUT = tuple(_by_input(name, reduction) for name, reduction in REDUCTIONS)


def _reduce(reduction: Reduction, x: torch.Tensor, axes: tuple[int, ...], keepdims: int, is_noop: bool) -> torch.Tensor:
    if not axes and is_noop:
        return reduction(x.unsqueeze(0), (0,), False)
    if x.ndim == 0:
        return reduction(x.reshape(1), (0,), False)
    dims = tuple(sorted(axis % x.ndim for axis in axes)) or tuple(range(x.ndim))
    return reduction(x, dims, bool(keepdims))


def _floating(x: torch.Tensor) -> torch.Tensor:
    return wide(x) if x.is_floating_point() else x.to(torch.float64)


def _argument(x: torch.Tensor, axis: int, keepdims: int, select_last: int, function: Any) -> torch.Tensor:
    if not select_last:
        return function(x, axis, keepdim=bool(keepdims))  # type: ignore[no-any-return]
    return x.shape[axis] - 1 - function(torch.flip(x, (axis,)), axis, keepdim=bool(keepdims))  # type: ignore[no-any-return]


@op("ArgMax")
def arg_max(x: torch.Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> torch.Tensor:
    """Lower ArgMax, int64; of equal elements the first, or the last with `select_last_index`."""
    return _argument(x, axis, keepdims, select_last_index, torch.argmax)


@op("ArgMin")
def arg_min(x: torch.Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> torch.Tensor:
    """Lower ArgMin, int64; of equal elements the first, or the last with `select_last_index`."""
    return _argument(x, axis, keepdims, select_last_index, torch.argmin)


def _running(x: torch.Tensor, axes: tuple[int, ...], exclusive: int, reverse: int, function: Any, unit: int) -> torch.Tensor:
    axis = axes[0] % x.ndim
    transposed = torch.flip(x, (axis,)) if reverse else x
    result = function(transposed, axis, dtype=x.dtype)
    if exclusive:
        first = torch.full_like(transposed.narrow(axis, 0, 1), unit)
        result = torch.cat((first, result.narrow(axis, 0, x.shape[axis] - 1)), axis)
    return torch.flip(result, (axis,)) if reverse else result


@op("CumSum")
def cum_sum(x: torch.Tensor, axis: Ints, *, exclusive: int = 0, reverse: int = 0) -> torch.Tensor:
    """Lower CumSum along a constant axis; `exclusive` starts with 0, `reverse` runs from the end."""
    return _running(x, axis, exclusive, reverse, torch.cumsum, 0)


@op("CumProd")
def cum_prod(x: torch.Tensor, axis: Ints, *, exclusive: int = 0, reverse: int = 0) -> torch.Tensor:
    """Lower CumProd along a constant axis; `exclusive` starts with 1, `reverse` runs from the end."""
    return _running(x, axis, exclusive, reverse, torch.cumprod, 1)


@op("Softmax", since=13)
def softmax(x: torch.Tensor, *, axis: int = -1) -> torch.Tensor:
    """Lower Softmax from opset 13, along one axis."""
    return torch.softmax(x, axis)


@op("LogSoftmax", since=13)
def log_softmax(x: torch.Tensor, *, axis: int = -1) -> torch.Tensor:
    """Lower LogSoftmax from opset 13, along one axis."""
    return torch.log_softmax(x, axis)


@op("Hardmax", since=13)
def hardmax(x: torch.Tensor, *, axis: int = -1) -> torch.Tensor:
    """Lower Hardmax from opset 13: 1 at the first maximum along one axis, else 0."""
    positions = torch.arange(x.shape[axis]).reshape([-1] + [1] * (x.ndim - 1 - axis % x.ndim))
    return (positions == torch.argmax(x, axis, keepdim=True)).to(x.dtype)


def _flattened(x: torch.Tensor, axis: int, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Apply over the flattened dims from `axis` on, the semantics before opset 13."""
    if axis % x.ndim == x.ndim - 1:
        return function(x)
    return function(x.flatten(axis)).reshape(x.shape)


@op("Softmax")
def softmax_flat(x: torch.Tensor, *, axis: int = 1) -> torch.Tensor:
    """Lower Softmax before opset 13, over the flattened dims from `axis` on."""
    return _flattened(x, axis, lambda rows: torch.softmax(rows, -1))


@op("LogSoftmax")
def log_softmax_flat(x: torch.Tensor, *, axis: int = 1) -> torch.Tensor:
    """Lower LogSoftmax before opset 13, over the flattened dims from `axis` on."""
    return _flattened(x, axis, lambda rows: torch.log_softmax(rows, -1))


@op("Hardmax")
def hardmax_flat(x: torch.Tensor, *, axis: int = 1) -> torch.Tensor:
    """Lower Hardmax before opset 13, over the flattened dims from `axis` on."""
    return _flattened(x, axis, hardmax)


@op("TopK", since=10)
def top_k(x: torch.Tensor, k: Sizes, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower TopK from opset 10: return (values, int64 indices) of the k largest or smallest.

    Of equal elements the lower index comes first, which requires a stable sort.
    """
    values, indices = torch.sort(_signed(x), dim=axis, descending=bool(largest), stable=True)
    return _signed(values.narrow(axis, 0, k[0]), x.dtype), indices.narrow(axis, 0, k[0])


def _signed(x: torch.Tensor, back_to: torch.dtype | None = None) -> torch.Tensor:
    """Sizes of an unsigned type that torch can't sort as int64 in the same order, and back."""
    if (back_to or x.dtype) == torch.uint64:
        flipped = x.view(torch.int64) ^ torch.iinfo(torch.int64).min
        return flipped if back_to is None else flipped.view(back_to)
    if back_to is None:
        return x.to(torch.int64) if x.dtype in (torch.uint16, torch.uint32) else x
    return x.to(back_to)
