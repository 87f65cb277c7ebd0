"""Element types of ONNX, numpy and torch, and conversions of arrays."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType

import ml_dtypes
import numpy as np
import torch
from onnx import TensorProto, helper
from torch.utils._python_dispatch import _get_current_dispatch_mode

from llmos.compiler.frontend.onnx.low_precision import FORMATS, array_of, codes_of, low_precision_type
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
    }
)

# numpy lacks the type; ml_dtypes provides it, torch takes it through an integer view of the same width.
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

INTEGER_RANGE: Mapping[torch.dtype, tuple[int, int]] = MappingProxyType(
    {
        dtype: (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        for dtype in (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64)
    }
)


def torch_dtype(elem_type: int) -> torch.dtype:
    """Return the torch dtype of an ONNX element type. Raises UnsupportedError for strings and the types of low_precision.py."""
    dtype = TORCH_OF_ONNX.get(elem_type)
    if dtype is not None:
        return dtype
    name = TensorProto.DataType.Name(elem_type) if elem_type in TensorProto.DataType.values() else f"number {elem_type}"
    advice = "cast them to float first" if elem_type in FORMATS else "export the model with another type"
    raise UnsupportedError(f"elements of type {name} aren't supported here; {advice}.")


def wide(x: torch.Tensor) -> torch.Tensor:
    """Convert half floats to float32, in which sums, squares and statistics are computed; others are unchanged."""
    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """Return the numpy (or ml_dtypes) dtype of a torch dtype."""
    return BFLOAT16 if dtype == torch.bfloat16 else np.dtype(str(dtype).removeprefix("torch."))


def dtype_of(dtype: np.dtype) -> torch.dtype:
    """Invert `numpy_dtype`. Raises UnsupportedError for strings and low-precision types."""
    elem_type = helper.np_dtype_to_tensor_dtype(dtype)
    return torch_dtype(elem_type)


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Convert an array to a tensor, sharing memory if it is dense, except for bfloat16 during tracing.

    Raises UnsupportedError for strings.
    """
    if array.dtype == object or array.dtype.kind in "SUT":
        raise UnsupportedError("strings aren't supported; keep text handling out of the exported model.")
    dtype = dtype_of(array.dtype)
    array = np.ascontiguousarray(array).reshape(array.shape)
    with warnings.catch_warnings():
        # Weights are mapped read-only, and nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if array.dtype != BFLOAT16:
            return torch.from_numpy(array)
        if _get_current_dispatch_mode() is not None:
            return torch.from_numpy(array.astype(np.float32)).to(dtype)
        return torch.from_numpy(array.view(np.uint16)).view(dtype)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return the array of a dense CPU tensor; bfloat16 as ml_dtypes' type."""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(BFLOAT16)
    return tensor.numpy()


def to_storage(array: np.ndarray) -> np.ndarray:
    """Convert an array to a program's form: dense, with types that numpy lacks as integers of their bits."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    if low_precision_type(array.dtype) is not None:
        return codes_of(array)
    return array.view(np.uint16) if array.dtype == BFLOAT16 else array


def from_storage(array: np.ndarray, elem_type: int) -> np.ndarray:
    """Invert `to_storage` for an ONNX element type."""
    if elem_type in FORMATS:
        return array_of(array, elem_type)
    return array.view(BFLOAT16) if elem_type == TensorProto.BFLOAT16 else array
