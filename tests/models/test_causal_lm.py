"""Causal language models as step functions: the families' own logits, alone and beside others, whole and in chunks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.models import causal_lm
from llmos.models.causal_lm import CausalLMOptions, import_model, open_causal_lm
from llmos.runtime.engine.generate import (
    GenerationEngine,
    GenerationOptions,
    GenerationReport,
    Limits,
    NullGenerationObserver,
    ProgramStepModel,
    SamplingParams,
    StepReport,
)
from llmos.runtime.errors import InputError, UnsupportedError, UserError
from llmos.runtime.program import Program
from tests.reference import run
from tests.text.tokenizers import byte_level

SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}
BYTE_LEVEL = byte_level().get_vocab_size()
MODELS = Path(os.environ.get("LLMOS_TEST_MODELS", "../shared/models"))


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


FAMILIES: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**SIZES),
    "llama_tied": lambda: tf.LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True),
    "rope_llama3": lambda: tf.LlamaConfig(
        **SIZES, **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
    ),
    "rope_linear": lambda: tf.LlamaConfig(**SIZES, **rope("linear", factor=2.0)),
    "rope_dynamic": lambda: tf.LlamaConfig(**SIZES, **rope("dynamic", factor=2.0)),
    "rope_yarn": lambda: tf.LlamaConfig(**SIZES, **rope("yarn", factor=4.0, original_max_position_embeddings=128)),
    "qwen2": lambda: tf.Qwen2Config(**SIZES),
    "qwen3": lambda: tf.Qwen3Config(**SIZES, head_dim=16),
    "mistral": lambda: tf.MistralConfig(**SIZES, sliding_window=24),
    "gemma2": lambda: tf.Gemma2Config(**SIZES, head_dim=16, sliding_window=24, query_pre_attn_scalar=16),
    "gemma3": lambda: tf.Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=24, query_pre_attn_scalar=16),
    "phi": lambda: tf.PhiConfig(**SIZES),
    "phi3": lambda: tf.Phi3Config(**SIZES, pad_token_id=0),
    "gpt2": lambda: tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100, n_positions=512),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**{key: value for key, value in SIZES.items() if key != "num_key_value_heads"}),
    "olmo": lambda: tf.OlmoConfig(**SIZES),
    "olmo2": lambda: tf.Olmo2Config(**SIZES),
    "smollm3": lambda: tf.SmolLM3Config(**SIZES, pad_token_id=0),
    "stablelm": lambda: tf.StableLmConfig(**SIZES),
    "falcon": lambda: tf.FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=100, multi_query=True, alibi=False, parallel_attn=True
    ),
    "gpt_oss": lambda: tf.GptOssConfig(**SIZES, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=24),
    "mixtral": lambda: tf.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(**SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
}
IN_EVERY_RUN = ("gemma2",)


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(FAMILIES[family]()).eval().float()


def own_logits(model: Any, prompt: Sequence[int]) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = model(input_ids=torch.tensor([list(prompt)]), use_cache=False).logits[0].float().numpy()
    return logits


@dataclass
class Cached:
    """A program with caches, whose requests have tables of fixed blocks: request r has blocks 1 + 32 r to 32 + 32 r."""

    program: Program
    num_requests: int = 4

    def __post_init__(self) -> None:
        self.tables = (1 + np.arange(32 * self.num_requests, dtype=np.int32)).reshape(self.num_requests, 32)
        specs = [spec for spec in self.program.default.inputs if spec.name.startswith("cache.")]
        kinds = {"float32": (np.float32, np.nan), "bfloat16": (np.uint16, 0x7FC0), "int8": (np.int8, -1)}
        self.caches = [np.full((32 * self.num_requests + 1, *spec.shape[1:]), kinds[spec.dtype][1], kinds[spec.dtype][0]) for spec in specs]

    def step(self, *parts: tuple[int, int, Sequence[int]]) -> np.ndarray:
        """Logits of all tokens of some (request, first position, tokens)."""
        requests = np.concatenate([[request] * len(tokens) for request, _, tokens in parts]).astype(np.int32)
        positions = np.concatenate([first + np.arange(len(tokens)) for _, first, tokens in parts]).astype(np.int32)
        tokens = np.concatenate([tokens for _, _, tokens in parts]).astype(np.int32)
        slots = (self.tables[requests, positions // 16] * 16 + positions % 16).astype(np.int32)
        rows = np.arange(len(tokens), dtype=np.int32)
        logits = self.program(tokens, positions, slots, requests, self.tables, rows, *self.caches)
        assert isinstance(logits, np.ndarray)
        return logits


def compiled(model: Any, folder: Path, kv: str = "fp32") -> Program:
    imported = import_model(model, CausalLMOptions(kv), name="model")
    artifact = compile_model(imported, options=CompileOptions(target="native", repro=None))
    artifact.save(folder / "model.llmos")
    return llmos.load(folder / "model.llmos", poison_arena=True)


@pytest.mark.parametrize("family", [pytest.param(each, marks=() if each in IN_EVERY_RUN else pytest.mark.slow) for each in FAMILIES])
def test_logits_are_transformers_own(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    cached = Cached(compiled(model, tmp_path))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 100, length).tolist() for length in (1, 7, 64, 300)]
    wanted = [own_logits(model, prompt) for prompt in prompts]
    together = cached.step(*[(request, 0, prompt) for request, prompt in enumerate(prompts)])
    bounds = np.cumsum([0, *map(len, prompts)])
    for low, high, own in zip(bounds, bounds[1:], wanted, strict=False):
        assert np.abs(together[low:high] - own).max() <= 1e-4 * np.abs(own).max()
    alone = Cached(cached.program)
    chunks = [alone.step((2, low, prompts[3][low:high])) for low, high in ((0, 1), (1, 33), (33, 250), (250, 300))]
    assert np.array_equal(np.concatenate(chunks), together[bounds[3] :])


@dataclass
class Seen(NullGenerationObserver):
    """What an engine did besides computing: sequences that lost their blocks, tokens whose keys and values were there already."""

    num_preempted: int = 0
    num_cached: int = 0

    def on_step(self, report: StepReport) -> None:
        self.num_preempted += report.num_preempted

    def on_generation(self, report: GenerationReport) -> None:
        self.num_cached += report.num_cached_tokens


def generated(program: Program, prompts: Sequence[Sequence[int]], blocks: int, tokens_of_step: int, seen: Seen) -> list[Any]:
    """Tokens and log probabilities of each prompt, all at once."""
    options = GenerationOptions(Limits(tokens_of_step, 8, 16), cache_blocks=blocks)
    engine = GenerationEngine(ProgramStepModel(program), options, observer=seen)
    try:
        requests = [engine.submit(prompt, SamplingParams(max_tokens=100, temperature=0, logprobs=1)) for prompt in prompts]
        found = [[(event.token, event.logprob) for event in request.result()[0].tokens] for request in requests]
        assert engine.drain(60)
        engine.check_integrity()
    finally:
        engine.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_a_cache_of_int8_gives_about_the_logits_and_the_same_tokens_in_any_company(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    program = compiled(model, tmp_path, "int8")
    spec = ProgramStepModel(program).spec
    facts = program.manifest.metadata["generation"]
    heads, padded = facts["num_kv_heads"], -(-facts["head_dim"] // 16) * 16
    assert spec.kv_dtype == "int8" and spec.block_bytes == 2 * heads * 16 * (facts["head_dim"] + padded + 2 * 2)  # of 2 layers
    prompts = [np.random.default_rng(seed).integers(3, 100, 60).tolist() for seed in range(5)]
    prompts += [prompts[0][:40] + prompts[1][:20]]
    seen = Seen()
    alone = [generated(program, [prompt], 40, 512, Seen())[0] for prompt in prompts]
    assert generated(program, prompts, 64, 512, seen) == alone
    assert generated(program, prompts, 12, 37, seen) == alone  # in chunks
    assert seen.num_preempted and seen.num_cached
    own = own_logits(model, prompts[0])
    assert cosine(Cached(program).step((1, 0, prompts[0])), own) > 0.999


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_layers_that_are_not_traced_are_like_those_that_are(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five layers, of one kind or of two in turns: the module is the one of a model that is traced whole, but for the order of weights."""
    config = FAMILIES[family]()
    config = type(config)(**{**config.to_dict(), "num_hidden_layers": 5, "layer_types": None})
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    copied = import_model(model, CausalLMOptions("fp32"), name="model")
    monkeypatch.setattr(causal_lm, "find_layers", lambda *_: None)
    whole = import_model(model, CausalLMOptions("fp32"), name="model")
    assert {name: weight.shape for name, weight in copied.weights.items()} == {name: weight.shape for name, weight in whole.weights.items()}
    assert all(np.array_equal(copied.weights[name].load(), weight.load()) for name, weight in whole.weights.items())
    outputs = [run(each, copied.examples[2]) for each in (copied, whole)]
    assert all(np.array_equal(a, b) for a, b in zip(*outputs, strict=True))


