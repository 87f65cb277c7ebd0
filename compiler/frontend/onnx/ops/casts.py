"""Casts of element types."""

from __future__ import annotations

import torch

from llmos.compiler.frontend.onnx.dtypes import INTEGER_RANGE, numpy_dtype, torch_dtype
from llmos.compiler.frontend.onnx.low_precision import FORMATS, LowPrecisionTensor, decode, encode
from llmos.compiler.frontend.onnx.registry import AnyTensor, Value, op
from llmos.compiler.frontend.onnx.values import ConstantValue, constant_value
from llmos.runtime.errors import UnsupportedError


@op("Cast", since=6)
def cast(x: AnyTensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> torch.Tensor | LowPrecisionTensor:
    """Lower Cast: floats truncate toward zero, integers wrap; `saturate` and `round_mode` are for low-precision floats."""
    if isinstance(x, LowPrecisionTensor):
        return x if x.elem_type == to else cast(decode(x), to=to, saturate=saturate, round_mode=round_mode)
    return encode(x, to, bool(saturate), round_mode) if to in FORMATS else convert(x, torch_dtype(to))


@op("CastLike", since=15)
def cast_like(x: Value, like: AnyTensor, *, saturate: int = 1, round_mode: str = "up") -> torch.Tensor | LowPrecisionTensor | ConstantValue:
    """Lower CastLike: cast to the type of `like`; a constant stays one, since function bodies cast their constants this way.

    Raises UnsupportedError for a size, a sequence, or a constant to a low-precision type.
    """
    if isinstance(x, ConstantValue) and not x.is_symbolic and isinstance(like, torch.Tensor):
        return constant_value(x.array.astype(numpy_dtype(like.dtype)))
    if not isinstance(x, torch.Tensor | LowPrecisionTensor):
        raise UnsupportedError("CastLike of a size, of a sequence or of a constant to a low-precision type isn't supported.")
    value = decode(x) if isinstance(x, LowPrecisionTensor) else x
    if isinstance(like, LowPrecisionTensor):
        return encode(value, like.elem_type, bool(saturate), round_mode)
    return convert(value, like.dtype)


@op("BitCast", since=26)
def bit_cast(x: torch.Tensor, *, to: int) -> torch.Tensor:
    """Lower BitCast between types of one width. Raises UnsupportedError for different widths, as ONNX specifies."""
    dtype = torch_dtype(to)
    if dtype.itemsize != x.dtype.itemsize:
        raise UnsupportedError("BitCast between element types of different widths isn't allowed (ONNX specification).")
    return x.view(dtype)


def convert(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast `x` to `dtype`: floats truncate toward zero, integers wrap."""
    if x.dtype == dtype:
        return x
    if x.is_floating_point() and dtype in INTEGER_RANGE and dtype.itemsize < 4:
        # Through int32, as in numpy, so that a float outside the range wraps instead of being undefined.
        return x.to(torch.int32).to(dtype)
    return x.to(dtype)
