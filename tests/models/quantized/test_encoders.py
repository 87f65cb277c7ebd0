"""Encoder directories with quantized layers: their numbers are those of the dequantized model, and the program shows the quantization."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from llmos.compiler.analysis.quantization import quantizations
from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import run_passes
from llmos.compiler.frontend.model import ImportedModel
from llmos.models.encoder import EncoderOptions, import_encoder
from tests.conformance.inprocess import Compiled
from tests.reference import Executor

from .cases import CASES
from .directories import write, write_by_library

LAYERS = 6  # linear layers of a block
CHECKED = (
    ("gptq-4-32", "6 dequantize int4 per-group"),
    ("gptq-4-32-asym-order", "6 dequantize uint4 per-group"),
    ("gptq-8-row-asym-v2-bf16", "6 dequantize uint8 per-channel"),
    ("awq-32", "6 dequantize uint4 per-group"),
    ("packed-int4-64-asym-bf16", "5 dequantize int4 per-channel, 1 dequantize int4 per-group"),
    ("int8-channel", "6 dequantize int8 per-channel"),
    ("float8-channel", "6 dequantize float8_e4m3fn per-channel"),
    ("float8-tensor-bf16", "6 dequantize float8_e4m3fn per-tensor"),
)
FAMILIES = ("bert", "roberta", "distilbert")


def batch(size: int, tokens: int) -> list[np.ndarray]:
    rng = np.random.default_rng(size * 100 + tokens)
    ids, mask = rng.integers(5, 100, (size, tokens)), np.ones((size, tokens), np.int64)
    if size > 1:
        ids[1, tokens // 2 + 1 :], mask[1, tokens // 2 + 1 :] = 1, 0
    return [ids, mask]


def answer(model: nn.Module, inputs: Sequence[np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        found = model(*map(torch.from_numpy, inputs))
    output = found.logits if hasattr(found, "logits") else found.last_hidden_state
    return output.float().numpy()  # type: ignore[no-any-return]


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got.astype(np.float32) - wanted).max() / np.abs(wanted).max())


def eager(imported: ImportedModel, inputs: Sequence[np.ndarray]) -> np.ndarray:
    assert imported.reference is not None
    return imported.reference(inputs)[0]


@pytest.mark.sample(1, 3, 4, 6)
@pytest.mark.parametrize(("number", "name", "said"), [(i, *each) for i, each in enumerate(CHECKED)], ids=[name for name, _ in CHECKED])
def test_numbers_of_the_dequantized_model(number: int, name: str, said: str, tmp_path: Path) -> None:
    model = write(tmp_path, CASES[name], FAMILIES[number % 3])
    imported = import_encoder(tmp_path)
    assert imported.metadata["quantization"] == said
    execute = Executor(imported.module, imported.weights)
    for size in ((2, 5), (1, 1), (3, 17)):
        wanted = answer(model, batch(*size))
        assert error(eager(imported, batch(*size)), wanted) < 1e-5
        assert error(execute(batch(*size))[0], wanted) < 1e-5


HALF = 1e-3  # of an output: how much the reference loses by rounding weights to float16, which kernels on integers don't


@pytest.mark.sample(0, 3)
@pytest.mark.parametrize(
    ("name", "bound"), [("gptq-4-32-asym-order", HALF), ("packed-int4-32", 2e-5), ("int8-channel-asym-f16", HALF), ("float8-channel", 2e-5)]
)
def test_compiled_code(name: str, bound: float, tmp_path: Path) -> None:
    model = write(tmp_path, CASES[name])
    compiled = Compiled(import_encoder(tmp_path))
    for size in ((2, 5), (1, 1), (4, 31)):
        assert error(compiled(batch(*size))[0], answer(model, batch(*size))) < bound


@pytest.mark.sample(1, 3, 4)
@pytest.mark.parametrize(
    ("name", "bits"), [("gptq-4-32", 4), ("gptq-4-32-asym-order", 4), ("awq-32", 4), ("packed-int4-channel", 4), ("gptq-8-32", 8)]
)
def test_layers_stay_packed_in_the_artifact(name: str, bits: int, tmp_path: Path) -> None:
    write(tmp_path, CASES[name])
    imported = import_encoder(tmp_path)
    record = run_passes(imported, CompileOptions(target="native", repro=None), CpuBackend()).record
    numbers = [weight for weight in imported.weights.values() if weight.dtype in ("int8", "uint8") and np.prod(weight.shape) > 4000]
    packed = [weight for name, weight in record.weights.items() if f"[][][{32 // bits}]" in name]
    assert len(packed) == len(numbers) == LAYERS
    assert sum(weight.array.nbytes for weight in packed) == sum(np.prod(weight.shape) for weight in numbers) * bits // 8


@pytest.mark.parametrize(("name", "dtype"), [("gptq-4-32", torch.float16), ("packed-int4-64-asym-bf16", torch.bfloat16)])
def test_models_of_half_floats(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """As most checkpoints are: what is not quantized stays in half floats."""
    model = write(tmp_path, CASES[name], dtype=dtype)
    imported = import_encoder(tmp_path)
    assert imported.weights["model.embeddings.word_embeddings.weight"].dtype == str(dtype).removeprefix("torch.")
    with torch.no_grad():
        wanted = model(*map(torch.from_numpy, batch(2, 5))).last_hidden_state
    got = torch.from_numpy(eager(imported, batch(2, 5)))
    assert torch.equal(got.view(dtype) if got.dtype == torch.uint16 else got, wanted)


def test_what_reaches_the_ir(tmp_path: Path) -> None:
    """Groups along the layer's inputs, one scale and zero point for each of an output's groups; equal orders are one weight."""
    write(tmp_path, CASES["gptq-4-32-asym-order"])
    imported = import_encoder(tmp_path)
    found = list(quantizations(imported.module))
    assert len(found) == LAYERS and {each.group for each in found} == {(1, 32)} and {each.range for each in found} == {(0, 15)}
    values = {name: weight for name, weight in imported.weights.items() if name.endswith(".values")}
    assert len(values) == LAYERS and {weight.dtype for weight in values.values()} == {"uint8"}
    assert not any(name.endswith("query.weight") for name in imported.weights)
    table = imported.weights["model.embeddings.word_embeddings.weight"].array
    assert not table.flags.owndata and is_mapped(table, tmp_path / "model.safetensors")
    notes = import_encoder(_written(tmp_path / "noted", "int8-channel")).metadata["notes"]
    assert len(notes) == 1 and "computed as floats" in notes[0]


def is_mapped(array: np.ndarray, file: Path) -> bool:
    address = array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= address < last:
            return line.endswith(str(file))
    return False


def _written(folder: Path, name: str) -> Path:
    write(folder, CASES[name])
    return folder


def test_classifiers_and_shards(tmp_path: Path) -> None:
    """Layers outside the blocks aren't quantized; the layers' tensors lie in several files."""
    model = write(tmp_path, CASES["awq-32"], kind="AutoModelForSequenceClassification", shards=3)
    imported = import_encoder(tmp_path)
    assert error(eager(imported, batch(2, 5)), answer(model, batch(2, 5))) < 1e-5
    bare = import_encoder(tmp_path, EncoderOptions(pooling="mean"))  # of the same files, whose names then have a prefix too many
    assert bare.metadata["task"] == "sentence-embedding" and bare.metadata["quantization"] == f"{LAYERS} dequantize uint4 per-group"


@pytest.mark.sample(0)
@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"num_bits": 4, "strategy": "group", "group_size": 32}, "int4 per-group"),
        ({"num_bits": 8, "strategy": "channel", "type": "float"}, "float8_e4m3fn per-channel"),
    ],
    ids=["packed", "float8"],
)
def test_a_checkpoint_that_the_library_writes(args: dict[str, Any], said: str, tmp_path: Path) -> None:
    """compressed-tensors names the tensors, writes the config, and reads both through transformers."""
    write_by_library(tmp_path, args)
    imported = import_encoder(tmp_path)
    assert imported.metadata["quantization"] == f"{LAYERS} dequantize {said}"
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    np.testing.assert_array_equal(eager(imported, batch(2, 5)), answer(model, batch(2, 5)))
