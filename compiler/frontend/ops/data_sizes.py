"""Ops with data-dependent result sizes: a first pass counts, the count becomes a size of the program, and a second pass writes the result.

Both passes test the same elements, so the second writes exactly as many as the first counted. A count of -1 marks invalid data: the program
reports it as an invalid size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops import indexing, shapes
from llmos.compiler.frontend.ops.loops import Loops
from llmos.compiler.frontend.scalars import Scalar, select
from llmos.runtime.errors import UnsupportedError

INT = torch.int64
MOST_REPEATS = 2**31  # of one element: larger sums could overflow


def number_of(b: Builder, x: Tensor, dim: Dim) -> Dim:
    """Return the element of the one-element tensor `x` as a size."""
    return b.computed_size(dim, b.cast(b.reshape(x, ()), INT), s.highest(x.dtype) if x.dtype != INT else 2**63 - 1)


def nonzero(b: Builder, result: Meta, x: Tensor) -> Tensor:
    """Return the indices of nonzero elements in row-major order, int64 [count, rank of x]."""
    flat, total = _flat(b, x, x.shape)
    mask = _is_set(b, flat)
    size = b.computed_size(result.shape[0], _count(b, mask), total)
    if x.rank == 0:
        return b.dense_tensor(b.empty((size, 0), INT), result.shape, INT)
    out = _selected(b, mask, size, {"out": (x.rank, INT)}, lambda loops, i, at: _write_place(loops, i, at, x.shape))
    return b.renamed(out["out"], result.shape)


def nonzero_columns(b: Builder, result: Sequence[Meta], x: Tensor) -> list[Tensor]:
    """Return the indices of nonzero elements, one int64 [count] for each dimension of x."""
    if x.rank == 0:
        return nonzero_columns(b, result, b.unsqueeze(x, 0))
    places = nonzero(b, Meta((result[0].shape[0], x.rank), INT), x)
    return [b.squeeze(shapes.extract(b, places, 1, axis, 1), 1) for axis in range(x.rank)]


def masked_select(b: Builder, result: Meta, x: Tensor, mask: Tensor) -> Tensor:
    """Return the elements of x where the mask is true, [count]; both broadcast against each other."""
    shape = b.broadcast_shape([x.shape, mask.shape])
    values, total = _flat(b, x, shape)
    flags = _is_set(b, _flat(b, mask, shape)[0])
    size = b.computed_size(result.shape[0], _count(b, flags), total, is_exact=True)  # torch's bound is x, which a mask may exceed
    taken = indexing.index_select(b, Meta((size,), x.dtype), values, 0, b.reshape(_places(b, flags, size), (size,)))
    return b.renamed(taken, result.shape)


def _flat(b: Builder, x: Tensor, shape: tuple[Dim, ...]) -> tuple[Tensor, Dim]:
    """Broadcast x to a shape and flatten it; return it and its number of elements."""
    total = b.sizes.product(shape)
    return b.reshape(b.expand(x, shape), (total,)), total


def _is_set(b: Builder, x: Tensor) -> Tensor:
    return x if x.dtype == torch.bool else b.elementwise(lambda v: v.differs(0), [x], torch.bool)


def _count(b: Builder, mask: Tensor) -> Tensor:
    """Count the true elements of a mask [n]."""
    return b.reduce(mask, [0], 0, lambda flag, total: total + flag, INT, False)


def _selected(
    b: Builder,
    mask: Tensor,
    size: Dim,
    columns: dict[str, tuple[int, torch.dtype]],
    write: Callable[[Loops, Scalar, Scalar], None],
) -> dict[str, Tensor]:
    """Build arrays of `size` rows, one for each true element of a mask [n]; `write(loops, i, row)` fills the row of element i."""
    state = {name: ((size, width), dtype, 0) for name, (width, dtype) in columns.items()}
    loops = Loops(b, {"mask": mask}, {**state, "at": ((1,), INT, 0)})

    def step(i: Scalar) -> None:
        def found() -> None:
            at = loops.get("at", 0)
            write(loops, i, at)
            loops.set("at", [0], at + 1)

        loops.when(loops.get("mask", i) & (loops.get("at", 0) < loops.number(size)), found)

    loops.loop(0, mask.shape[0], step)
    return {name: loops.result(name) for name in columns}


def _write_place(loops: Loops, flat: Scalar, at: Scalar, shape: Sequence[Dim]) -> None:
    """Write the coordinates of a flat index."""
    for axis in reversed(range(len(shape))):
        outer = flat / loops.number(shape[axis])
        loops.set("out", [at, axis], flat - outer * loops.number(shape[axis]))
        flat = outer


def index(b: Builder, result: Meta, x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Lower aten.index.Tensor: x[indices], by integer indices or by one mask. Raises UnsupportedError for a mask beside other indices."""
    chosen = {dim: ids for dim, ids in enumerate(indices) if ids is not None}
    if not any(ids.dtype in (torch.bool, torch.uint8) for ids in chosen.values()):
        return indexing.index(b, result, x, indices)
    if len(chosen) > 1:
        raise UnsupportedError("a boolean mask beside other indices isn't supported: index in two steps, or use mask.nonzero()")
    position, mask = chosen.popitem()
    return _index_by_mask(b, result, x, mask, position)


