"""Memory reinterpreted as elements of another type (`view(dtype)`), in little-endian order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.ops.shapes import extract, loop
from llmos.compiler.frontend.scalars import Scalar

_BITS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


def view_dtype(b: Builder, result: Meta, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Lower aten.view.dtype: reinterpret the bits as another dtype. The ratio of the element widths scales the last dimension."""
    if dtype.itemsize < x.dtype.itemsize:
        return b.reshape(_split(b, x, dtype), result.shape)
    if dtype.itemsize > x.dtype.itemsize:
        return _joined(b, result, x, dtype)
    return b.elementwise(lambda v: s.bitcast(v, dtype), [x], dtype, x.shape)


def _split(b: Builder, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Split each element into narrower parts, [..., count]."""
    count = x.dtype.itemsize // dtype.itemsize
    bits, part = _BITS[x.dtype.itemsize], _BITS[dtype.itemsize]

    def body(v: Scalar) -> Scalar:
        shift = s.from_index(loop(x.rank), bits) * (8 * dtype.itemsize)
        return s.bitcast((s.bitcast(v, bits) >> shift).to(part), dtype)

    return b.elementwise(body, [b.unsqueeze(x, x.rank)], dtype, (*x.shape, count))


def _joined(b: Builder, result: Meta, x: Tensor, dtype: torch.dtype) -> Tensor:
    count = dtype.itemsize // x.dtype.itemsize
    parts = b.reshape(x, (*result.shape, count))
    each = [b.squeeze(extract(b, parts, x.rank, i, 1), x.rank) for i in range(count)]
    return b.elementwise(lambda *values: _whole(values, dtype), each, dtype, result.shape)


def _whole(parts: Sequence[Scalar], dtype: torch.dtype) -> Scalar:
    width, bits = dtype.itemsize // len(parts), _BITS[dtype.itemsize]
    whole = s.constant(0, bits)
    for i, part in enumerate(parts):
        whole = whole | (s.bitcast(part, _BITS[width]).to(bits) << 8 * width * i)
    return s.bitcast(whole, dtype)
