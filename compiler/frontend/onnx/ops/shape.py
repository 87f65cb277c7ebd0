"""Shapes and layout: reshape, transpose, slice, concat, pad, expand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from llmos.compiler.frontend.onnx.dtypes import dtype_of, to_torch, torch_dtype
from llmos.compiler.frontend.onnx.registry import Ints, Known, Numbers, NumOutputs, Sizes, op
from llmos.compiler.frontend.onnx.values import ConstantValue, constant_value, scalar_of, sizes
from llmos.runtime.errors import UnsupportedError, UserError

# Host values above this many elements become tensors.
HOST_ELEMENTS = 64
MAX_CONSTANT_BYTES = 4 << 30
# Larger than any dim: a slice end from here on means the end of the axis.
END = 10**9


@op("Shape")
def shape(x: torch.Tensor, *, start: int = 0, end: int | None = None) -> ConstantValue:
    """Lower Shape, from `start` to `end`: sizes, which may be symbolic."""
    return sizes(tuple(x.shape)[start:end])


@op("Size")
def size(x: torch.Tensor) -> ConstantValue:
    """Lower Size: the number of elements, which may be symbolic."""
    return constant_value(math.prod(x.shape), np.int64)


@op("Reshape", since=5)
def reshape(x: torch.Tensor, shape: Ints, *, allowzero: int = 0) -> torch.Tensor:
    """Lower Reshape; 0 copies the input's dim at that position unless `allowzero`, -1 infers the dim."""
    dims = list(shape) if allowzero else [x.shape[i] if _is_zero(dim) else dim for i, dim in enumerate(shape)]
    return x if same_dims(x.shape, dims) else x.reshape(_known(x, dims))


