"""Quantized checkpoints that contradict themselves, or are of a kind that isn't read: one line that says what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmos.models.directory import ModelDirectory
from llmos.models.loading import load_transformer
from llmos.models.quantized_checkpoints.checkpoint import QuantizedCheckpoint, scheme_of
from llmos.runtime.errors import UserError
from tests.frontend.refusals import assert_refused

from .cases import CASES
from .directories import set_config, write
from .test_unpacking import weight_of

Tensors = dict[str, Tensor]
Damage = Callable[[dict[str, Any], Tensors], None]


def setting(**changes: Any) -> Damage:
    return lambda config, tensors: config.update(changes)


def weights(**changes: Any) -> Damage:
    return lambda config, tensors: config["config_groups"]["group_0"]["weights"].update(changes)


def group(**changes: Any) -> Damage:
    return lambda config, tensors: config["config_groups"]["group_0"].update(changes)


def without(*names: str) -> Damage:
    def damage(config: dict[str, Any], tensors: Tensors) -> None:
        for name in names:
            del tensors[f"a.layer.{name}"]

    return damage


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Damage:
    return lambda config, tensors: tensors.update({f"a.layer.{name}": change(tensors[f"a.layer.{name}"].clone())})


def extra(name: str) -> Damage:
    return lambda config, tensors: tensors.update({name: torch.ones(4)})


def one(value: float) -> Callable[[Tensor], Tensor]:
    """The same tensor but for one element."""

    def change(old: Tensor) -> Tensor:
        flat = old.flatten()
        flat[flat.numel() // 2] = value
        return flat.reshape(old.shape)

    return change


DAMAGES: dict[str, tuple[str, Damage, str]] = {
    "another-number-of-bits": ("gptq-4-32", setting(bits=8), r"scales is \[2, 32\], and by quantization_config \(bits 8"),
    "another-group": ("gptq-4-32", setting(group_size=64), r"scales is \[2, 32\], .*group_size 64\) \[1, 32\]"),
    "one-group": ("gptq-4-32", setting(group_size=-1), r"\[1, 32\]"),
    "a-group-that-does-not-divide": ("gptq-4-32", setting(group_size=48), "64 columns, which groups of 48 don't divide"),
    "a-group-of-all-memory": ("gptq-4-32", setting(group_size=2**70), "don't divide"),
    "a-group-of-zero": ("gptq-4-32", setting(group_size=0), "group_size is 0"),
    "a-group-of-minus-two": ("awq-32", setting(group_size=-2), "group_size is -2"),
    "scales-of-zero": ("gptq-4-32", tensor("scales", one(0)), "a.layer.scales holds 0"),
    "scales-not-a-number": ("awq-32", tensor("scales", one(float("nan"))), "a.layer.scales holds NaN or infinity"),
    "scales-without-end": ("gptq-8-32", tensor("scales", one(float("-inf"))), "holds NaN or infinity"),
    "scales-of-integers": ("gptq-4-32", tensor("scales", lambda old: old.to(torch.int32)), r"scales is int32 \[2, 32\], not scales"),
    "zero-points-of-another-shape": ("gptq-4-32", tensor("qzeros", lambda old: old[:, :2]), r"qzeros is \[2, 2\]"),
    "zero-points-of-floats": ("gptq-4-32", tensor("qzeros", lambda old: old.float()), "qzeros is float32"),
    "zero-points-that-are-not-symmetric": ("gptq-4-64-asym", setting(sym=True), "zero point .* all are 8"),
    "version-1-as-2": ("gptq-4-32", setting(checkpoint_format="gptq_v2"), r"zero point 7, and by quantization_config \(sym\) all are 8"),
    "version-2-as-1": ("gptq-4-32-v2-order", setting(checkpoint_format="gptq"), "zero point 9"),
    "words-of-floats": ("gptq-4-32", tensor("qweight", lambda old: old.float()), "qweight is float32"),
    "words-of-rank-1": ("awq-32", tensor("qweight", lambda old: old.flatten()), "not a matrix"),
    "no-words": ("awq-32", tensor("qweight", lambda old: old[:0]), "not a matrix"),
    "an-order-of-another-length": ("gptq-4-32-asym-order", tensor("g_idx", lambda old: old[:-1]), r"g_idx is \[63\]"),
    "an-order-out-of-range": ("gptq-4-32-asym-order", tensor("g_idx", one(2)), "names the group 2, and there are 2"),
    "an-order-below-range": ("gptq-4-32-asym-order", tensor("g_idx", one(-7)), "names the group -7"),
    "an-order-of-unequal-groups": ("gptq-4-32-asym-order", tensor("g_idx", torch.zeros_like), "puts 64 columns into group 0"),
    "no-order": ("gptq-4-32-asym-order", without("g_idx"), "no g_idx, and quantization_config says desc_act"),
    "no-zero-points": ("gptq-4-32", without("qzeros"), "has no qzeros"),
    "no-quantized-layer": ("gptq-4-32", without("qweight", "qzeros", "scales", "g_idx"), "no tensor is named ...qweight"),
    "a-layer-cut-in-two": ("gptq-4-32", extra("b.layer.scales"), "b.layer.scales belongs to no quantized layer"),
    "factors-of-activations": ("awq-32", extra("mlp.act.scales"), "scales an activation function"),
    "three-bits": ("gptq-4-32", setting(bits=3), "GPTQ of 3 bits isn't supported; 2, 4, 8 are"),
    "bits-in-words": ("gptq-4-32", setting(bits="four"), "bits is 'four', not a whole number"),
    "no-bits": ("gptq-4-32", setting(bits=None), "has no bits"),
    "a-flag-in-words": ("gptq-4-32", setting(sym="yes"), "sym is 'yes', not true or false"),
    "an-unknown-layout": ("gptq-4-32", setting(checkpoint_format="marlin"), "layout 'marlin'"),
    "settings-of-layers": ("gptq-4-32", setting(dynamic={"+:.*": {"bits": 8}}), "settings of single layers"),
    "adapters": ("gptq-4-32", setting(adapter={"name": "lora"}), "adapters beside the weights"),
    "awq-of-another-layout": ("awq-32", setting(version="gemv"), "layout 'gemv' isn't supported; gemm is"),
    "awq-of-8-bits": ("awq-32", setting(bits=8), "AWQ of 8 bits"),
    "awq-of-another-group": ("awq-32", setting(group_size=64), r"scales is \[2, 32\]"),
    "awq-without-zero-points": ("awq-32", setting(zero_point=False), "no zero_point"),
    "an-unknown-method": ("awq-32", setting(quant_method="bitsandbytes"), "'bitsandbytes' aren't supported; gptq, awq"),
    "an-unknown-format": ("int8-channel", setting(format="marlin-24"), "format 'marlin-24' isn't supported"),
    "sparse-weights": ("int8-channel", setting(sparsity_config={"format": "sparse-24-bitmask"}), "sparse weights"),
    "transformed-inputs": ("packed-int4-32", setting(transform_config={"config_groups": {"R1": {}}}), "transformed inputs"),
    "no-config-groups": ("int8-channel", setting(config_groups={}), "no config_groups"),
    "a-config-group-without-targets": ("int8-channel", group(targets=None), "without targets"),
    "a-config-group-without-weights": ("int8-channel", group(weights=None), "without settings of weights"),
    "no-config-group-for-a-layer": ("int8-channel", group(targets=["re:b.*"]), "no config group for it"),
    "a-bad-expression": ("int8-channel", group(targets=["re:("]), "no regular expression"),
    "scales-per-block": ("float8-channel", weights(strategy="block"), "a scale per block"),
    "float-of-4-bits": ("float8-channel", weights(num_bits=4), "float4"),
    "integers-where-floats-should-be": ("int8-channel", weights(type="float"), "weight is int8"),
    "floats-where-integers-should-be": ("float8-channel", weights(type="int"), "a matrix of int8"),
    "codes-not-a-number": (
        "float8-channel",
        tensor("weight", lambda old: one(0x7F)(old.view(torch.uint8)).view(torch.float8_e4m3fn)),
        "weight holds NaN",
    ),
    "one-scale-for-channels": ("int8-channel", tensor("weight_scale", lambda old: old[:1]), r"weight_scale is \[1, 1\]"),
    "scales-for-one": ("int8-channel", weights(strategy="tensor"), "and by quantization_config .* one number"),
    "packed-in-other-groups": ("packed-int4-32", weights(group_size=16), r"weight_scale is \[32, 2\]"),
    "packed-in-groups-that-do-not-divide": ("packed-int4-32", weights(group_size=24), "groups of 24 don't divide"),
    "packed-in-other-bits": ("packed-int4-32", weights(num_bits=8), r"weight_packed is \[32, 8\]"),
    "packed-in-5-bits": ("packed-int4-32", weights(num_bits=5), "int5 per group, group_size 32 isn't supported"),
    "packed-in-no-group": ("packed-int4-32", weights(group_size=None), "there is no group_size"),
    "a-shape-of-another-weight": ("packed-int4-32", tensor("weight_shape", lambda old: old * 2), r"weight_packed is \[32, 8\]"),
    "a-shape-of-three": ("packed-int4-32", tensor("weight_shape", lambda old: torch.ones(3)), "not rows and columns"),
    "no-shape": ("packed-int4-32", without("weight_shape"), "has no weight_shape"),
    "packed-zero-points-lost": ("packed-int4-64-asym-bf16", without("weight_zero_point"), "no weight_zero_point"),
    "packed-zero-points-cut": ("packed-int4-64-asym-bf16", tensor("weight_zero_point", lambda old: old[:1]), r"zero_point is \[1, 1\]"),
    "packed-scales-of-zero": ("packed-int4-32", tensor("weight_scale", one(0)), "weight_scale holds 0"),
    "packed-words-lost": ("packed-int4-32", without("weight_packed"), "has no weight, which"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_contradictions(case: str) -> None:
    name, damage, message = DAMAGES[case]
    own, _ = CASES[name].pack(weight_of(32, 64), 0)
    tensors = {f"a.layer.{suffix}": value for suffix, value in own.items()}
    config = _copied(CASES[name].config)
    damage(config, tensors)
    with pytest.raises(UserError, match=message) as refusal:
        scheme = scheme_of({"quantization_config": config})
        assert scheme is not None
        QuantizedCheckpoint.read(scheme, tensors)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


def _copied(value: Any) -> Any:
    return {key: _copied(each) for key, each in value.items()} if isinstance(value, dict) else value


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    write(folder, CASES["gptq-4-32"])
    return folder


def tensors_of(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
        change(found)
        save_file(found, folder / "model.safetensors", {"format": "pt"})

    return edit


def _quantize_table(tensors: Tensors) -> None:
    del tensors["embeddings.word_embeddings.weight"]
    own, _ = CASES["gptq-4-32"].pack(weight_of(96, 64), 0)
    tensors.update({f"embeddings.word_embeddings.{suffix}": value for suffix, value in own.items()})


QUERY = "encoder.layer.0.attention.self.query"
DIRECTORIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a-config-of-another-quantization": (lambda folder: set_config(folder, quantization_config={"quant_method": "fp8"}), "'fp8' aren't"),
    "a-config-that-is-a-list": (lambda folder: set_config(folder, quantization_config=[1]), "not an object"),
    "a-model-of-another-size": (lambda folder: set_config(folder, intermediate_size=64), "is [128, 64], not [64, 64]"),
    "an-unknown-model": (lambda folder: set_config(folder, model_type="frobnicator"), "frobnicator"),
    "scales-of-zero": (tensors_of(lambda old: old[f"{QUERY}.scales"].zero_()), f"{QUERY}.scales holds 0"),
    "a-layer-lost": (
        tensors_of(lambda old: [old.pop(f"{QUERY}.{each}") for each in ("qweight", "qzeros", "scales", "g_idx")]),
        f"no {QUERY}.weight",
    ),
    "a-quantized-table": (tensors_of(_quantize_table), "is [96, 64], not [100, 64]"),
    "weights-cut-short": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000]) and None,
        "not a readable safetensors file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DIRECTORIES)
def test_damaged_directories(case: str, good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage, message = DIRECTORIES[case]
    folder = tmp_path / "bad"
    shutil.copytree(good, folder)
    damage(folder)
    (tmp_path / "out").mkdir()
    assert_refused(folder, message, tmp_path / "out", capfd)


def test_a_layer_that_is_not_linear(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(good, folder)
    set_config(folder, vocab_size=96)
    DIRECTORIES["a-quantized-table"][0](folder)
    with pytest.raises(UserError, match=r"word_embeddings.weight is quantized, and .* no linear layer but Embedding"):
        load_transformer(ModelDirectory.open(folder), "AutoModel")


def test_a_bias_that_the_model_lacks(tmp_path: Path) -> None:
    """Of zeros, as AutoGPTQ writes it for every layer, it is left out."""
    write(tmp_path, CASES["gptq-4-32"], "modernbert")
    add_bias = tensors_of(lambda old: old.update({"layers.0.attn.Wqkv.bias": torch.zeros(192, dtype=torch.float16)}))
    add_bias(tmp_path)
    assert load_transformer(ModelDirectory.open(tmp_path), "AutoModel").model.layers[0].attn.Wqkv.bias is None
    tensors_of(lambda old: old["layers.0.attn.Wqkv.bias"].fill_(0.5))(tmp_path)
    with pytest.raises(UserError, match=r"the weights have layers.0.attn.Wqkv.bias, which the model of config.json lacks"):
        load_transformer(ModelDirectory.open(tmp_path), "AutoModel")
