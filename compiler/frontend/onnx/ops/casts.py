"""Changes of element type."""

from __future__ import annotations

import torch

from llmos.compiler.frontend.onnx.dtypes import INTEGER_RANGE, numpy_dtype, torch_dtype
from llmos.compiler.frontend.onnx.registry import Value, op
from llmos.compiler.frontend.onnx.values import Host, host
from llmos.runtime.errors import UnsupportedError

FLOAT8 = frozenset({torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz})


@op("Cast", since=6)
def cast(x: torch.Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> torch.Tensor:
    return convert(x, torch_dtype(to), bool(saturate))


@op("CastLike", since=15)
def cast_like(x: Value, like: torch.Tensor, *, saturate: int = 1, round_mode: str = "up") -> torch.Tensor | Host:
    """A constant stays one: function bodies write their numbers in the input's type this way."""
    if isinstance(x, torch.Tensor):
        return convert(x, like.dtype, bool(saturate))
    if not isinstance(x, Host) or x.is_symbolic or like.dtype in FLOAT8:
        raise UnsupportedError("CastLike of a size, of a sequence or of a constant to float8 isn't supported.")
    return host(x.array.astype(numpy_dtype(like.dtype)))


@op("BitCast", since=26)
def bit_cast(x: torch.Tensor, *, to: int) -> torch.Tensor:
    dtype = torch_dtype(to)
    if dtype.itemsize != x.dtype.itemsize:
        raise UnsupportedError("BitCast between element types of different widths isn't allowed (ONNX specification).")
    return x.view(dtype)


def convert(x: torch.Tensor, dtype: torch.dtype, saturate: bool = True) -> torch.Tensor:
    """`x` as `dtype`: floats are cut towards zero, integers wrap, float8 saturates."""
    if x.dtype == dtype:
        return x
    if dtype in FLOAT8:
        return _to_float8(x, dtype, saturate)
    if x.is_floating_point() and dtype in INTEGER_RANGE and dtype.itemsize < 4:
        # Through int32, as numpy does: a float outside the range wraps instead of being undefined.
        return x.to(torch.int32).to(dtype)
    return x.to(dtype)


def _to_float8(x: torch.Tensor, dtype: torch.dtype, saturate: bool) -> torch.Tensor:
    if not saturate:
        raise UnsupportedError("Cast to float8 with saturate=0 isn't supported; export with saturate=1.")
    largest = torch.finfo(dtype).max
    wide = x.to(torch.float32)
    return torch.where(torch.isnan(wide), wide, wide.clamp(-largest, largest)).to(dtype)
