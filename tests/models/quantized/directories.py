"""Model directories with quantized linear layers, and the transformers model of their dequantized weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from torch import nn

from .cases import Case

SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
VOCABULARY = {"vocab_size": 100, "max_position_embeddings": 40}
CONFIGS: dict[str, Any] = {
    "bert": lambda: transformers.BertConfig(**SIZES, **VOCABULARY),
    "roberta": lambda: transformers.RobertaConfig(**SIZES, **VOCABULARY, pad_token_id=1),
    "distilbert": lambda: transformers.DistilBertConfig(dim=64, n_layers=1, n_heads=4, hidden_dim=128, **VOCABULARY),
    "modernbert": lambda: transformers.ModernBertConfig(
        **SIZES, **VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    ),
}


def write(
    folder: Path, case: Case, family: str = "bert", kind: str = "AutoModel", dtype: torch.dtype = torch.float32, shards: int = 1
) -> nn.Module:
    """Quantizes the layers of a random model's blocks and gives the model of the weights that they are dequantized to."""
    torch.manual_seed(0)
    model = getattr(transformers, kind).from_config(CONFIGS[family]()).to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for seed, (name, module) in enumerate(model.named_modules()):
        if isinstance(module, nn.Linear) and "layer" in name:
            tensors, dequantized = case.pack(module.weight.detach().float(), seed)
            module.weight.data = dequantized.to(dtype)
            del state[f"{name}.weight"]
            state.update({f"{name}.{suffix}": value for suffix, value in tensors.items()})
    _save(folder, state, shards)
    set_config(folder, quantization_config=case.config)
    return model  # type: ignore[no-any-return]


def _save(folder: Path, state: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return
    (folder / "model.safetensors").unlink()
    names = list(state)
    parts = {f"model-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)}
    for file, own in parts.items():
        save_file({name: state[name] for name in own}, folder / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_by_library(folder: Path, args: dict[str, Any]) -> None:
    """A random BERT that compressed-tensors quantizes and saves; `args` are its QuantizationArgs of the weights."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(CONFIGS["bert"]()).eval()
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["pooler.dense"]))
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            groups = module.weight.data.unflatten(-1, (-1, args.get("group_size") or module.in_features))
            scales, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
            module.weight_scale.data.copy_(scales)
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
