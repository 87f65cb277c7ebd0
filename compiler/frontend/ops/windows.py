"""Convolution and pooling: linalg.generic over output positions, channels and window; x is read at `out * stride + window * dilation`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor, affine_dim, compute_dtype
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops import reductions
from llmos.compiler.frontend.ops.contractions import add_bias
from llmos.compiler.frontend.ops.errors import NotLowered
from llmos.compiler.frontend.ops.shapes import _expr, computed, element, pad_value
from llmos.compiler.frontend.scalars import Scalar
from llmos.compiler.ir import arith, ir

Ints = int | Sequence[int]


def spread(value: Ints, count: int) -> list[int]:
    """One number per spatial dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def convolution(
    b: Builder,
    result: Meta,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    transposed: bool = False,
    output_padding: Ints = 0,
    groups: int = 1,
) -> Tensor:
    """x [batch, channels, ...], weight [filters, channels / groups, ...]. Bias is an op of its own after the sum."""
    count = weight.rank - 2
    if transposed or x.rank != weight.rank:
        raise NotLowered("transposed or unbatched convolution")
    strides, dilations = spread(stride, count), spread(dilation, count)
    window = [dim for dim in weight.shape[2:] if isinstance(dim, int)]
    pairs = _padding(padding, window, dilations)
    x = _padded(b, x, pairs, 0)
    if any(size != 1 for dim, size in enumerate(weight.shape) if dim not in weight.axes):
        # The loops over the window take their bounds from the stored weight.
        weight = b.copy(weight)
    channels, filters = weight.shape[1], weight.shape[0]
    assert isinstance(channels, int) and isinstance(filters, int)
    if groups == 1:
        sums = _direct(b, result, x, weight, strides, dilations)
    elif channels == 1 and filters == groups:
        sums = _depthwise(b, result, x, weight, strides, dilations)
    else:
        sums = _grouped(b, result, x, weight, strides, dilations, groups)
    return add_bias(b, sums, reductions.per_channel(b, bias, x.rank), result)


