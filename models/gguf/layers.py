"""Layers whose weights stay the integers of GGUF blocks in the exported program."""

from __future__ import annotations

import torch
from torch import nn

from llmos.compiler.frontend.quantized import dequantize
from llmos.models.gguf.blocks import BlockIntegers


class BlockWeight(nn.Module):
    """weight[r, c] = values[r, c] * scales[r, c // group] + minimums[r, c // group], as ggml has it.

    values: int8 or uint8 [rows, columns], numbers of `kind` ("uint4"). scales, minimums: float32 [rows, columns / group]; no minimums: 0.
    """

    values: torch.Tensor
    scales: torch.Tensor
    minimums: torch.Tensor | None

    def __init__(self, blocks: BlockIntegers) -> None:
        super().__init__()
        self.kind, self.group_size = blocks.dtype, blocks.group_size
        self.register_buffer("values", torch.from_numpy(blocks.values))
        self.register_buffer("scales", torch.from_numpy(blocks.scales))
        self.register_buffer("minimums", None if blocks.minimums is None else torch.from_numpy(blocks.minimums))

    def _grouped(self, x: torch.Tensor) -> torch.Tensor:
        """[..., columns] -> [..., groups, columns of a group]."""
        return x.reshape(*x.shape[:-1], self.scales.shape[1], self.group_size)

    def extra_repr(self) -> str:
        rows, columns = self.values.shape
        return f"rows={rows}, columns={columns}, {self.kind}, group_size={self.group_size}"


class BlockLinear(BlockWeight):
    """y = x W^T + b, the product of integers and that of minimums apart: those of a group multiply the sum of its inputs.

    So the integers reach a kernel that has no zero point other than an integer, and weights are what they are in the file.
    """

    def __init__(self, blocks: BlockIntegers, bias: nn.Parameter | None) -> None:
        super().__init__(blocks)
        self.bias = bias

    @property
    def weight(self) -> torch.Tensor:
        """The weight [rows, columns] in float32, for models that look at it."""
        weight = self._scaled()
        if self.minimums is not None:
            weight = weight + self.minimums.repeat_interleave(self.group_size, 1)
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.linear(x, self._scaled())
        if self.minimums is not None:
            y = y + nn.functional.linear(self._grouped(x).sum(-1), self.minimums)
        return y if self.bias is None else y + self.bias

    def _scaled(self) -> torch.Tensor:
        found: torch.Tensor = dequantize(self.values, self.scales, None, self.kind, 1, self.group_size, torch.float32)
        return found


class BlockEmbedding(BlockWeight):
    """Rows of the table by id, dequantized as they are looked up."""

    @property
    def weight(self) -> torch.Tensor:
        """The table [rows, columns] in float32, for models that look at it."""
        table: torch.Tensor = self(torch.arange(len(self.values)))
        return table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = self._grouped(self.values[ids].to(torch.float32)) * self.scales[ids][..., None]
        if self.minimums is not None:
            found = found + self.minimums[ids][..., None]
        return found.flatten(-2)
