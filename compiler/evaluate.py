"""Running generated code inside the compiler, for what is computed once at compile time."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmos.runtime.errors import PassError

_KERNEL = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
_ARENA = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int32
)


class _Context(ctypes.Structure):
    """llmos_context (runtime/native/include/llmos/abi.h)."""

    _fields_ = [("weights", ctypes.c_void_p), ("arena", _ARENA), ("launch", _LAUNCH)]


class _Tensor(ctypes.Structure):
    """DLTensor; device, rank and dtype are not read by generated code."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Any(ctypes.Structure):
    """TVMFFIAny."""

    _fields_ = [("type_index", ctypes.c_int32), ("padding", ctypes.c_uint32), ("value", ctypes.c_void_p)]


def call_entry(code: bytes, symbol: str, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
    """Call an entry without weights of a shared object on dense arrays, on this thread; `outputs` are written.

    Raises PassError where the code reports an error.
    """
    blocks: list[ctypes.Array[ctypes.c_char]] = []

    def allocate(num_bytes: int) -> int:
        blocks.append(ctypes.create_string_buffer(max(0, num_bytes) + 64))
        return (ctypes.addressof(blocks[-1]) + 63) // 64 * 64

    def launch(_: int, kernel: int, buffers: int, dims: int, num_tiles: int, scratch_bytes: int, __: int) -> int:
        return int(_KERNEL(kernel)(buffers, dims, 0, num_tiles, allocate(scratch_bytes)))

    context = _Context(None, _ARENA(lambda _, num_bytes: allocate(num_bytes)), _LAUNCH(launch))
    arrays = [*inputs, *outputs]
    tensors = [_tensor(array) for array in arrays]
    arguments = (_Any * len(tensors))(*[_Any(7, 0, ctypes.addressof(tensor)) for tensor in tensors])
    with tempfile.TemporaryDirectory(prefix="llmos-evaluate-") as directory:
        path = Path(directory) / "code.so"
        path.write_bytes(code)
        library = ctypes.CDLL(str(path), mode=os.RTLD_LOCAL)
        entry = getattr(library, symbol)
        entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p]
        status = entry(ctypes.byref(context), arguments, len(tensors), ctypes.byref(_Any()))
    if status:
        raise PassError(f"computation on weights at compile time failed with code {status}")


def _tensor(array: np.ndarray) -> _Tensor:
    assert array.flags.c_contiguous
    shape = (ctypes.c_int64 * max(1, array.ndim))(*array.shape)
    return _Tensor(array.ctypes.data, ndim=array.ndim, shape=ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)))
