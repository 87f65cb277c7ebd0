"""Distinct numbers, or slices along a dimension, sorted or as runs of equal ones, with inverse indices and counts.

All work on rows [n, width]: order the rows (if sorted), mark the rows that differ from the one before, and write them in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops.loops import Loops
from llmos.compiler.frontend.ops.orders import stable_sort
from llmos.compiler.frontend.scalars import Scalar

INT = torch.int64
MAX_DOUBLINGS = 48  # of a run of one row: more rows than memory holds


def unique2(
    b: Builder, result: Sequence[Meta], x: Tensor, sorted: bool = True, inverse: bool = False, counts: bool = False
) -> list[Tensor]:
    """Return (values [count] in ascending order, int64 inverse indices of x's shape, int64 counts [count])."""
    flat = b.reshape(x, (b.sizes.product(x.shape),))
    _, order = stable_sort(b, [Meta(flat.shape, x.dtype), Meta(flat.shape, INT)], flat, dim=0)
    found = _distinct(b, result[0].shape[0], _column(b, flat), order)
    return _answers(b, result, b.squeeze(found.rows, 1), found)


def unique_consecutive(
    b: Builder, result: Sequence[Meta], x: Tensor, inverse: bool = False, counts: bool = False, dim: int | None = None
) -> list[Tensor]:
    """As `unique2`, with one entry for each run of equal consecutive numbers or slices."""
    if dim is None:
        found = _distinct(b, result[0].shape[0], _column(b, b.reshape(x, (b.sizes.product(x.shape),))), None)
        return _answers(b, result, b.squeeze(found.rows, 1), found)
    return _along(b, result, x, dim, False)


def unique_dim(
    b: Builder, result: Sequence[Meta], x: Tensor, dim: int, sorted: bool = True, inverse: bool = False, counts: bool = False
) -> list[Tensor]:
    """As `unique2`, for slices along a dimension in lexicographic order."""
    return _along(b, result, x, dim, True)


def _along(b: Builder, result: Sequence[Meta], x: Tensor, dim: int, is_sorted: bool) -> list[Tensor]:
    dim %= x.rank
    count = result[0].shape[dim]
    front = b.permute(x, [dim, *[i for i in range(x.rank) if i != dim]])
    rows = b.dense(b.reshape(front, (x.shape[dim], b.sizes.product(front.shape[1:]))))
    found = _distinct(b, count, rows, _lexical_order(b, rows) if is_sorted else None)
    values = b.reshape(found.rows, (found.rows.shape[0], *front.shape[1:]))
    return _answers(b, result, b.permute(values, [*range(1, dim + 1), 0, *range(dim + 1, x.rank)]), found)


@dataclass(frozen=True)
class _Distinct:
    rows: Tensor  # [count, width]
    inverse: Tensor  # [n]
    counts: Tensor  # [count]


def _answers(b: Builder, result: Sequence[Meta], values: Tensor, found: _Distinct) -> list[Tensor]:
    """Return the op's results; an output that was not requested has no elements."""
    answers = [b.renamed(values, result[0].shape)]
    for meta, value in zip(result[1:], (found.inverse, found.counts), strict=True):
        if len(meta.shape) == 1 and meta.shape[0] == 0:
            answers.append(b.dense_tensor(b.fill(meta.shape, INT, 0), meta.shape, INT))
        else:
            answers.append(b.renamed(b.reshape(value, meta.shape) if value is found.inverse else value, meta.shape))
    return answers


def _column(b: Builder, flat: Tensor) -> Tensor:
    return b.dense(b.unsqueeze(flat, 1))


def _distinct(b: Builder, dim: Dim, rows: Tensor, order: Tensor | None) -> _Distinct:
    """Find the rows that differ from their predecessor in an order."""
    n, width = rows.shape
    compared = b.cast(rows, torch.float32) if rows.dtype == torch.bfloat16 else rows
    inputs = {"rows": compared, **({} if order is None else {"order": order})}
    first = Loops(b, inputs, {"flags": ((n,), torch.bool, False), "count": ((1,), INT, 0)})

    def place(loops: Loops, i: Scalar) -> Scalar:
        return loops.get("order", i) if order is not None else i

    def compare(i: Scalar) -> None:
        here, before = place(first, i), place(first, (i - 1).max(0))
        first.set("flags", [i], i.equals(0))

        def differ(j: Scalar) -> None:
            differs = first.get("rows", here, j).differs(first.get("rows", before, j))
            first.set("flags", [i], first.get("flags", i) | differs)

        first.loop(0, width, differ)
        first.add("count", [0], first.get("flags", i).to(INT))

    first.loop(0, n, compare)
    size = b.computed_size(dim, b.reshape(first.result("count"), ()), n)
    moved = _bits(b, rows, rows.dtype, torch.int16)
    inputs |= {"rows": moved, "flags": first.result("flags")}
    state = {"out": ((size, width), moved.dtype, 0), "counts": ((size,), INT, 0), "inverse": ((n,), INT, 0), "at": ((1,), INT, -1)}
    second = Loops(b, inputs, state)

    def write(i: Scalar) -> None:
        here = place(second, i)

        def begin() -> None:
            second.add("at", [0], 1)
            at = second.get("at", 0)
            second.loop(0, width, lambda j: second.set("out", [at, j], second.get("rows", here, j)))

        second.when(second.get("flags", i), begin)
        at = second.get("at", 0)
        second.set("inverse", [here], at)
        second.add("counts", [at], 1)

    second.loop(0, n, write)
    return _Distinct(_bits(b, second.result("out"), rows.dtype, rows.dtype), second.result("inverse"), second.result("counts"))


def _bits(b: Builder, x: Tensor, dtype: torch.dtype, wanted: torch.dtype) -> Tensor:
    """Bitcast bfloat16 to integers for data movement, and back: LLVM would move bfloat16 numbers through float32."""
    return b.elementwise(lambda v: s.bitcast(v, wanted), [x], wanted) if dtype == torch.bfloat16 else x


def _lexical_order(b: Builder, rows: Tensor) -> Tensor:
    """Return the stable lexicographic order of the rows, int64 [n], by a bottom-up merge sort: O(n log n) comparisons of rows."""
    n, width = rows.shape
    left, right, sign, half = range(4)  # of "at": the heads of the two runs, how their rows compare, and the length of a run
    loops = Loops(b, {"rows": rows}, {"order": ((n,), INT, 0), "merged": ((n,), INT, 0), "at": ((4,), INT, 0)})
    size = loops.number(n)

    def head(run: int) -> Scalar:
        return loops.get("order", loops.get("at", run).min(size - 1))

    def compare(i: Scalar, k: Scalar) -> None:
        """Set the sign: -1 where row i comes before row k, 1 where it comes after, 0 where they are equal."""
        loops.set("at", [sign], 0)

        def step(j: Scalar) -> None:
            mine, other = loops.get("rows", i, j), loops.get("rows", k, j)
            found = (other < mine).to(INT) - (mine < other).to(INT)
            loops.add("at", [sign], found * loops.get("at", sign).equals(0).to(INT))

        loops.loop(0, width, step)

    def place(k: Scalar) -> None:
        """Write position k of the merged runs."""
        length = loops.get("at", half)
        start = k & -(length * 2)
        middle, end = (start + length).min(size), (start + length * 2).min(size)

        def begin() -> None:
            loops.set("at", [left], start)
            loops.set("at", [right], middle)

        loops.when(k.equals(start), begin)
        compare(head(right), head(left))
        ends = loops.get("at", left) >= middle
        from_right = (loops.get("at", right) < end) & (ends | (loops.get("at", sign) < 0))
        loops.set("merged", [k], s.select(from_right, head(right), head(left)))
        loops.add("at", [right], from_right.to(INT))
        loops.add("at", [left], 1 - from_right.to(INT))

    def merge() -> None:
        loops.loop(0, n, place)
        loops.loop(0, n, lambda k: loops.set("order", [k], loops.get("merged", k)))
        loops.set("at", [half], loops.get("at", half) * 2)

    loops.loop(0, n, lambda k: loops.set("order", [k], k))
    loops.set("at", [half], 1)
    loops.loop(0, MAX_DOUBLINGS, lambda _: loops.when(loops.get("at", half) < size, merge))
    return loops.result("order")
