"""A linear layer whose weight stays quantized in the exported program."""

from __future__ import annotations

import torch
from torch import nn

from llmos.models.quantized_checkpoints.weight import QuantizedWeight


class QuantizedLinear(nn.Module):
    """y = x W^T + b with W a QuantizedWeight, dequantized by one `llmos::dequantize` and rounded to `dtype`, the model's.

    Where the weight's columns are in another order than the layer's inputs, the inputs are put into it: so groups stay contiguous.
    """

    values: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    order: torch.Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.values.shape
        self.kind, self.group_size, self.dtype = weight.dtype, weight.group_size, dtype
        self.bias = bias
        for name in ("values", "scales", "zero_points", "order"):
            self.register_buffer(name, getattr(weight, name))

    @property
    def weight(self) -> torch.Tensor:
        """The weight in the layer's own order, for models that look at it."""
        return self._quantized().dequantized().to(self.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self._quantized()
        if weight.order is not None:
            x = torch.index_select(x, -1, weight.order)
        return nn.functional.linear(x, weight.in_stored_order().to(self.dtype), self.bias)

    def _quantized(self) -> QuantizedWeight:
        return QuantizedWeight(self.values, self.scales, self.zero_points, self.kind, self.group_size, self.order)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {self.kind}"
