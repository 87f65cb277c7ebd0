"""Reference packers: linear layers quantized to nearest and written by the formats' own rules, number by number.

GPTQ: AutoGPTQ's QuantLinear.pack, and GPTQModel's conversion of version 2 to 1. AWQ: AutoAWQ's WQLinear_GEMM.from_linear.
compressed-tensors: the library itself. Each gives the tensors of a layer and the weight [rows, columns] that the library dequantizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor

Layer = dict[str, Tensor]
Packer = Callable[[Tensor, int], tuple[Layer, Tensor]]  # weight [rows, columns], seed

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def integers(weight: Tensor, bits: int, index: Tensor, groups: int, symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Unsigned numbers [columns, rows], scales and zero points [groups, rows]; `index` is the group of each column."""
    columns = weight.T.float()
    top = (1 << bits) - 1
    scales, zeros = torch.empty(groups, columns.shape[1]), torch.empty(groups, columns.shape[1])
    for group in range(groups):
        own = columns[index == group]
        low, high = own.amin(0).clamp(max=0), own.amax(0).clamp(min=0)
        if symmetric:
            high = torch.maximum(-low, high)
            low = -high
        scales[group] = (high - low) / top
        zeros[group] = (top + 1) / 2 if symmetric else torch.round(-low / scales[group])
    scales = scales.to(dtype)
    numbers = torch.round(columns / scales.float()[index] + zeros[index]).clamp(0, top)
    return numbers.to(torch.int32), scales, zeros.to(torch.int32)


def in_words(numbers: Tensor, bits: int, axis: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Unsigned numbers packed along an axis, the first of each word in the lowest bits; `order` says which comes where."""
    rows = np.moveaxis(numbers.numpy().astype(np.uint32), axis, -1)
    each = 32 // bits
    words = np.zeros((*rows.shape[:-1], rows.shape[-1] // each), np.uint32)
    for word in range(words.shape[-1]):
        for place in range(each):
            words[..., word] |= rows[..., word * each + (order[place] if order else place)] << np.uint32(bits * place)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(words.view(np.int32), -1, axis)))


def gptq(bits: int, group_size: int, symmetric: bool, ordered: bool, version: int = 1, dtype: torch.dtype = torch.float16) -> Packer:
    def pack(weight: Tensor, seed: int) -> tuple[Layer, Tensor]:
        columns = weight.shape[1]
        size = columns if group_size == -1 else group_size
        index = torch.arange(columns) // size
        if ordered:
            index = index[torch.randperm(columns, generator=torch.Generator().manual_seed(seed))]
        numbers, scales, zeros = integers(weight, bits, index, columns // size, symmetric, dtype)
        qzeros = in_words(zeros, bits, 1)
        if version == 1:
            qzeros = qzeros - int(np.uint32(sum(1 << place for place in range(0, 32, bits))).view(np.int32))
        layer = {"qweight": in_words(numbers, bits, 0), "qzeros": qzeros, "scales": scales, "g_idx": index.to(torch.int32)}
        return layer, (scales[index] * (numbers - zeros[index])).T

    return pack


def awq(group_size: int, symmetric: bool = False, dtype: torch.dtype = torch.float16) -> Packer:
    def pack(weight: Tensor, seed: int) -> tuple[Layer, Tensor]:
        columns = weight.shape[1]
        size = columns if group_size == -1 else group_size
        index = torch.arange(columns) // size
        numbers, scales, zeros = integers(weight, 4, index, columns // size, symmetric, dtype)
        layer = {"qweight": in_words(numbers, 4, 1, AWQ_ORDER), "qzeros": in_words(zeros, 4, 1, AWQ_ORDER), "scales": scales}
        return layer, ((numbers - zeros[index]) * scales[index]).T

    return pack


def compressed(form: str, dtype: torch.dtype = torch.float32, **args: Any) -> Packer:
    """`args` are the library's QuantizationArgs of the weights."""

    def pack(weight: Tensor, seed: int) -> tuple[Layer, Tensor]:
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
        assert scheme.weights is not None
        size = args.get("group_size") or 0
        grouped = {
            "group": lambda: weight.unflatten(-1, (-1, size)),
            "channel": lambda: weight.unsqueeze(1),
            "tensor": lambda: weight.reshape(1, 1, -1),
        }[str(scheme.weights.strategy)]()
        scales, zeros = calculate_qparams(grouped.amin(-1), grouped.amax(-1), scheme.weights)
        if scheme.weights.strategy == "tensor":
            scales, zeros = scales.reshape(1), zeros.reshape(1)
        scales = scales.to(dtype)
        compressor = BaseCompressor.get_value_from_registry(form)
        layer = compressor.compress({"weight": weight.to(dtype), "weight_scale": scales, "weight_zero_point": zeros}, scheme)
        return {name: value.contiguous() for name, value in layer.items()}, compressor.decompress(layer, scheme)["weight"]

    return pack