@pytest.mark.slow
def test_stories260k_tells_its_story(tmp_path: Path) -> None:
    folder = MODELS / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set LLMOS_TEST_MODELS to the folder of test models")
    artifact = llmos.compile(folder, target="native", kv="fp32")
    artifact.save(tmp_path / "stories.llmos")
    cached = Cached(llmos.load(tmp_path / "stories.llmos"), 1)
    facts = cached.program.manifest.metadata["generation"]
    assert (facts["vocab_size"], facts["bos_token_id"], facts["eos_token_ids"]) == (512, 1, [2])
    ids = [1]
    for position in range(160):
        ids.append(int(cached.step((0, position, ids[-1:]))[0].argmax()))
    from tokenizers import Tokenizer

    text = Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids)
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red"
    )
    with torch.no_grad():
        own = tf.AutoModelForCausalLM.from_pretrained(folder).generate(torch.tensor([[1]]), max_new_tokens=160, do_sample=False)[0].tolist()
    assert ids == own


def test_bad_input_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fp32, bf16, int8"):
        CausalLMOptions("int4")
    with pytest.raises(UserError, match="config"):
        open_causal_lm(tmp_path)
    with pytest.raises(UserError, match="language models"):
        llmos.compile(torch.nn.Linear(2, 2), (torch.zeros(1, 2),), kv="bf16")
    config = tf.FalconConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=100, alibi=True)
    with pytest.raises(UnsupportedError, match="ALiBi"):
        import_model(tf.AutoModelForCausalLM.from_config(config).eval(), name="alibi")


