"""Checkpoints over formats, bits, groups, symmetry, order and types: what quantization_config says, and the packer that writes it so."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .packers import Packer, awq, compressed, gptq


class Case(NamedTuple):
    config: dict[str, Any]
    pack: Packer


def gptq_case(bits: int, group_size: int, sym: bool, desc_act: bool, version: int = 1, dtype: torch.dtype = torch.float16) -> Case:
    form = "gptq" if version == 1 else "gptq_v2"
    config = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": sym, "desc_act": desc_act, "checkpoint_format": form}
    return Case(config, gptq(bits, group_size, sym, desc_act, version, dtype))


def awq_case(group_size: int, zero_point: bool = True, dtype: torch.dtype = torch.float16) -> Case:
    config = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": zero_point, "version": "gemm"}
    return Case(config, awq(group_size, not zero_point, dtype))


def compressed_case(form: str, dtype: torch.dtype = torch.float32, activations: bool = False, **weights: Any) -> Case:
    inputs = {"num_bits": 8, "type": weights.get("type", "int"), "strategy": "token", "dynamic": True} if activations else None
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    return Case(config, compressed(form, dtype, **weights))


BF16 = torch.bfloat16
CASES = {
    "gptq-4-32": gptq_case(4, 32, True, False),
    "gptq-4-64-asym": gptq_case(4, 64, False, False),
    "gptq-4-32-asym-order": gptq_case(4, 32, False, True),
    "gptq-4-row-order": gptq_case(4, -1, True, True),
    "gptq-4-row-asym-v2": gptq_case(4, -1, False, False, 2),
    "gptq-4-32-v2-order": gptq_case(4, 32, True, True, 2),
    "gptq-8-32": gptq_case(8, 32, True, False),
    "gptq-8-64-asym-order": gptq_case(8, 64, False, True),
    "gptq-8-row-asym-v2-bf16": gptq_case(8, -1, False, False, 2, BF16),
    "gptq-2-32-asym": gptq_case(2, 32, False, False),
    "awq-32": awq_case(32),
    "awq-64-bf16": awq_case(64, dtype=BF16),
    "awq-row": awq_case(-1),
    "awq-32-symmetric": awq_case(32, zero_point=False),
    "packed-int4-32": compressed_case("pack-quantized", num_bits=4, strategy="group", group_size=32),
    "packed-int4-64-asym-bf16": compressed_case("pack-quantized", BF16, num_bits=4, strategy="group", group_size=64, symmetric=False),
    "packed-int4-channel": compressed_case("pack-quantized", num_bits=4, strategy="channel"),
    "packed-int4-channel-asym": compressed_case("pack-quantized", num_bits=4, strategy="channel", symmetric=False),
    "packed-int8-32": compressed_case("pack-quantized", num_bits=8, strategy="group", group_size=32, symmetric=False),
    "int8-channel": compressed_case("int-quantized", activations=True, num_bits=8, strategy="channel"),
    "int8-channel-asym-f16": compressed_case("int-quantized", torch.float16, num_bits=8, strategy="channel", symmetric=False),
    "int8-tensor": compressed_case("int-quantized", num_bits=8, strategy="tensor"),
    "int8-group": compressed_case("naive-quantized", num_bits=8, strategy="group", group_size=32),
    "float8-channel": compressed_case("float-quantized", activations=True, num_bits=8, type="float", strategy="channel"),
    "float8-tensor-bf16": compressed_case("float-quantized", BF16, num_bits=8, type="float", strategy="tensor"),
}
