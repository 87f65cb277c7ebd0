"""DLPack capsules of a device's memory."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_uint64, c_void_p, py_object
from typing import Any

from llmos.runtime.artifact.dtypes import DTYPES

KDL_CUDA = 2
_NAME = b"dltensor"
_peek = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_is_capsule = ctypes.PYFUNCTYPE(ctypes.c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_new_capsule = ctypes.PYFUNCTYPE(py_object, c_void_p, c_char_p, c_void_p)(("PyCapsule_New", ctypes.pythonapi))
_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "complex": 5, "bool": 6}  # DLDataTypeCode, by the name without its bits


class _ManagedTensor(ctypes.Structure):
    """DLManagedTensor, its DLTensor spelled out."""

    _fields_ = [
        ("data", c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("byte_offset", c_uint64),
        ("manager", c_void_p),
        ("deleter", c_void_p),
    ]


_hold = ctypes.PYFUNCTYPE(None, py_object)(("Py_IncRef", ctypes.pythonapi))
_let_go = ctypes.PYFUNCTYPE(None, c_void_p)(("Py_DecRef", ctypes.pythonapi))


def _delete(tensor: int) -> None:
    """Let go of what the tensor's manager holds: its memory, and the tensor itself."""
    _let_go(_ManagedTensor.from_address(tensor).manager)


def _drop(capsule: int) -> None:
    """End a capsule that nobody has taken the tensor of; a consumer renames what it takes, and deletes it itself."""
    if _is_capsule(capsule, _NAME):
        _delete(_peek(capsule, _NAME))


_DELETE, _DROP = (ctypes.CFUNCTYPE(None, c_void_p)(function) for function in (_delete, _drop))


def device_capsule(address: int, device: tuple[int, int], shape: tuple[int, ...], dtype: str, owner: Any) -> Any:
    """Return a DLPack capsule of dense, row-major memory of a device, which keeps `owner`. dtype: as a manifest names it."""
    sizes = (ctypes.c_int64 * max(1, len(shape)))(*shape)
    code, bits = _CODES[dtype.rstrip("0123456789")], 8 * DTYPES[dtype].num_bytes
    lanes, strides, offset = 1, None, 0
    tensor = _ManagedTensor(address, *device, len(shape), code, bits, lanes, ctypes.addressof(sizes), strides, offset)
    held = (tensor, sizes, owner)
    _hold(held)
    tensor.manager, tensor.deleter = id(held), ctypes.cast(_DELETE, c_void_p)
    return _new_capsule(ctypes.addressof(tensor), _NAME, ctypes.cast(_DROP, c_void_p))
