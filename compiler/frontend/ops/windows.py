"""Convolution and resampling: linalg.generic over outputs, channels and window; x is read at `out * stride + window * dilation`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._sympy.functions import FloorDiv

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor, affine_dim, compute_dtype
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops import reductions
from llmos.compiler.frontend.ops.contractions import add_bias
from llmos.compiler.frontend.ops.shapes import _expr, computed, element, extract, flip, pad, pad_value
from llmos.compiler.frontend.scalars import Scalar
from llmos.compiler.ir.bindings import arith, ir

Ints = int | Sequence[int]


def spread(value: Ints, count: int) -> list[int]:
    """Return one number for each spatial dimension."""
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
    """Lower aten.convolution: x [batch, channels, ...] with weight [filters, channels / groups, ...]; transposed, [channels, filters /
    groups, ...].

    The bias is a separate op after the sum.
    """
    count = weight.rank - 2
    if x.rank == weight.rank - 1:  # one sample without a batch dimension
        alone = Meta((1, *result.shape), result.dtype)
        rest = (weight, bias, stride, padding, dilation, transposed, output_padding, groups)
        return b.squeeze(convolution(b, alone, b.unsqueeze(x, 0), *rest), 0)
    if transposed:
        return _transposed(b, result, x, weight, bias, stride, padding, dilation, output_padding, groups)
    strides, dilations = spread(stride, count), spread(dilation, count)
    pairs = _padding(b, padding, weight.shape[2:], dilations)
    x = _padded(b, x, pairs, 0)
    channels, filters = weight.shape[1], weight.shape[0]
    if groups == 1:
        sums = _direct(b, result, x, weight, strides, dilations)
    elif channels == 1 and b.sizes.equal(filters, groups):
        sums = _depthwise(b, result, x, weight, strides, dilations)
    else:
        sums = _grouped(b, result, x, weight, strides, dilations, groups)
    return add_bias(b, sums, reductions.per_channel(b, bias, x.rank), result)


def _transposed(
    b: Builder,
    result: Meta,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Any,
    dilation: Ints,
    extra: Ints,
    groups: int,
) -> Tensor:
    """Transposed convolution, weight [channels, filters / groups, ...]: convolve zero-dilated `x` with the flipped window."""
    count = weight.rank - 2
    strides, dilations, paddings, extras = (spread(each, count) for each in (stride, dilation, padding, extra))
    reach = _reach(b, weight.shape[2:], dilations)
    wide = _with_zeros_between(b, x, strides)
    pairs = [(b.sizes.simplify(_expr(r) - p), b.sizes.simplify(_expr(r) - p + e)) for r, p, e in zip(reach, paddings, extras, strict=True)]
    if any(not isinstance(low, int) and b.sizes.bounds(low)[0] < 0 for pair in pairs for low in pair):
        # Whether to pad or crop depends on the window's dynamic size: pad fully, then crop the result.
        whole = _transposed(b, _uncropped(b, result, paddings), x, weight, bias, stride, 0, dilation, _sums(extras, paddings), groups)
        return _cropped(b, whole, paddings, result)
    flat = [each for pair in reversed(pairs) for each in pair]
    shape = (*wide.shape[:2], *[b.sizes.simplify(_expr(d) + low + high) for d, (low, high) in zip(wide.shape[2:], pairs, strict=True)])
    wide = pad(b, Meta(shape, x.dtype), wide, flat)
    channels, filters = _quotient(b, weight.shape[0], groups), weight.shape[1]
    transposed = flip(b, Meta(weight.shape, weight.dtype), weight, range(2, weight.rank))
    split = b.reshape(transposed, (groups, channels, filters, *weight.shape[2:]))
    order = [0, 2, 1, *range(3, split.rank)]
    swapped = b.reshape(b.permute(split, order), (b.sizes.product((groups, filters)), channels, *weight.shape[2:]))
    # Dense: a window of size 1 must be stored to bound its loop.
    return convolution(b, result, b.dense(wide), b.dense(swapped), bias, 1, 0, dilation, False, 0, groups)


def _sums(a: Sequence[int], c: Sequence[int]) -> list[int]:
    return [x + y for x, y in zip(a, c, strict=True)]


def _uncropped(b: Builder, result: Meta, paddings: Sequence[int]) -> Meta:
    """Return the result's metadata before the first `padding` elements are cropped."""
    spatial = [b.sizes.simplify(_expr(size) + p) for size, p in zip(result.shape[2:], paddings, strict=True)]
    return Meta((*result.shape[:2], *spatial), result.dtype)


