"""Models of GGUF files: the logits of transformers with the weights that the file holds, and files that don't fit: one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from llmos.models.float_weights import run_in_float32
from llmos.models.gguf.file import GgufFile
from llmos.models.gguf.layers import BlockEmbedding, BlockLinear
from llmos.models.gguf.weights import load_model
from llmos.runtime.errors import UnsupportedError, UserError

from .models import BY_256, SIZES, Written, converted, small_model

FAMILIES: Mapping[str, tuple[str, Callable[[], Any]]] = {
    "llama": ("llama", lambda: tf.LlamaConfig(**SIZES)),
    "llama-tied": ("llama", lambda: tf.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama-biases": ("llama", lambda: tf.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "llama-head-dim": ("llama", lambda: tf.LlamaConfig(**SIZES, head_dim=24)),
    "qwen2": ("qwen2", lambda: tf.Qwen2Config(**SIZES)),
    "qwen3": ("qwen3", lambda: tf.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True)),
}
KINDS = [
    ("F16", "BF16"),
    ("Q4_0", "Q8_0"),
    ("Q4_1", "Q5_0", "Q5_1"),
    pytest.param(("Q4_K", "Q6_K", "Q5_K"), marks=pytest.mark.slow),  # rows of 256 make larger models
]
IDS = torch.tensor([[1, 5, 71, 5, 0, 33, 8]])


def logits(model: Any) -> np.ndarray:
    with torch.no_grad(), run_in_float32(model):
        found: np.ndarray = model(input_ids=IDS, use_cache=False).logits[0].numpy()
    return found


def small_file(family: str, *kinds: str, **sizes: Any) -> tuple[Written, Any]:
    architecture, config = FAMILIES[family]
    made = config()
    for name, value in sizes.items():
        setattr(made, name, value)
    return converted(small_model(made), architecture, kinds or ("F32",))


@pytest.mark.parametrize("family", FAMILIES)
def test_floats_are_transformers_own(family: str, tmp_path: Path) -> None:
    written, own = small_file(family)
    model = load_model(GgufFile.open(written.write(tmp_path / "m.gguf")), keep_blocks=True)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in own.named_parameters()}
    for name, parameter in own.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
    np.testing.assert_array_equal(logits(model), logits(own))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
@pytest.mark.parametrize("family", ["llama-tied", pytest.param("llama-biases", marks=pytest.mark.slow)])
def test_types_of_tensors(family: str, kinds: tuple[str, ...], keep: bool, tmp_path: Path) -> None:
    written, own = small_file(family, *kinds, **(BY_256 if kinds[0] == "Q4_K" else {}))
    model = load_model(GgufFile.open(written.write(tmp_path / "m.gguf")), keep_blocks=keep)
    kept = [module for module in model.modules() if isinstance(module, BlockLinear)]
    assert len(kept) == (15 if keep and kinds[0].startswith("Q") else 0)
    assert isinstance(model.model.embed_tokens, BlockEmbedding) == kinds[0].startswith("Q")
    wanted = logits(own)
    assert np.abs(logits(model) - wanted).max() <= 2e-5 * np.abs(wanted).max()
    for module, other in zip(model.modules(), own.modules(), strict=False):
        if isinstance(module, BlockLinear):
            assert torch.equal(module.weight, other.weight)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_matrices_of_half_types_stay_in_the_file(kind: str, tmp_path: Path) -> None:
    written, _ = small_file("llama-tied", kind)
    file = GgufFile.open(written.write(tmp_path / "m.gguf"))
    model = load_model(file, keep_blocks=True)
    mapped = np.asarray(next(iter(file.tensors.values())).data.base)
    inside = [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and np.shares_memory(parameter.detach().view(torch.uint8).numpy(), mapped)
    ]
    others = [name for name, parameter in model.named_parameters() if parameter.ndim == 2 and name not in inside]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "model.embed_tokens.weight" in inside
    assert all("q_proj" in name or "k_proj" in name for name in others)  # whose rows are in another order


def test_rotary_frequencies_have_factors(tmp_path: Path) -> None:
    """Llama 3.1's, which llama.cpp stores as a divisor of each frequency."""
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    written, own = small_file("llama", rope_parameters={"rope_theta": 5000.0, **llama3})
    frequencies = own.model.rotary_emb.inv_freq
    plain = 1.0 / 5000.0 ** (np.arange(0, 16, 2, dtype=np.float32) / 16)
    written.tensors["rope_freqs.weight"] = ((plain / frequencies.numpy()).astype(np.float32), None)
    model = load_model(GgufFile.open(written.write(tmp_path / "m.gguf")), keep_blocks=True)
    assert (written.tensors["rope_freqs.weight"][0] > 1.5).any()
    np.testing.assert_allclose(model.model.rotary_emb.inv_freq, frequencies, rtol=1e-6)
    np.testing.assert_allclose(logits(model), logits(own), atol=1e-5)