@pytest.mark.parametrize("settings", [{"attention_chunk_size": 64}, {"attention_chunk_size": 8192}], ids=["64", "8192"])
def test_a_mask_of_another_kind_is_refused(settings: dict[str, int]) -> None:
    """Chunks of attention look like causal masks on short prompts: no recorded input would show the difference."""
    config = tf.Llama4TextConfig(
        **SIZES, head_dim=8, num_local_experts=2, intermediate_size_mlp=48, layer_types=["chunked_attention", "full_attention"], **settings
    )
    with pytest.raises(UnsupportedError, match="mask"):
        import_model(tf.AutoModelForCausalLM.from_config(config).eval(), name="chunks")


@pytest.mark.parametrize(("vocab_size", "fits"), [(100, False), (BYTE_LEVEL, True), (2 * BYTE_LEVEL, True), (2 * BYTE_LEVEL + 1, False)])
def test_a_tokenizer_of_another_model_is_refused_before_compiling(vocab_size: int, fits: bool, tmp_path: Path) -> None:
    tf.AutoModelForCausalLM.from_config(tf.LlamaConfig(**SIZES | {"vocab_size": vocab_size})).save_pretrained(tmp_path)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    if fits:
        assert "tokenizer.json" in open_causal_lm(tmp_path).assets
        return
    with pytest.raises(UserError, match=f"another model: it has {BYTE_LEVEL} tokens, and the model has {vocab_size}"):
        open_causal_lm(tmp_path)
