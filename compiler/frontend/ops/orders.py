"""Ops about the order of numbers along one dimension, as loops: running extremes, medians, the most frequent number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops.loops import Loops
from llmos.compiler.frontend.scalars import Scalar, select

INT = torch.int64


def rows_of(b: Builder, x: Tensor, dim: int) -> tuple[Tensor, list[int]]:
    """`x` as [rows, n] along `dim`, and the order of dimensions that leads back."""
    order = [*[i for i in range(x.rank) if i != dim], dim]
    turned = b.permute(x, order)
    flat = b.reshape(turned, (b.sizes.product(turned.shape[:-1]), turned.shape[-1]))
    return flat, [order.index(i) for i in range(x.rank)]


def _back(b: Builder, flat: Tensor, x: Tensor, dim: int, order: Sequence[int]) -> Tensor:
    lead = tuple(size for i, size in enumerate(x.shape) if i != dim)
    return b.permute(b.reshape(flat, (*lead, flat.shape[-1])), order)


def running_extreme(relation: str) -> Callable[..., list[Tensor]]:
    """cummax and cummin: (values, indices); of equal numbers the last one counts, and NaN stays."""

    def lower(b: Builder, result: Sequence[Meta], x: Tensor, dim: int) -> list[Tensor]:
        if x.rank == 0:
            return [x, b.full((), INT, 0)]
        dim %= x.rank
        flat, order = rows_of(b, x, dim)
        count, n = flat.shape
        loops = Loops(b, {"x": flat}, {"v": (flat.shape, x.dtype, 0), "i": (flat.shape, INT, 0), "at": ((1,), INT, 0)})

        def step(row: Scalar, j: Scalar) -> None:
            value, best = loops.get("x", row, j), loops.get("x", row, loops.get("at", 0))
            better = s.compare("ge" if relation == "gt" else "le", value, best) | value.differs(value)
            at = select(better, j, loops.get("at", 0))
            loops.set("at", [0], at)
            loops.set("v", [row, j], loops.get("x", row, at))
            loops.set("i", [row, j], at)

        def each_row(row: Scalar) -> None:
            loops.set("at", [0], 0)
            loops.loop(0, n, lambda j: step(row, j))

        loops.loop(0, count, each_row)
        return [_back(b, loops.result(name), x, dim, order) for name in ("v", "i")]

    return lower


def logcumsumexp(b: Builder, result: Meta, x: Tensor, dim: int) -> Tensor:
    """log of the running sum of exp, by the larger of the sum so far and the next number."""
    if x.rank == 0:
        return x
    dim %= x.rank
    flat, order = rows_of(b, x, dim)
    count, n = flat.shape
    loops = Loops(b, {"x": flat}, {"v": (flat.shape, x.dtype, 0), "w": ((1,), torch.float64, 0)})

    def step(row: Scalar, j: Scalar) -> None:
        value, total = loops.get("x", row, j).to(torch.float64), loops.get("w", 0)
        high, low = value.max(total), value.min(total)
        same = low.equals(high) & s.absolute(low).equals(math.inf)
        loops.set("w", [0], select(same, high, high + s.log1p(s.exp(low - high))))
        loops.set("v", [row, j], loops.get("w", 0))

    def each_row(row: Scalar) -> None:
        loops.set("w", [0], -math.inf)
        loops.loop(0, n, lambda j: step(row, j))

    loops.loop(0, count, each_row)
    return _back(b, loops.result("v"), x, dim, order)


def sorted_rows(b: Builder, flat: Tensor) -> tuple[Loops, Dim, Dim]:
    """Loops whose arrays "i" [1, n] will hold the places of a row's numbers in ascending order, NaN last; `sort_row` fills it."""
    count, n = flat.shape
    state = {"i": ((n,), INT, 0), "at": ((4,), INT, 0), "v": ((count,), flat.dtype, 0), "k": ((count,), INT, 0)}
    return Loops(b, {"x": flat}, state), count, n


def sort_row(loops: Loops, row: Scalar, n: Dim, descending: bool = False) -> None:
    """Stable: each number's place is how many come before it; NaN counts as the largest."""

    def place(j: Scalar) -> None:
        loops.set("at", [0], 0)
        value = loops.get("x", row, j)

        def compare(k: Scalar) -> None:
            other = loops.get("x", row, k)
            same = other.equals(value) | (other.differs(other) & value.differs(value))
            first, second = (value, other) if descending else (other, value)
            ordered = (first < second) | (second.differs(second) & first.equals(first))
            loops.add("at", [0], (ordered | (same & (k < j))).to(INT))

        loops.loop(0, n, compare)
        loops.set("i", [loops.get("at", 0)], j)

    loops.loop(0, n, place)


