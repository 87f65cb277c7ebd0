"""Embeddings of texts by a causal language model: its hidden states behind the last norm, pooled and normalized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from llmos.compiler.frontend.exporting import export
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.torch import import_torch
from llmos.models.causal_lm import CausalLM, CausalLMOptions, longest_context
from llmos.models.encoder import INPUTS, MAX_BATCH, Encoder, Pool, dynamic_shapes, examples_of
from llmos.models.float_weights import run_in_float32, traced_as_float32
from llmos.models.repeated_layers import NotRepeatedError, find_layers, with_copies
from llmos.models.step import traceable
from llmos.runtime.engine.model import SENTENCE_EMBEDDING


def import_embeddings(source: CausalLM, pooling: str, options: CausalLMOptions) -> ImportedModel:
    """The linalg stage of (input_ids, attention_mask), int64 [batch, tokens], to `embeddings` [batch, hidden], each of length 1.

    pooling: "last" for the hidden state of each text's last token, "mean" for that of all. A model of a half type is computed in float32
    from weights that are read one by one, as its step is (`causal_lm.import_model`). Raises UserError, UnsupportedError.
    """
    model, limit = source.model, longest_context(source.model.config, options)
    module = _Decoder(model.base_model, Pool(pooling, normalize=True)).eval()
    examples = examples_of(model.config, MAX_BATCH, limit)
    arguments = tuple(map(torch.from_numpy, examples[0]))
    shapes = dynamic_shapes(MAX_BATCH, limit)
    with traceable(model, limit), traced_as_float32(model.base_model) as weights:
        imported = import_torch(
            _program(module, model.config.num_hidden_layers, arguments, shapes),
            arguments,
            shapes,
            input_names=INPUTS,
            output_names=("embeddings",),
            name=source.name,
            assets=source.assets,
            metadata={
                "task": SENTENCE_EMBEDDING,
                "pooling": pooling,
                "normalize": True,
                "max_length": min(limit, source.max_length or limit),
                "model_type": str(model.config.model_type),
            },
            weights={f"model.{name}": weight for name, weight in weights.items()},
            reference=_Reference(model, module, limit),
        )
    return replace(imported, examples=examples)


class _Decoder(Encoder):
    """As Encoder. Padding stands behind the tokens, where no token looks, so that the mask is for the pooling alone."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.finish(self.model(input_ids=input_ids, use_cache=False), attention_mask)


def _program(module: nn.Module, num_layers: int, arguments: Sequence[torch.Tensor], shapes: Any) -> Any:
    """What is imported: the module, or a program of which only the layers that differ were traced."""
    layers = find_layers(module, num_layers)
    templates = layers.templates() if layers is not None else []
    traced = max(templates, default=0) + 1
    if layers is None or traced == num_layers:
        return module
    with layers.cut(traced):
        program = export(module, arguments, shapes)
    try:
        return with_copies(program, layers, templates, traced)
    except NotRepeatedError:
        return module


@dataclass(frozen=True)
class _Reference:
    """The eager model: numpy inputs to embeddings."""

    model: Any
    module: nn.Module
    max_length: int

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        arguments = [torch.from_numpy(np.array(array)) for array in inputs]
        with traceable(self.model, self.max_length), run_in_float32(self.model.base_model), torch.no_grad():
            return [self.module(*arguments).numpy()]
