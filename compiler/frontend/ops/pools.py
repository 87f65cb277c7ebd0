"""Pooling: a reduction over windows of the last dimensions, of one size or, where it is adaptive, of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import sympy
import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor, affine_dim, compute_dtype
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops import reductions
from llmos.compiler.frontend.ops.shapes import _expr, computed, loop, pad_value
from llmos.compiler.frontend.ops.windows import Ints, spread, window_position
from llmos.compiler.frontend.scalars import Scalar
from llmos.compiler.ir import arith, ir


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


def max_pool_with_indices(dimensions: int) -> Callable[..., list[Tensor]]:
    """(values, indices into the flat spatial dimensions of x); the first of equal numbers counts, and NaN wins."""

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
        better = (v > best) | (v.differs(v) & best.equals(best)) | (at < 0)
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
        if not all(isinstance(i, int) and isinstance(o, int) and o and i % o == 0 for i, o in zip(ins, outs, strict=True)):
            return _averages_of_ranges(b, result, x, over)
        window = [i // o for i, o in zip(ins, outs, strict=True)]
        return average_pool(dimensions)(b, result, x, window)

    return lower


def _averages_of_ranges(b: Builder, result: Meta, x: Tensor, over: Sequence[int]) -> Tensor:
    """Windows floor(i * in / out) to ceil((i + 1) * in / out), which differ in size, one dimension after the other.

    An element outside a window is left out by a select: as a product with 0 an infinity would reach every window.
    """
    kind = compute_dtype(x.dtype)
    answer = b.cast(x, kind)
    for dim in over:
        answer = _averages_along(b, answer, dim, result.shape[dim])
    return b.cast(answer, result.dtype)


def _averages_along(b: Builder, x: Tensor, dim: int, out: Dim) -> Tensor:
    def ends(row: ir.Value) -> tuple[Scalar, Scalar]:
        at = s.from_index(row, torch.int64)
        whole, parts = (reductions.number(b, each, torch.int64) for each in (x.shape[dim], out))
        return at * whole / parts, ((at + 1) * whole + parts - 1) / parts

    def covers(at: list[ir.Value]) -> Scalar:
        (low, high), place = ends(at[0]), s.from_index(at[1], torch.int64)
        return (place >= low) & (place < high)

    def divided(total: Scalar) -> Scalar:
        low, high = ends(loop(dim))
        return total / (high - low).to(x.dtype)

    shape = (*x.shape[:dim], out, *x.shape[dim + 1 :])
    covered = computed(b, Meta((out, x.shape[dim]), torch.bool), covers)
    place, inside = [affine_dim(i) for i in range(x.rank)], affine_dim(x.rank)
    (value,) = b.generic(
        [(x, b.reads(x, x.shape, [*place[:dim], inside, *place[dim + 1 :]])), (covered, [place[dim], inside])],
        [(b.fill(shape, x.dtype, 0), x.dtype, place)],
        ["parallel"] * x.rank + ["reduction"],
        lambda v, taken, acc: [acc + s.select(taken, v, 0)],
    )
    return b.elementwise(divided, [b.dense_tensor(value, shape, x.dtype)], x.dtype)


def adaptive_max_pool(dimensions: int) -> Callable[..., list[Tensor]]:
    """(values, indices into the flat spatial dimensions), as loops over windows that differ in size."""

    def lower(b: Builder, result: Sequence[Meta], x: Tensor, size: Ints) -> list[Tensor]:
        from llmos.compiler.frontend.ops.loops import Loops, batched

        flat, spatial, outs = batched(b, x, dimensions), x.shape[x.rank - dimensions :], result[0].shape[x.rank - dimensions :]
        count = flat.shape[0]
        state = {"v": ((count, *outs), x.dtype, 0), "i": ((count, *outs), torch.int64, 0)}
        loops = Loops(b, {"x": flat}, state)

        def window(at: list[Scalar]) -> None:
            place: list[Scalar] = []
            starts = [v * loops.number(i) / loops.number(o) for v, i, o in zip(at[1:], spatial, outs, strict=True)]
            first = starts[0]
            for start, extent in zip(starts[1:], spatial[1:], strict=True):
                first = first * loops.number(extent) + start
            loops.set("i", at, first)
            loops.set("v", at, loops.get("x", at[0], *starts))

            def visit(place: list[Scalar]) -> None:
                where = place[0]
                for v, extent in zip(place[1:], spatial[1:], strict=True):
                    where = where * loops.number(extent) + v
                value, best = loops.get("x", at[0], *place), loops.get("v", *at)
                better = (value > best) | (value.differs(value) & best.equals(best))
                loops.set("v", at, s.select(better, value, best))
                loops.set("i", at, s.select(better, where, loops.get("i", *at)))

            def walk(place: list[Scalar]) -> None:
                if len(place) == dimensions:
                    visit(place)
                    return
                dim = len(place)
                whole, parts = loops.number(spatial[dim]), loops.number(outs[dim])
                high = ((at[1 + dim] + 1) * whole + parts - 1) / parts
                loops.loop(starts[dim], high, lambda v: walk([*place, v]))

            walk(place)

        def each(at: list[Scalar]) -> None:
            if len(at) == 1 + dimensions:
                window(at)
                return
            loops.loop(0, (count, *outs)[len(at)], lambda v: each([*at, v]))

        each([])
        return [b.reshape(loops.result(name), meta.shape) for name, meta in zip("vi", result, strict=True)]

    return lower
