"""What a GGUF file's metadata says of a model, as a configuration of transformers (ggml's docs/gguf.md, llama.cpp's llama-model.cpp)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from llmos.models.gguf.file import GgufFile
from llmos.models.gguf.header import Value, quoted
from llmos.runtime.errors import UnsupportedError, UserError

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Architecture:
    """config: the class in transformers. has_permuted_heads: whether rows of queries and keys are in llama.cpp's order for its RoPE."""

    config: str
    has_permuted_heads: bool


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": Architecture("LlamaConfig", True),
        "mistral": Architecture("LlamaConfig", True),
        "qwen2": Architecture("Qwen2Config", False),
        "qwen3": Architecture("Qwen3Config", False),
    }
)

# Texts of tokens that end an answer, whatever the metadata says (llama-vocab.cpp).
_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>", "</s>")
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_CONTROL = 3  # a type of token


@dataclass(frozen=True)
class Facts:
    """Typed reading of a file's metadata; keys of the architecture without its name."""

    file: GgufFile
    architecture: str

    @classmethod
    def of(cls, file: GgufFile) -> Facts:
        """Raises UnsupportedError for an architecture that isn't built, UserError for a file without one."""
        found = file.metadata.get("general.architecture")
        if not isinstance(found, str):
            raise UserError("the file says no general.architecture; is it a model?")
        if found not in ARCHITECTURES:
            raise UnsupportedError(f"the architecture {quoted(found)} isn't supported; {', '.join(ARCHITECTURES)} are")
        return cls(file, found)

    def size(self, key: str, default: int | None = None) -> int:
        """A number of at least 1. Raises UserError where it is none, or isn't there and has no default."""
        value = self._of(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # one for each layer
        if isinstance(value, np.ndarray):
            raise UnsupportedError(f"{self.architecture}.{key} differs between layers, which isn't supported")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{self.architecture}.{key} is {str(value)[:40]}, not a size; copy the file again")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0, else as `size`."""
        value = self._of(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise UserError(f"{self.architecture}.{key} is {str(value)[:40]}, not a number above 0; copy the file again")
        return float(value)

    def text(self, key: str, default: str) -> str:
        value = self._of(key, default)
        if not isinstance(value, str):
            raise UserError(f"{self.architecture}.{key} is no text; copy the file again")
        return value

    def __contains__(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.file.metadata

    def _of(self, key: str, default: Value | None) -> Value:
        value = self.file.metadata.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise UserError(f"the metadata has no {self.architecture}.{key}; copy the file again, or convert the model again")
        return value


def model_config(file: GgufFile) -> Any:
    """The configuration of a file's model. Raises UserError, UnsupportedError."""
    import transformers

    facts = Facts.of(file)
    if file.metadata.get(f"{facts.architecture}.expert_count"):
        raise UnsupportedError("models of experts aren't supported as GGUF; give the model as a Hugging Face directory")
    heads, hidden = facts.size("attention.head_count"), facts.size("embedding_length")
    settings: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": facts.size("feed_forward_length"),
        "num_hidden_layers": _num_layers(facts),
        "num_attention_heads": heads,
        "num_key_value_heads": _num_kv_heads(facts, heads),
        "head_dim": _head_dim(facts, hidden, heads),
        "vocab_size": _vocab_size(facts),
        "max_position_embeddings": facts.size("context_length"),
        "rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(facts),
        "tie_word_embeddings": OUTPUT not in file.tensors,
        "bos_token_id": token_id(file, "bos_token_id"),
        "eos_token_id": end_ids(file) or None,
        "pad_token_id": None,
        **_biases(facts),
    }
    return getattr(transformers, ARCHITECTURES[facts.architecture].config)(**settings)


def token_id(file: GgufFile, name: str) -> int | None:
    """A token that the metadata names. Raises UserError for one that the vocabulary lacks."""
    value = file.metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        return None
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    num_tokens = len(tokens) if isinstance(tokens, list) else 1 << 31
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < num_tokens:
        raise UserError(f"tokenizer.ggml.{name} is {str(value)[:40]}, and there are {num_tokens:,} tokens; copy the file again")
    return value


def end_ids(file: GgufFile) -> list[int]:
    """Tokens that end an answer: those of the metadata, and control tokens of a known text."""
    found = [each for name in _END_KEYS if (each := token_id(file, name)) is not None]
    tokens, kinds = file.metadata.get("tokenizer.ggml.tokens"), file.metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(kinds, np.ndarray) and len(kinds) == len(tokens):
        found += [number for number in np.flatnonzero(kinds == _CONTROL).tolist() if tokens[number] in _ENDS]
    return list(dict.fromkeys(found))


def _num_layers(facts: Facts) -> int:
    """Raises UserError for a number that the file has no tensors for: the model would only be built in vain."""
    count = facts.size("block_count")
    if count > len(facts.file.tensors):
        raise UserError(
            f"{facts.architecture}.block_count is {count:,}, and there are {len(facts.file.tensors)} tensors; copy the file again"
        )
    return count


def _num_kv_heads(facts: Facts, heads: int) -> int:
    count = facts.size("attention.head_count_kv", heads)
    if heads % count:
        raise UserError(f"{facts.architecture} has {heads} heads and {count} of keys and values, which don't divide; copy the file again")
    return count


def _head_dim(facts: Facts, hidden: int, heads: int) -> int:
    size = facts.size("attention.key_length", max(1, hidden // heads))
    if facts.size("attention.value_length", size) != size:
        raise UnsupportedError("heads whose values have another size than their keys aren't supported")
    if facts.size("rope.dimension_count", size) != size:
        raise UnsupportedError("rotary positions of a part of each head aren't supported")
    return size


def _vocab_size(facts: Facts) -> int:
    """Rows of the embedding. Raises UserError where metadata or tokens say another number."""
    table = facts.file.tensors.get(EMBEDDING)
    if table is None:
        raise UserError(f"the file has no tensor {EMBEDDING}; copy it again")
    tokens = facts.file.metadata.get("tokenizer.ggml.tokens")
    said = {f"{facts.architecture}.vocab_size": facts.size("vocab_size", table.shape[0])}
    if isinstance(tokens, list):
        said["the number of tokens"] = len(tokens)
    for name, count in said.items():
        if count != table.shape[0]:
            raise UserError(f"{name} is {count:,}, and {EMBEDDING} has {table.shape[0]:,} rows; copy the file again, or convert it again")
    return table.shape[0]


def _rope(facts: Facts) -> dict[str, Any]:
    """Rotary positions. Factors of single frequencies (`rope_freqs.weight`) come after, from their tensor."""
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": facts.number("rope.freq_base", 10000.0)}
    kind = facts.text("rope.scaling.type", "linear" if "rope.scale_linear" in facts else "none")
    factor = facts.number("rope.scaling.factor", facts.number("rope.scale_linear", 1.0))
    if kind == "none" or (kind == "linear" and factor == 1):
        return found
    if kind == "linear":
        return {**found, "rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise UnsupportedError(f"rotary positions scaled by {quoted(kind)} aren't supported; linear and yarn are")
    original = facts.size("rope.scaling.original_context_length", facts.size("context_length"))
    betas = {name: facts.number(f"rope.scaling.yarn_{name}", value) for name, value in (("beta_fast", 32.0), ("beta_slow", 1.0))}
    return {**found, "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **betas}


def _biases(facts: Facts) -> dict[str, Any]:
    """Which layers have biases, where the configuration says so."""
    if ARCHITECTURES[facts.architecture].config == "Qwen2Config":
        return {}
    attention = _any(facts.file.tensors, ("attn_q", "attn_k", "attn_v", "attn_output"))
    if ARCHITECTURES[facts.architecture].config == "Qwen3Config":
        return {"attention_bias": attention}
    return {"attention_bias": attention, "mlp_bias": _any(facts.file.tensors, ("ffn_gate", "ffn_up", "ffn_down"))}


def _any(tensors: Mapping[str, Any], names: Sequence[str]) -> bool:
    return any(f"blk.0.{name}.bias" in tensors for name in names)