def same_dims(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are equal for all input sizes; doesn't add a guard."""
    return len(a) == len(b) and all(x is y or statically_known_true(x == y) for x, y in zip(a, b, strict=True))


def _known(x: torch.Tensor, dims: list[Any]) -> list[Any]:
    """Replace -1 by its value if all sizes are static, so that empty tensors can be reshaped."""
    known = [dim for dim in dims if not (isinstance(dim, int) and dim == -1)]
    if len(known) == len(dims) or not all(isinstance(d, int) for d in (*known, *x.shape)):
        return dims
    rest = math.prod(known)
    return [math.prod(x.shape) // rest if isinstance(d, int) and d == -1 and rest else d for d in dims]


def _is_zero(dim: Any) -> bool:
    return isinstance(dim, int) and dim == 0


@op("Flatten")
def flatten(x: torch.Tensor, *, axis: int = 1) -> torch.Tensor:
    """Lower Flatten to rank 2: the dims before `axis`, and those from `axis` on."""
    if x.ndim == 0:
        return x.reshape(1, 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows = x.unsqueeze(0) if axis == 0 else x.flatten(0, axis - 1)
    return rows.unsqueeze(1) if axis == x.ndim else rows.flatten(1)


@op("Transpose")
def transpose(x: torch.Tensor, *, perm: tuple[int, ...] | None = None) -> torch.Tensor:
    """Lower Transpose; without `perm` the dims are reversed."""
    return x.permute(perm if perm is not None else tuple(reversed(range(x.ndim))))


@op("Squeeze", since=13)
def squeeze(x: torch.Tensor, axes: Ints | None = None) -> torch.Tensor:
    """Lower Squeeze from opset 13, with axes as an input; a symbolic size becomes a condition of each call, that it is 1."""
    if axes is None:
        axes = tuple(i for i, dim in enumerate(x.shape) if isinstance(dim, int) and dim == 1)
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        if isinstance(x.shape[axis], torch.SymInt):
            # torch.squeeze keeps a dimension of another size, where ONNX has none: the size becomes a condition of each call.
            torch._check(x.shape[axis] == 1, lambda: "Squeeze of a dimension whose size is not 1")  # type: ignore[no-untyped-call]
            x = x.select(axis, 0)
        else:
            x = x.squeeze(axis)
    return x


@op("Squeeze")
def squeeze_by_attribute(x: torch.Tensor, *, axes: tuple[int, ...] | None = None) -> torch.Tensor:
    """Lower Squeeze before opset 13, with axes as an attribute."""
    return squeeze(x, axes)


@op("Unsqueeze", since=13)
def unsqueeze(x: torch.Tensor, axes: Ints) -> torch.Tensor:
    """Lower Unsqueeze from opset 13, with axes as an input."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@op("Unsqueeze")
def unsqueeze_by_attribute(x: torch.Tensor, *, axes: tuple[int, ...]) -> torch.Tensor:
    """Lower Unsqueeze before opset 13, with axes as an attribute."""
    return unsqueeze(x, axes)


@op("Concat", since=4)
def concat(*items: torch.Tensor, axis: int) -> torch.Tensor:
    """Lower Concat along `axis`, which opset 4 requires."""
    return torch.cat(items, axis)


@op("Split")
def split(x: torch.Tensor, *, num_outputs_: NumOutputs, axis: int = 0, split: tuple[int, ...] | None = None) -> tuple[torch.Tensor, ...]:
    """Lower Split before opset 13, with lengths as an attribute; without them into equal parts."""
    return _split(x, axis, split, num_outputs_)


@op("Split", since=13)
def split_by_input(
    x: torch.Tensor, split: Ints | None = None, *, num_outputs_: NumOutputs, axis: int = 0, num_outputs: int | None = None
) -> tuple[torch.Tensor, ...]:
    """Lower Split from opset 13, with lengths as an input; without them into equal parts, the last one smaller."""
    return _split(x, axis, split, num_outputs_)


def _split(x: torch.Tensor, axis: int, lengths: tuple[Any, ...] | None, count: int) -> tuple[torch.Tensor, ...]:
    if lengths is None:
        each = -(-x.shape[axis] // count)
        lengths = (each,) * (count - 1) + (x.shape[axis] - each * (count - 1),)
    return torch.split(x, list(lengths), axis)


@op("Slice", since=10)
def slice_by_inputs(x: torch.Tensor, starts: Sizes, ends: Sizes, axes: Ints | None = None, steps: Ints | None = None) -> torch.Tensor:
    """Lower Slice from opset 10, with starts, ends, axes and steps as inputs.

    Raises UnsupportedError for a symbolic step, and for symbolic bounds of a negative one.
    """
    for axis, start, end, step in zip(
        axes if axes is not None else range(len(starts)), starts, ends, steps if steps is not None else [1] * len(starts), strict=True
    ):
        x = _slice_axis(x, axis, start, end, step)
    return x


@op("Slice")
def slice_by_attributes(
    x: torch.Tensor, *, starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...] | None = None
) -> torch.Tensor:
    """Lower Slice before opset 10, with starts, ends and axes as attributes."""
    return slice_by_inputs(x, starts, ends, axes)


def _slice_axis(x: torch.Tensor, axis: int, start: Any, end: Any, step: Any) -> torch.Tensor:
    if not isinstance(step, int):
        raise UnsupportedError("Slice with a step that depends on the sizes of the inputs isn't supported.")
    if step > 0:
        # Exporters write "to the end" as a huge number; comparing it with a symbolic size would bound the size.
        to_end = isinstance(end, int) and end >= END
        if _is_zero(start) and to_end and step == 1:
            return x
        index = [slice(None)] * x.ndim
        index[axis] = slice(None if _is_zero(start) else start, None if to_end else end, step)
        return x[tuple(index)]
    if not isinstance(start, int) or not isinstance(end, int):
        raise UnsupportedError("Slice backwards with bounds that depend on the sizes of the inputs isn't supported.")
    return _slice_backwards(x, axis, start, end, -step)


def _slice_backwards(x: torch.Tensor, axis: int, start: int, end: int, step: int) -> torch.Tensor:
    """x[start:end:-step] as a slice of the flipped axis, in which element i is at n - 1 - i."""
    n = x.shape[axis]
    first, last = ((_within(n - 1 - at, n) if at >= 0 else min(-1 - at, END)) for at in (start, end))
    index = [slice(None)] * x.ndim
    index[axis] = slice(first, torch.sym_max(last, first), step)  # type: ignore[no-untyped-call]
    return torch.flip(x, (axis,))[tuple(index)]


def _within(at: Any, n: Any) -> Any:
    """Clamp a position to [0, n]."""
    return torch.sym_max(torch.sym_min(at, n), 0)  # type: ignore[no-untyped-call]


@op("Expand")
def expand(x: torch.Tensor, shape: Sizes) -> torch.Tensor:
    """Lower Expand: broadcast in both directions; a 1 in `shape` keeps the input's dim."""
    rank = max(x.ndim, len(shape))
    own = (1,) * (rank - x.ndim) + tuple(x.shape)
    wanted = (1,) * (rank - len(shape)) + tuple(shape)
    dims = [mine if isinstance(want, int) and want == 1 else want for mine, want in zip(own, wanted, strict=True)]
    return x if same_dims(x.shape, dims) else x.expand(dims)


@op("Tile", since=6)
def tile(x: torch.Tensor, repeats: Sizes) -> torch.Tensor:
    """Lower Tile from opset 6, with one repeat for each dim."""
    return x.repeat(repeats)


def _require_room(count: int, dtype: np.dtype) -> None:
    """Raise UnsupportedError for a tensor too large to allocate, because the trial run allocates it."""
    if count * dtype.itemsize > MAX_CONSTANT_BYTES:
        raise UnsupportedError(
            f"a constant of {count:,} elements is larger than {MAX_CONSTANT_BYTES >> 30} GiB: is a size in the model wrong?"
        )


@op("ConstantOfShape")
def constant_of_shape(shape: Sizes, *, value: ConstantValue | None = None) -> Any:
    """Lower ConstantOfShape: a constant value if it is small and static, else a tensor; 0.0 without a value.

    Raises UnsupportedError for a static one above MAX_CONSTANT_BYTES.
    """
    fill = scalar_of(value) if value is not None else 0.0
    dtype = value.dtype if value is not None else np.dtype(np.float32)
    if all(isinstance(dim, int) for dim in shape) and math.prod(shape) <= HOST_ELEMENTS:
        return ConstantValue(np.full(shape, fill, dtype), dtype)
    if all(isinstance(dim, int) for dim in shape):
        _require_room(math.prod(shape), dtype)
    return torch.full(shape, fill, dtype=dtype_of(dtype))


@op("Range")
def arange(start: Known, limit: Known, delta: Known) -> Any:
    """Lower Range: a constant value if it is small and static, else a tensor; bounds may be sizes.

    Raises UnsupportedError for float bounds from data or a constant above MAX_CONSTANT_BYTES, UserError for a step of 0.
    """
    given = (start, limit, delta)
    if any(isinstance(item, torch.Tensor) and item.is_floating_point() for item in given):
        raise UnsupportedError("Range with float bounds that are computed from data isn't supported: its length would depend on the data.")
    first, last, step = (item.item() if isinstance(item, torch.Tensor) else scalar_of(item) for item in given)  # type: ignore[arg-type]
    dtype = next((item.dtype for item in given if isinstance(item, ConstantValue)), np.dtype(np.int64))
    if all(isinstance(item, (int, float)) for item in (first, last, step)):
        if step == 0:
            raise UserError("Range has a step of 0.")
        count = max(math.ceil((last - first) / step), 0)
        _require_room(count, dtype)
        array = (first + np.arange(count) * step).astype(dtype)
        return ConstantValue(array, dtype) if count <= HOST_ELEMENTS else to_torch(array)
    return torch.arange(first, last, step, dtype=dtype_of(dtype))


@op("EyeLike")
def eye_like(x: torch.Tensor, *, dtype: int | None = None, k: int = 0) -> torch.Tensor:
    """Lower EyeLike of a matrix: ones on diagonal `k`, of `dtype` or that of x."""
    rows, columns = torch.arange(x.shape[0]).unsqueeze(1), torch.arange(x.shape[1]).unsqueeze(0)
    return (columns - rows == k).to(torch_dtype(dtype) if dtype is not None else x.dtype)


@op("Trilu", since=14)
def trilu(x: torch.Tensor, k: Ints | None = None, *, upper: int = 1) -> torch.Tensor:
    """Lower Trilu of matrices [..., n, m]: the upper or lower triangle from diagonal `k`."""
    diagonal = k[0] if k else 0
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@op("Pad", since=2)
def pad_by_attributes(x: torch.Tensor, *, pads: tuple[int, ...], mode: str = "constant", value: float = 0.0) -> torch.Tensor:
    """Lower Pad of opsets 2 to 10, with pads and value as attributes."""
    return _pad(x, pads, mode, value)


@op("Pad", since=11)
def pad(x: torch.Tensor, pads: Ints, value: Numbers | None = None, axes: Ints | None = None, *, mode: str = "constant") -> torch.Tensor:
    """Lower Pad from opset 11, with pads, value and axes as inputs; modes constant, reflect, edge and wrap.

    Raises UnsupportedError for another mode.
    """
    chosen = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
    full: list[Any] = [0] * (2 * x.ndim)
    for place, axis in enumerate(chosen):
        full[axis], full[axis + x.ndim] = pads[place], pads[place + len(chosen)]
    return _pad(x, tuple(full), mode, value[0] if value else 0)


def _pad(x: torch.Tensor, pads: tuple[Any, ...], mode: str, value: Any) -> torch.Tensor:
    pairs = [(pads[axis], pads[axis + x.ndim]) for axis in range(x.ndim)]
    if mode == "constant":
        return _pad_constant(x, pairs, value)
    for axis, (before, after) in enumerate(pairs):
        if not (_is_zero(before) and _is_zero(after)):
            x = _pad_by_index(x, axis, before, after, mode)
    return x


def _pad_constant(x: torch.Tensor, pairs: list[tuple[Any, Any]], value: Any) -> torch.Tensor:
    """Pad integers by an op that takes an integer fill: F.pad takes a float, which has only 53 bits."""
    if all(_is_zero(item) for pair in pairs for item in pair):
        return x
    flat = [item for pair in reversed(pairs) for item in pair]
    if x.dtype == torch.bool:
        return torch.constant_pad_nd(x.to(torch.uint8), flat, int(value)).to(torch.bool)
    return torch.constant_pad_nd(x, flat, value if x.is_floating_point() else int(value))


def _pad_by_index(x: torch.Tensor, axis: int, before: Any, after: Any, mode: str) -> torch.Tensor:
    """Pad by reflect, edge or wrap, as a gather along one axis."""
    n = x.shape[axis]
    places = torch.arange(-before, n + after)
    if mode == "edge":
        index = places.clamp(min=0).clamp(max=n - 1)
    elif mode == "wrap":
        index = torch.remainder(places, n)
    elif mode == "reflect":
        period = 2 * (n - 1)
        folded = torch.remainder(places, period)
        index = torch.minimum(folded, period - folded)
    else:
        raise UnsupportedError(f"Pad with mode '{mode}' isn't supported.")
    return x.index_select(axis, index)


@op("DepthToSpace")
def depth_to_space(x: torch.Tensor, *, blocksize: int, mode: str = "DCR") -> torch.Tensor:
    """Lower DepthToSpace of [n, c, h, w], in the order "DCR" or "CRD"."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // (b * b), h * b, w * b)
    return x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


@op("SpaceToDepth")
def space_to_depth(x: torch.Tensor, *, blocksize: int, mode: str = "DCR") -> torch.Tensor:
    """Lower SpaceToDepth of [n, c, h, w], the inverse of `depth_to_space`."""
    n, c, h, w = x.shape
    b = blocksize
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 1, 3, 5, 2, 4) if mode == "CRD" else (0, 3, 5, 1, 2, 4)
    return blocks.permute(order).reshape(n, c * b * b, h // b, w // b)


@op("CenterCropPad", since=18)
def center_crop_pad(x: torch.Tensor, shape: Ints, *, axes: tuple[int, ...] | None = None) -> torch.Tensor:
    """Lower CenterCropPad: crop or pad with zeros around the center to `shape`; dims may be symbolic."""
    pairs: list[tuple[Any, Any]] = [(0, 0)] * x.ndim
    for axis, wanted in zip(axes if axes is not None else range(x.ndim), shape, strict=True):
        axis %= x.ndim
        size = x.shape[axis]
        if not isinstance(size, int):  # one of the two is no change, which of them depends on the size
            kept, cut = torch.sym_min(size, wanted), torch.sym_max(size - wanted, 0)
            x = x.index_select(axis, torch.arange(kept) + cut // 2)
        missing = wanted - x.shape[axis]
        before = missing // 2 if not isinstance(size, int) or missing >= 0 else -((-missing) // 2)
        pairs[axis] = (before, missing - before)
    return _pad_constant(x, pairs, 0)
