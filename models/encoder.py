"""Hugging Face encoders (BERT and its kind) as compiled models, sentence encoders with pooling and normalization inside the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.torch import import_torch
from llmos.models.directory import ModelDirectory, is_causal_lm
from llmos.models.loading import load_transformer, require_weights
from llmos.runtime.errors import InputError, UnsupportedError

INPUTS = ("input_ids", "attention_mask")
MAX_BATCH = 1024
_EXAMPLES = ((3, 7), (2, 24), (5, 11))  # batch and tokens of the recorded inputs: traced at the first
_HEADS = {
    "ForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "ForTokenClassification": ("token-classification", "AutoModelForTokenClassification"),
}


@dataclass(frozen=True)
class EncoderOptions:
    """`pooling` ("mean", "cls", "max", "last") and `normalize` override what the sentence-transformers files say; None keeps it."""

    pooling: str | None = None
    normalize: bool | None = None
    max_batch: int = MAX_BATCH
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.pooling not in (None, "mean", "cls", "max", "last"):
            raise InputError(f"pooling={self.pooling!r} isn't known: use mean, cls, max or last")


def import_encoder(directory: str | Path, options: EncoderOptions = EncoderOptions(), *, name: str | None = None) -> ImportedModel:
    """A directory with config.json, *.safetensors and tokenizer.json, as the linalg stage.

    Inputs (input_ids, attention_mask): int64 [batch, tokens]; batch up to `max_batch`, tokens up to the number of the model's positions.
    Output, by what the directory is: `embeddings` [batch, hidden] for a sentence encoder (modules.json, or `pooling` given); `logits` for a
    sequence or token classifier; else `last_hidden_state` [batch, tokens, hidden]. Weights stay mmapped in the safetensors file.
    """
    source = ModelDirectory.open(directory)
    encoder = open_encoder(source, options)
    imported = import_torch(
        encoder.module,
        encoder.example_args,
        encoder.dynamic_shapes,
        input_names=INPUTS,
        output_names=(encoder.output,),
        name=name or source.path.resolve().name,
        assets=source.assets(),
        metadata=encoder.metadata,
    )
    return replace(imported, examples=encoder.examples)


@dataclass(frozen=True)
class OpenedEncoder:
    """An encoder in eager torch: `module` takes (input_ids, attention_mask), int64 [batch, tokens], and gives one tensor, `output`.

    examples: recorded inputs; the first are those to trace with. dynamic_shapes: torch.export's.
    """

    module: nn.Module
    output: str
    examples: tuple[tuple[np.ndarray, np.ndarray], ...]
    dynamic_shapes: tuple[dict[int, Dim], ...]
    metadata: Mapping[str, Any]

    @property
    def example_args(self) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(array) for array in self.examples[0])


def open_encoder(source: ModelDirectory, options: EncoderOptions = EncoderOptions()) -> OpenedEncoder:
    """The module that a directory holds, with pooling and normalization. Raises UserError, UnsupportedError."""
    plan = _plan(source, options)
    loaded = load_transformer(source, plan.loader)
    model = loaded.model
    limit = min(options.max_tokens or 2**31 - 1, positions(model))
    metadata = {
        **plan.metadata,
        **_labels(plan, model.config),
        "max_length": source.max_length(limit),
        "model_type": str(source.config["model_type"]),
        **({"notes": list(loaded.notes)} if loaded.notes else {}),
    }
    module = Encoder(model, plan.finish).eval()
    examples, shapes = examples_of(model.config, options.max_batch, limit), dynamic_shapes(options.max_batch, limit)
    encoder = OpenedEncoder(module, plan.output, examples, shapes, metadata)
    require_weights(source, model, loaded.missing, encoder.module, encoder.example_args)
    return encoder


def dynamic_shapes(max_batch: int, max_tokens: int) -> tuple[dict[int, Dim], ...]:
    """Return torch.export's dynamic shapes of both inputs."""
    shape = {0: Dim("batch", min=1, max=max_batch), 1: Dim("tokens", min=1, max=max_tokens)}
    return shape, dict(shape)


def examples_of(config: Any, max_batch: int, max_tokens: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return recorded inputs: (input_ids, attention_mask) of several sizes within the limits."""
    sizes = [(min(batch, max_batch), min(length, max_tokens)) for batch, length in _EXAMPLES]
    return tuple(_example(seed, batch, length, config) for seed, (batch, length) in enumerate(sizes))


@dataclass(frozen=True)
class _Plan:
    """What to load and what to make of its output."""

    loader: str
    finish: Callable[[Any, torch.Tensor], torch.Tensor]
    output: str
    metadata: dict[str, Any]


def _plan(source: ModelDirectory, options: EncoderOptions) -> _Plan:
    if source.config.get("is_encoder_decoder") or is_causal_lm(source):
        raise UnsupportedError(
            f"{source.path}: {source.architecture or 'this model'} generates text with an encoder; decoders alone and encoders are compiled"
        )
    modules = source.sentence_modules()
    pooling = options.pooling or (modules.pooling if modules else None)
    if pooling is not None:
        configured = modules.normalize if modules else True
        normalize = configured if options.normalize is None else options.normalize
        metadata = {"task": "sentence-embedding", "pooling": pooling, "normalize": normalize}
        return _Plan("AutoModel", Pool(pooling, normalize), "embeddings", metadata)
    for ending, (task, loader) in _HEADS.items():
        if source.architecture.endswith(ending):
            return _Plan(loader, lambda output, mask: output.logits, "logits", {"task": task})
    return _Plan("AutoModel", lambda output, mask: output.last_hidden_state, "last_hidden_state", {"task": "feature-extraction"})


@dataclass(frozen=True)
class Pool:
    """Token vectors to one sentence vector, as sentence-transformers defines it."""

    pooling: str
    normalize: bool

    def __call__(self, output: Any, mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = output.last_hidden_state
        pooled = self._pool(hidden, mask[..., None].to(hidden.dtype))
        return nn.functional.normalize(pooled, p=2.0, dim=-1) if self.normalize else pooled

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "max":
            return hidden.masked_fill(mask == 0, -1e9).amax(1)
        if self.pooling == "last":
            last = mask.sum(1, keepdim=True).clamp(min=1).long() - 1
            return hidden.gather(1, last.expand(-1, 1, hidden.shape[-1]))[:, 0]
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


class Encoder(nn.Module):
    """(input_ids, attention_mask) to one tensor."""

    def __init__(self, model: nn.Module, finish: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.model = model
        self.finish = finish

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.finish(self.model(input_ids=input_ids, attention_mask=attention_mask), attention_mask)


def positions(model: nn.Module) -> int:
    """How many tokens the model has positions for. RoBERTa's kind starts counting after the padding index."""
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] == "position_embeddings" and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - first
    return int(getattr(model.config, "max_position_embeddings", 512))


def _labels(plan: _Plan, config: Any) -> dict[str, Any]:
    """Names of a classifier's logits."""
    if plan.output != "logits":
        return {}
    return {"labels": {str(index): str(label) for index, label in config.id2label.items()}}


def _example(seed: int, batch: int, length: int, config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the whole vocabulary, and a mask whose last row is padded."""
    rng = np.random.default_rng(seed)
    padding = config.pad_token_id if isinstance(getattr(config, "pad_token_id", None), int) else 0
    ids = rng.integers(0, config.vocab_size, (batch, length), dtype=np.int64)
    ids[ids == padding] = (padding + 1) % config.vocab_size
    mask = np.ones((batch, length), np.int64)
    if length > 1:
        mask[-1, length // 2 :] = 0
        ids[-1, length // 2 :] = padding
    return ids, mask
