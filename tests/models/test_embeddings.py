"""Causal language models that embed texts: transformers' own hidden states, pooled, from the weights that generate."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from click.testing import CliRunner

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.models import embeddings
from llmos.models.causal_lm import CausalLM, CausalLMOptions
from llmos.models.embeddings import import_embeddings
from llmos.runtime.artifact.accuracy import accuracy_report_of
from llmos.runtime.cli.inspect import command as inspect
from llmos.runtime.cli.verify import command as verify
from llmos.runtime.engine import load_model
from llmos.runtime.errors import UserError
from llmos.runtime.program import Program
from llmos.runtime.text.tokenizer import TextEncoder

from .test_causal_lm import FAMILIES, MODELS, Cached, model_of, own_logits

IN_EVERY_RUN = ("gemma2",)
OPTIONS = partial(CompileOptions, target="native", repro=None)
in_every_run = [pytest.param(each, marks=() if each in IN_EVERY_RUN else pytest.mark.slow) for each in FAMILIES]


def own_embedding(model: Any, tokens: np.ndarray, pooling: str) -> np.ndarray:
    """Of one text, by transformers alone."""
    with torch.no_grad():
        hidden = model(torch.from_numpy(tokens[None]), output_hidden_states=True).hidden_states[-1][0].float()
    pooled = hidden[-1] if pooling == "last" else hidden.mean(0)
    found: np.ndarray = torch.nn.functional.normalize(pooled, dim=-1).numpy()
    return found


def compiled(model: Any, folder: Path, **options: Any) -> Program:
    model.save_pretrained(folder / "model")
    compile_model(folder / "model", options=OPTIONS(**options)).save(folder / "model.llmos")
    return llmos.load(folder / "model.llmos", poison_arena=True)


def padded(texts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A batch of texts: ids and mask. Of padding, any token will do."""
    longest = max(map(len, texts))
    ids, mask = np.full((len(texts), longest), 5), np.zeros((len(texts), longest), np.int64)
    for row, tokens in enumerate(texts):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return ids, mask


@pytest.mark.parametrize("family", in_every_run)
def test_one_artifact_generates_and_embeds_as_transformers_does(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    program = compiled(model, tmp_path, embeddings="last", kv="fp32")
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 100, length) for length in (1, 7, 64, 33)]
    alone = [program["embed"](*padded([text]))[0] for text in texts]
    for text, found in zip(texts, alone, strict=True):
        assert np.abs(found - own_embedding(model, text, "last")).max() < 1e-5
    assert np.array_equal(program["embed"](*padded(texts)), alone)
    logits, own = Cached(program).step((1, 0, texts[2].tolist())), own_logits(model, texts[2].tolist())
    assert np.abs(logits - own).max() <= 1e-4 * np.abs(own).max()
    program.check_integrity()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3_moe"])
def test_a_model_that_embeds_alone_takes_the_mean(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    program = compiled(model, tmp_path, embeddings="mean", generate=False)
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 100, length) for length in (1, 7, 64, 33)]
    alone = [program(*padded([text]))[0] for text in texts]
    for text, found in zip(texts, alone, strict=True):
        assert np.abs(found - own_embedding(model, text, "mean")).max() < 1e-5
    assert np.array_equal(program(*padded(texts)), alone)
    assert program.manifest.metadata["task"] == "sentence-embedding"


def large(family: str) -> Any:
    """A model whose weights are large beside the code."""
    config = FAMILIES[family]()
    config.update({"hidden_size": 256, "intermediate_size": 512, "vocab_size": 1024})
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(config).eval().float()


@pytest.mark.parametrize(
    ("family", "quant"), [("gemma2", "w8a8"), *[pytest.param(*each, marks=pytest.mark.slow) for each in
    [("llama", ""), ("gemma2", ""), ("llama", "w8a8"), ("gemma2", "w4a16:g32"), ("gpt2", "w8a8")]]],
)  # fmt: skip
def test_both_entries_read_the_same_weights(family: str, quant: str, tmp_path: Path) -> None:
    """Also quantized ones, and those of a model whose output layer is its table of embeddings."""
    model = large(family)
    (tmp_path / "generates").mkdir()
    generates = compiled(model, tmp_path / "generates", quant=quant, budget=1.0)
    both = compiled(model, tmp_path, quant=quant, budget=1.0, embeddings="last")
    sizes = [sum(spec.num_bytes for spec in program.manifest.weights) for program in (generates, both)]
    assert sizes[1] - sizes[0] < 1024, "what only embeddings read, such as a mask's constants, and no weights"
    report = accuracy_report_of(both.artifact)
    assert report is not None and {case.entry for case in report.cases} == {"main", "embed"}
    for command in (verify, inspect):
        done = CliRunner().invoke(command, [str(tmp_path / "model.llmos")])
        assert done.exit_code == 0 and ("embeddings" in done.output and "logits" in done.output), done.output


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_layers_that_are_not_traced_are_like_those_that_are(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = FAMILIES[family]()
    config = type(config)(**{**config.to_dict(), "num_hidden_layers": 5, "layer_types": None})
    torch.manual_seed(0)
    source = CausalLM(tf.AutoModelForCausalLM.from_config(config).eval(), "model")
    copied = import_embeddings(source, "last", CausalLMOptions())
    monkeypatch.setattr(embeddings, "find_layers", lambda *_: None)
    whole = import_embeddings(source, "last", CausalLMOptions())
    assert [str(op) for op in copied.module.body.operations] == [str(op) for op in whole.module.body.operations]


@pytest.mark.slow
def test_stories260k_embeds_texts_beside_its_stories(tmp_path: Path) -> None:
    folder = MODELS / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set LLMOS_TEST_MODELS to the folder of test models")
    compile_model(folder, options=OPTIONS(embeddings="last")).save(tmp_path / "stories.llmos")
    model = load_model(tmp_path / "stories.llmos", entry="embed")
    encoder = TextEncoder(model)
    own = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    for text in ("Once upon a time, there was a little girl named Lily.", "The dog ran."):
        (ids,) = encoder.encode([text])
        assert ids == tokenizer(text).input_ids
        (found,) = model(list(encoder.inputs(ids).values()))
        assert np.abs(found[0] - own_embedding(own, np.array(ids), "last")).max() < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embeddings": "first"}, "last"),
        ({"generate": False}, "leaves nothing"),
        ({"embeddings": "last", "generate": False, "kv": "bf16"}, "neither a cache"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CompileOptions(**options)


@pytest.mark.parametrize(
    ("more", "message"),
    [({}, "causal language models"), ({"generate": False}, "causal language models"), ({"tune": 1.0}, "of one entry")],
)
def test_embeddings_of_other_models_are_refused(more: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    tf.BertModel(tf.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=100)).save_pretrained(tmp_path)
    for source in (torch.nn.Linear(2, 2), tmp_path):
        with pytest.raises(UserError, match=message):
            compile_model(source, (torch.zeros(1, 2),), options=OPTIONS(embeddings="last", **more))
