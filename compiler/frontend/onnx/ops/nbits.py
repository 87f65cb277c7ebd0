"""MatMulNBits of com.microsoft: products by weights of 4 or 8 bits that are packed in blocks along the sums."""

from __future__ import annotations

import torch

from llmos.compiler.frontend.onnx.registry import op
from llmos.runtime.errors import UnsupportedError


@op("MatMulNBits", domain="com.microsoft")
def matmul_nbits(
    a: torch.Tensor,
    b: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None = None,
    g_idx: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    K: int,
    N: int,
    block_size: int,
    bits: int = 4,
    accuracy_level: int = 0,
    weight_prepacked: int = 0,
) -> torch.Tensor:
    """Lower MatMulNBits: a [.., K] by the transposed weight (b - zero point) * scale, of N rows whose blocks have a scale each.

    b: uint8 [N, blocks, block_size * bits / 8], of two numbers in a byte the first in the low half. scales: float, N * blocks. zero_points:
    uint8, packed likewise for each row, N * ceil(blocks * bits / 8); or of the scales' type, N * blocks; 2^(bits - 1) where there are none.
    The accuracy level, by which onnxruntime may round a, is ignored. Raises UnsupportedError for g_idx and other bits and layouts.
    """
    if bits not in (4, 8):
        raise UnsupportedError(f"MatMulNBits of {bits} bits isn't supported, only of 4 and 8.")
    if g_idx is not None and g_idx.numel():
        raise UnsupportedError("MatMulNBits with g_idx isn't supported.")
    if weight_prepacked or b.dtype != torch.uint8:
        raise UnsupportedError("MatMulNBits is supported of weights in uint8 that aren't packed for a processor.")
    blocks = -(-K // block_size)
    numbers = _unpacked(b.reshape(N, -1), bits)[:, :K]
    scale = scales.reshape(N, blocks)
    weight = _weight(numbers, scale, zero_points, block_size, bits, a.dtype)
    return torch.nn.functional.linear(a, weight, bias)


def _weight(
    numbers: torch.Tensor, scale: torch.Tensor, zero_points: torch.Tensor | None, block_size: int, bits: int, dtype: torch.dtype
) -> torch.Tensor:
    rows, blocks = scale.shape
    if zero_points is not None and zero_points.is_floating_point():
        shift = zero_points.reshape(rows, blocks).to(torch.float32)
        centered = numbers.to(torch.float32) - shift.repeat_interleave(block_size, 1)[:, : numbers.shape[1]]
        return (centered * scale.to(torch.float32).repeat_interleave(block_size, 1)[:, : numbers.shape[1]]).to(dtype)
    middle = torch.full((rows, blocks), 1 << (bits - 1), dtype=torch.uint8)
    zeros = middle if zero_points is None else _unpacked(zero_points.reshape(rows, -1), bits)[:, :blocks]
    made: torch.Tensor = torch.ops.llmos.dequantize(numbers, scale, zeros, f"uint{bits}", 1, block_size, dtype)
    return made


def _unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The numbers of each row of bytes, uint8."""
    if bits == 8:
        return packed
    return torch.stack((packed & 0xF, packed >> 4), -1).flatten(1)
