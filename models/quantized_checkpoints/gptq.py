"""GPTQ: integers packed along a layer's inputs, zero points along its outputs (AutoGPTQ, GPTQModel).

A linear layer of k inputs and n outputs in `bits` bits, `p = 32 / bits` numbers a word, groups of g inputs:

    qweight  int32 [k / p, n]      unsigned numbers of p inputs a word
    qzeros   int32 [k / g, n / p]  zero points; format "gptq" (version 1) has them less 1, "gptq_v2" as they are
    scales   float [k / g, n]
    g_idx    int32 [k]             the group of each input; in any order if desc_act
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from llmos.models.quantized_checkpoints.packing import column_order, require_words, unpacked
from llmos.models.quantized_checkpoints.scheme import flag, group_size, integer, required
from llmos.models.quantized_checkpoints.weight import QuantizedWeight, require_groups, require_scales, require_shape
from llmos.runtime.errors import UnsupportedError, UserError

BITS = (2, 4, 8)


@dataclass(frozen=True)
class Gptq:
    bits: int
    group_size: int
    is_symmetric: bool
    is_ordered: bool
    is_version_2: bool

    markers: ClassVar[tuple[str, ...]] = ("qweight",)
    tensors: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")
    notes: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Gptq:
        """Reads quantization_config. Raises UserError, UnsupportedError."""
        bits = integer(config, "bits")
        if bits not in BITS:
            raise UnsupportedError(f"GPTQ of {bits} bits isn't supported; {', '.join(map(str, BITS))} are")
        version = config.get("checkpoint_format") or config.get("format") or "gptq"
        if version not in ("gptq", "gptq_v2"):
            raise UnsupportedError(f"the GPTQ layout {version!r} isn't supported; gptq and gptq_v2 are")
        dynamic = config.get("dynamic") or {}
        if not isinstance(dynamic, dict) or any(not str(pattern).startswith("-:") for pattern in dynamic):
            raise UnsupportedError("settings of single layers (`dynamic` in quantization_config) aren't supported")
        if config.get("adapter"):
            raise UnsupportedError("adapters beside the weights (`adapter` in quantization_config) aren't supported")
        size = group_size(config, "group_size", default=128)
        return cls(bits, size, flag(config, "sym", True), flag(config, "desc_act", False), version == "gptq_v2")

    def unpack(self, layer: str, tensors: Mapping[str, torch.Tensor]) -> QuantizedWeight:
        words, zeros, scales = (required(layer, tensors, name) for name in ("qweight", "qzeros", "scales"))
        for name, tensor in (("qweight", words), ("qzeros", zeros)):
            require_words(f"{layer}.{name}", tensor)
        columns, rows = words.shape[0] * 32 // self.bits, words.shape[1]
        size = columns if self.group_size == -1 else self.group_size
        groups = require_groups(layer, columns, size)
        said = f"bits {self.bits}, group_size {self.group_size}"
        require_shape(f"{layer}.scales", scales, (groups, rows), said)
        require_shape(f"{layer}.qzeros", zeros, (groups, rows * self.bits // 32), said)
        require_scales(f"{layer}.scales", scales)
        order = self._order(layer, tensors.get("g_idx"), columns, size)
        values = unpacked(words.T, self.bits)
        return asymmetric(values if order is None else values[:, order], scales.T, self._zero_points(layer, zeros), self.bits, size, order)

    def _order(self, layer: str, index: torch.Tensor | None, columns: int, size: int) -> torch.Tensor | None:
        if index is None:
            if self.is_ordered:
                raise UserError(f"{layer} has no g_idx, and quantization_config says desc_act")
            return None
        require_shape(f"{layer}.g_idx", index, (columns,), f"bits {self.bits}")
        return column_order(f"{layer}.g_idx", index, size)

    def _zero_points(self, layer: str, words: torch.Tensor) -> torch.Tensor:
        """uint8 [rows, groups]. Version 1 is made by taking 1 from each number of a whole word, borrows included; so it is undone."""
        ones = sum(1 << place for place in range(0, 32, self.bits))
        if not self.is_version_2:
            words = ((words.to(torch.int64) & 0xFFFFFFFF) + ones & 0xFFFFFFFF).to(torch.uint32).view(torch.int32)
        points = unpacked(words, self.bits).T.contiguous()
        require_middle(layer, points, self.bits, self.is_symmetric, "sym")
        return points


def require_middle(layer: str, points: torch.Tensor, bits: int, is_symmetric: bool, setting: str) -> None:
    """Raises UserError where symmetric quantization has other zero points than the middle: the config or its version is another's."""
    middle = 1 << (bits - 1)
    if is_symmetric and not bool((points == middle).all()):
        other = int(points[points != middle][0])
        raise UserError(f"{layer}.qzeros has the zero point {other}, and by quantization_config ({setting}) all are {middle}")


def asymmetric(
    values: torch.Tensor, scales: torch.Tensor, points: torch.Tensor, bits: int, size: int, order: torch.Tensor | None
) -> QuantizedWeight:
    """Unsigned numbers [rows, columns] with scales and zero points [rows, groups]; signed without any where all are in the middle."""
    middle = 1 << (bits - 1)
    is_signed = bool((points == middle).all())
    if is_signed:
        values = (values.to(torch.int16) - middle).to(torch.int8)
    is_row = size == values.shape[1]
    return QuantizedWeight(
        values.contiguous(),
        scales[:, 0].contiguous() if is_row else scales.contiguous(),
        None if is_signed else points[:, 0].contiguous() if is_row else points,
        f"int{bits}" if is_signed else f"uint{bits}",
        0 if is_row else size,
        order,
    )
