"""Names and sizes of the dynamic dimensions of an ONNX model's inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from torch.export import Dim

from llmos.compiler.frontend.names import identifiers
from llmos.compiler.frontend.onnx.dtypes import torch_dtype
from llmos.compiler.frontend.onnx.low_precision import FORMATS
from llmos.runtime.errors import UnsupportedError, UserError

Range = tuple[int, int]

# Example inputs are small, because the model runs on them to find valid sizes.
MAX_EXAMPLE_ELEMENTS = 2**22
# Limit of an input of static sizes, which is allocated too.
MAX_INPUT_ELEMENTS = 2**30


@dataclass(frozen=True)
class InputSpec:
    """A graph input: a dim is a size or the name of a dynamic dimension; `low_precision` is its element type if it is passed as codes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]
    low_precision: int | None = None


def input_specs(graph: onnx.GraphProto) -> tuple[InputSpec, ...]:
    """Return the model's inputs in order, without the initializers that old files list among them.

    Raises UnsupportedError for an input that isn't a tensor of a declared rank.
    """
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    names = identifiers(dim.dim_param for value in inputs for dim in value.type.tensor_type.shape.dim if dim.dim_param)
    fresh = (name for i in itertools.count() if (name := f"d{i}") not in names.values())
    return tuple(_spec(value, names, fresh) for value in inputs)


def _spec(value: onnx.ValueInfoProto, names: Mapping[str, str], fresh: Iterator[str]) -> InputSpec:
    if not value.type.HasField("tensor_type"):
        raise UnsupportedError(
            f"input '{value.name}' is {value.type.WhichOneof('value') or 'of no type'}, not a tensor; export the model with plain tensors."
        )
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise UnsupportedError(f"input '{value.name}' has no declared rank; export the model with the shapes of its inputs.")
    shape = tuple(_dim(dim, names, fresh) for dim in tensor.shape.dim)
    if tensor.elem_type in FORMATS:
        return InputSpec(value.name, torch.uint8, shape, tensor.elem_type)
    return InputSpec(value.name, torch_dtype(tensor.elem_type), shape)


def _dim(dim: onnx.TensorShapeProto.Dimension, names: Mapping[str, str], fresh: Iterator[str]) -> int | str:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return names[dim.dim_param] if dim.dim_param else next(fresh)


def symbols_of(specs: Sequence[InputSpec]) -> tuple[str, ...]:
    """Return the names of the dynamic dimensions, in the order of their first use."""
    return tuple(dict.fromkeys(dim for spec in specs for dim in spec.shape if isinstance(dim, str)))


def with_static(specs: Sequence[InputSpec], sizes: Mapping[str, int]) -> tuple[InputSpec, ...]:
    """Fix some dynamic dimensions of the specs."""
    return tuple(replace(s, shape=tuple(sizes.get(d, d) if isinstance(d, str) else d for d in s.shape)) for s in specs)


def renamed(specs: Sequence[InputSpec], names: Sequence[str]) -> tuple[InputSpec, ...]:
    """Rename the dynamic dimensions of the specs to `names`, in order; names that the file already has change nothing.

    Raises UserError for another number of names.
    """
    own = symbols_of(specs)
    if set(names) <= set(own):
        return tuple(specs)
    if len(names) != len(own):
        raise UserError(
            f"{len(names)} names for the model's {len(own)} dynamic dimensions ({', '.join(own) or 'none'}): give one for each, in order."
        )
    called = identifiers(names)
    new = {old: called[name] for old, name in zip(own, names, strict=True)}
    return tuple(replace(s, shape=tuple(new[d] if isinstance(d, str) else d for d in s.shape)) for s in specs)


def check_names(dynamic: Mapping[str, object], specs: Sequence[InputSpec]) -> None:
    """Raise UserError if a name isn't that of a dynamic dimension."""
    known = symbols_of(specs)
    for name in dynamic:
        if name not in known:
            raise UserError(f"the model has no dynamic dimension '{name}'; it has: {', '.join(known) or 'none'}.")


def dynamic_shapes(specs: Sequence[InputSpec], ranges: Mapping[str, Range]) -> tuple[dict[int, Dim] | None, ...] | None:
    """Return torch.export's dynamic shapes, one entry for each input; None if all are static."""
    names = symbols_of(specs)
    if not names:
        return None
    dims = {name: Dim(name, min=ranges[name][0], max=ranges[name][1]) if name in ranges else Dim(name, min=1) for name in names}
    return tuple({axis: dims[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} or None for spec in specs)


def candidate_sizes(specs: Sequence[InputSpec], ranges: Mapping[str, Range]) -> Iterator[dict[str, int]]:
    """Yield sizes to trace the model at, most general first: distinct primes, then those that strided and framed models need."""
    for sizes in _candidates(symbols_of(specs), ranges):
        if all(math.prod(sizes[d] if isinstance(d, str) else d for d in spec.shape) <= MAX_EXAMPLE_ELEMENTS for spec in specs):
            yield sizes


def _candidates(names: Sequence[str], ranges: Mapping[str, Range]) -> Iterator[dict[str, int]]:
    primes = (3, 5, 7, 11, 13, 17, 19, 23)
    yield _within({name: primes[i % len(primes)] for i, name in enumerate(names)}, ranges)
    # A window comes after its input, and must fit into it.
    yield _within({name: primes[-1 - i % len(primes)] for i, name in enumerate(names)}, ranges)
    for step in (32, 64, 128, 512):
        # The first dimension is usually a batch.
        for first in (3, step):
            sizes = {name: step * (i + 1) for i, name in enumerate(names)}
            yield _within(sizes | ({names[0]: first} if names else {}), ranges)


def _within(sizes: dict[str, int], ranges: Mapping[str, Range]) -> dict[str, int]:
    return {name: min(max(size, ranges[name][0]), ranges[name][1]) if name in ranges else size for name, size in sizes.items()}


def example_inputs(specs: Sequence[InputSpec], sizes: Mapping[str, int], seed: int = 0, small: bool = False) -> tuple[torch.Tensor, ...]:
    """Make inputs to trace with: standard normal floats; integers in the range of bytes, 0 and 1 if `small` or for masks and token types.

    Raises UnsupportedError for an input too large to allocate.
    """
    generator = np.random.default_rng(seed)
    shapes = [[sizes[d] if isinstance(d, str) else d for d in spec.shape] for spec in specs]
    for spec, shape in zip(specs, shapes, strict=True):
        if math.prod(shape) > MAX_INPUT_ELEMENTS:
            raise UnsupportedError(f"input '{spec.name}' has {math.prod(shape):,} elements: is a size in the model wrong?")
    return tuple(_example(spec, shape, generator, small) for spec, shape in zip(specs, shapes, strict=True))


def _example(spec: InputSpec, shape: list[int], generator: np.random.Generator, small: bool) -> torch.Tensor:
    if spec.dtype.is_floating_point:
        return torch.from_numpy(np.asarray(generator.standard_normal(shape))).to(spec.dtype)
    is_flag = small or spec.dtype == torch.bool or any(word in spec.name.lower() for word in ("mask", "type", "flag"))
    high = 2 if is_flag else 128 if spec.dtype == torch.int8 else 256
    return torch.from_numpy(np.asarray(generator.integers(0, high, shape))).to(spec.dtype)
