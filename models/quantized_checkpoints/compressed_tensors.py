"""compressed-tensors (vLLM's llm-compressor): packed integers, and plain tensors of int8 or float8 (E4M3).

A linear layer [n, k], scales [n, groups] in groups of inputs, [n, 1] per channel, [1] or [] per tensor:

    pack-quantized   weight_packed int32 [n, ceil(k * bits / 32)], numbers of k, each plus 2^(bits - 1); weight_shape int64 [2]
                     weight_zero_point int32 [ceil(n * bits / 32), groups], packed along n likewise, where it isn't symmetric
                     weight_g_idx int32 [k], the group of each input, where activations were ordered by groups
    int-quantized    weight int8 [n, k]; weight_zero_point int8, of the scales' shape, where it isn't symmetric
    float-quantized  weight float8_e4m3fn [n, k]
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from llmos.compiler.analysis.quantization import FLOAT8
from llmos.models.quantized_checkpoints.packing import column_order, require_words, unpacked
from llmos.models.quantized_checkpoints.scheme import flag, group_size, integer, required
from llmos.models.quantized_checkpoints.weight import QuantizedWeight, require_groups, require_scales, require_shape
from llmos.runtime.errors import UnsupportedError, UserError

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
STRATEGIES = ("tensor", "channel", "group")
_PACKED_BITS = (2, 4, 8)


@dataclass(frozen=True)
class WeightArgs:
    """How the weights of a config group are quantized. group_size: 0 without groups."""

    bits: int
    is_float: bool
    is_symmetric: bool
    strategy: str
    group_size: int

    @classmethod
    def of(cls, config: Any) -> WeightArgs:
        """Reads `weights` of a config group. Raises UserError, UnsupportedError."""
        if not isinstance(config, dict):
            raise UnsupportedError("quantization_config has a group without settings of weights; only weights are read")
        size = None if config.get("group_size") is None else group_size(config, "group_size")
        inferred = "tensor" if size is None else "channel" if size == -1 else "group"
        strategy = str(config.get("strategy") or inferred)
        if strategy not in STRATEGIES:
            raise UnsupportedError(f"weights with a scale per {strategy} aren't supported; per {', '.join(STRATEGIES)} are")
        if strategy == "group" and (size is None or size < 1):
            raise UserError("quantization_config: the strategy is group, and there is no group_size")
        bits, is_float = integer(config, "num_bits", default=8), str(config.get("type", "int")) == "float"
        if is_float and bits != 8:
            raise UnsupportedError(f"weights of float{bits} aren't supported; float8 (E4M3) is")
        return cls(bits, is_float, flag(config, "symmetric", True), strategy, size or 0 if strategy == "group" else 0)

    @property
    def text(self) -> str:
        kind = f"{'float' if self.is_float else 'int'}{self.bits} per {self.strategy}"
        return f"{kind}, group_size {self.group_size}" if self.group_size else kind


@dataclass(frozen=True)
class ConfigGroup:
    """Settings, and the layers that they are of: names, "re:" and a regular expression, or classes such as "Linear"."""

    targets: tuple[str, ...]
    weights: WeightArgs
    quantizes_activations: bool

    def rank(self, layer: str) -> int:
        """How closely the targets name a layer: 2 by its name, 1 by an expression, 0 by its class; -1 not at all."""
        if any(layer == each or layer.endswith(f".{each}") for each in self.targets if each != "Linear"):
            return 2
        if any(each.startswith("re:") and _matches(each.removeprefix("re:"), layer) for each in self.targets):
            return 1
        return 0 if "Linear" in self.targets else -1


@dataclass(frozen=True)
class CompressedTensors:
    groups: tuple[ConfigGroup, ...]

    markers: ClassVar[tuple[str, ...]] = ("weight_packed", "weight_scale")
    tensors: ClassVar[tuple[str, ...]] = ("weight", "weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> CompressedTensors:
        """Reads quantization_config. Raises UserError, UnsupportedError."""
        form = str(config.get("format"))
        if form not in FORMATS:
            raise UnsupportedError(f"the compressed-tensors format {form!r} isn't supported; {', '.join(FORMATS)} are")
        sparsity = config.get("sparsity_config") or {}
        if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
            raise UnsupportedError(f"sparse weights ({sparsity['format']}) aren't supported")
        if config.get("transform_config"):
            raise UnsupportedError("weights of transformed inputs (`transform_config` in quantization_config) aren't supported")
        groups = config.get("config_groups")
        if not isinstance(groups, dict) or not groups or not all(isinstance(each, dict) for each in groups.values()):
            raise UserError("quantization_config has no config_groups, which say how layers are quantized")
        return cls(tuple(_group(each) for each in groups.values()))

    @property
    def notes(self) -> tuple[str, ...]:
        if not any(each.quantizes_activations for each in self.groups):
            return ()
        return ("quantization_config quantizes the inputs of layers too: they are computed as floats here, which is more exact",)

    def unpack(self, layer: str, tensors: Mapping[str, torch.Tensor]) -> QuantizedWeight:
        args = self._args(layer)
        scales = required(layer, tensors, "weight_scale")
        require_scales(f"{layer}.weight_scale", scales)
        values = _packed_values(layer, tensors, args) if "weight_packed" in tensors else _plain_values(layer, tensors, args)
        rows, columns = values.shape
        index = tensors.get("weight_g_idx")
        order = None
        if index is not None and args.group_size and not bool((index == -1).all()):
            require_shape(f"{layer}.weight_g_idx", index, (columns,), args.text)
            order = column_order(f"{layer}.weight_g_idx", index, args.group_size)
        groups = require_groups(layer, columns, args.group_size) if args.group_size else 1
        points = _zero_points(layer, tensors, args, rows, groups)
        return QuantizedWeight(
            (values if order is None else values[:, order]).contiguous(),
            _parameter(f"{layer}.weight_scale", scales, args, rows, groups),
            None if points is None else _parameter(f"{layer}.weight_zero_point", points, args, rows, groups),
            FLOAT8 if args.is_float else f"int{args.bits}",
            0 if groups == 1 else args.group_size,
            order,
        )

    def _args(self, layer: str) -> WeightArgs:
        found = max(self.groups, key=lambda group: group.rank(layer))
        if found.rank(layer) < 0:
            raise UserError(f"{layer} is quantized, and quantization_config has no config group for it; correct its targets")
        return found.weights


def _group(config: Mapping[str, Any]) -> ConfigGroup:
    targets = config.get("targets")
    if not isinstance(targets, list):
        raise UserError("quantization_config has a config group without targets; correct config.json")
    activations = config.get("input_activations") or config.get("output_activations")
    return ConfigGroup(tuple(map(str, targets)), WeightArgs.of(config.get("weights")), activations is not None)


def _matches(pattern: str, layer: str) -> bool:
    try:
        return re.match(pattern, layer) is not None
    except re.error as error:
        raise UserError(f"quantization_config: the target {pattern!r} is no regular expression ({error})") from None


def _packed_values(layer: str, tensors: Mapping[str, torch.Tensor], args: WeightArgs) -> torch.Tensor:
    """int8 [n, k]."""
    words, shape = tensors["weight_packed"], required(layer, tensors, "weight_shape")
    if args.is_float or args.bits not in _PACKED_BITS:
        raise UnsupportedError(f"{layer}: packed {args.text} isn't supported; int of {', '.join(map(str, _PACKED_BITS))} bits is")
    require_words(f"{layer}.weight_packed", words)
    if shape.numel() != 2 or shape.is_floating_point():
        raise UserError(f"{layer}.weight_shape is {shape.tolist()}, not rows and columns")
    rows, columns = (int(size) for size in shape.flatten())
    require_shape(f"{layer}.weight_packed", words, (rows, math.ceil(columns * args.bits / 32)), f"{args.text}, of {rows} by {columns}")
    return _signed(words, args.bits, columns)


def _plain_values(layer: str, tensors: Mapping[str, torch.Tensor], args: WeightArgs) -> torch.Tensor:
    """int8 [n, k], or the uint8 codes of float8."""
    values = required(layer, tensors, "weight")
    wanted = torch.float8_e4m3fn if args.is_float else torch.int8
    if values.dtype != wanted or values.ndim != 2:
        kind, right = (str(each).removeprefix("torch.") for each in (values.dtype, wanted))
        raise UserError(f"{layer}.weight is {kind} {list(values.shape)}, and by quantization_config ({args.text}) a matrix of {right}")
    if not args.is_float:
        return values
    codes = values.view(torch.uint8)
    if bool(((codes & 0x7F) == 0x7F).any()):
        raise UserError(f"{layer}.weight holds NaN; quantize the model again")
    return codes


def _zero_points(layer: str, tensors: Mapping[str, torch.Tensor], args: WeightArgs, rows: int, groups: int) -> torch.Tensor | None:
    """int8 of the scales' shape; None where there are none, or all are 0."""
    points = tensors.get("weight_zero_point")
    if points is None:
        if not args.is_symmetric:
            raise UserError(f"{layer} has no weight_zero_point, and by quantization_config its weights aren't symmetric")
        return None
    if points.dtype == torch.int32 and "weight_packed" in tensors and args.strategy != "tensor":
        packed = (math.ceil(rows * args.bits / 32), groups)
        require_shape(f"{layer}.weight_zero_point", points, packed, args.text)
        points = _signed(points.T, args.bits, rows).T
    if not bool(points.to(torch.float32).any()):
        return None
    if args.is_float or points.is_floating_point():
        raise UnsupportedError(f"{layer}: zero points of {args.text} aren't supported")
    return points


def _signed(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """int32 [rows, words] -> int8 [rows, count]."""
    return (unpacked(words, bits)[:, :count].to(torch.int16) - (1 << (bits - 1))).to(torch.int8)


def _parameter(name: str, tensor: torch.Tensor, args: WeightArgs, rows: int, groups: int) -> torch.Tensor:
    """A scale or zero point as [rows, groups], [rows] or []. Raises UserError where it has another shape."""
    if args.strategy == "tensor":
        if tensor.numel() != 1:
            raise UserError(f"{name} is {list(tensor.shape)}, and by quantization_config ({args.text}) one number; correct config.json")
        return tensor.reshape(())
    if args.strategy == "channel":
        require_shape(name, tensor.reshape(rows, 1) if tuple(tensor.shape) == (rows,) else tensor, (rows, 1), args.text)
        return tensor.reshape(rows).contiguous()
    require_shape(name, tensor, (rows, groups), args.text)
    return tensor.reshape(rows).contiguous() if groups == 1 else tensor.contiguous()
