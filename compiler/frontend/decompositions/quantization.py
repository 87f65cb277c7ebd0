"""Quantization parameters computed from data (torch's `quantized_decomposed.choose_qparams*`), and fake quantization.

Formulas: torch/ao/quantization/fx/_decomposed.py, without its checks of the data.
"""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # defines the ops
from torch import Tensor

from llmos.runtime.errors import UnsupportedError

ops = torch.ops.quantized_decomposed


def _choose(x: Tensor, low: int, high: int, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return scale (float64 [1]) and zero point (int64 [1]) of the range of x extended to include 0."""
    least, most = torch.clamp(torch.amin(x), max=0), torch.clamp(torch.amax(x), min=0)
    scale = torch.maximum((most - least) / float(high - low), torch.full([1], eps))
    zero = torch.clamp(low - torch.round(least / scale).to(torch.int32), low, high)
    return scale.to(torch.float64), zero.to(torch.int64)


def _choose_symmetric(x: Tensor, low: int, high: int, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `_choose`, with the zero point in the middle of the range."""
    least, most = torch.clamp(torch.amin(x), max=0), torch.clamp(torch.amax(x), min=0)
    scale = torch.maximum(torch.maximum(-least, most) / (float(high - low) / 2), torch.full([1], eps))
    zero = torch.full([1], 128 if dtype == torch.uint8 else 0, dtype=torch.int64)
    return scale.to(torch.float64), zero


def _choose_per_token(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, [..., 1], in x's dtype or float32 for float16; torch's metadata wrongly says float64 and int64."""
    if dtype != torch.int8:
        raise UnsupportedError(f"choose_qparams_per_token: {dtype} isn't a type of torch's; int8 is")
    scales = x.abs().amax(dim=-1, keepdim=True)
    scales = scales.float() if scales.dtype == torch.float16 else scales
    scales = scales.clamp(min=1e-5).div(127)
    return scales, torch.zeros_like(scales)


def _choose_per_token_asymmetric(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of int8, [..., 1], from the end of the range with the smaller zero point error."""
    low, high = -128, 127
    least = torch.clamp(torch.amin(x, dim=-1, keepdim=True), max=0)
    most = torch.clamp(torch.amax(x, dim=-1, keepdim=True), min=0)
    scale = ((most - least) / float(high - low)).clamp(min=torch.finfo(torch.float32).eps)
    below, above = least / scale, most / scale
    zero = torch.where((low + below) + (high + above) > 0, low - below, high - above)
    return scale.to(torch.float64), torch.clamp(zero, low, high).round().to(torch.int64)


def _fake_quantize(x: Tensor, scales: Tensor, zeros: Tensor, axis: int, low: int, high: int) -> Tensor:
    """Quantize and dequantize, in float32."""
    dims = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    scale, zero = scales.to(torch.float32).reshape(dims), zeros.to(torch.int32).reshape(dims)
    return (torch.clamp(torch.round(x * (1.0 / scale)) + zero, low, high) - zero) * scale


TABLE = {
    ops.choose_qparams.tensor: _choose,
    ops.choose_qparams_symmetric.tensor: _choose_symmetric,
    ops.choose_qparams_per_token.default: _choose_per_token,
    ops.choose_qparams_per_token_asymmetric.default: _choose_per_token_asymmetric,
    ops._choose_qparams_per_token_asymmetric_impl.default: _choose_per_token_asymmetric,
    ops.fake_quant_per_channel.default: _fake_quantize,
}
# torch's metadata of these differs from what its kernels return.
UNLIKE_METADATA = frozenset({ops.choose_qparams_per_token.default})