def broken(change: Callable[[Written], Any]) -> Callable[[], Written]:
    def made() -> Written:
        written, _ = small_file("llama")
        change(written)
        return written

    return made


def without(name: str) -> Callable[[], Written]:
    return broken(lambda written: written.tensors.pop(name))


def with_tensor(name: str, *shape: int) -> Callable[[], Written]:
    return broken(lambda written: written.tensors.update({name: (np.ones(shape, np.float32), None)}))


def saying(**settings: Any) -> Callable[[], Written]:
    """Metadata, double underscores for dots."""
    return broken(lambda written: written.metadata.update({f"llama.{key.replace('__', '.')}": value for key, value in settings.items()}))


BAD: Mapping[str, tuple[Callable[[], Written], type[UserError], str]] = {
    "no-embedding": (without("token_embd.weight"), UserError, "no tensor token_embd.weight"),
    "no-layer": (without("blk.1.ffn_down.weight"), UserError, "no tensor 'blk.1.ffn_down.weight'"),
    "no-norm": (without("output_norm.weight"), UserError, "no tensor 'output_norm.weight'"),
    "one-bias": (with_tensor("blk.0.attn_q.bias", 64), UserError, "no tensor 'blk.1.attn_q.bias'"),
    "a-wrong-shape": (with_tensor("blk.1.attn_k.weight", 64, 64), UserError, "is [64, 64], and by the metadata [32, 64]"),
    "a-foreign-tensor": (with_tensor("blk.0.ssm_a.weight", 4), UnsupportedError, "'blk.0.ssm_a.weight' has no place"),
    "a-layer-too-many": (with_tensor("blk.2.attn_q.weight", 64, 64), UnsupportedError, "'blk.2.attn_q.weight' has no place"),
    "factors-of-another-head": (with_tensor("rope_freqs.weight", 4), UserError, "a factor above 0 for each of 8 frequencies"),
    "more-layers-than-tensors": (saying(block_count=1 << 30), UserError, "block_count is 1,073,741,824, and there are"),
    "another-vocabulary": (saying(vocab_size=80), UserError, "llama.vocab_size is 80, and token_embd.weight has 72 rows"),
    "heads-that-do-not-divide": (saying(attention__head_count_kv=3), UserError, "4 heads and 3 of keys"),
    "no-heads": (saying(attention__head_count=0), UserError, "attention.head_count is 0, not a size"),
    "a-text-for-a-size": (saying(embedding_length="many"), UserError, "embedding_length is many, not a size"),
    "an-epsilon-of-0": (saying(attention__layer_norm_rms_epsilon=0.0), UserError, "not a number above 0"),
    "experts": (saying(expert_count=8), UnsupportedError, "experts"),
    "a-part-of-heads": (saying(rope__dimension_count=8), UnsupportedError, "a part of each head"),
    "values-of-another-size": (saying(attention__value_length=8), UnsupportedError, "values have another size"),
    "an-unknown-rope": (saying(rope__scaling__type="longrope"), UnsupportedError, "'longrope' aren't supported; linear and yarn are"),
    "heads-by-layer": (saying(attention__head_count_kv=[2, 4]), UnsupportedError, "differs between layers"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_files_that_do_not_fit(case: str, tmp_path: Path) -> None:
    made, kind, message = BAD[case]
    file = GgufFile.open(made().write(tmp_path / "m.gguf"))
    with pytest.raises(UserError) as refusal:
        load_model(file, keep_blocks=True)
    assert type(refusal.value) is kind and message in str(refusal.value) and "\n" not in str(refusal.value), refusal.value
