"""Validation of one request's arrays against a signature, before it may share a batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmos.runtime.artifact.manifest import TensorSpec
from llmos.runtime.engine.model import Array, Signature, storage_dtype
from llmos.runtime.errors import InputError


def check_inputs(signature: Signature, inputs: Mapping[str, Array]) -> list[Array]:
    """Return the arrays in the entry's order, dense and row-major. Raises InputError with the expected and the given dtype or shape."""
    known = {spec.name for spec in signature.inputs}
    unknown = [name for name in inputs if name not in known]
    if unknown:
        raise InputError(f"unknown input '{unknown[0]}': the model takes {_names(signature.inputs)}")
    missing = [spec.name for spec in signature.inputs if spec.name not in inputs]
    if missing:
        raise InputError(f"input '{missing[0]}' is missing: the model takes {_names(signature.inputs)}")
    bound: dict[str, int] = {}
    return [_check(spec, inputs[spec.name], signature, bound) for spec in signature.inputs]


def _check(spec: TensorSpec, array: Array, signature: Signature, bound: dict[str, int]) -> Array:
    if array.dtype != storage_dtype(spec):
        raise InputError(f"input '{spec.name}' has dtype {array.dtype.name}, the model takes {spec.dtype}")
    if array.ndim != len(spec.shape):
        raise InputError(f"input '{spec.name}' has shape {list(array.shape)}, the model takes {describe_shape(spec)}")
    for size, dim in zip(array.shape, spec.shape, strict=True):
        if isinstance(dim, int):
            if size != dim:
                raise InputError(f"input '{spec.name}' has shape {list(array.shape)}, the model takes {describe_shape(spec)}")
            continue
        if bound.setdefault(dim, size) != size:
            raise InputError(f"input '{spec.name}' has {dim} = {size}, but another input has {dim} = {bound[dim]}")
        low, high = signature.symbols.get(dim, (0, size))
        if not low <= size <= high:
            raise InputError(f"input '{spec.name}' has {dim} = {size}, the model takes {low} to {high}")
    return np.ascontiguousarray(array) if array.ndim else array


def describe_shape(spec: TensorSpec) -> str:
    return "[" + ", ".join(str(dim) for dim in spec.shape) + "]"


def _names(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} ({spec.dtype} {describe_shape(spec)})" for spec in specs)
