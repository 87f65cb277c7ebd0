"""Small models as GGUF files, written by the gguf package as llama.cpp's converter does, and transformers models of the same weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as tf

from llmos.models.gguf.types import BlockType

from .test_blocks import HALVES, QUANTIZED

SIZES: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 72,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
BY_256 = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def small_model(config: Any) -> Any:
    """A model with weights that leave no layer without effect."""
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1 + (parameter.ndim == 1 and parameter.numel() > 0) * 0.5)
    return model


def tensor_name(parameter: str) -> str:
    path, _, suffix = parameter.rpartition(".")
    if path.startswith("model.layers."):
        _, _, number, path = path.split(".", 3)
        return f"blk.{number}.{TENSORS[path]}.{suffix}"
    return f"{TENSORS[path]}.{suffix}"


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp's converter orders them (`LlamaModel.permute`)."""
    return values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def blocks_of(values: np.ndarray, kind: str) -> np.ndarray:
    """The bytes [rows, bytes] of a matrix in a type; random ones of a small scale for the types that the package doesn't quantize."""
    code = gguf.GGMLQuantizationType[kind]
    try:
        return gguf.quantize(values, code)
    except NotImplementedError:
        block: BlockType = QUANTIZED[kind][1]
    rng = np.random.default_rng(values.size)
    data = rng.integers(0, 256, (values.size // block.elements, block.num_bytes), dtype=np.uint8)
    for place in HALVES[kind]:
        scales = (rng.standard_normal(len(data)) * 2e-4).astype(np.float16)
        data[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    return data.reshape(len(values), -1)


@dataclass
class Written:
    """A file to write: metadata and tensors (data, type or None for the data's own), in transformers' shapes and llama.cpp's order."""

    architecture: str
    metadata: dict[str, Any]
    tensors: dict[str, tuple[np.ndarray, str | None]] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in self.metadata.items():
            _add(writer, key, value)
        for name, (data, kind) in self.tensors.items():
            writer.add_tensor(name, data, raw_dtype=None if kind is None else gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
        return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def converted(model: Any, architecture: str, kinds: Sequence[str] = ("F32",)) -> tuple[Written, Any]:
    """A model as a file, its matrices in the types by turns, and a copy of the model with the weights that the file holds."""
    model = copy.deepcopy(model)
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if architecture == "llama" else {}
    tensors: dict[str, tuple[np.ndarray, str | None]] = {}
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            count = next((count for part, count in heads.items() if f".{part}." in name), None)
            values = parameter.numpy() if count is None else np.ascontiguousarray(permuted(parameter.numpy(), count))
            if parameter.ndim == 1:
                tensors[tensor_name(name)] = (values.copy(), None)
                continue
            kind = kinds[number % len(kinds)]
            data = np.ascontiguousarray(blocks_of(values, kind))
            stored = gguf.dequantize(data, gguf.GGMLQuantizationType[kind]).reshape(values.shape)
            tensors[tensor_name(name)] = (data.view(np.uint8) if kind not in ("F32", "F16") else data, kind)
            parameter.copy_(torch.from_numpy(stored if count is None else stored[np.argsort(permuted(np.arange(len(stored)), count))]))
    return Written(architecture, metadata_of(config, architecture), tensors), model


def metadata_of(config: Any, architecture: str) -> dict[str, Any]:
    settings = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size * config.num_attention_heads != config.hidden_size:
        settings |= {"attention.key_length": size, "attention.value_length": size}
    return {f"{architecture}.{key}": value for key, value in settings.items()}
