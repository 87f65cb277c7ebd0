"""Writes at data-dependent positions: scatters, index_put and similar ops, each a loop nest around tensor.insert.

compiler/analysis/scatters.py recognizes the nest. Updates of one position run in row-major order of the indices, so the last of several
updates is kept and sums have a fixed order. Half floats are combined in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy
import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.dims import Shape
from llmos.compiler.frontend.ops.elementwise import floor_quotient
from llmos.compiler.frontend.ops.indexing import require_inside, wrapped
from llmos.compiler.frontend.ops.reductions import number
from llmos.compiler.frontend.scalars import Number, Scalar, compute_dtype, to_index
from llmos.compiler.ir.bindings import ir, scf, tensor

Combine = Callable[[Scalar, Scalar], Scalar]
Update = Callable[[list[ir.Value]], tuple[list[ir.Value], Scalar]]  # induction variables -> position, value
Source: TypeAlias = "Tensor | Number | sympy.Expr"


@dataclass(frozen=True)
class Reduction:
    """A combining function of the current element and an update, and its identity element by dtype."""

    combine: Combine
    splat_constant: Callable[[torch.dtype], Number]


def _add(old: Scalar, new: Scalar) -> Scalar:
    return old | new if old.dtype == torch.bool else old + new


def _nothing(dtype: torch.dtype) -> Number:
    """Return the identity of a sum: -0.0 for floats, which keeps the sign of a zero."""
    return -0.0 if dtype.is_floating_point else 0


REDUCTIONS = {
    "sum": Reduction(_add, _nothing),
    "prod": Reduction(lambda old, new: old * new, lambda dtype: 1),
    "amax": Reduction(lambda old, new: old.max(new), s.lowest),
    "amin": Reduction(lambda old, new: old.min(new), s.highest),
}


def scattered(b: Builder, base: Tensor, bounds: Shape, update: Update, reduction: Reduction | None = None) -> Tensor:
    """Apply the updates of an iteration space to `base` in order. `update` emits the position in `base` and the value, of base's dtype."""
    if any(b.sizes.equal(bound, 0) for bound in bounds):
        return base
    dense = b.dense(base)
    real = [i for i, bound in enumerate(bounds) if bound != 1]
    zero = b.index(0)

    def place_and_value(counters: Sequence[ir.Value]) -> tuple[list[ir.Value], Scalar]:
        given = dict(zip(real, counters, strict=False))
        return update([given.get(i, zero) for i in range(len(bounds))])

    if real:
        value = _nest(b, dense.value, tuple(bounds[i] for i in real), [], place_and_value, base.dtype, reduction)
    else:
        # Upstream folds loops of trip count 1. A second iteration that changes nothing keeps the loop.
        value = _nest(b, dense.value, (2,), [], lambda at: _first_only(at[0], *place_and_value([]), reduction), base.dtype, reduction)
    return b.dense_tensor(value, base.shape, base.dtype)


def _first_only(iteration: ir.Value, place: list[ir.Value], value: Scalar, reduction: Reduction | None) -> tuple[list[ir.Value], Scalar]:
    if reduction is None:
        return place, value  # the same update twice
    is_first = s.from_index(iteration, torch.int64).equals(0)
    return place, s.select(is_first, value, reduction.splat_constant(value.dtype))


def _nest(
    b: Builder, held: ir.Value, bounds: Shape, counters: list[ir.Value], update: Update, dtype: torch.dtype, reduction: Reduction | None
) -> ir.Value:
    if not bounds:
        place, value = update(counters)
        if reduction is not None:
            value = reduction.combine(Scalar(tensor.ExtractOp(held, place).result, dtype), value)
        return tensor.InsertOp(value.value, held, place).result
    loop = scf.ForOp(b.index(0), b.index(bounds[0]), b.index(1), [held])
    with ir.InsertionPoint(loop.body):
        made = _nest(b, loop.inner_iter_args[0], bounds[1:], [*counters, loop.induction_variable], update, dtype, reduction)
        scf.YieldOp([made])
    return loop.results[0]


def read(b: Builder, x: Tensor, at: Sequence[ir.Value]) -> Scalar:
    """Read an element through the view of a tensor that has the rank of `at` or broadcasts to it."""
    own = list(at)[len(at) - x.rank :]
    stored = x.value.type.shape
    place = [b.index(0) if axis is None or size == 1 else own[axis] for axis, size in zip(x.axes, stored, strict=True)]
    return Scalar(tensor.ExtractOp(x.value, place).result, x.dtype)


def _reader(b: Builder, source: Source, dtype: torch.dtype) -> Callable[[list[ir.Value]], Scalar]:
    """Return the function that reads an update's value, cast to `dtype`: an element of a tensor, or one number for all."""
    if isinstance(source, Tensor):
        return lambda at: read(b, source, at).to(dtype)
    if isinstance(source, sympy.Expr):
        return lambda at: number(b, source, dtype)
    return lambda at: s.constant(source, dtype)


def _in_wide(b: Builder, x: Tensor, write: Callable[[Tensor], Tensor]) -> Tensor:
    """Run `write` on `x` in the compute type and cast the result back."""
    return b.cast(b.dense(write(b.cast(x, compute_dtype(x.dtype)))), x.dtype)