def _index_by_mask(b: Builder, result: Meta, x: Tensor, mask: Tensor, position: int) -> Tensor:
    """x[..., mask, ...]: select the slices of x where a mask over its dimensions from `position` on is true."""
    lead, rest = x.shape[:position], x.shape[position + mask.rank :]
    flags, total = _flat(b, mask, mask.shape)
    flags = _is_set(b, flags)
    size = b.computed_size(result.shape[position], _count(b, flags), total)
    places = b.reshape(_places(b, flags, size), (size,))
    taken = indexing.index_select(b, Meta((*lead, size, *rest), x.dtype), b.reshape(x, (*lead, total, *rest)), position, places)
    return b.renamed(taken, result.shape)


def _places(b: Builder, mask: Tensor, size: Dim) -> Tensor:
    """Return the indices of the true elements of a mask [n], [size, 1]."""
    return _selected(b, mask, size, {"out": (1, INT)}, lambda loops, i, at: loops.set("out", [at, 0], i))["out"]


def repeat_interleave(b: Builder, result: Meta, repeats: Tensor, output_size: Dim | None = None) -> Tensor:
    """Repeat each index i `repeats[i]` times, [sum of repeats]; a negative repeat is an error of the call."""
    times = b.cast(repeats, INT)
    total = b.reduce(times, [0], 0, lambda each, sum_: sum_ + each.max(0).min(MOST_REPEATS), INT, False)
    least = b.reduce(times, [0], 0, lambda each, low: low.min(each), INT, False)
    count = b.elementwise(lambda low, sum_: select(low < 0, sum_.like(-1), sum_), [least, total], INT)
    size = b.computed_size(result.shape[0], count, 2**63 - 1)
    loops = Loops(b, {"times": times}, {"out": ((size,), result.dtype, 0), "at": ((1,), INT, 0)})

    def step(i: Scalar) -> None:
        def write(_: Scalar) -> None:
            loops.set("out", [loops.get("at", 0)], i)
            loops.add("at", [0], 1)

        loops.loop(0, loops.get("times", i).max(0).min(loops.number(size) - loops.get("at", 0)), write)

    loops.loop(0, times.shape[0], step)
    return b.renamed(loops.result("out"), result.shape)


def bincount(b: Builder, result: Meta, x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """Count each number of x [n], or sum its weights, [max(largest + 1, minlength)]; a negative number is an error of the call."""
    high = s.highest(x.dtype) + 1 if x.dtype != INT else 2**63 - 1
    numbers = b.cast(x, INT)
    most = b.reduce(numbers, [0], minlength - 1, lambda each, top: top.max(each), INT, False)
    least = b.reduce(numbers, [0], 0, lambda each, low: low.min(each), INT, False)
    count = b.elementwise(lambda low, top: select(low < 0, top.like(-1), top + 1), [least, most], INT)
    size = b.computed_size(result.shape[0], count, max(int(high), minlength))
    inputs = {"x": numbers, **({} if weights is None else {"w": weights})}
    loops = Loops(b, inputs, {"out": ((size,), result.dtype, 0)})

    def step(i: Scalar) -> None:
        at = loops.get("x", i)
        loops.add("out", [at], loops.get("w", i).to(result.dtype) if weights is not None else 1)

    loops.loop(0, numbers.shape[0], step)
    return b.renamed(loops.result("out"), result.shape)
