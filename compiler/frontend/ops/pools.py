"""Pooling: a reduction over windows of the last dimensions, of one size or, for adaptive pooling, of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import sympy
import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor, affine_dim, compute_dtype
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops import adaptive, reductions
from llmos.compiler.frontend.ops.shapes import _expr, loop, pad_value
from llmos.compiler.frontend.ops.windows import Ints, spread, window_position
from llmos.compiler.frontend.scalars import Scalar
from llmos.compiler.ir.bindings import arith


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
    """Reduce over a window of the last dimensions."""
    n, rank = len(window), x.rank
    loops = [affine_dim(i) for i in range(rank - n)] + window_position(range(rank - n, rank), range(rank, rank + n), strides, dilations)
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
    """Return the padding with which the last window of each dimension fits (with ceil_mode it may reach past the given padding)."""
    pairs: list[tuple[Dim, Dim]] = []
    for i, (k, stride, p, d) in enumerate(zip(window, strides, paddings, dilations, strict=True), start=x.rank - len(window)):
        past = (_expr(shape[i]) - 1) * stride + (k - 1) * d + 1 - _expr(x.shape[i]) - p
        # `shape` holds floor divisions: without ceil_mode the window never reaches past the padding.
        needed = b.sizes.simplify(past)
        pairs.append((p, max(needed, p) if isinstance(needed, int) else b.sizes.simplify(sympy.Max(needed, p))))
    return pairs


def max_pool(dimensions: int) -> Callable[..., Tensor]:
    """Make aten.max_poolNd over the last `dimensions` dims; padding counts as the lowest number, NaN propagates."""

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


def max_pool_with_indices(dimensions: int) -> Callable[..., list[Tensor]]:
    """Make aten.max_poolNd_with_indices: (values, int64 indices into the flat spatial dimensions of x).

    The first of equal maxima is chosen, or the last NaN.
    """

    def lower(
        b: Builder,
        result: Sequence[Meta],
        x: Tensor,
        window: Ints,
        stride: Ints = (),
        padding: Ints = 0,
        dilation: Ints = 1,
        ceil_mode: bool = False,
    ) -> list[Tensor]:
        k, p, d = spread(window, dimensions), spread(padding, dimensions), spread(dilation, dimensions)
        strides = spread(stride, dimensions) if stride != [] and stride != () else k
        pairs = _reach(b, x, k, strides, p, d, result[0].shape) if ceil_mode else [(q, q) for q in p]
        padded = _pad_last(b, x, pairs, s.lowest(x.dtype))
        return _pool_with_places(b, x, padded, k, strides, p, d, result[0].shape)

    return lower


def _pool_with_places(
    b: Builder, x: Tensor, padded: Tensor, window: Sequence[int], strides: Sequence[int], paddings: Sequence[int], dilations: Sequence[int],
    shape: tuple[Dim, ...],
) -> list[Tensor]:  # fmt: skip
    n, rank = len(window), x.rank
    lead = rank - n
    loops = [affine_dim(i) for i in range(lead)] + window_position(range(lead, rank), range(rank, rank + n), strides, dilations)
    bound = b.dense_tensor(b.empty(tuple(window), x.dtype), tuple(window), x.dtype)
    place = [affine_dim(i) for i in range(rank)]

    def body(v: Scalar, _: Scalar, best: Scalar, at: Scalar) -> list[Scalar]:
        flat, inside = s.constant(0, torch.int64), s.constant(True, torch.bool)
        for i in range(n):
            start = _loop_number(lead + i) * strides[i] - paddings[i]
            here = start + _loop_number(rank + i) * dilations[i]
            size = reductions.number(b, x.shape[lead + i], torch.int64)
            inside = inside & (here >= 0) & (here < size)
            flat = flat * size + here
        better = (v > best) | v.differs(v) | (at < 0)
        better = better & inside
        return [s.select(better, v, best), s.select(better, flat, at)]

    values, places = b.generic(
        [(padded, b.reads(padded, padded.shape, loops)), (bound, [affine_dim(rank + i) for i in range(n)])],
        [
            (b.fill(shape, x.dtype, s.lowest(x.dtype)), x.dtype, place),
            (b.fill(shape, torch.int64, -1), torch.int64, place),
        ],
        ["parallel"] * rank + ["reduction"] * n,
        body,
    )
    return [b.dense_tensor(values, shape, x.dtype), b.dense_tensor(places, shape, torch.int64)]


def _loop_number(position: int) -> Scalar:
    return s.from_index(loop(position), torch.int64)


def _pad_last(b: Builder, x: Tensor, pairs: Sequence[tuple[Dim, Dim]], value: s.Number) -> Tensor:
    if all(pair == (0, 0) for pair in pairs):
        return x
    lead = x.rank - len(pairs)
    low, high = ([*[0] * lead, *[pair[i] for pair in pairs]] for i in range(2))
    shape = tuple(b.sizes.simplify(_expr(dim) + before + after) for dim, before, after in zip(x.shape, low, high, strict=True))
    return pad_value(b, b.dense(x), low, high, shape, value)


def average_pool(dimensions: int) -> Callable[..., Tensor]:
    """Make aten.avg_poolNd over the last `dimensions` dims, summed in float32 or wider.

    The divisor is the window's size, the number of elements inside, or `divisor_override`.
    """

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
    """Divide by the number of elements that each window covers, in the input or in the padded input."""
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
    """Make aten.adaptive_avg_poolNd: a mean for size 1, a plain pool where the static sizes divide, else `adaptive.average`."""

    def lower(b: Builder, result: Meta, x: Tensor, size: Ints) -> Tensor:
        over = list(range(x.rank - dimensions, x.rank))
        outs = [result.shape[i] for i in over]
        if all(out == 1 for out in outs):
            return reductions.mean(b, result, x, over, True)
        ins = [x.shape[i] for i in over]
        if not all(isinstance(i, int) and isinstance(o, int) and o and i % o == 0 for i, o in zip(ins, outs, strict=True)):
            return adaptive.average(b, result, x, dimensions)
        window = [i // o for i, o in zip(ins, outs, strict=True)]
        return average_pool(dimensions)(b, result, x, window)

    return lower