def conv(
    b: Builder,
    result: Meta,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """aten.conv1d, conv2d, conv3d and their `.padding` overloads."""
    return convolution(b, result, x, weight, bias, stride, padding, dilation, False, 0, groups)


def _padding(padding: Ints | str, window: Sequence[int], dilations: Sequence[int]) -> list[tuple[int, int]]:
    if padding == "valid":
        return [(0, 0)] * len(window)
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(window, dilations, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    assert not isinstance(padding, str)
    return [(p, p) for p in spread(padding, len(window))]


def _padded(b: Builder, x: Tensor, pairs: Sequence[tuple[Dim, Dim]], value: s.Number) -> Tensor:
    if all(pair == (0, 0) for pair in pairs):
        return x
    low, high = ([0, 0, *[pair[i] for pair in pairs]] for i in range(2))
    shape = tuple(b.sizes.simplify(_expr(dim) + before + after) for dim, before, after in zip(x.shape, low, high, strict=True))
    return pad_value(b, b.dense(x), low, high, shape, value)


def _position(outputs: Sequence[int], windows: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[ir.AffineExpr]:
    """out * stride + window * dilation, one expression a spatial dimension; arguments are loop numbers."""
    return [
        affine_dim(o) * stride + affine_dim(k) * dilation
        for o, k, stride, dilation in zip(outputs, windows, strides, dilations, strict=True)
    ]


def _sum(
    b: Builder, x: Tensor, reads: Sequence[ir.AffineExpr], weight: Tensor, taps: Sequence[ir.AffineExpr], shape: tuple[Dim, ...], loops: int
) -> Tensor:
    dtype = compute_dtype(x.dtype)
    (value,) = b.generic(
        [(x, b.reads(x, x.shape, reads)), (weight, b.reads(weight, weight.shape, taps))],
        [(b.fill(shape, dtype, 0), dtype, [affine_dim(i) for i in range(len(shape))])],
        ["parallel"] * len(shape) + ["reduction"] * (loops - len(shape)),
        lambda v, w, acc: [acc + v.to(dtype) * w.to(dtype)],
    )
    return b.dense_tensor(value, shape, dtype)


def _direct(b: Builder, result: Meta, x: Tensor, weight: Tensor, strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Loops (n, f, out..., c, window...)."""
    n = x.rank - 2
    outputs, channel, windows = range(2, 2 + n), 2 + n, range(3 + n, 3 + 2 * n)
    reads = [affine_dim(0), affine_dim(channel), *_position(outputs, windows, strides, dilations)]
    taps = [affine_dim(1), affine_dim(channel), *map(affine_dim, windows)]
    return _sum(b, x, reads, weight, taps, result.shape, 3 + 2 * n)


def _depthwise(b: Builder, result: Meta, x: Tensor, weight: Tensor, strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Loops (n, c, out..., window...)."""
    n = x.rank - 2
    outputs, windows = range(2, 2 + n), range(2 + n, 2 + 2 * n)
    reads = [affine_dim(0), affine_dim(1), *_position(outputs, windows, strides, dilations)]
    weight = b.squeeze(weight, 1)
    taps = [affine_dim(1), *map(affine_dim, windows)]
    return _sum(b, x, reads, weight, taps, result.shape, 2 + 2 * n)


def _grouped(b: Builder, result: Meta, x: Tensor, weight: Tensor, strides: Sequence[int], dilations: Sequence[int], groups: int) -> Tensor:
    """Loops (n, g, f, out..., c, window...) over channels split in groups."""
    n = x.rank - 2
    filters, channels = weight.shape[0], weight.shape[1]
    assert isinstance(filters, int) and isinstance(channels, int)
    x = b.reshape(x, (x.shape[0], groups, channels, *x.shape[2:]))
    weight = b.reshape(weight, (groups, filters // groups, channels, *weight.shape[2:]))
    outputs, channel, windows = range(3, 3 + n), 3 + n, range(4 + n, 4 + 2 * n)
    reads = [affine_dim(0), affine_dim(1), affine_dim(channel), *_position(outputs, windows, strides, dilations)]
    taps = [affine_dim(1), affine_dim(2), affine_dim(channel), *map(affine_dim, windows)]
    shape = (result.shape[0], groups, filters // groups, *result.shape[2:])
    return b.reshape(_sum(b, x, reads, weight, taps, shape, 4 + 2 * n), result.shape)


# Pooling


def _pool(
    b: Builder,
    x: Tensor,
    window: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    shape: tuple[Dim, ...],
    init: s.Number,
    combine: Callable[[Scalar, Scalar], Scalar],
    dtype: torch.dtype,
) -> Tensor:
    """A reduction over a window of the last dimensions."""
    n, rank = len(window), x.rank
    loops = [affine_dim(i) for i in range(rank - n)] + _position(range(rank - n, rank), range(rank, rank + n), strides, dilations)
    bound = b.dense_tensor(b.empty(tuple(window), dtype), tuple(window), dtype)  # gives the window loops their extents
    (value,) = b.generic(
        [(x, b.reads(x, x.shape, loops)), (bound, [affine_dim(rank + i) for i in range(n)])],
        [(b.fill(shape, dtype, init), dtype, [affine_dim(i) for i in range(rank)])],
        ["parallel"] * rank + ["reduction"] * n,
        lambda v, _, acc: [combine(v.to(dtype), acc)],
    )
    return b.dense_tensor(value, shape, dtype)


def _reach(
    b: Builder,
    x: Tensor,
    window: Sequence[int],
    strides: Sequence[int],
    paddings: Sequence[int],
    dilations: Sequence[int],
    shape: tuple[Dim, ...],
) -> list[tuple[Dim, Dim]]:
    """Padding so that the last window of each dimension fits (ceil_mode may reach past the given padding)."""
    pairs: list[tuple[Dim, Dim]] = []
    for i, (k, stride, p, d) in enumerate(zip(window, strides, paddings, dilations, strict=True), start=x.rank - len(window)):
        past = (_expr(shape[i]) - 1) * stride + (k - 1) * d + 1 - _expr(x.shape[i]) - p
        # `shape` holds floor divisions: without ceil_mode the window never reaches past the padding.
        needed = b.sizes.simplify(past)
        pairs.append((p, max(needed, p) if isinstance(needed, int) else b.sizes.simplify(sympy.Max(needed, p))))
    return pairs


def max_pool(dimensions: int) -> Callable[..., Tensor]:
    def lower(
        b: Builder, result: Meta, x: Tensor, window: Ints, stride: Ints = (), padding: Ints = 0, dilation: Ints = 1, ceil_mode: bool = False
    ) -> Tensor:
        k, p, d = spread(window, dimensions), spread(padding, dimensions), spread(dilation, dimensions)
        strides = spread(stride, dimensions) if stride != [] and stride != () else k
        low = s.lowest(x.dtype)
        pairs = _reach(b, x, k, strides, p, d, result.shape) if ceil_mode else [(q, q) for q in p]
        padded = _pad_last(b, x, pairs, low)
        return _pool(b, padded, k, strides, d, result.shape, low, lambda v, acc: acc.max(v), x.dtype)

    return lower


def max_pool_with_indices(dimensions: int) -> Callable[..., list[Tensor | None]]:
    pool = max_pool(dimensions)
    return lambda b, result, *args, **kwargs: [pool(b, result[0], *args, **kwargs), None]


def _pad_last(b: Builder, x: Tensor, pairs: Sequence[tuple[Dim, Dim]], value: s.Number) -> Tensor:
    if all(pair == (0, 0) for pair in pairs):
        return x
    lead = x.rank - len(pairs)
    low, high = ([*[0] * lead, *[pair[i] for pair in pairs]] for i in range(2))
    shape = tuple(b.sizes.simplify(_expr(dim) + before + after) for dim, before, after in zip(x.shape, low, high, strict=True))
    return pad_value(b, b.dense(x), low, high, shape, value)


def average_pool(dimensions: int) -> Callable[..., Tensor]:
    def lower(
        b: Builder,
        result: Meta,
        x: Tensor,
        window: Ints,
        stride: Ints = (),
        padding: Ints = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        k, p = spread(window, dimensions), spread(padding, dimensions)
        strides = spread(stride, dimensions) if stride != [] and stride != () else k
        ones, dtype = [1] * dimensions, compute_dtype(x.dtype)
        pairs = _reach(b, x, k, strides, p, ones, result.shape) if ceil_mode else [(q, q) for q in p]
        sums = _pool(b, _pad_last(b, x, pairs, 0), k, strides, ones, result.shape, 0, lambda v, acc: acc + v, dtype)
        whole = divisor_override or (math.prod(k) if not any(p) or (count_include_pad and not ceil_mode) else None)
        if ceil_mode and divisor_override is None:
            whole = None
        if whole is not None:
            return b.elementwise(lambda v: v / float(whole), [sums], result.dtype)
        return _divided_by_count(b, result, x, sums, k, strides, p, count_include_pad)

    return lower


def _divided_by_count(
    b: Builder, result: Meta, x: Tensor, sums: Tensor, window: Sequence[int], strides: Sequence[int], paddings: Sequence[int], include: bool
) -> Tensor:
    """Divide by the number of elements that each window covers, of the input or of the padded input."""
    from llmos.compiler.frontend.ops.shapes import loop

    lead = x.rank - len(window)

    def body(v: Scalar) -> Scalar:
        covered = None
        for i, (k, stride, p) in enumerate(zip(window, strides, paddings, strict=True), start=lead):
            start = arith.subi(arith.muli(loop(i), b.index(stride)), b.index(p))
            limit = b.index(b.sizes.simplify(_expr(x.shape[i]) + (p if include else 0)))
            end = arith.minsi(arith.addi(start, b.index(k)), limit)
            first = start if include else arith.maxsi(start, b.index(0))
            length = arith.subi(end, first)
            covered = length if covered is None else arith.muli(covered, length)
        return v / s.from_index(covered, v.dtype)

    return b.elementwise(body, [sums], result.dtype)


def adaptive_average_pool(dimensions: int) -> Callable[..., Tensor]:
    def lower(b: Builder, result: Meta, x: Tensor, size: Ints) -> Tensor:
        over = list(range(x.rank - dimensions, x.rank))
        outs = [result.shape[i] for i in over]
        if all(out == 1 for out in outs):
            return reductions.mean(b, result, x, over, True)
        ins = [x.shape[i] for i in over]
        if not all(isinstance(i, int) and isinstance(o, int) and i % o == 0 for i, o in zip(ins, outs, strict=True)):
            raise NotLowered("adaptive pooling whose windows differ in size")
        window = [i // o for i, o in zip(ins, outs, strict=True)]
        return average_pool(dimensions)(b, result, x, window)

    return lower


# Resampling


def upsample_nearest(b: Builder, result: Meta, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Nearest resampling where each output size is a whole multiple of the input's."""
    ratios = [_ratio(b, big, small) for big, small in zip(result.shape[2:], x.shape[2:], strict=True)]
    dense = b.dense(x)

    def body(at: list[ir.Value]) -> Scalar:
        spatial = [v if r == 1 else arith.floordivsi(v, b.index(r)) for v, r in zip(at[2:], ratios, strict=True)]
        return element(dense, [*at[:2], *spatial])

    return computed(b, Meta(result.shape, x.dtype), body)


def _ratio(b: Builder, big: Dim, small: Dim) -> int:
    ratio = sympy.simplify(_expr(big) / _expr(small))
    if not ratio.is_Integer:
        raise NotLowered("resampling by a ratio that isn't whole")
    return int(ratio)


def pixel_shuffle(b: Builder, result: Meta, x: Tensor, factor: int) -> Tensor:
    channels = result.shape[-3]
    lead, (height, width) = x.shape[:-3], x.shape[-2:]
    split = b.reshape(x, (*lead, channels, factor, factor, height, width))
    n = len(lead)
    return b.reshape(b.permute(split, [*range(n), n, n + 3, n + 1, n + 4, n + 2]), result.shape)


def pixel_unshuffle(b: Builder, result: Meta, x: Tensor, factor: int) -> Tensor:
    lead, channels, (height, width) = x.shape[:-3], x.shape[-3], result.shape[-2:]
    split = b.reshape(x, (*lead, channels, height, factor, width, factor))
    n = len(lead)
    return b.reshape(b.permute(split, [*range(n), n, n + 2, n + 4, n + 1, n + 3]), result.shape)
