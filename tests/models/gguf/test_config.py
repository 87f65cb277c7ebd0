"""Metadata of GGUF files as configurations of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as tf

from llmos.models.gguf.config import end_ids, model_config
from llmos.models.gguf.file import GgufFile
from llmos.runtime.errors import UnsupportedError, UserError

from .models import SIZES, Written, metadata_of

TOKENS = ["<s>", "<|im_end|>", "<|endoftext|>", *(f"t{number}" for number in range(69))]


def opened(folder: Path, architecture: str = "llama", *, is_tied: bool = False, **more: Any) -> GgufFile:
    """A file of metadata and embedding. more: metadata, double underscores for dots; the architecture's, unless named tokenizer."""
    named = {key.replace("__", "."): value for key, value in more.items()}
    metadata = metadata_of(tf.LlamaConfig(**SIZES), architecture)
    metadata |= {key if key.startswith("tokenizer.") else f"{architecture}.{key}": value for key, value in named.items()}
    tensors: dict[str, Any] = {"token_embd.weight": (np.zeros((72, 64), np.float32), None)}
    if not is_tied:
        tensors["output.weight"] = (np.zeros((72, 64), np.float32), None)
    tensors |= {f"blk.{number}.attn_norm.weight": (np.zeros(64, np.float32), None) for number in range(2)}
    return GgufFile.open(Written(architecture, metadata, tensors).write(folder / "m.gguf"))


@pytest.mark.parametrize(("architecture", "kind"), [("llama", "LlamaConfig"), ("mistral", "LlamaConfig"), ("qwen2", "Qwen2Config")])
def test_sizes(architecture: str, kind: str, tmp_path: Path) -> None:
    config = model_config(opened(tmp_path, architecture))
    assert type(config).__name__ == kind
    assert {name: getattr(config, name) for name in SIZES if name not in ("rope_parameters", "rms_norm_eps")} == {
        name: value for name, value in SIZES.items() if name not in ("rope_parameters", "rms_norm_eps")
    }
    assert config.rms_norm_eps == pytest.approx(1e-5) and config.rope_parameters["rope_theta"] == 5000.0
    assert config.tie_word_embeddings is False and model_config(opened(tmp_path, architecture, is_tied=True)).tie_word_embeddings is True


def test_heads_of_another_size(tmp_path: Path) -> None:
    config = model_config(opened(tmp_path, "qwen3", attention__key_length=32, attention__value_length=32))
    assert type(config).__name__ == "Qwen3Config" and config.head_dim == 32
    assert model_config(opened(tmp_path, attention__head_count_kv=[2, 2])).num_key_value_heads == 2


def test_scaled_positions(tmp_path: Path) -> None:
    linear = model_config(opened(tmp_path, rope__scaling__type="linear", rope__scaling__factor=4.0)).rope_parameters
    assert (linear["rope_type"], linear["factor"]) == ("linear", 4.0)
    old = model_config(opened(tmp_path, rope__scale_linear=2.0)).rope_parameters
    assert (old["rope_type"], old["factor"]) == ("linear", 2.0)
    assert model_config(opened(tmp_path, rope__scale_linear=1.0)).rope_parameters["rope_type"] == "default"
    scaling = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 64}
    yarn = model_config(opened(tmp_path, **scaling)).rope_parameters
    assert (yarn["rope_type"], yarn["factor"], yarn["original_max_position_embeddings"], yarn["beta_fast"]) == ("yarn", 4.0, 64, 32.0)


def test_ends_of_answers(tmp_path: Path) -> None:
    """The metadata's, and control tokens of a known text; a text alone is none."""
    vocabulary = {"tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.token_type": [3, 3, 1, *[1] * 69]}
    file = opened(
        tmp_path, **vocabulary, **{"tokenizer.ggml.eos_token_id": 5, "tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.bos_token_id": 0}
    )
    assert end_ids(file) == [5, 7, 1]
    config = model_config(file)
    assert (config.eos_token_id, config.bos_token_id) == ([5, 7, 1], 0)
    assert model_config(opened(tmp_path)).eos_token_id is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tokenizer.ggml.tokens": TOKENS[:-1]}, "the number of tokens is 71, and token_embd.weight has 72 rows"),
        ({"tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.eos_token_id": 72}, "eos_token_id is 72, and there are 72 tokens"),
        ({"tokenizer.ggml.bos_token_id": "x"}, "bos_token_id is x"),
        ({"rope__scaling__type": 3}, "rope.scaling.type is no text"),
        ({"rope__freq_base": -1.0}, "freq_base is -1.0, not a number above 0"),
    ],
)
def test_metadata_that_contradicts(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        model_config(opened(tmp_path, **more))


def test_other_architectures(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="'gemma4' isn't supported; llama, mistral, qwen2, qwen3 are"):
        model_config(opened(tmp_path, "gemma4"))
