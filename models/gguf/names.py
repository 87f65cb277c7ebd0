"""Tensors of GGUF files by the names that transformers gives them, and rows of heads in its order (llama.cpp's convert_hf_to_gguf.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from llmos.models.gguf.config import EMBEDDING, OUTPUT

_TOP: Mapping[str, str] = MappingProxyType(
    {EMBEDDING: "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", OUTPUT: "lm_head.weight"}
)
_LAYER: Mapping[str, str] = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)
_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def transformers_name(name: str) -> str | None:
    """The parameter that a tensor is; None for one that no model of these families has."""
    if name in _TOP:
        return _TOP[name]
    match = _IN_LAYER.fullmatch(name)
    if match is None or match[2] not in _LAYER:
        return None
    return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}"


def gguf_name(parameter: str) -> str:
    """The tensor that a parameter of transformers is in a file, for lines of text."""
    for theirs, ours in _TOP.items():
        if ours == parameter:
            return theirs
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", parameter)
    found = [theirs for theirs, ours in _LAYER.items() if match is not None and ours == match[2]]
    return f"blk.{match[1]}.{found[0]}.{match[3]}" if match is not None and found else parameter


def is_rotated(name: str) -> bool:
    """Whether a tensor makes queries or keys."""
    match = _IN_LAYER.fullmatch(name)
    return match is not None and match[2] in ("attn_q", "attn_k")


def row_order(rows: int, head_dim: int) -> np.ndarray:
    """int64 [rows]: which row of a file's tensor is each row of transformers'.

    RoPE rotates elements i and i + head_dim / 2 of a head in transformers, 2i and 2i + 1 in llama.cpp.
    """
    heads = np.arange(rows).reshape(-1, head_dim // 2, 2)
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows)
