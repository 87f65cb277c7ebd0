"""Ops that carry a value along one dimension: cumulative sums and products, as one loop over that dimension."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmos.compiler.frontend.builder import Builder, Meta, Tensor, affine_dim, compute_dtype
from llmos.compiler.frontend.ops.shapes import loop
from llmos.compiler.frontend.scalars import Number, Scalar, constant, select
from llmos.compiler.ir import arith


def cumulative(init: Number, combine: Callable[[Scalar, Scalar], Scalar]) -> Callable[..., Tensor]:
    """out[i] = x[0] op ... op x[i]: a reduction over a second loop j along the dimension that takes x[j] where j <= i."""

    def lower(b: Builder, result: Meta, x: Tensor, dim: int, **_: Any) -> Tensor:
        if x.rank == 0:
            return b.cast(x, result.dtype)
        dim %= x.rank
        x, dtype = b.dense(x), compute_dtype(result.dtype)
        source = [affine_dim(x.rank if i == dim else i) for i in range(x.rank)]

        def body(v: Scalar, acc: Scalar) -> list[Scalar]:
            taken = Scalar(arith.cmpi(arith.CmpIPredicate.sle, loop(x.rank), loop(dim)), _bool())
            return [combine(acc, select(taken, v.to(dtype), constant(init, dtype)))]

        (value,) = b.generic(
            [(x, source)],
            [(b.fill(x.shape, dtype, init), dtype, [affine_dim(i) for i in range(x.rank)])],
            ["parallel"] * x.rank + ["reduction"],
            body,
        )
        return b.cast(b.dense_tensor(value, x.shape, dtype), result.dtype)

    return lower


def _bool() -> Any:
    import torch

    return torch.bool


cumsum = cumulative(0, lambda acc, v: acc + v)
cumprod = cumulative(1, lambda acc, v: acc * v)
