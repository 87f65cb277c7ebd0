"""AWQ in the layout "gemm": integers packed along a layer's outputs, eight of them in an order of their own (AutoAWQ).

A linear layer of k inputs and n outputs in 4 bits, groups of g inputs:

    qweight  int32 [k, n / 8]      eight outputs a word; from the lowest bits: 0, 2, 4, 6, 1, 3, 5, 7
    qzeros   int32 [k / g, n / 8]  zero points, likewise
    scales   float [k / g, n]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from llmos.models.quantized_checkpoints.gptq import asymmetric, require_middle
from llmos.models.quantized_checkpoints.packing import require_words, unpacked
from llmos.models.quantized_checkpoints.scheme import flag, group_size, integer, required
from llmos.models.quantized_checkpoints.weight import QuantizedWeight, require_groups, require_scales, require_shape
from llmos.runtime.errors import UnsupportedError

BITS = 4
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word each of eight outputs lies


@dataclass(frozen=True)
class Awq:
    group_size: int
    has_zero_points: bool

    markers: ClassVar[tuple[str, ...]] = ("qweight",)
    tensors: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")
    notes: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Awq:
        """Reads quantization_config. Raises UserError, UnsupportedError."""
        bits = integer(config, "bits", "w_bit", default=BITS)
        if bits != BITS:
            raise UnsupportedError(f"AWQ of {bits} bits isn't supported; {BITS} are")
        version = str(config.get("version") or config.get("checkpoint_format") or config.get("format") or "gemm").lower()
        if version != "gemm":
            raise UnsupportedError(f"the AWQ layout {version!r} isn't supported; gemm is")
        return cls(group_size(config, "group_size", "q_group_size", default=128), flag(config, "zero_point", True))

    def unpack(self, layer: str, tensors: Mapping[str, torch.Tensor]) -> QuantizedWeight:
        words, zeros, scales = (required(layer, tensors, name) for name in ("qweight", "qzeros", "scales"))
        for name, tensor in (("qweight", words), ("qzeros", zeros)):
            require_words(f"{layer}.{name}", tensor)
        columns, rows = words.shape[0], words.shape[1] * 8
        size = columns if self.group_size == -1 else self.group_size
        groups = require_groups(layer, columns, size)
        said = f"bits {BITS}, group_size {self.group_size}"
        require_shape(f"{layer}.scales", scales, (groups, rows), said)
        require_shape(f"{layer}.qzeros", zeros, (groups, rows // 8), said)
        require_scales(f"{layer}.scales", scales)
        points = _by_output(zeros)
        require_middle(layer, points, BITS, not self.has_zero_points, "no zero_point")
        return asymmetric(_by_output(words), scales.T, points, BITS, size, None)


def _by_output(words: torch.Tensor) -> torch.Tensor:
    """int32 [k, n / 8] -> uint8 [n, k]."""
    numbers = unpacked(words, BITS)
    k, n = numbers.shape
    return numbers.reshape(k, n // 8, 8)[..., list(PLACES)].reshape(k, n).T.contiguous()