def _cropped(b: Builder, x: Tensor, paddings: Sequence[int], result: Meta) -> Tensor:
    for dim, p in enumerate(paddings, start=2):
        x = extract(b, x, dim, p, result.shape[dim])
    return x


def _reach(b: Builder, window: Sequence[Dim], dilations: Sequence[int]) -> list[Dim]:
    """Return the distance between a window's first and last element."""
    return [b.sizes.simplify((_expr(k) - 1) * d) for k, d in zip(window, dilations, strict=True)]


def _quotient(b: Builder, dim: Dim, groups: int) -> Dim:
    """Return dim / groups, which is exact."""
    return dim // groups if isinstance(dim, int) else b.sizes.simplify(FloorDiv(dim, groups))


def _with_zeros_between(b: Builder, x: Tensor, strides: Sequence[int]) -> Tensor:
    """Insert stride - 1 zeros between the elements of each spatial dimension."""
    if all(stride == 1 for stride in strides):
        return x
    dense = b.dense(x)
    sizes = [b.sizes.simplify((_expr(d) - 1) * stride + 1) for d, stride in zip(x.shape[2:], strides, strict=True)]

    def body(at: list[ir.Value]) -> Scalar:
        place, kept = list(at[:2]), s.constant(True, torch.bool)
        for i, stride in enumerate(strides, start=2):
            place.append(arith.floordivsi(at[i], b.index(stride)))
            rest = s.from_index(arith.remsi(at[i], b.index(stride)), torch.int64)
            kept = kept & rest.equals(0)
        return s.select(kept, element(dense, place), 0)

    return computed(b, Meta((*x.shape[:2], *sizes), x.dtype), body)


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
    """Lower aten.conv1d, conv2d, conv3d and their `.padding` overloads ("same", "valid")."""
    return convolution(b, result, x, weight, bias, stride, padding, dilation, False, 0, groups)


def _padding(b: Builder, padding: Ints | str, window: Sequence[Dim], dilations: Sequence[int]) -> Sequence[tuple[Dim, Dim]]:
    if padding == "valid":
        return [(0, 0)] * len(window)
    if padding == "same":
        totals = _reach(b, window, dilations)
        halves = [_quotient(b, total, 2) for total in totals]
        return [(half, b.sizes.simplify(_expr(total) - half)) for total, half in zip(totals, halves, strict=True)]
    assert not isinstance(padding, str)
    return [(p, p) for p in spread(padding, len(window))]


def _padded(b: Builder, x: Tensor, pairs: Sequence[tuple[Dim, Dim]], value: s.Number) -> Tensor:
    if all(pair == (0, 0) for pair in pairs):
        return x
    low, high = ([0, 0, *[pair[i] for pair in pairs]] for i in range(2))
    shape = tuple(b.sizes.simplify(_expr(dim) + before + after) for dim, before, after in zip(x.shape, low, high, strict=True))
    return pad_value(b, b.dense(x), low, high, shape, value)


