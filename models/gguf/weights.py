"""A transformers model with the weights of a GGUF file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from llmos.models.gguf.blocks import BlockIntegers
from llmos.models.gguf.config import ARCHITECTURES, ROPE_FACTORS, Facts, model_config
from llmos.models.gguf.file import GgufFile, GgufTensor
from llmos.models.gguf.layers import BlockEmbedding, BlockLinear
from llmos.models.gguf.names import gguf_name, is_rotated, row_order, transformers_name
from llmos.models.loading import quiet_transformers
from llmos.runtime.errors import UnsupportedError, UserError

_HALF = {"F16": torch.float16, "BF16": torch.bfloat16}
_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def load_model(file: GgufFile, *, keep_blocks: bool) -> Any:
    """The model of a file in eval mode; with `keep_blocks`, quantized layers compute with the integers of their blocks.

    A quantized embedding always does. Matrices of half types stay in the file, and are to be computed with in float32
    (models/float_weights.py); all else is float32. Raises UserError, UnsupportedError.
    """
    config = model_config(file)
    kind, shapes = _expected(config)
    tensors = _by_parameter(file, shapes)
    head_dim = config.head_dim if ARCHITECTURES[Facts.of(file).architecture].has_permuted_heads else 0
    if config.tie_word_embeddings and tensors[_EMBEDDING].type.is_quantized:
        # The embedding looks up integers, the output layer multiplies: each has its own.
        config.tie_word_embeddings = False
        tensors[_OUTPUT], shapes[_OUTPUT] = tensors[_EMBEDDING], shapes[_EMBEDDING]
    halves = {name: tensor for name, tensor in tensors.items() if tensor.type.name in _HALF and len(tensor.shape) == 2}
    quantized = {name: tensor for name, tensor in tensors.items() if tensor.type.is_quantized and len(tensor.shape) == 2}
    kept = {name: tensor for name, tensor in quantized.items() if keep_blocks or name == _EMBEDDING}
    state = {name: _floats(tensor, _order(tensor, head_dim)) for name, tensor in tensors.items() if name not in kept and name not in halves}
    state |= {name: torch.zeros(shape) for name, shape in shapes.items() if name not in tensors}
    state |= {name: torch.zeros(()).expand(shapes[name]) for name in (*kept, *halves)}
    with quiet_transformers():
        model = kind.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32).eval()
    for name, tensor in kept.items():
        _keep(model, name.removesuffix(".weight"), _blocks(tensor, _order(tensor, head_dim)))
    for name, tensor in halves.items():
        _replace(model, model.get_parameter(name), _mapped(tensor, _order(tensor, head_dim)))
    _scale_frequencies(model, file)
    return model


def _mapped(tensor: GgufTensor, order: np.ndarray | None) -> torch.Tensor:
    """A tensor of a half type where it lies in the file, unless its rows are in another order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arrays that can't be written, which nothing does
        values = torch.from_numpy(tensor.data).view(_HALF[tensor.type.name]).view(tensor.shape)
    return values if order is None else values[torch.from_numpy(order)]


def _replace(model: Any, parameter: nn.Parameter, values: torch.Tensor) -> None:
    """Put a weight in the place of another one, in all modules that have it."""
    new = nn.Parameter(values, requires_grad=False)
    for module in model.modules():
        for key, own in module._parameters.items():
            if own is parameter:
                module._parameters[key] = new


def _keep(model: Any, path: str, blocks: BlockIntegers) -> None:
    """Put a layer that computes with blocks in the place of a module."""
    module = model.get_submodule(path)
    model.set_submodule(path, BlockLinear(blocks, module.bias) if isinstance(module, nn.Linear) else BlockEmbedding(blocks))


def _expected(config: Any) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The model's class, and the shapes of its parameters, each once."""
    import transformers

    with torch.device("meta"), quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_config(config)
    return type(model), {name: tuple(value.shape) for name, value in model.named_parameters()}


def _by_parameter(file: GgufFile, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, GgufTensor]:
    """The tensor of each parameter. Raises UserError for one that is missing or of another shape, or that no parameter is."""
    found: dict[str, GgufTensor] = {}
    for name, tensor in file.tensors.items():
        parameter = transformers_name(name)
        if name == ROPE_FACTORS:
            continue
        if parameter is None or parameter not in shapes:
            raise UnsupportedError(f"the tensor {name!r} has no place in a model of this architecture; is it of another one?")
        if tensor.shape != shapes[parameter]:
            raise UserError(
                f"the tensor {name!r} is {list(tensor.shape)}, and by the metadata {list(shapes[parameter])}; copy the file again"
            )
        found[parameter] = tensor
    for parameter in shapes:
        if parameter not in found and not _is_bias_of_few(parameter, found):
            raise UserError(f"the file has no tensor {gguf_name(parameter)!r}; copy it again")
    return found


def _is_bias_of_few(parameter: str, found: Mapping[str, GgufTensor]) -> bool:
    """Whether a parameter is a bias that transformers has only because others of its kind do: none of its name is in the file."""
    suffix = parameter.split(".", 3)[-1]
    return parameter.endswith(".bias") and not any(name.endswith(suffix) for name in found)


def _order(tensor: GgufTensor, head_dim: int) -> np.ndarray | None:
    """Which row of a tensor is each of transformers'; None where they are in order. head_dim: 0 where all are."""
    return row_order(tensor.shape[0], head_dim) if head_dim and is_rotated(tensor.name) else None


def _floats(tensor: GgufTensor, order: np.ndarray | None) -> torch.Tensor:
    values = tensor.dequantized()
    return torch.from_numpy(values if order is None else values[order])


def _blocks(tensor: GgufTensor, order: np.ndarray | None) -> BlockIntegers:
    found = tensor.unpacked()
    assert found is not None
    if order is None:
        return found
    minimums = None if found.minimums is None else found.minimums[order]
    return replace(found, values=found.values[order], scales=found.scales[order], minimums=minimums)


def _scale_frequencies(model: Any, file: GgufFile) -> None:
    """Divide rotary frequencies by the factors that a file has for each (Llama 3.1). Raises UserError for other than one a frequency."""
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is None:
        return
    rotary = model.model.rotary_emb
    values = factors.dequantized()
    if values.shape != tuple(rotary.inv_freq.shape) or not (np.isfinite(values) & (values > 0)).all():
        raise UserError(
            f"the tensor {ROPE_FACTORS!r} isn't a factor above 0 for each of {len(rotary.inv_freq)} frequencies; copy the file again"
        )
    with torch.no_grad():
        rotary.inv_freq /= torch.from_numpy(values)
        rotary.original_inv_freq = rotary.inv_freq
