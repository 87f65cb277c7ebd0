"""Reads at data-dependent positions: embedding, gather, advanced indexing. The body reads the table by tensor.extract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch

from llmos.compiler.frontend.builder import Builder, Iota, Meta, Splat, Tensor, affine_dim
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops.shapes import element, extract, loop
from llmos.compiler.frontend.scalars import Scalar, select, to_index
from llmos.compiler.ir.bindings import ir
from llmos.runtime.errors import UserError


def embedding(b: Builder, result: Meta, table: Tensor, ids: Tensor, *_: Any) -> Tensor:
    """Lower aten.embedding: look up rows of `table` [rows, width] for ids of any shape; return [*ids.shape, width].

    Known consecutive ids become a slice. Gradient options are ignored.
    """
    if isinstance(ids.fact, Splat) and _is_inside(b, int(ids.fact.value), 1, table.shape[0]):
        return b.expand(extract(b, table, 0, int(ids.fact.value), 1), result.shape)
    if isinstance(ids.fact, Iota) and ids.fact.step == 1 and _is_inside(b, ids.fact.start, ids.shape[ids.fact.axis], table.shape[0]):
        length: Dim = ids.shape[ids.fact.axis]
        rows = extract(b, table, 0, ids.fact.start, length)
        for _dim in range(ids.rank - 1 - ids.fact.axis):
            rows = b.unsqueeze(rows, 1)
        return b.expand(rows, result.shape)
    return gathered(b, result, table, {0: ids}, lead=ids.rank, position=0, wraps=False)


def _is_inside(b: Builder, start: int, length: Dim, size: Dim) -> bool:
    """Whether [start, start + length) lies in [0, size) for all sizes; otherwise the kernel checks each index."""
    return start >= 0 and b.sizes.bounds(b.sizes.simplify(sympy.sympify(size) - length - start))[0] >= 0


def index_select(b: Builder, result: Meta, x: Tensor, dim: int, ids: Tensor) -> Tensor:
    """Lower aten.index_select: slices of x along `dim` at ids [n]; the kernel reports a negative id, or one out of range."""
    if x.rank == 0:
        return b.expand(x, result.shape)
    ids = b.unsqueeze(ids, 0) if ids.rank == 0 else ids
    return gathered(b, result, x, {dim % x.rank: ids}, lead=ids.rank, position=dim % x.rank, wraps=False)


def index(b: Builder, result: Meta, x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Lower x[indices] of integers: the index tensors broadcast together.

    Their dimensions keep their position if adjacent, else come first. Raises UserError for a constant index out of range.
    """
    chosen = {dim: ids for dim, ids in enumerate(indices) if ids is not None}
    lead = max(ids.rank for ids in chosen.values())
    adjacent = max(chosen) - min(chosen) + 1 == len(chosen)
    position = min(chosen) if adjacent else 0
    straight = _as_view(b, result, x, chosen, lead, position)
    return straight if straight is not None else gathered(b, result, x, chosen, lead, position)


def _as_view(b: Builder, result: Meta, x: Tensor, chosen: dict[int, Tensor], lead: int, position: int) -> Tensor | None:
    """Return a transpose where every index is a full range (arange over the dimension) or zero in a dimension of size 1, else None."""
    source: dict[int, int] = {}  # dimension of the result -> dimension of x
    squeezed = []
    for dim, ids in chosen.items():
        if ids.fact == Splat(0) and x.shape[dim] == 1:
            squeezed.append(dim)
        elif (
            isinstance(ids.fact, Iota)
            and (ids.fact.start, ids.fact.step) == (0, 1)
            and b.sizes.equal(ids.shape[ids.fact.axis], x.shape[dim])
        ):
            at = position + lead - ids.rank + ids.fact.axis
            if at in source:
                return None
            source[at] = dim
        else:
            return None
    rest = [dim for dim in range(x.rank) if dim not in chosen]
    free = [at for at in range(len(result.shape)) if not position <= at < position + lead]
    source.update(zip(free, rest, strict=True))
    view = b.permute(x, squeezed + [source[at] for at in sorted(source)])
    for _ in squeezed:
        view = b.squeeze(view, 0)
    for at in range(len(result.shape)):
        if at not in source:
            view = b.unsqueeze(view, at)
    return b.expand(view, result.shape)


