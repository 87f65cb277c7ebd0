"""Reductions, softmax and normalizations, in the input's float type (half floats in float32)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor, affine_dim
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.scalars import Deferred, Number, Scalar, compute_dtype, select
from llmos.compiler.ir.bindings import ir, linalg

Dims = int | Sequence[int] | None
Order = Number | Deferred


def axes(x: Tensor, dims: Dims) -> list[int]:
    """Return the dims as non-negative numbers; None or an empty list means all."""
    chosen = [dims] if isinstance(dims, int) else list(dims or range(x.rank))
    return sorted({dim % x.rank for dim in chosen} if x.rank else set())


def count(b: Builder, x: Tensor, dims: Sequence[int]) -> Dim:
    """Return the number of elements along `dims`, as a size."""
    return b.sizes.product([x.shape[i] for i in dims])


def number(b: Builder, dim: Dim, dtype: torch.dtype) -> Scalar:
    """Return a size as a scalar of the current body (its index value is computed outside)."""
    return s.constant(dim, dtype) if isinstance(dim, int) else s.from_index(b.index(dim), dtype)


def reduction(init: Callable[[torch.dtype], Number], combine: Callable[[Scalar, Scalar], Scalar]) -> Callable[..., Tensor]:
    """Make the lowering of an aten reduction `(x, dim=None, keepdim=False)`."""

    def lower(b: Builder, result: Meta, x: Tensor, dims: Dims = None, keepdim: bool = False, **_: Any) -> Tensor:
        dtype = compute_dtype(result.dtype)
        reduced = b.reduce(x, axes(x, dims), init(dtype), combine, dtype, keepdim)
        return b.cast(reduced, result.dtype)

    return lower


total = reduction(lambda _: 0, lambda v, acc: acc + v)
product = reduction(lambda _: 1, lambda v, acc: acc * v)
largest = reduction(s.lowest, lambda v, acc: acc.max(v))
smallest = reduction(s.highest, lambda v, acc: acc.min(v))
every = reduction(lambda _: True, lambda v, acc: acc & v)
some = reduction(lambda _: False, lambda v, acc: acc | v)


def mean(b: Builder, result: Meta, x: Tensor, dims: Dims = None, keepdim: bool = False, **_: Any) -> Tensor:
    """Lower aten.mean, summed in the result's dtype (half floats in float32)."""
    return b.cast(_mean(b, b.cast(x, result.dtype), axes(x, dims), keepdim), result.dtype)


