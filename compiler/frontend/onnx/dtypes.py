"""Element types of ONNX, numpy and torch, and arrays between the three."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import ml_dtypes
import numpy as np
import torch
from onnx import TensorProto

from llmos.runtime.errors import UnsupportedError

TORCH_OF_ONNX: Mapping[int, torch.dtype] = MappingProxyType(
    {
        TensorProto.FLOAT: torch.float32,
        TensorProto.DOUBLE: torch.float64,
        TensorProto.FLOAT16: torch.float16,
        TensorProto.BFLOAT16: torch.bfloat16,
        TensorProto.INT8: torch.int8,
        TensorProto.INT16: torch.int16,
        TensorProto.INT32: torch.int32,
        TensorProto.INT64: torch.int64,
        TensorProto.UINT8: torch.uint8,
        TensorProto.UINT16: torch.uint16,
        TensorProto.UINT32: torch.uint32,
        TensorProto.UINT64: torch.uint64,
        TensorProto.BOOL: torch.bool,
        TensorProto.COMPLEX64: torch.complex64,
        TensorProto.COMPLEX128: torch.complex128,
        TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
        TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
        TensorProto.FLOAT8E5M2: torch.float8_e5m2,
        TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    }
)

# numpy has no such types of its own; ml_dtypes gives them, torch takes them through an integer view of the same width.
_VIEWS: Mapping[np.dtype, tuple[type, torch.dtype]] = MappingProxyType(
    {
        np.dtype(ml_dtypes.bfloat16): (np.uint16, torch.bfloat16),
        np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
        np.dtype(ml_dtypes.float8_e4m3fnuz): (np.uint8, torch.float8_e4m3fnuz),
        np.dtype(ml_dtypes.float8_e5m2): (np.uint8, torch.float8_e5m2),
        np.dtype(ml_dtypes.float8_e5m2fnuz): (np.uint8, torch.float8_e5m2fnuz),
    }
)

INTEGER_RANGE: Mapping[torch.dtype, tuple[int, int]] = MappingProxyType(
    {
        dtype: (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        for dtype in (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64)
    }
)


def torch_dtype(elem_type: int) -> torch.dtype:
    """The torch dtype of an ONNX element type. UnsupportedError for strings, 4-bit types and the like."""
    dtype = TORCH_OF_ONNX.get(elem_type)
    if dtype is None:
        raise UnsupportedError(f"element type {TensorProto.DataType.Name(elem_type)} isn't supported; export the model with another type.")
    return dtype


@cache
def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """The numpy (or ml_dtypes) dtype with the bits of a torch dtype."""
    for array_dtype, (_, tensor_dtype) in _VIEWS.items():
        if tensor_dtype == dtype:
            return array_dtype
    return np.dtype(str(dtype).removeprefix("torch."))


def to_torch(array: np.ndarray) -> torch.Tensor:
    """A tensor over the memory of `array` (no copy when it is dense)."""
    if array.dtype == object or array.dtype.kind in "SU":
        raise UnsupportedError("strings aren't supported; keep text handling out of the exported model.")
    array = np.ascontiguousarray(array).reshape(array.shape)
    with warnings.catch_warnings():
        # Weights are mapped read-only and nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        view = _VIEWS.get(array.dtype)
        if view is not None:
            return torch.from_numpy(array.view(view[0])).view(view[1])
        if array.dtype.kind not in "fiubc":
            raise UnsupportedError(f"element type {array.dtype} isn't supported; export the model with another type.")
        return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The array of a dense CPU tensor; bfloat16 and float8 as ml_dtypes."""
    tensor = tensor.detach().contiguous()
    for array_dtype, (width, dtype) in _VIEWS.items():
        if dtype == tensor.dtype:
            return tensor.view(torch.uint16 if width is np.uint16 else torch.uint8).numpy().view(array_dtype)
    return tensor.numpy()


def to_storage(array: np.ndarray) -> np.ndarray:
    """An array as programs take it: dense, and types that numpy lacks as the integers that hold their bits."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    view = _VIEWS.get(array.dtype)
    return array.view(view[0]) if view is not None else array


def from_storage(array: np.ndarray, dtype: str) -> np.ndarray:
    """The reverse of `to_storage` for an element type by its name in manifests."""
    wanted = next((kind for kind in _VIEWS if kind.name == dtype), None)
    return array.view(wanted) if wanted is not None else array
