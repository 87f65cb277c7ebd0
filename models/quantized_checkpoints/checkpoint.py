"""A quantized checkpoint: which of its layers are quantized, and a transformers model with those in place of its linear layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from llmos.models.quantized_checkpoints.awq import Awq
from llmos.models.quantized_checkpoints.compressed_tensors import CompressedTensors
from llmos.models.quantized_checkpoints.gptq import Gptq
from llmos.models.quantized_checkpoints.linear import QuantizedLinear
from llmos.models.quantized_checkpoints.scheme import Scheme
from llmos.models.quantized_checkpoints.weight import QuantizedWeight
from llmos.runtime.errors import UnsupportedError, UserError

SCHEMES: Mapping[str, Callable[[Mapping[str, Any]], Scheme]] = MappingProxyType(
    {"gptq": Gptq.of, "awq": Awq.of, "compressed-tensors": CompressedTensors.of}
)
CONFIGS = ("quantization_config", "compression_config")  # in config.json; the second in old compressed-tensors checkpoints
_OF_ACTIVATIONS = ("scales",)  # a suffix that AWQ also gives to factors of activation functions


def scheme_of(config: Mapping[str, Any]) -> Scheme | None:
    """The format that a config.json names, None where it names none. Raises UserError, UnsupportedError."""
    settings = next((config[name] for name in CONFIGS if config.get(name)), None)
    if settings is None:
        return None
    if not isinstance(settings, dict):
        raise UserError("config.json: quantization_config is not an object; copy it again")
    method = str(settings.get("quant_method"))
    if method not in SCHEMES:
        raise UnsupportedError(f"weights quantized by {method!r} aren't supported; {', '.join(SCHEMES)} are")
    return SCHEMES[method](settings)


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """Quantized layers by name, and the other tensors of the files."""

    layers: Mapping[str, QuantizedWeight]
    others: Mapping[str, torch.Tensor]

    @classmethod
    def read(cls, scheme: Scheme, tensors: Mapping[str, torch.Tensor]) -> QuantizedCheckpoint:
        """Raises UserError where tensors contradict the scheme, or none is quantized; UnsupportedError for what isn't a layer's weight."""
        names = quantized_layers(scheme, tensors)
        if not names:
            raise UserError(f"config.json has a quantization_config, and no tensor is named ...{' or ...'.join(scheme.markers)}")
        taken: set[str] = set()
        layers: dict[str, QuantizedWeight] = {}
        for layer in names:
            own = {suffix: f"{layer}.{suffix}" for suffix in scheme.tensors if f"{layer}.{suffix}" in tensors}
            layers[layer] = scheme.unpack(layer, {suffix: tensors[name] for suffix, name in own.items()})
            taken.update(own.values())
        _require_owners(scheme, tensors, taken)
        return cls(layers, {name: tensors[name] for name in tensors if name not in taken})

    def placeholders(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """A weight of the right shape for each layer, in memory of one element, by which its module is found once the model is loaded."""
        return {f"{layer}.weight": torch.zeros((), dtype=dtype).expand(weight.values.shape) for layer, weight in self.layers.items()}

    def replace_layers(
        self, model: nn.Module, placeholders: Mapping[str, torch.Tensor], unexpected: Collection[str], dtype: torch.dtype
    ) -> None:
        """Puts the quantized layers where the placeholders went. Raises UserError, UnsupportedError where one went elsewhere."""
        names = {value.data_ptr(): name for name, value in placeholders.items()}
        orders: list[torch.Tensor] = []
        found: set[str] = set()
        for path, module in list(model.named_modules(remove_duplicate=False)):
            for parameter in list(module.parameters(recurse=False)):
                name = names.get(parameter.data_ptr())
                if name is None:
                    continue
                if not isinstance(module, nn.Linear):
                    raise UnsupportedError(f"{name} is quantized, and {path} of the model is no linear layer but {type(module).__name__}")
                weight = _with_shared_order(self.layers[name.removesuffix(".weight")], orders)
                model.set_submodule(path, QuantizedLinear(weight, module.bias, dtype))
                found.add(name)
        self._require_places(placeholders, found, unexpected)

    def _require_places(self, placeholders: Mapping[str, torch.Tensor], found: Collection[str], unexpected: Collection[str]) -> None:
        for name in placeholders:
            if name not in found and name not in unexpected:
                raise UnsupportedError(f"{name} is quantized, and transformers makes the model's weight of several tensors")
            bias = f"{name.removesuffix('.weight')}.bias"
            if name in found and bias in unexpected and bool(self.others[bias].any()):
                raise UserError(f"the weights have {bias}, which the model of config.json lacks; are they of another model?")


def quantized_layers(scheme: Scheme, tensors: Collection[str]) -> list[str]:
    """Names of the layers that have a tensor by which the format marks them, in the files' order."""
    found = [name.rpartition(".") for name in tensors]
    return list(dict.fromkeys(layer for layer, _, suffix in found if suffix in scheme.markers))


def _require_owners(scheme: Scheme, tensors: Collection[str], taken: Collection[str]) -> None:
    """Raises UserError for a tensor of the format whose layer lacks its numbers, UnsupportedError for scales of activations."""
    for name in tensors:
        layer, _, suffix = name.rpartition(".")
        if suffix not in scheme.tensors or suffix == "weight" or name in taken:
            continue
        if suffix in _OF_ACTIVATIONS and layer.rpartition(".")[2] in ("act", "act_fn"):
            raise UnsupportedError(f"{name} scales an activation function, which isn't supported")
        raise UserError(f"{name} belongs to no quantized layer: {layer} has no {' or '.join(scheme.markers)}; copy the files again")


def _with_shared_order(weight: QuantizedWeight, orders: list[torch.Tensor]) -> QuantizedWeight:
    """The same tensor for equal orders, so that layers which read one input put it into their order once."""
    if weight.order is None:
        return weight
    same: Sequence[torch.Tensor] = [each for each in orders if torch.equal(each, weight.order)]
    if not same:
        orders.append(weight.order)
        return weight
    return QuantizedWeight(weight.values, weight.scales, weight.zero_points, weight.dtype, weight.group_size, same[0])