def _at_least_1d(b: Builder, x: Any) -> Any:
    return b.unsqueeze(x, 0) if isinstance(x, Tensor) and x.rank == 0 else x


# Along one dimension, one index for each element


def _along(b: Builder, x: Tensor, dim: int, ids: Tensor, source: Source, reduction: Reduction | None = None) -> Tensor:
    """Write out[ids[i, j], j] = source[i, j] for dim 0. `ids` may be smaller than `x` and `source` in the other dimensions."""
    value_at = _reader(b, source, x.dtype)
    require_inside(ids, x.shape[dim], False)

    def update(at: list[ir.Value]) -> tuple[list[ir.Value], Scalar]:
        place = to_index(read(b, ids, at))
        return [place if i == dim else each for i, each in enumerate(at)], value_at(at)

    return scattered(b, x, ids.shape, update, reduction)


def scatter(b: Builder, result: Meta, x: Tensor, dim: int, ids: Tensor, source: Source, *, reduce: str | None = None) -> Tensor:
    """Lower aten.scatter.src, .value, .reduce and .value_reduce ("add", "multiply"). Raises UserError for a constant index out of range."""
    name = {"add": "sum", "multiply": "prod", None: None}[reduce]
    if name is not None:
        return scatter_reduce(b, result, x, dim, ids, source, name)
    whole, ids, source = (_at_least_1d(b, each) for each in (x, ids, source))
    return b.reshape(_along(b, whole, dim % whole.rank, ids, source), result.shape)


def scatter_add(b: Builder, result: Meta, x: Tensor, dim: int, ids: Tensor, source: Tensor) -> Tensor:
    """Lower aten.scatter_add: x[ids[i, j], j] += source[i, j] for dim 0."""
    return scatter_reduce(b, result, x, dim, ids, source, "sum")