def window_position(
    outputs: Sequence[int], windows: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[ir.AffineExpr]:
    """Return out * stride + window * dilation, one expression for each spatial dimension; arguments are loop numbers."""
    return [
        affine_dim(o) * stride + affine_dim(k) * dilation
        for o, k, stride, dilation in zip(outputs, windows, strides, dilations, strict=True)
    ]


def _sum(
    b: Builder, x: Tensor, reads: Sequence[ir.AffineExpr], weight: Tensor, taps: Sequence[ir.AffineExpr], shape: tuple[Dim, ...], loops: int
) -> Tensor:
    dtype = compute_dtype(x.dtype)
    if any(dim not in weight.axes for dim in range(weight.rank)):
        # The stored weight bounds the window loops, also those of trip count 1.
        weight = b.dense(weight)
    (value,) = b.generic(
        [(x, b.reads(x, x.shape, reads)), (weight, b.reads(weight, weight.shape, taps))],
        [(b.fill(shape, dtype, 0), dtype, [affine_dim(i) for i in range(len(shape))])],
        ["parallel"] * len(shape) + ["reduction"] * (loops - len(shape)),
        lambda v, w, acc: [acc + v.to(dtype) * w.to(dtype)],
    )
    return b.dense_tensor(value, shape, dtype)


def _direct(b: Builder, result: Meta, x: Tensor, weight: Tensor, strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Emit the convolution with loops (n, f, out..., c, window...)."""
    n = x.rank - 2
    outputs, channel, windows = range(2, 2 + n), 2 + n, range(3 + n, 3 + 2 * n)
    reads = [affine_dim(0), affine_dim(channel), *window_position(outputs, windows, strides, dilations)]
    taps = [affine_dim(1), affine_dim(channel), *map(affine_dim, windows)]
    return _sum(b, x, reads, weight, taps, result.shape, 3 + 2 * n)


def _depthwise(b: Builder, result: Meta, x: Tensor, weight: Tensor, strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Emit a depthwise convolution with loops (n, c, out..., window...)."""
    n = x.rank - 2
    outputs, windows = range(2, 2 + n), range(2 + n, 2 + 2 * n)
    reads = [affine_dim(0), affine_dim(1), *window_position(outputs, windows, strides, dilations)]
    weight = b.squeeze(weight, 1)
    taps = [affine_dim(1), *map(affine_dim, windows)]
    return _sum(b, x, reads, weight, taps, result.shape, 2 + 2 * n)


def _grouped(b: Builder, result: Meta, x: Tensor, weight: Tensor, strides: Sequence[int], dilations: Sequence[int], groups: int) -> Tensor:
    """Emit a grouped convolution with loops (n, g, f, out..., c, window...)."""
    n = x.rank - 2
    filters, channels = _quotient(b, weight.shape[0], groups), weight.shape[1]
    x = b.reshape(x, (x.shape[0], groups, channels, *x.shape[2:]))
    weight = b.reshape(weight, (groups, filters, channels, *weight.shape[2:]))
    outputs, channel, windows = range(3, 3 + n), 3 + n, range(4 + n, 4 + 2 * n)
    reads = [affine_dim(0), affine_dim(1), affine_dim(channel), *window_position(outputs, windows, strides, dilations)]
    taps = [affine_dim(1), affine_dim(2), affine_dim(channel), *map(affine_dim, windows)]
    shape = (result.shape[0], groups, filters, *result.shape[2:])
    return b.reshape(_sum(b, x, reads, weight, taps, shape, 4 + 2 * n), result.shape)


# Resampling


def pixel_shuffle(b: Builder, result: Meta, x: Tensor, factor: int) -> Tensor:
    """Lower aten.pixel_shuffle: [..., C r², H, W] to [..., C, H r, W r]."""
    channels = result.shape[-3]
    lead, (height, width) = x.shape[:-3], x.shape[-2:]
    split = b.reshape(x, (*lead, channels, factor, factor, height, width))
    n = len(lead)
    return b.reshape(b.permute(split, [*range(n), n, n + 3, n + 1, n + 4, n + 2]), result.shape)


def pixel_unshuffle(b: Builder, result: Meta, x: Tensor, factor: int) -> Tensor:
    """Lower aten.pixel_unshuffle: [..., C, H r, W r] to [..., C r², H, W]."""
    lead, channels, (height, width) = x.shape[:-3], x.shape[-3], result.shape[-2:]
    split = b.reshape(x, (*lead, channels, height, factor, width, factor))
    n = len(lead)
    return b.reshape(b.permute(split, [*range(n), n, n + 2, n + 4, n + 1, n + 3]), result.shape)
