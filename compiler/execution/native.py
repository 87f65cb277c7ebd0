"""Execution of generated code inside the compiler, for compile-time constant folding and verification."""

from __future__ import annotations

import ctypes
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmos.runtime.errors import PassError
from llmos.runtime.native import abi
from llmos.runtime.native.abi import ALIGNMENT

GUARD_BYTES = 1 << 16  # after the arena, so that a miscompile that writes past it is detected instead of crashing the process
ERRORS = {
    abi.INDEX_OUT_OF_RANGE: "index out of range",
    abi.OUT_OF_MEMORY: "out of memory",
    abi.BAD_ARGUMENTS: "bad arguments",
    abi.INTERNAL: "internal error",
    abi.SIZE_OUT_OF_RANGE: "size out of range",
}

_KERNEL = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
_ARENA = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int32
)


class _Context(ctypes.Structure):
    """llmos_context (runtime/native/include/llmos/abi.h)."""

    _fields_ = [
        ("weights", ctypes.c_void_p),
        ("arena", _ARENA),
        ("launch", _LAUNCH),
        ("num_threads", ctypes.c_int64),
        ("device", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    ]


class _Tensor(ctypes.Structure):
    """DLTensor; generated code doesn't read device, rank and dtype."""

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


@dataclass(frozen=True)
class Launch:
    """One dispatch launched by the host function: `buffers` are addresses of operands, then results; `dispatch` is its number."""

    kernel: int
    buffers: int
    dims: int
    num_tiles: int
    scratch_bytes: int
    dispatch: int

    def address(self, position: int) -> int:
        """Return the address of an operand or result."""
        return int(ctypes.c_void_p.from_address(self.buffers + 8 * position).value or 0)

    def run(self, addresses: Sequence[int] | None = None, scratch: int | None = None) -> int:
        """Run all tiles on this thread, by default on its own buffers; return 0 or an error code of abi.h. scratch: an address."""
        buffers = (ctypes.c_void_p * len(addresses))(*addresses) if addresses is not None else self.buffers
        own = poisoned(self.scratch_bytes)
        return int(_KERNEL(self.kernel)(buffers, self.dims, 0, self.num_tiles, own.ctypes.data if scratch is None else scratch))


OnLaunch = Callable[[Launch], int]
Allocate = Callable[[int], int]  # maps a number of bytes to an address aligned to 64


class CompiledCode:
    """A shared object of generated code, loaded into this process and run on one thread.

    Memory that must not be read before it is written (arena, scratch) is filled with 0xFF, which is NaN in every float type.
    """

    def __init__(self, code: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="llmos-evaluate-") as directory:
            path = Path(directory) / "code.so"
            path.write_bytes(code)
            self._library = ctypes.CDLL(str(path), mode=os.RTLD_LOCAL)

    def dims(self, symbol: str, sizes: Sequence[int], count: int) -> list[int]:
        """Call a shape function (`__llmos_shapes_<entry>`) with the sizes of all symbols, in order; return its `count` dims."""
        given, found = (ctypes.c_int64 * max(1, len(sizes)))(*sizes), (ctypes.c_int64 * max(1, count))()
        getattr(self._library, symbol)(given, found)
        return list(found[:count])

    def call(
        self,
        symbol: str,
        inputs: Sequence[np.ndarray],
        outputs: list[np.ndarray],
        weights: Sequence[np.ndarray] = (),
        on_launch: OnLaunch = Launch.run,
        allocate: Allocate | None = None,
    ) -> int:
        """Calls an entry on dense arrays; `outputs` are written, and cut to the sizes that the data gives. 0, or an error code of abi.h.

        weights: in the manifest's order, each at a multiple of 64 bytes (`aligned_copy`). on_launch: runs each dispatch in turn, and
        returns its code; an exception in it ends the call and is raised here. allocate: gives the memory of temporaries.
        """
        blocks: list[np.ndarray] = []
        raised: list[BaseException] = []

        def arena(_: int, num_bytes: int) -> int:
            if allocate is not None:
                return allocate(num_bytes)
            blocks.append(poisoned(num_bytes + GUARD_BYTES))
            return int(blocks[-1].ctypes.data)

        def launch(_: int, kernel: int, buffers: int, dims: int, num_tiles: int, scratch_bytes: int, dispatch: int) -> int:
            started = Launch(kernel, buffers, dims, num_tiles, scratch_bytes, dispatch)
            try:
                return on_launch(started) if dispatch >= 0 else started.run()  # else: part of the dispatch that is running
            except BaseException as error:  # ctypes would print it and go on
                raised.append(error)
                return abi.INTERNAL

        assert all(each.ctypes.data % ALIGNMENT == 0 for each in weights)
        table = (ctypes.c_void_p * max(1, len(weights)))(*[each.ctypes.data for each in weights])
        context = _Context(ctypes.addressof(table), _ARENA(arena), _LAUNCH(launch), 1)
        tensors = [_tensor(array) for array in (*inputs, *outputs)]
        arguments = (_Any * len(tensors))(*[_Any(abi.TYPE_DLTENSOR_PTR, 0, ctypes.addressof(tensor)) for tensor in tensors])
        entry = getattr(self._library, symbol)
        entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p]
        status = int(entry(ctypes.byref(context), arguments, len(tensors), ctypes.byref(_Any())))
        if raised:
            raise raised[0]
        outputs[:] = [cut(array, tensor.shape[: array.ndim]) for array, tensor in zip(outputs, tensors[len(inputs) :], strict=True)]
        return status


def call_entry(code: bytes, symbol: str, inputs: Sequence[np.ndarray], outputs: list[np.ndarray]) -> None:
    """Call an entry without weights of a shared object. Raises PassError if the code reports an error."""
    status = CompiledCode(code).call(symbol, inputs, outputs)
    if status:
        raise PassError(f"computation on weights at compile time failed: {ERRORS.get(status, status)}")


def cut(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the start of an array's memory as an array of a shape with no more elements."""
    return array if array.shape == tuple(shape) else array.reshape(-1)[: math.prod(shape)].reshape(shape)


def poisoned(num_bytes: int) -> np.ndarray:
    """Allocate bytes of 0xFF, aligned to 64."""
    return _aligned(np.full(max(0, num_bytes) + 2 * ALIGNMENT, 0xFF, np.uint8))[: max(0, num_bytes) + ALIGNMENT]


def poisoned_array(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Allocate an aligned array of NaN, for integers of all bits set, for bools of False."""
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    array: np.ndarray = poisoned(num_bytes)[:num_bytes].view(dtype).reshape(shape)
    if dtype == np.bool_:
        array[...] = False  # bytes other than 0 and 1 aren't valid bools
    return array


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """Return a dense copy aligned to 64 bytes."""
    memory = _aligned(np.empty(array.nbytes + ALIGNMENT, np.uint8))[: array.nbytes]
    copy: np.ndarray = memory.view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _aligned(memory: np.ndarray) -> np.ndarray:
    return memory[-memory.ctypes.data % ALIGNMENT :]


def _tensor(array: np.ndarray) -> _Tensor:
    assert array.flags.c_contiguous
    shape = (ctypes.c_int64 * max(1, array.ndim))(*array.shape)
    return _Tensor(array.ctypes.data, ndim=array.ndim, shape=ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)))