def gathered(b: Builder, result: Meta, x: Tensor, chosen: dict[int, Tensor], lead: int, position: int, wraps: bool = True) -> Tensor:
    """Gather from x: dimensions in `chosen` are read at their index tensors, the others elementwise.

    `wraps`: whether a negative index counts from the end; otherwise the kernel reports it as out of range. Raises UserError for a constant
    index out of range.
    """
    for dim, ids in chosen.items():
        require_inside(ids, x.shape[dim], wraps)
    dense, rank = b.dense(x), len(result.shape)
    block = [affine_dim(position + i) for i in range(lead)]
    shape = result.shape[position : position + lead]
    free = [at for at in range(rank) if not position <= at < position + lead]

    def body(*loaded: Scalar) -> list[Scalar]:
        ids = dict(zip(chosen, loaded, strict=False))
        along = iter(free)
        at = {dim: wrapped(b, value, x.shape[dim]) if wraps else to_index(value) for dim, value in ids.items()}
        place = [at[dim] if dim in at else loop(next(along)) for dim in range(x.rank)]
        return [element(dense, place)]

    (value,) = b.generic(
        [(ids, b.reads(ids, shape, block)) for ids in chosen.values()],
        [(b.empty(result.shape, x.dtype), x.dtype, [affine_dim(i) for i in range(rank)])],
        ["parallel"] * rank,
        body,
    )
    return b.cast(b.dense_tensor(value, result.shape, x.dtype), result.dtype)


def require_inside(ids: Tensor, size: Dim, wraps: bool) -> None:
    """Raise UserError for a constant index outside of a dimension of static size."""
    if not isinstance(size, int) or not isinstance(ids.fact, (Splat, Iota)) or 0 in ids.shape:
        return
    ends = [int(ids.fact.value)] if isinstance(ids.fact, Splat) else [ids.fact.start]
    if isinstance(ids.fact, Iota) and isinstance(length := ids.shape[ids.fact.axis], int):
        ends.append(ids.fact.start + (length - 1) * ids.fact.step)
    for index in ends:
        if not (-size if wraps else 0) <= index < size:
            raise UserError(f"the constant index {index} lies outside of a dimension of size {size}")


def wrapped(b: Builder, at: Scalar, size: Dim) -> ir.Value:
    """Return an index value by torch's rule: a negative number counts from the end of a dimension of `size`."""
    from llmos.compiler.frontend.ops.reductions import number

    if at.is_unsigned:
        return to_index(at)
    wide = at.to(torch.int64)  # the size may exceed the range of a narrow index dtype
    return to_index(select(wide < 0, wide + number(b, size, torch.int64), wide))


def take_along_dim(b: Builder, result: Meta, x: Tensor, ids: Tensor, dim: int | None = None) -> Tensor:
    """Lower aten.take_along_dim: `gather` with broadcasting of the dimensions other than `dim`; negative indices count from the end."""
    if dim is None:
        x, ids, dim = b.reshape(x, (b.sizes.product(x.shape),)), b.reshape(ids, (b.sizes.product(ids.shape),)), 0
    dim %= x.rank
    source = b.expand(x, (*result.shape[:dim], x.shape[dim], *result.shape[dim + 1 :]))
    return gather(b, result, source, dim, b.expand(ids, result.shape), wraps=True)


def gather(b: Builder, result: Meta, x: Tensor, dim: int, ids: Tensor, *, wraps: bool = False, **_: Any) -> Tensor:
    """Lower aten.gather: out[i, j] = x[ids[i, j], j] for dim 0. Raises UserError for a constant index out of range."""
    if x.rank == 0:
        return b.expand(x, result.shape)
    if isinstance(x.fact, Splat):
        return b.full(result.shape, x.dtype, x.fact.value)
    dim %= x.rank
    require_inside(ids, x.shape[dim], wraps)
    dense = b.dense(x)

    def body(at: Scalar, _: Scalar) -> list[Scalar]:
        place = wrapped(b, at, x.shape[dim]) if wraps else to_index(at)
        return [element(dense, [place if i == dim else loop(i) for i in range(x.rank)])]

    (value,) = b.generic(
        [(ids, b.reads(ids, result.shape))],
        [(b.empty(result.shape, x.dtype), x.dtype, [affine_dim(i) for i in range(x.rank)])],
        ["parallel"] * x.rank,
        body,
    )
    return b.dense_tensor(value, result.shape, x.dtype)
