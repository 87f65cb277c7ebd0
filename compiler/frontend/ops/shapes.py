"""Data movement and creation ops: views, slices, concatenation, padding, ranges."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import DYNAMIC, Builder, Iota, Meta, Splat, Tensor, affine_dim
from llmos.compiler.frontend.dims import Dim, Shape
from llmos.compiler.frontend.scalars import Deferred, Number, Scalar, select
from llmos.compiler.ir.bindings import arith, ir, linalg, tensor
from llmos.runtime.errors import UnsupportedError


def reshape(b: Builder, result: Meta, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Lower aten.view, reshape, flatten, unflatten and similar ops: the result's metadata gives the sizes."""
    return b.reshape(x, result.shape)


def expand(b: Builder, result: Meta, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Lower aten.expand and broadcast_to, as a view."""
    return b.expand(x, result.shape)


def permute(b: Builder, result: Meta, x: Tensor, order: Sequence[int]) -> Tensor:
    """Lower aten.permute, as a view."""
    return b.permute(x, [dim % x.rank for dim in order])


def transpose(b: Builder, result: Meta, x: Tensor, a: int = 0, c: int = 1) -> Tensor:
    """Lower aten.transpose and t, as a view that exchanges dimensions a and c; rank 0 or 1 is unchanged."""
    order = list(range(x.rank))
    if x.rank > 1:
        order[a], order[c] = order[c], order[a]
    return b.permute(x, order)


def reverse_dims(b: Builder, result: Meta, x: Tensor) -> Tensor:
    """Lower aten.numpy_T, as a view with the dimensions in reverse order."""
    return b.permute(x, list(range(x.rank))[::-1])


def movedim(b: Builder, result: Meta, x: Tensor, source: int | Sequence[int], target: int | Sequence[int]) -> Tensor:
    """Lower aten.movedim, as a view."""
    froms = [dim % x.rank for dim in ([source] if isinstance(source, int) else source)]
    tos = [dim % x.rank for dim in ([target] if isinstance(target, int) else target)]
    order = [dim for dim in range(x.rank) if dim not in froms]
    for to, origin in sorted(zip(tos, froms, strict=True)):
        order.insert(to, origin)
    return b.permute(x, order)


def unsqueeze(b: Builder, result: Meta, x: Tensor, dim: int) -> Tensor:
    """Lower aten.unsqueeze, as a view."""
    return b.unsqueeze(x, dim % (x.rank + 1))


def squeeze(b: Builder, result: Meta, x: Tensor, dims: int | Sequence[int] | None = None) -> Tensor:
    """Lower aten.squeeze: remove the dimensions of size 1 among `dims`.

    Of symbolic ones it removes those that the result lacks, which a guard holds to 1.
    """
    chosen = range(x.rank) if dims is None else [dims] if isinstance(dims, int) else dims
    unique = sorted({d % x.rank for d in chosen}) if x.rank else []
    ones = [d for d in unique if x.shape[d] == 1]
    for dim in sorted([*ones, *_squeezed_symbols(b, result, x, unique)], reverse=True):
        x = b.squeeze(extract(b, x, dim, 0, 1), dim)
    return x


def _squeezed_symbols(b: Builder, result: Meta, x: Tensor, chosen: Sequence[int]) -> Sequence[int]:
    ones = {d for d in chosen if x.shape[d] == 1}
    symbolic = [d for d in chosen if d not in ones and not isinstance(x.shape[d], int)]
    for dims in itertools.combinations(symbolic, max(0, x.rank - len(ones) - len(result.shape))):
        kept = [size for d, size in enumerate(x.shape) if d not in ones and d not in dims]
        if all(b.sizes.equal(have, want) for have, want in zip(kept, result.shape, strict=False)):
            return dims
    return ()


# Slices


def extract(b: Builder, x: Tensor, dim: int, start: Dim, size: Dim, step: int = 1) -> Tensor:
    """Slice elements start, start + step, ... of one dimension, `size` of them."""
    if size == 0:
        shape = (*x.shape[:dim], 0, *x.shape[dim + 1 :])
        return b.dense_tensor(b.fill(shape, x.dtype, 0), shape, x.dtype)
    if b.sizes.equal(size, x.shape[dim]) and step == 1:
        return x
    if size == 0:
        # MLIR rejects a slice that starts at the end of its source.
        shape = (*x.shape[:dim], 0, *x.shape[dim + 1 :])
        return b.dense_tensor(b.empty(shape, x.dtype), shape, x.dtype)
    if isinstance(x.fact, Splat):
        return (
            replace(x, shape=(*x.shape[:dim], size, *x.shape[dim + 1 :])) if dim not in x.axes else _extract(b, x, dim, start, size, step)
        )
    return _extract(b, x, dim, start, size, step)


def _extract(b: Builder, x: Tensor, dim: int, start: Dim, size: Dim, step: int) -> Tensor:
    """Slice the stored value and keep the view; a broadcast dimension only changes its size."""
    shape = (*x.shape[:dim], size, *x.shape[dim + 1 :])
    if dim not in x.axes:
        return replace(x, shape=shape)
    at = x.axes.index(dim)
    stored: Shape = tuple(1 if axis is None else x.shape[axis] for axis in x.axes)
    value = slice_value(b, x.value, stored, at, start, size, step, x.dtype)
    fact = x.fact
    if isinstance(fact, Iota) and fact.axis == dim:
        fact = Iota(dim, fact.start + int(start) * fact.step, fact.step * step) if isinstance(start, int) else None
    return Tensor(value, shape, x.dtype, x.axes, fact)


def slice_value(b: Builder, value: ir.Value, stored: Shape, dim: int, start: Dim, size: Dim, step: int, dtype: torch.dtype) -> ir.Value:
    """Emit a slice of one dimension of a value of shape `stored`: `size` elements from `start` on, every `step`-th."""
    rank = len(stored)
    offsets: list[Dim] = [start if i == dim else 0 for i in range(rank)]
    sizes: list[Dim] = [size if i == dim else stored[i] for i in range(rank)]
    if 0 in sizes:  # MLIR rejects a slice at the end of a dimension, as an empty one may be
        return b.empty(tuple(sizes), dtype)
    return tensor.ExtractSliceOp(
        b.type(tuple(sizes), dtype),
        value,
        b.dynamic(tuple(offsets)),
        b.dynamic(tuple(sizes)),
        [],
        _static(offsets),
        _static(sizes),
        [step if i == dim else 1 for i in range(rank)],
    ).result


def _static(dims: Sequence[Dim]) -> list[int]:
    return [dim if isinstance(dim, int) else DYNAMIC for dim in dims]


def bounded(b: Builder, position: Dim | None, size: Dim, default: Dim) -> Dim:
    """Apply Python's slice rule to one end: a negative one counts from the end, then it is clamped to [0, size].

    Raises UnsupportedError for a bound whose sign depends on the input sizes.
    """
    if position is None:
        return default
    if isinstance(position, int) and position >= 2**62:
        return size
    low, _ = b.sizes.bounds(position)
    if low < 0:
        position = b.sizes.simplify(_expr(position) + _expr(size)) if _is_negative(b, position) else position
    import sympy

    return b.sizes.simplify(sympy.Min(sympy.Max(_expr(position), 0), _expr(size)))


def _is_negative(b: Builder, position: Dim) -> bool:
    if b.sizes.bounds(position)[1] < 0:
        return True
    raise UnsupportedError(f"the slice bound {position} may be negative or not, depending on the input sizes")


def _expr(dim: Dim) -> Any:
    import sympy

    return sympy.sympify(dim)


def slice_tensor(
    b: Builder, result: Meta, x: Tensor, dim: int = 0, start: Dim | None = None, end: Dim | None = None, step: int = 1
) -> Tensor:
    """Lower aten.slice with ends that follow from sizes; the result's metadata gives the number of elements.

    Raises UnsupportedError for a bound whose sign depends on the input sizes.
    """
    dim %= x.rank
    return extract(b, x, dim, bounded(b, start, x.shape[dim], 0), result.shape[dim], step)


def select_index(b: Builder, result: Meta, x: Tensor, dim: int, index: Dim) -> Tensor:
    """Lower aten.select.int at an index that follows from sizes."""
    dim %= x.rank
    if isinstance(index, int) and index < 0:
        index = b.sizes.simplify(_expr(index) + _expr(x.shape[dim]))
    return b.squeeze(extract(b, x, dim, index, 1), dim)


def narrow(b: Builder, result: Meta, x: Tensor, dim: int, start: Dim, length: Dim) -> Tensor:
    """Lower aten.narrow with a start that follows from sizes; the result's metadata gives the length."""
    return slice_tensor(b, result, x, dim, start)


def split(b: Builder, result: Sequence[Meta], x: Tensor, _: Any, dim: int = 0) -> list[Tensor]:
    """Lower aten.split, split_with_sizes and chunk: the sizes of the results give the end of each part."""
    dim %= x.rank
    parts, start = [], 0
    for meta in result:
        parts.append(extract(b, x, dim, b.sizes.simplify(_expr(start)), meta.shape[dim]))
        start = _expr(start) + _expr(meta.shape[dim])
    return parts


def unbind(b: Builder, result: Sequence[Meta], x: Tensor, dim: int = 0) -> list[Tensor]:
    """Lower aten.unbind: one slice along `dim` for each result."""
    dim %= x.rank
    return [b.squeeze(extract(b, x, dim, index, 1), dim) for index in range(len(result))]


# Concatenation


def cat(b: Builder, result: Meta, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Lower aten.cat along `dim`; tensors are cast to the result's dtype."""
    # An empty rank-1 tensor concatenates with any shape (torch's legacy rule).
    kept = [x for x in tensors if not (x.rank == 1 and x.shape[0] == 0 and len(result.shape) > 1)]
    dense = [b.dense(b.cast(x, result.dtype)) for x in kept]
    if len(dense) == 1:
        return dense[0]
    dim %= len(result.shape)
    value = tensor.ConcatOp(b.type(result.shape, result.dtype), dim, [x.value for x in dense]).result
    return b.dense_tensor(value, result.shape, result.dtype)


def stack(b: Builder, result: Meta, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Lower aten.stack: a concatenation along a new dimension."""
    dim %= len(result.shape)
    return cat(b, result, [b.unsqueeze(x, dim) for x in tensors], dim)


def repeat(b: Builder, result: Meta, x: Tensor, repeats: Sequence[Dim]) -> Tensor:
    """Lower aten.repeat: broadcast a new dimension before each one, then reshape; `repeats` has at least x's rank."""
    for _ in range(len(repeats) - x.rank):
        x = b.unsqueeze(x, 0)
    shape: list[Dim] = []
    for position, (times, dim) in enumerate(zip(repeats, x.shape, strict=True)):
        shape += [times, dim]
        x = b.unsqueeze(x, 2 * position)
    return b.reshape(b.expand(x, tuple(shape)), result.shape)


def repeat_interleave(b: Builder, result: Meta, x: Tensor, repeats: int, dim: int | None = None, **_: Any) -> Tensor:
    """Lower aten.repeat_interleave.self_int: repeat each element along `dim`, or of the flat tensor, `repeats` times."""
    if dim is None:
        x, dim = b.reshape(x, (b.sizes.product(x.shape),)), 0
    dim %= x.rank
    wide = b.expand(b.unsqueeze(x, dim + 1), (*x.shape[: dim + 1], repeats, *x.shape[dim + 1 :]))
    return b.reshape(wide, result.shape)


# Elements computed from their position


def loop(position: int) -> ir.Value:
    """Return the loop index of a dimension in a linalg.generic body."""
    return linalg.IndexOp(ir.IntegerAttr.get(ir.IntegerType.get_signless(64), position)).result


def computed(b: Builder, meta: Meta, body: Callable[[list[ir.Value]], Scalar]) -> Tensor:
    """Make a tensor whose elements are a function of their position."""
    rank = len(meta.shape)
    (value,) = b.generic(
        [],
        [(b.empty(meta.shape, meta.dtype), meta.dtype, [affine_dim(i) for i in range(rank)])],
        ["parallel"] * rank,
        lambda _: [body([loop(i) for i in range(rank)]).to(meta.dtype)],
    )
    return b.dense_tensor(value, meta.shape, meta.dtype)


def element(x: Tensor, position: Sequence[ir.Value]) -> Scalar:
    """Read the element of a dense tensor at a position, inside a body."""
    return Scalar(tensor.ExtractOp(x.value, list(position)).result, x.dtype)


def arange(b: Builder, result: Meta, *ends: Any, **_: Any) -> Tensor:
    """Lower aten.arange (end), (start, end) or (start, end, step); integer ranges of constants are known at compile time."""
    start, step = (0, 1) if len(ends) == 1 else (ends[0], ends[2] if len(ends) > 2 else 1)
    x = computed(b, result, lambda i: _affine(i[0], start, step, result.dtype))
    if isinstance(start, int) and isinstance(step, int) and not result.dtype.is_floating_point:
        return replace(x, fact=Iota(0, start, step))
    return x


def _affine(index: ir.Value, start: Any, step: Any, dtype: torch.dtype) -> Scalar:
    position = s.from_index(index, torch.float64 if any(_is_float(each) for each in (start, step)) else torch.int64)
    position = position if step == 1 else position * step
    return (position if start == 0 else position + start).to(dtype)


def _is_float(value: Number | Deferred) -> bool:
    return isinstance(value, float) or (isinstance(value, Deferred) and value.dtype.is_floating_point)


def linspace(b: Builder, result: Meta, start: Number, end: Number, steps: int, **_: Any) -> Tensor:
    """Lower aten.linspace: start + i * step, with the step computed in float64."""
    step = (end - start) / (steps - 1) if steps > 1 else 0.0
    return arange(b, result, start * 1.0, None, step)


def full(b: Builder, result: Meta, size: Any, value: Any, **_: Any) -> Tensor:
    """Lower aten.full."""
    return filled(b, result, value)


def filled(b: Builder, result: Meta, value: Any) -> Tensor:
    """Return a tensor of one number, which may follow from sizes."""
    if isinstance(value, bool | int | float):
        return b.full(result.shape, result.dtype, value)
    held = computed(b, Meta((), result.dtype), lambda _: s.constant(value, result.dtype))
    return b.expand(held, result.shape)


def fill_like(b: Builder, result: Meta, x: Tensor, value: Any, **_: Any) -> Tensor:
    """Lower aten.full_like and fill; `value` is a number or a tensor of rank 0."""
    return filled(b, result, value) if not isinstance(value, Tensor) else b.expand(b.cast(value, result.dtype), result.shape)


def new_full(b: Builder, result: Meta, x: Tensor, size: Any, value: Any, **_: Any) -> Tensor:
    """Lower aten.new_full."""
    return filled(b, result, value)


def constant_filled(value: Number) -> Callable[..., Tensor]:
    """Make aten.zeros, ones, empty and their `_like` and `new_` forms."""
    return lambda b, result, *_, **__: b.full(result.shape, result.dtype, value)


def scalar_tensor(b: Builder, result: Meta, value: Any, **_: Any) -> Tensor:
    """Lower aten.scalar_tensor, rank 0."""
    return filled(b, result, value)


def triangle(keep_lower: bool) -> Callable[..., Tensor]:
    """Make aten.tril or triu of matrices [..., n, m]; elements outside become 0."""

    def lower(b: Builder, result: Meta, x: Tensor, diagonal: Dim = 0) -> Tensor:
        offset = b.number(diagonal)

        def body(v: Scalar) -> Scalar:
            row, column = (s.from_index(loop(x.rank - back), torch.int64) for back in (2, 1))
            kept = (column <= row + offset) if keep_lower else (column >= row + offset)
            return select(kept, v, 0)

        return b.elementwise(body, [x], x.dtype, x.shape)

    return lower


def flip(b: Builder, result: Meta, x: Tensor, dims: Sequence[int]) -> Tensor:
    """Lower aten.flip: reverse the elements along each of `dims`."""
    dense, flipped = b.dense(x), {dim % x.rank for dim in dims}

    def body(at: list[ir.Value]) -> Scalar:
        place = [arith.subi(b.index(_expr(x.shape[i]) - 1), v) if i in flipped else v for i, v in enumerate(at)]
        return element(dense, place)

    return computed(b, Meta(x.shape, x.dtype), body)


def roll(b: Builder, result: Meta, x: Tensor, shifts: int | Sequence[int], dims: int | Sequence[int] = ()) -> Tensor:
    """Lower aten.roll: shift elements along `dims`, or of the flat tensor, around the end."""
    moves = [shifts] if isinstance(shifts, int) else list(shifts)
    chosen = [dims] if isinstance(dims, int) else list(dims)
    if not chosen:
        flat = b.reshape(x, (b.sizes.product(x.shape),))
        return b.reshape(roll(b, Meta(flat.shape, x.dtype), flat, moves, [0]), x.shape)
    dense, by = b.dense(x), dict(zip([dim % x.rank for dim in chosen], moves, strict=True))

    def body(at: list[ir.Value]) -> Scalar:
        return element(dense, [_rolled(b, v, by[i], x.shape[i]) if i in by else v for i, v in enumerate(at)])

    return computed(b, Meta(x.shape, x.dtype), body)


def _rolled(b: Builder, index: ir.Value, shift: int, size: Dim) -> ir.Value:
    extent = b.index(size)
    moved = arith.remsi(arith.subi(index, b.index(shift)), extent)
    negative = arith.cmpi(arith.CmpIPredicate.slt, moved, b.index(0))
    return arith.select(negative, arith.addi(moved, extent), moved)


# Padding


def pad(b: Builder, result: Meta, x: Tensor, padding: Sequence[Dim], mode: str = "constant", value: Number | None = None) -> Tensor:
    """Lower torch.nn.functional.pad: (before, after) pairs from the last dimension to the first; negative padding crops.

    `mode` is constant, reflect, replicate or circular.
    """
    pairs = [(0, 0)] * (x.rank - len(padding) // 2) + [(padding[i], padding[i + 1]) for i in range(len(padding) - 2, -1, -2)]
    if mode == "constant":
        return _pad_constant(b, result, x, pairs, 0 if value is None else value)
    return _pad_from_inside(b, result, x, pairs, mode)


def _pad_constant(b: Builder, result: Meta, x: Tensor, pairs: Sequence[tuple[Dim, Dim]], value: Number) -> Tensor:
    for dim, (low, high) in enumerate(pairs):
        cut = [-int(p) if isinstance(p, int) and p < 0 else 0 for p in (low, high)]
        if any(cut):
            x = extract(b, x, dim, cut[0], b.sizes.simplify(_expr(x.shape[dim]) - sum(cut)))
    grown = [tuple(0 if isinstance(p, int) and p < 0 else p for p in pair) for pair in pairs]
    if all(pair == (0, 0) for pair in grown):
        return x
    return pad_value(b, b.dense(x), [low for low, _ in grown], [high for _, high in grown], result.shape, value)


def pad_value(b: Builder, x: Tensor, low: Sequence[Dim], high: Sequence[Dim], shape: Shape, value: Number) -> Tensor:
    """Emit a tensor.pad of a dense tensor to `shape` by one number; `low` and `high` have a size of at least 0 for each dimension."""
    op = tensor.PadOp(
        b.type(shape, x.dtype), x.value, b.dynamic(tuple(low)), b.dynamic(tuple(high)), static_low=_static(low), static_high=_static(high)
    )
    held = s.constant(value, x.dtype)  # outside the region, as upstream patterns expect
    held.value.owner.move_before(op.operation)
    block = op.regions[0].blocks.append(*[ir.IndexType.get()] * len(shape))
    with ir.InsertionPoint(block):
        tensor.YieldOp(held.value)
    return b.dense_tensor(op.result, shape, x.dtype)


def _pad_from_inside(b: Builder, result: Meta, x: Tensor, pairs: Sequence[tuple[Dim, Dim]], mode: str) -> Tensor:
    """Pad by reflect, replicate or circular: every element is read from inside x."""
    dense, source = b.dense(x), {"reflect": _reflected, "replicate": _clamped, "circular": _wrapped}[mode]

    def body(at: list[ir.Value]) -> Scalar:
        place = [
            v if pair == (0, 0) else source(b, arith.subi(v, b.index(pair[0])), x.shape[i])
            for i, (v, pair) in enumerate(zip(at, pairs, strict=True))
        ]
        return element(dense, place)

    return computed(b, result, body)


def _clamped(b: Builder, index: ir.Value, size: Dim) -> ir.Value:
    return arith.minsi(arith.maxsi(index, b.index(0)), b.index(b.sizes.simplify(_expr(size) - 1)))


def _wrapped(b: Builder, index: ir.Value, size: Dim) -> ir.Value:
    return _rolled(b, index, 0, size)


def _reflected(b: Builder, index: ir.Value, size: Dim) -> ir.Value:
    last = b.index(b.sizes.simplify(_expr(size) - 1))
    positive = arith.maxsi(index, arith.subi(b.index(0), index))
    return arith.subi(last, arith.maxsi(arith.subi(positive, last), arith.subi(last, positive)))


def padding_of(mode: str) -> Callable[..., Tensor]:
    """Make aten.reflection_padNd ("reflect") or replication_padNd ("replicate")."""
    return lambda b, result, x, padding: pad(b, result, x, padding, mode)


def triangle_indices(lower: bool) -> Callable[..., Tensor]:
    """Make aten.tril_indices or triu_indices: row indices and column indices [2, count], in row-major order."""

    def made(b: Builder, result: Meta, rows: int, columns: int, offset: int = 0, **_: Any) -> Tensor:
        from llmos.compiler.frontend.ops.loops import Loops

        loops = Loops(b, {}, {"out": (result.shape, result.dtype, 0), "at": ((1,), torch.int64, 0)})

        def place(i: Scalar, j: Scalar) -> None:
            loops.set("out", [0, loops.get("at", 0)], i)
            loops.set("out", [1, loops.get("at", 0)], j)
            loops.add("at", [0], 1)

        def row(i: Scalar) -> None:
            first = i.like(0) if lower else (i + offset).max(0).min(columns)
            last = (i + (offset + 1)).max(0).min(columns) if lower else i.like(columns)
            loops.loop(first, last, lambda j: place(i, j))

        loops.loop(0, rows, row)
        return loops.result("out")

    return made