def stable_sort(
    b: Builder, result: Sequence[Meta], x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> list[Tensor]:
    """(values, indices), equal numbers in the order in which they stand."""
    if x.rank == 0:
        return [x, b.full((), INT, 0)]
    dim %= x.rank
    flat, order = rows_of(b, x, dim)
    count, n = flat.shape
    state = {"i": ((n,), INT, 0), "at": ((1,), INT, 0), "v": (flat.shape, x.dtype, 0), "k": (flat.shape, INT, 0)}
    loops = Loops(b, {"x": flat}, state)

    def row(r: Scalar) -> None:
        sort_row(loops, r, n, descending)

        def write(j: Scalar) -> None:
            loops.set("v", [r, j], loops.get("x", r, loops.get("i", j)))
            loops.set("k", [r, j], loops.get("i", j))

        loops.loop(0, n, write)

    loops.loop(0, count, row)
    return [_back(b, loops.result(name), x, dim, order) for name in ("v", "k")]


def median(ignore_nan: bool) -> Callable[..., list[Tensor]]:
    """(values, indices): the lower median; a NaN is the answer unless it is ignored."""

    def lower(b: Builder, result: Sequence[Meta], x: Tensor, dim: int, keepdim: bool = False) -> list[Tensor]:
        if x.rank == 0:
            return [x, b.full((), INT, 0)]
        flat, _ = rows_of(b, x, dim % x.rank)
        loops, count, n = sorted_rows(b, flat)

        def row(r: Scalar) -> None:
            sort_row(loops, r, n)
            loops.set("at", [1], 0)

            def tally(j: Scalar) -> None:
                value = loops.get("x", r, j)
                loops.add("at", [1], value.equals(value).to(INT))

            loops.loop(0, n, tally)
            numbers, size = loops.get("at", 1), loops.number(n)
            middle = ((numbers - 1) / 2).max(0) if ignore_nan else select(numbers < size, numbers, (size - 1) / 2)
            place = loops.get("i", middle)
            loops.set("v", [r], loops.get("x", r, place))
            loops.set("k", [r], place)

        loops.loop(0, count, row)
        return [b.reshape(loops.result(name), meta.shape) for name, meta in zip("vk", result, strict=True)]

    return lower


def median_of_all(ignore_nan: bool) -> Callable[..., Tensor]:
    def lower(b: Builder, result: Meta, x: Tensor) -> Tensor:
        if b.sizes.equal(b.sizes.product(x.shape), 0):
            return b.full((), x.dtype, math.nan if x.dtype.is_floating_point else torch.iinfo(x.dtype).min)
        flat = b.reshape(x, (b.sizes.product(x.shape),))
        return median(ignore_nan)(b, [Meta((), x.dtype), Meta((), INT)], flat, 0)[0]

    return lower


def mode(b: Builder, result: Sequence[Meta], x: Tensor, dim: int = -1, keepdim: bool = False) -> list[Tensor]:
    """(values, indices): the most frequent number, the smallest of several, and where it stands last."""
    if x.rank == 0:
        return [x, b.full((), INT, 0)]
    flat, _ = rows_of(b, x, dim % x.rank)
    loops, count, n = sorted_rows(b, flat)

    def row(r: Scalar) -> None:
        sort_row(loops, r, n)
        loops.set("at", [1], 0)
        loops.set("at", [2], 0)

        def step(j: Scalar) -> None:
            here, before = loops.get("i", j), loops.get("i", (j - 1).max(0))
            repeated = loops.get("x", r, here).equals(loops.get("x", r, before)) & (j > 0)
            run = select(repeated, loops.get("at", 1) + 1, here.like(1))
            longer = run > loops.get("at", 2)
            loops.set("at", [1], run)
            loops.set("at", [2], select(longer, run, loops.get("at", 2)))
            loops.set("k", [r], select(longer, here, loops.get("k", r)))
            loops.set("v", [r], loops.get("x", r, loops.get("k", r)))

        loops.loop(0, n, step)

    loops.loop(0, count, row)
    return [b.reshape(loops.result(name), meta.shape) for name, meta in zip("vk", result, strict=True)]