def _mean(b: Builder, x: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    dtype = compute_dtype(x.dtype)
    summed = b.reduce(x, dims, 0, lambda v, acc: acc + v, dtype, keepdim)
    return through(b, lambda v: v / number(b, count(b, x, dims), dtype), summed)


def through(b: Builder, body: Callable[[Scalar], Scalar], x: Tensor) -> Tensor:
    """Apply an elementwise op to the stored value and keep the view."""
    shape = tuple(1 if axis is None else x.shape[axis] for axis in x.axes)
    value = b.elementwise(body, [b.dense_tensor(x.value, shape, x.dtype)], x.dtype, shape).value
    return replace(x, value=value, fact=None)


def centered_squares(b: Builder, x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return (mean, x - mean, sum of squared differences), with `dims` kept as size 1. Two passes avoid cancellation."""
    dtype = compute_dtype(x.dtype)
    average = _mean(b, x, dims, True)
    centered = b.elementwise(lambda v, m: v.to(dtype) - m, [x, average], dtype)
    return average, centered, b.reduce(centered, dims, 0, lambda v, acc: acc + v * v, dtype, True)


def _moments(b: Builder, x: Tensor, dims: Dims, correction: Number | None, keepdim: bool, unbiased: bool = True) -> tuple[Tensor, Tensor]:
    """Return variance and mean over `dims`."""
    over = axes(x, dims)
    less = correction if correction is not None else int(unbiased)
    average, _, squares = centered_squares(b, x, over)
    dtype = squares.dtype
    variance = through(b, lambda v: v / (number(b, count(b, x, over), dtype) - s.constant(less, dtype)).max(0.0), squares)
    if keepdim:
        return variance, average
    return _drop(b, variance, over), _drop(b, average, over)


def _drop(b: Builder, x: Tensor, dims: Sequence[int]) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = b.squeeze(x, dim)
    return x


def variance(
    b: Builder, result: Meta, x: Tensor, dims: Dims = None, *args: Any, correction: Number | None = None, keepdim: bool = False
) -> Tensor:
    """Lower aten.var: the sum of squared differences over n - correction, 1 by default."""
    return b.cast(_spread(b, x, dims, args, correction, keepdim)[0], result.dtype)


def deviation(
    b: Builder, result: Meta, x: Tensor, dims: Dims = None, *args: Any, correction: Number | None = None, keepdim: bool = False
) -> Tensor:
    """Lower aten.std, the square root of `variance`."""
    return b.cast(through(b, s.sqrt, _spread(b, x, dims, args, correction, keepdim)[0]), result.dtype)


def var_mean(
    b: Builder, result: Sequence[Meta], x: Tensor, dims: Dims = None, *args: Any, correction: Number | None = None, keepdim: bool = False
) -> list[Tensor]:
    """Lower aten.var_mean: (variance, mean)."""
    return [b.cast(y, meta.dtype) for y, meta in zip(_spread(b, x, dims, args, correction, keepdim), result, strict=True)]


def _spread(b: Builder, x: Tensor, dims: Dims, args: Sequence[Any], correction: Number | None, keepdim: bool) -> tuple[Tensor, Tensor]:
    """`.dim` passes (dims, unbiased, keepdim) by position, `.correction` passes them by name, `.default` passes only unbiased."""
    if isinstance(dims, bool):
        return _moments(b, x, None, correction, keepdim, dims)
    unbiased, kept = (*args, True, keepdim)[0:2] if len(args) < 2 else args[:2]
    if len(args) == 1:
        kept = keepdim
    return _moments(b, x, dims, correction, kept, unbiased)


def vector_norm(b: Builder, result: Meta, x: Tensor, order: Order = 2, dims: Dims = None, keepdim: bool = False, **_: Any) -> Tensor:
    """Lower aten.linalg_vector_norm: (sum |x|^order)^(1 / order); the number of nonzero elements for 0, an extreme of |x| for ±inf."""
    over, dtype = axes(x, dims), compute_dtype(result.dtype)
    if order in (math.inf, -math.inf):
        pick = (lambda v, acc: acc.max(s.absolute(v))) if order > 0 else (lambda v, acc: acc.min(s.absolute(v)))
        return b.cast(b.reduce(x, over, 0.0 if order > 0 else math.inf, pick, dtype, keepdim), result.dtype)
    if order == 2:
        summed = b.reduce(x, over, 0, lambda v, acc: acc + v * v, dtype, keepdim)
        return b.cast(through(b, s.sqrt, summed), result.dtype)
    if order == 1:
        return b.cast(b.reduce(x, over, 0, lambda v, acc: acc + s.absolute(v), dtype, keepdim), result.dtype)
    if order == 0:
        return b.cast(b.reduce(x, over, 0, lambda v, acc: acc + v.differs(0).to(dtype), dtype, keepdim), result.dtype)
    summed = b.reduce(x, over, 0, lambda v, acc: acc + _summand(v, order, dtype), dtype, keepdim)
    return b.cast(through(b, lambda v: _root(v, order, dtype), summed), result.dtype)


def _summand(v: Scalar, order: Order, dtype: torch.dtype) -> Scalar:
    raised = s.power(s.absolute(v), s.constant(order, dtype))
    return s.select(s.constant(order, dtype).equals(0), v.differs(0).to(dtype), raised) if isinstance(order, Deferred) else raised


def _root(v: Scalar, order: Order, dtype: torch.dtype) -> Scalar:
    root = s.power(v, 1.0 / s.constant(order, dtype)) if isinstance(order, Deferred) else s.power(v, s.constant(1.0 / order, dtype))
    return s.select(s.constant(order, dtype).equals(0), v, root) if isinstance(order, Deferred) else root


def norm(b: Builder, result: Meta, x: Tensor, order: Order | None = 2, dims: Dims = None, keepdim: bool = False, **_: Any) -> Tensor:
    """Lower aten.norm of vectors; `order` None is 2."""
    return vector_norm(b, result, x, 2 if order is None else order, dims, keepdim)


def softmax(b: Builder, result: Meta, x: Tensor, dim: int, *_: Any, **__: Any) -> Tensor:
    """Lower aten.softmax along `dim`; 1 for rank 0."""
    return b.cast(softmax_over(b, b.cast(x, result.dtype), dim % max(x.rank, 1)), result.dtype) if x.rank else b.full((), result.dtype, 1)


def safe_softmax(b: Builder, result: Meta, x: Tensor, dim: int, *_: Any, **__: Any) -> Tensor:
    """Lower aten._safe_softmax, which returns zeros for rows of -inf."""
    wide = b.cast(b.unsqueeze(x, 0) if x.rank == 0 else x, result.dtype)
    return b.reshape(b.cast(softmax_over(b, wide, dim % wide.rank, fully_masked_rows=True), result.dtype), result.shape)


def softmax_over(b: Builder, x: Tensor, dim: int, fully_masked_rows: bool = False) -> Tensor:
    """Compute exp(x - max) / sum along `dim`.

    With `fully_masked_rows`, a row of -inf gives zeros instead of NaN: the maximum starts at the lowest finite number, and the sum, which
    is at least 1 in every other row, is clamped to at least 1.
    """
    dtype = compute_dtype(x.dtype)
    start = torch.finfo(dtype).min if fully_masked_rows else -math.inf
    top = b.reduce(x, [dim], start, lambda v, acc: acc.max(v), dtype, True)
    weights = b.elementwise(lambda v, m: s.exp(v.to(dtype) - m), [x, top], dtype, x.shape)
    summed = b.reduce(weights, [dim], 0, lambda v, acc: acc + v, dtype, True)
    return b.elementwise(lambda v, t: v / (t.max(1.0) if fully_masked_rows else t), [weights, summed], dtype, x.shape)


def log_softmax(b: Builder, result: Meta, x: Tensor, dim: int, *_: Any, **__: Any) -> Tensor:
    """Lower aten.log_softmax along `dim`: x - max - log(sum exp(x - max))."""
    x, dtype = b.cast(x, result.dtype), compute_dtype(result.dtype)
    over = [dim % x.rank]
    top = b.reduce(x, over, -math.inf, lambda v, acc: acc.max(v), dtype, True)
    shifted = b.elementwise(lambda v, m: v.to(dtype) - m, [x, top], dtype, x.shape)
    summed = b.reduce(shifted, over, 0, lambda v, acc: acc + s.exp(v), dtype, True)
    return b.elementwise(lambda v, t: v - s.log(t), [shifted, summed], result.dtype, x.shape)


def logsumexp(b: Builder, result: Meta, x: Tensor, dims: Dims, keepdim: bool = False) -> Tensor:
    """Lower aten.logsumexp: log(sum exp(x - max)) + max; an infinite maximum isn't subtracted."""
    over, dtype = axes(x, dims), compute_dtype(result.dtype)
    top = b.reduce(x, over, -math.inf, lambda v, acc: acc.max(v), dtype, True)
    finite = through(b, lambda v: select(s.absolute(v).equals(math.inf), v.like(0.0), v), top)
    weights = b.elementwise(lambda v, m: s.exp(v.to(dtype) - m), [x, finite], dtype, x.shape)
    summed = b.reduce(weights, over, 0, lambda v, acc: acc + v, dtype, True)
    answer = b.elementwise(lambda t, m: s.log(t) + m, [summed, finite], dtype)
    return b.cast(answer if keepdim else _drop(b, answer, over), result.dtype)


def _normalized(b: Builder, x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps), in the compute type."""
    _, centered, squares = centered_squares(b, x, dims)
    size = count(b, x, dims)
    scale = through(b, lambda v: s.rsqrt(v / number(b, size, v.dtype) + eps), squares)
    return b.elementwise(lambda v, t: v * t, [centered, scale], centered.dtype, x.shape)


def _affine(b: Builder, x: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return `x * weight + bias` (each if given), cast to `dtype`."""
    given = [p for p in (weight, bias) if p is not None]

    def body(v: Scalar, *parameters: Scalar) -> Scalar:
        queue = iter(parameters)
        v = v * next(queue).to(v.dtype) if weight is not None else v
        return v + next(queue).to(v.dtype) if bias is not None else v

    return b.elementwise(body, [x, *given], dtype, x.shape) if given else b.cast(x, dtype)


def layer_norm(
    b: Builder,
    result: Meta,
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """Lower aten.layer_norm over the last dims, of sizes `shape`; statistics in float32 or wider, weight and bias of that shape."""
    over = list(range(x.rank - len(shape), x.rank))
    return _affine(b, _normalized(b, x, over, eps), weight, bias, result.dtype)


def rms_norm(b: Builder, result: Meta, x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Lower aten.rms_norm (arXiv:1910.07467) over the last dims, of sizes `shape`; `eps` None is the compute dtype's epsilon."""
    over, dtype = list(range(x.rank - len(shape), x.rank)), compute_dtype(x.dtype)
    small = torch.finfo(dtype).eps if eps is None else eps
    squares = b.reduce(x, over, 0, lambda v, acc: acc + v * v, dtype, True)
    scale = through(b, lambda v: s.rsqrt(v / number(b, count(b, x, over), dtype) + small), squares)
    return _affine(b, b.elementwise(lambda v, t: v.to(dtype) * t, [x, scale], dtype, x.shape), weight, None, result.dtype)


def group_norm(
    b: Builder, result: Meta, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """Lower aten.group_norm: normalize each group of channels of each sample of x [batch, channels, ...]; weight and bias [channels]."""
    channels = x.shape[1]
    assert isinstance(channels, int)
    grouped = b.reshape(x, (x.shape[0], groups, channels // groups, *x.shape[2:]))
    flat = b.reshape(_normalized(b, grouped, list(range(2, grouped.rank)), eps), x.shape)
    return _affine(b, flat, per_channel(b, weight, x.rank), per_channel(b, bias, x.rank), result.dtype)


def per_channel(b: Builder, parameter: Tensor | None, rank: int) -> Tensor | None:
    """View a vector [channels] as dimension 1 of a tensor of `rank` dimensions."""
    if parameter is None:
        return None
    for _ in range(rank - 2):
        parameter = b.unsqueeze(parameter, parameter.rank)
    return parameter


def batch_norm(
    b: Builder, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """Batch norm in inference: one scale and shift per channel. They depend on weights only and are folded at compile time."""
    kind = compute_dtype(x.dtype)
    scale = b.elementwise(lambda v: s.rsqrt(v.to(kind) + eps), [variance], kind)
    if weight is not None:
        scale = b.elementwise(lambda v, w: v * w.to(kind), [scale, weight], kind)
    shift = b.elementwise(lambda m, v: -(m.to(kind) * v), [mean, scale], kind)
    if bias is not None:
        shift = b.elementwise(lambda v, w: v + w.to(kind), [shift, bias], kind)
    return _affine(b, b.cast(x, kind), per_channel(b, scale, x.rank), per_channel(b, shift, x.rank), dtype)


def arg_reduction(relation: str) -> Callable[..., Tensor]:
    """Make aten.argmax ("gt") or argmin ("lt"): the first int64 index of the extreme element; NaN is the extreme."""

    def lower(b: Builder, result: Meta, x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
        if dim is None:
            flat = b.reshape(x, (b.sizes.product(x.shape),))
            return b.reshape(_extreme(b, flat, 0, relation, False)[1], result.shape)
        return _extreme(b, x, dim % max(x.rank, 1), relation, keepdim)[1]

    return lower


def with_indices(relation: str) -> Callable[..., list[Tensor]]:
    """Make aten.max.dim ("gt") or min.dim ("lt"), which return (values, int64 indices)."""

    def lower(b: Builder, result: Sequence[Meta], x: Tensor, dim: int, keepdim: bool = False) -> list[Tensor]:
        return list(_extreme(b, x, dim % max(x.rank, 1), relation, keepdim))

    return lower


def _extreme(b: Builder, x: Tensor, dim: int, relation: str, keepdim: bool) -> tuple[Tensor, Tensor]:
    """Return values and int64 indices. NaN propagates, as in torch."""
    if x.rank == 0:
        return x, b.full((), torch.int64, 0)
    dtype = compute_dtype(x.dtype)
    combine: Callable[[Scalar, Scalar], Scalar] = (lambda v, acc: acc.max(v)) if relation == "gt" else (lambda v, acc: acc.min(v))
    values = b.reduce(x, [dim], (s.lowest if relation == "gt" else s.highest)(dtype), combine, dtype, True)
    indices = _first_index(b, x, values, dim)
    values = b.cast(values, x.dtype)
    return (values, indices) if keepdim else (b.squeeze(values, dim), b.squeeze(indices, dim))


def _first_index(b: Builder, x: Tensor, values: Tensor, dim: int) -> Tensor:
    """Return where `values`, of size 1 along `dim`, first occur; the first NaN where the value is NaN.

    Two reductions that each run along the lanes are several times as fast as one that carries both, whose steps wait for each other.
    """
    x = b.dense(x) if dim not in x.axes else x
    kept = [i for i in range(x.rank) if i != dim]
    shape = tuple(x.shape[i] for i in kept)

    def body(v: Scalar, best: Scalar, at: Scalar) -> list[Scalar]:
        here = s.from_index(linalg.IndexOp(ir.IntegerAttr.get(ir.IntegerType.get_signless(64), dim)).result, torch.int64)
        wide = v.to(best.dtype)
        found = wide.equals(best)
        if wide.is_float:
            found = found | wide.differs(wide)  # where one is NaN, so is the value
        return [at.min(select(found, here, s.highest(torch.int64)))]

    (indices,) = b.generic(
        [(x, b.reads(x, x.shape)), (values, b.reads(values, x.shape))],
        [(b.fill(shape, torch.int64, s.highest(torch.int64)), torch.int64, [affine_dim(i) for i in kept])],
        ["reduction" if i == dim else "parallel" for i in range(x.rank)],
        body,
    )
    return b.unsqueeze(b.dense_tensor(indices, shape, torch.int64), dim)


def layer_norm_with_statistics(
    b: Builder, result: Sequence[Meta], x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> list[Tensor]:
    """aten.native_layer_norm: return (y, mean, 1 / sqrt(variance + eps)), the last two with normalized dimensions kept as size 1."""
    over = list(range(x.rank - len(shape), x.rank))
    mean, scale = _statistics(b, x, over, eps)
    y = layer_norm(b, result[0], x, shape, weight, bias, eps)
    return [y, *(b.cast(b.reshape(each, meta.shape), meta.dtype) for each, meta in zip((mean, scale), result[1:], strict=True))]


def group_statistics(b: Builder, x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return the mean and 1 / sqrt(variance + eps) of each group of channels, [batch, groups]."""
    grouped = b.reshape(x, (x.shape[0], groups, b.sizes.product((x.shape[1], *x.shape[2:])) // groups))
    mean, scale = _statistics(b, grouped, [2], eps)
    return b.cast(b.squeeze(mean, 2), x.dtype), b.cast(b.squeeze(scale, 2), x.dtype)


def _statistics(b: Builder, x: Tensor, over: Sequence[int], eps: float) -> tuple[Tensor, Tensor]:
    mean, _, squares = centered_squares(b, x, over)
    return mean, through(b, lambda v: s.rsqrt(v / number(b, count(b, x, over), v.dtype) + eps), squares)
