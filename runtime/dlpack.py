"""DLTensor addresses of callers' arrays: those that plain `__dlpack__` rejects, and those that a call updates in place."""

from __future__ import annotations

import contextlib
import ctypes
from ctypes import c_char_p, c_uint64, c_void_p, py_object
from typing import Any

import numpy as np

from llmos.runtime.errors import InputError

# A capsule points to a DLManagedTensor, whose first field is the DLTensor; the versioned one has flags and other fields before it.
CAPSULE, _VERSIONED_CAPSULE, _VERSIONED_OFFSET = b"dltensor", b"dltensor_versioned", 32
_FLAGS_OFFSET, _READ_ONLY, _IS_COPIED = 24, 1, 2
_REFUSALS = (AttributeError, BufferError, TypeError, ValueError, RuntimeError)
pointer_of = ctypes.PYFUNCTYPE(c_void_p, py_object, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_name_of = ctypes.PYFUNCTYPE(c_char_p, py_object)(("PyCapsule_GetName", ctypes.pythonapi))


class Exported:
    """An input whose DLTensor is made once, for many calls: a contiguous, writable numpy array of native byte order, or a device's array.

    Exporting takes microseconds an input, which a call of many small ones would pay each time. Raises InputError for another array.
    """

    __slots__ = ("address", "array", "capsule")

    def __init__(self, name: str, array: Any) -> None:
        if isinstance(array, np.ndarray) and not array.flags.c_contiguous:
            raise _not_updated(name, "contiguous")
        self.array = array
        self.capsule, self.address = export_updated(name, array)


def export_slowly(name: str, value: Any) -> tuple[Any, int]:
    """Export an input that plain `__dlpack__` rejects (read-only, bfloat16 of ml_dtypes); return a capsule and its DLTensor's address.

    Raises InputError for anything else.
    """
    _require_array(name, value)
    if isinstance(value, np.ndarray) and value.dtype.name == "bfloat16":
        value = value.view(np.uint16)
    if isinstance(value, np.ndarray) and not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    try:
        if isinstance(value, np.ndarray) and not value.flags.writeable:
            value = _writable_alias(value)
        capsule = value.__dlpack__()
    except _REFUSALS as error:
        raise _not_passed(name, value, error) from error
    return capsule, _tensor_in(capsule)


def export_updated(name: str, value: Any) -> tuple[Any, int]:
    """Export an input that the call updates in place, without a copy. Raises InputError if it isn't writable."""
    if isinstance(value, np.ndarray) and value.flags.writeable:
        with contextlib.suppress(*_REFUSALS):
            capsule = value.__dlpack__()
            return capsule, pointer_of(capsule, CAPSULE)
    _require_array(name, value)
    if isinstance(value, np.ndarray):
        if value.dtype.name == "bfloat16":
            value = value.view(np.uint16)
        if not value.flags.writeable or not value.dtype.isnative:
            what = "writable" if value.dtype.isnative else "in this machine's byte order"
            raise _not_updated(name, what)
    if any(getattr(value, mark, bool)() for mark in ("is_conj", "is_neg")):
        raise _not_updated(name, "no conjugate or negative view")
    try:
        capsule = _exported(value)
    except _REFUSALS as error:
        raise _not_passed(name, value, error) from error
    if _name_of(capsule) == _VERSIONED_CAPSULE:
        flags = c_uint64.from_address(pointer_of(capsule, _VERSIONED_CAPSULE) + _FLAGS_OFFSET).value
        if flags & (_READ_ONLY | _IS_COPIED):
            raise _not_updated(name, "writable")
    return capsule, _tensor_in(capsule)


def copied(value: Any) -> np.ndarray:
    """Return a contiguous, aligned copy; bfloat16 as uint16."""
    value = value.array if isinstance(value, Exported) else value
    array = value if isinstance(value, np.ndarray) else np.from_dlpack(resolved(value))
    return np.array(array, order="C", copy=True)


def resolved(value: Any) -> Any:
    """Materialize torch's lazy conjugate and negative views, which DLPack can't express."""
    for mark, resolve in (("is_conj", "resolve_conj"), ("is_neg", "resolve_neg")):
        if getattr(value, mark, bool)():
            value = getattr(value, resolve)()
    return value


def _exported(value: Any) -> Any:
    """Export with the flags of DLPack 1 if the producer supports them."""
    try:
        return value.__dlpack__(max_version=(1, 0))
    except TypeError:
        return value.__dlpack__()


def _tensor_in(capsule: Any) -> int:
    name = _name_of(capsule)
    return int(pointer_of(capsule, name)) + (_VERSIONED_OFFSET if name == _VERSIONED_CAPSULE else 0)


def _require_array(name: str, value: Any) -> None:
    if not hasattr(value, "__dlpack__"):
        raise InputError(f'input "{name}": expected a numpy array or something with __dlpack__, got {type(value).__name__}')


def _not_passed(name: str, value: Any, error: Exception) -> InputError:
    kind = getattr(value, "dtype", type(value).__name__)
    return InputError(f'input "{name}": {kind} data can\'t be passed ({error})')


def _not_updated(name: str, what: str) -> InputError:
    return InputError(f'input "{name}": the call writes into it, so it must be {what}')


def _writable_alias(array: np.ndarray) -> np.ndarray:
    """Return a writable alias of the memory, since plain DLPack can't express read-only; the core only reads inputs."""
    buffer = (ctypes.c_uint8 * max(1, array.nbytes)).from_address(array.__array_interface__["data"][0])
    buffer.owner = array  # type: ignore[attr-defined]
    alias: np.ndarray = np.ndarray(array.shape, array.dtype, memoryview(buffer), strides=array.strides)
    return alias
