"""What each format's unpacker gives: a linear layer's weight as numbers of a small type, scales and zero points."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmos.compiler.frontend.quantized import dequantize
from llmos.runtime.errors import UserError

_SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight [rows, columns]; rows are the layer's outputs.

        weight[r, order[c]] = (values[r, c] - zero_points[r, c // group_size]) * scales[r, c // group_size]

    in float32, rounded to the scales' type, which is what the formats' own libraries give.

    values: int8 or uint8 [rows, columns], one element a byte; numbers of `dtype` ("int4", "uint8"), or codes of "float8_e4m3fn".
    scales: floats [rows, groups]; [rows] where a row has one; [] where the weight has one.
    zero_points: integers of the scales' shape, None for 0.
    group_size: columns that share a scale; 0 where `scales` has no groups.
    order: int64 [columns], the layer's input that each column of `values` multiplies; None where they are in order.
    """

    values: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    dtype: str
    group_size: int = 0
    order: torch.Tensor | None = None

    def in_stored_order(self) -> torch.Tensor:
        """The weight [rows, columns] in the scales' type, with the columns as they lie in `values`."""
        axis, to = (1 if self.group_size else 0), self.scales.dtype
        found: torch.Tensor = dequantize(self.values, self.scales, self.zero_points, self.dtype, axis, self.group_size, to)
        return found

    def dequantized(self) -> torch.Tensor:
        """The weight [rows, columns] in the scales' type, with the columns in the layer's order."""
        found = self.in_stored_order()
        return found if self.order is None else found[:, torch.argsort(self.order)]


def require_scales(name: str, scales: torch.Tensor) -> None:
    """Raises UserError for scales that no quantizer writes."""
    if scales.dtype not in _SCALE_DTYPES or not scales.numel():
        kind = str(scales.dtype).removeprefix("torch.")
        raise UserError(f"{name} is {kind} {list(scales.shape)}, not scales in float16, bfloat16 or float32; is the file damaged?")
    if not bool(scales.isfinite().all()):
        raise UserError(f"{name} holds NaN or infinity; quantize the model again")
    if not bool(scales.all()):
        raise UserError(f"{name} holds 0, by which no weight is scaled; quantize the model again")


def require_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...], config: str) -> None:
    """Raises UserError where a tensor isn't of the shape that `config`, what quantization_config says, gives it."""
    if tuple(tensor.shape) != shape:
        raise UserError(f"{name} is {list(tensor.shape)}, and by quantization_config ({config}) {list(shape)}; correct config.json")


def require_groups(name: str, columns: int, group_size: int) -> int:
    """The number of groups of a row. Raises UserError for a size that doesn't divide."""
    if columns % group_size:
        raise UserError(f"{name} has {columns} columns, which groups of {group_size} don't divide")
    return columns // group_size