def scatter_reduce(
    b: Builder, result: Meta, x: Tensor, dim: int, ids: Tensor, source: Source, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Lower aten.scatter_reduce.two by "sum", "prod", "mean", "amax" or "amin"; without `include_self` written elements start anew."""
    whole, ids, source = (_at_least_1d(b, each) for each in (x, ids, source))
    dim %= whole.rank

    def write(base: Tensor, value: Source, reduction: Reduction | None) -> Tensor:
        return _along(b, base, dim, ids, value, reduction)

    return b.reshape(_reduced(b, whole, source, reduce, include_self, write), result.shape)


def _reduced(
    b: Builder, x: Tensor, source: Source, reduce: str, include_self: bool, write: Callable[[Tensor, Source, Reduction | None], Tensor]
) -> Tensor:
    """Combine updates with one another and, with `include_self`, with the current elements. A mean of integers is rounded down."""
    reduction = REDUCTIONS["sum" if reduce == "mean" else reduce]

    def each(base: Tensor) -> Tensor:
        start = base if include_self else write(base, reduction.splat_constant(base.dtype), None)
        total = write(start, source, reduction)
        if reduce != "mean":
            return total
        ones = b.full(x.shape, base.dtype, 1)
        count = write(ones if include_self else write(ones, 0, None), 1, REDUCTIONS["sum"])
        divide = (lambda v, n: v / n.max(1)) if base.dtype.is_floating_point else (lambda v, n: floor_quotient(v, n.max(1)))
        return b.elementwise(divide, [total, count], base.dtype)

    return _in_wide(b, x, each)


# Along one dimension, one index for each slice


def _slices(b: Builder, x: Tensor, dim: int, ids: Tensor, source: Source, reduction: Reduction | None, wraps: bool = False) -> Tensor:
    """Write out[ids[i], j] = source[i, j] for dim 0; `ids` is [n], `source` has the shape of `x` with size n along `dim`."""
    value_at = _reader(b, source, x.dtype)
    require_inside(ids, x.shape[dim], wraps)

    def update(at: list[ir.Value]) -> tuple[list[ir.Value], Scalar]:
        index = read(b, ids, [at[dim]])
        place = wrapped(b, index, x.shape[dim]) if wraps else to_index(index)
        return [place if i == dim else each for i, each in enumerate(at)], value_at(at)

    return scattered(b, x, (*x.shape[:dim], ids.shape[0], *x.shape[dim + 1 :]), update, reduction)


def index_add(b: Builder, result: Meta, x: Tensor, dim: int, ids: Tensor, source: Tensor, *, alpha: Any = 1) -> Tensor:
    """Lower aten.index_add: add alpha * source to the slices of x at ids [n], in order."""
    whole, ids, source = (_at_least_1d(b, each) for each in (x, ids, source))
    wide = compute_dtype(x.dtype)
    scaled = source if alpha == 1 else b.elementwise(lambda v: v.to(wide) * _factor(b, alpha, wide), [source], wide)
    made = _in_wide(b, whole, lambda base: _slices(b, base, dim % whole.rank, ids, scaled, REDUCTIONS["sum"]))
    return b.reshape(made, result.shape)


def _factor(b: Builder, alpha: Any, dtype: torch.dtype) -> Scalar:
    return number(b, alpha, dtype) if isinstance(alpha, sympy.Expr) else s.constant(alpha, dtype)


def index_copy(b: Builder, result: Meta, x: Tensor, dim: int, ids: Tensor, source: Tensor) -> Tensor:
    """Lower aten.index_copy: write source to the slices of x at ids [n], in order."""
    whole, ids, source = (_at_least_1d(b, each) for each in (x, ids, source))
    return b.reshape(_slices(b, whole, dim % whole.rank, ids, source, None), result.shape)


def index_fill(b: Builder, result: Meta, x: Tensor, dim: int, ids: Tensor, value: Source) -> Tensor:
    """Lower aten.index_fill: fill the slices at `ids` [n] with one value; negative indices count from the end, as in torch."""
    whole, ids = (_at_least_1d(b, each) for each in (x, ids))
    return b.reshape(_slices(b, whole, dim % whole.rank, ids, value, None, wraps=True), result.shape)


def index_reduce(
    b: Builder, result: Meta, x: Tensor, dim: int, ids: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Lower aten.index_reduce: combine source with the slices of x at ids [n], as `scatter_reduce`."""
    whole, ids, source = (_at_least_1d(b, each) for each in (x, ids, source))

    def write(base: Tensor, value: Source, reduction: Reduction | None) -> Tensor:
        return _slices(b, base, dim % whole.rank, ids, value, reduction)

    return b.reshape(_reduced(b, whole, source, reduce, include_self, write), result.shape)


# At positions over several dimensions


def put(b: Builder, result: Meta, x: Tensor, ids: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """Lower aten.put: write `source` at flat indices of `x`, or add it with `accumulate`."""
    flat, places, values = (b.reshape(each, (b.sizes.product(each.shape),)) for each in (x, ids, source))
    return b.reshape(index_put(b, Meta(flat.shape, x.dtype), flat, [places], values, accumulate), result.shape)


def index_put(b: Builder, result: Meta, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """Lower aten.index_put: x[indices] = values, or += with `accumulate`.

    The index tensors broadcast together, and `values` to the selected shape. Raises UserError for a constant index out of range.
    """
    chosen = {dim: ids for dim, ids in enumerate(indices) if ids is not None}
    lead = b.broadcast_shape([ids.shape for ids in chosen.values()])
    rest = [dim for dim in range(x.rank) if dim not in chosen]
    is_adjacent = max(chosen) - min(chosen) + 1 == len(chosen)
    position = min(chosen) if is_adjacent else 0
    bounds = (*[x.shape[dim] for dim in rest[:position]], *lead, *[x.shape[dim] for dim in rest[position:]])

    for dim, ids in chosen.items():
        require_inside(ids, x.shape[dim], True)

    def place_of(base: Tensor, at: list[ir.Value]) -> list[ir.Value]:
        free = iter([*at[:position], *at[position + len(lead) :]])
        taken = {dim: read(b, ids, at[position : position + len(lead)]) for dim, ids in chosen.items()}
        return [wrapped(b, taken[dim], base.shape[dim]) if dim in taken else next(free) for dim in range(base.rank)]

    def write(base: Tensor) -> Tensor:
        value_at = _reader(b, values, base.dtype)
        reduction = REDUCTIONS["sum"] if accumulate else None
        return scattered(b, base, bounds, lambda at: (place_of(base, at), value_at(at)), reduction)

    return _in_wide(b, x, write) if accumulate else write(x)


def scatter_nd(b: Builder, result: Meta, x: Tensor, ids: Tensor, source: Tensor, reduce: str | None) -> Tensor:
    """Update slices of `x` at ids [lead..., depth], which index the first `depth` dimensions; `source` is [lead..., rest of x]."""
    depth, lead = ids.shape[-1], ids.rank - 1
    assert isinstance(depth, int)

    def place_of(base: Tensor, at: list[ir.Value]) -> list[ir.Value]:
        taken = [read(b, ids, [*at[:lead], b.index(dim)]) for dim in range(depth)]
        return [*[wrapped(b, index, size) for index, size in zip(taken, base.shape, strict=False)], *at[lead:]]

    def write(base: Tensor, value: Source, reduction: Reduction | None) -> Tensor:
        value_at = _reader(b, value, base.dtype)
        return scattered(b, base, (*ids.shape[:-1], *x.shape[depth:]), lambda at: (place_of(base, at), value_at(at)), reduction)

    return write(x, source, None) if reduce is None else _reduced(b, x, source, reduce, True, write)


def table() -> dict[str, Callable[..., Any]]:
    """Return the lowerings by overload names, separated by spaces."""
    return {
        "scatter.src scatter.value scatter.reduce scatter.value_reduce": scatter,
        "scatter_add.default": scatter_add,
        "scatter_reduce.two": scatter_reduce,
        "index_add.default": index_add,
        "index_copy.default": index_copy,
        "index_fill.int_Scalar index_fill.int_Tensor": index_fill,
        "index_reduce.default": index_reduce,
        "index_put.default _unsafe_index_put.default": index_put,
        "put.default": put,
    }
