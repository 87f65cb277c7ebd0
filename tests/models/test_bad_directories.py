"""Hugging Face directories that hold no whole model: one line that says what is wrong, and never made-up weights."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.frontend.refusals import assert_refused

WEIGHTS = "model.safetensors"
QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, max_position_embeddings=32
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def data(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes())) and None


def tensors(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Callable[[Path], None]:
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def shards(index: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return edit


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights-cut-short": (data(lambda old: old[: len(old) // 2]), "not a readable safetensors file"),
    "weights-without-bytes": (data(lambda old: b""), "not a readable safetensors file"),
    "a-header-that-claims-all-memory": (data(lambda old: struct.pack("<Q", 2**62) + old), "not a readable safetensors file"),
    "an-unknown-class": (config(model_type="frobnicator"), "frobnicator"),
    "no-class": (text("config.json", "{}"), "no model_type"),
    "a-config-that-is-a-list": (text("config.json", "[]"), "not a JSON object"),
    "a-config-cut-short": (text("config.json", "{"), "not valid JSON"),
    "an-unknown-activation": (config(hidden_act="frob"), "'frob'"),
    "sizes-that-do-not-divide": (config(hidden_size=33), "not a multiple"),
    "weights-of-another-size": (config(hidden_size=64), "is [64, 32], not [64, 64]"),
    "a-vocabulary-of-all-memory": (config(vocab_size=2**40), "not [1099511627776, 32]"),
    "a-million-layers": (config(num_hidden_layers=10**6), "1,000,000"),
    "a-layer-too-many": (config(num_hidden_layers=2), "no encoder.layer.1."),
    "a-weight-lost": (tensors(lambda old: {name: value for name, value in old.items() if name != QUERY}), f"no {QUERY}"),
    "a-weight-of-another-shape": (tensors(lambda old: old | {QUERY: np.zeros((32, 31), np.float32)}), "is [32, 31], not [32, 32]"),
    "a-classifier-without-its-head": (config(architectures=["BertForSequenceClassification"]), "no classifier.weight"),
    "an-index-of-nothing": (shards({"weight_map": {QUERY: "model-00002-of-00002.safetensors"}}), "which is not in the directory"),
    "an-index-of-elsewhere": (shards({"weight_map": {QUERY: "../other/model.safetensors"}}), "which is not in the directory"),
    "an-index-of-no-files": (shards({"weight_map": {}}), "names no files"),
    "an-index-that-is-a-list": (shards([]), "not a JSON object"),
    "a-damaged-tokenizer": (text("tokenizer.json", "{broken"), "tokenizers can read"),
    "a-tokenizer-without-a-length": (text("tokenizer_config.json", '{"model_max_length": "long"}'), "not a number"),
    "a-tokenizer-config-that-is-a-list": (text("tokenizer_config.json", "[]"), "not a JSON object"),
    "modules-that-are-no-list": (text("modules.json", "{}"), "not a list of modules"),
    "modules-without-a-path": (text("modules.json", '[{"type": "x.Pooling"}]'), "not a list of modules"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_directories(case: str, good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage, message = DAMAGES[case]
    folder = tmp_path / "bad"
    shutil.copytree(good, folder)
    damage(folder)
    (tmp_path / "out").mkdir()
    assert_refused(folder, message, tmp_path / "out", capfd)
