"""ctypes binding of the C core: one function for each llmos.h function that Python needs, with errors as exceptions."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
from collections.abc import Callable
from ctypes import c_char_p, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

from llmos.runtime.errors import ArtifactError, ExecutionError, InputError, LlmosError
from llmos.runtime.native.abi import (
    BAD_ARGUMENTS,
    ERROR_ARTIFACT,
    ERROR_INPUT,
    ERROR_STRIDES,
    INDEX_OUT_OF_RANGE,
    SIZE_OUT_OF_RANGE,
    TRUST_ALWAYS,
)

_EXCEPTIONS: dict[int, type[LlmosError]] = {
    ERROR_ARTIFACT: ArtifactError,
    ERROR_INPUT: InputError,
    ERROR_STRIDES: InputError,
    INDEX_OUT_OF_RANGE: InputError,  # the index comes from the caller's data
    BAD_ARGUMENTS: InputError,
    SIZE_OUT_OF_RANGE: InputError,  # the size comes from the caller's data
}


class ProfileRecord(ctypes.Structure):
    """llmos_profile_record."""

    _fields_ = [
        ("dispatch", c_int32),
        ("reserved", c_int32),
        ("num_tiles", c_int64),
        ("start_ns", c_int64),
        ("duration_ns", c_int64),
    ]


class ProfileBuffer(ctypes.Structure):
    """llmos_profile."""

    _fields_ = [("records", c_void_p), ("capacity", c_int64), ("num_records", c_int64), ("total_ns", c_int64)]


class GpuInfo(ctypes.Structure):
    """llmos_gpu_info."""

    _fields_ = [("name", c_char_p), ("major", c_int32), ("minor", c_int32), ("num_bytes", c_int64)]


class Core:
    """The functions of the loaded library. `shapes` keeps the GIL (it takes under a microsecond); `run` and other slow ones release it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        library = ctypes.CDLL(os.fspath(path))
        with_gil = ctypes.PyDLL(os.fspath(path))
        self.shapes = _function(with_gil, "llmos_program_shapes", c_int32, c_void_p, c_int32, c_void_p, c_int32, c_void_p)
        self.run = _function(
            library, "llmos_program_run", c_int32, c_void_p, c_int32, c_void_p, c_int32, c_void_p, c_int32, c_uint32, c_void_p
        )
        self.sample = _function(
            library, "llmos_sample", c_int32, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_int32
        )
        self._last_error = _function(with_gil, "llmos_last_error", c_char_p)
        self._artifact_open = _function(library, "llmos_artifact_open", c_int32, c_char_p, c_void_p)
        self._artifact_verify = _function(library, "llmos_artifact_verify", c_int32, c_void_p)
        self._artifact_close = _function(library, "llmos_artifact_close", None, c_void_p)
        self._manifest = _function(with_gil, "llmos_artifact_manifest", c_void_p, c_void_p, c_void_p)
        self._member = _function(with_gil, "llmos_artifact_member", c_void_p, c_void_p, c_char_p, c_void_p)
        self._weight = _function(with_gil, "llmos_artifact_weight", c_void_p, c_void_p, c_int32, c_void_p)
        self._artifact_missing = _function(with_gil, "llmos_artifact_missing_on", c_int32, c_void_p, c_int32, c_void_p, c_char_p, c_size_t)
        self._artifact_choose = _function(with_gil, "llmos_artifact_choose_on", c_int32, c_void_p, c_void_p)
        self._program_open = _function(library, "llmos_program_open_on", c_int32, c_void_p, c_int32, c_uint32, c_void_p, c_void_p)
        self._gpu_open = _function(library, "llmos_gpu_open", c_int32, c_int32, c_void_p)
        self._gpu_close = _function(library, "llmos_gpu_close", None, c_void_p)
        self._gpu_describe = _function(with_gil, "llmos_gpu_describe", c_int32, c_void_p, c_void_p)
        self._gpu_allocate = _function(library, "llmos_gpu_allocate", c_int32, c_void_p, c_int64, c_void_p)
        self._gpu_release = _function(library, "llmos_gpu_release", None, c_void_p, c_void_p)
        self._gpu_copy = _function(library, "llmos_gpu_copy", c_int32, c_void_p, c_void_p, c_void_p, c_int64)
        self._gpu_clear = _function(library, "llmos_gpu_clear", c_int32, c_void_p, c_void_p, c_int64)
        self._gpu_free_bytes = _function(library, "llmos_gpu_free_bytes", c_int32, c_void_p, c_void_p)
        self._gpu_synchronize = _function(library, "llmos_gpu_synchronize", c_int32, c_void_p)
        self._program_check = _function(library, "llmos_program_check", c_int32, c_void_p)
        self._program_close = _function(library, "llmos_program_close", None, c_void_p)
        self._set_num_threads = _function(library, "llmos_set_num_threads", c_int32, c_int32)
        self.num_threads = _function(library, "llmos_num_threads", c_int32)
        self._host_arch = _function(with_gil, "llmos_host_arch", c_char_p)
        self._host_features = _function(with_gil, "llmos_host_features", c_char_p)

    def error(self, code: int) -> LlmosError:
        """Return the exception for the last error of this thread."""
        message: bytes = self._last_error()
        return _EXCEPTIONS.get(code, ExecutionError)(message.decode(errors="replace"))

    def check(self, code: int) -> None:
        if code:
            raise self.error(code)

    def open_artifact(self, path: str | os.PathLike[str], *, named: str | os.PathLike[str] | None = None) -> Handle:
        """Open an artifact. named: what errors call it. Raises ArtifactError unless it is complete and unmodified."""
        pointer = c_void_p()
        try:
            self.check(self._artifact_open(os.fsencode(path), ctypes.byref(pointer)))
        except ArtifactError as error:
            if named is None:
                raise
            raise ArtifactError(str(error).replace(str(path), str(named), 1)) from None
        return Handle(pointer.value, self._artifact_close)

    def verify_artifact(self, artifact: Handle) -> None:
        self.check(self._artifact_verify(artifact.value))

    def manifest(self, artifact: Handle) -> memoryview:
        return self._view(artifact, self._manifest)

    def member(self, artifact: Handle, name: str) -> memoryview | None:
        size = c_size_t()
        address = self._member(artifact.value, name.encode(), ctypes.byref(size))
        return None if address is None else _read_only(address, size.value, artifact)

    def weight(self, artifact: Handle, index: int) -> memoryview:
        return self._view(artifact, self._weight, index)

    def missing(self, artifact: Handle, code: int, gpu: Handle | None = None) -> tuple[str, ...]:
        """Return the features that this machine, or its GPU, lacks to run a code variant; empty if it runs."""
        text = ctypes.create_string_buffer(4096)
        count = self._artifact_missing(artifact.value, code, gpu and gpu.value, text, len(text))
        return tuple(text.value.decode().split(", ")) if count else ()

    def chosen_code(self, artifact: Handle, gpu: Handle | None = None) -> int:
        """Return the index of the first code variant that this machine, or its GPU, runs, or -1."""
        return int(self._artifact_choose(artifact.value, gpu and gpu.value))

    def open_program(self, artifact: Handle, code: int, gpu: Handle | None = None) -> Handle:
        """Load code whose signature the caller has checked. Raises ArtifactError, and ExecutionError for a GPU that fails."""
        pointer = c_void_p()
        self.check(self._program_open(artifact.value, code, TRUST_ALWAYS, gpu and gpu.value, ctypes.byref(pointer)))
        return Handle(pointer.value, self._program_close)

    def open_gpu(self, index: int) -> Handle:
        """Open the GPU of an index. Raises ExecutionError where there is no driver, one that is too old, or no such GPU."""
        pointer = c_void_p()
        self.check(self._gpu_open(index, ctypes.byref(pointer)))
        return Handle(pointer.value, self._gpu_close)

    def describe_gpu(self, gpu: Handle) -> GpuInfo:
        info = GpuInfo()
        self.check(self._gpu_describe(gpu.value, ctypes.byref(info)))
        return info

    def gpu_allocate(self, gpu: Handle, num_bytes: int) -> Handle:
        """Allocate memory of a GPU; the handle keeps the GPU open. Raises ExecutionError if there is not enough."""
        pointer = c_void_p()
        self.check(self._gpu_allocate(gpu.value, num_bytes, ctypes.byref(pointer)))
        return Handle(pointer.value, lambda memory: self._gpu_release(gpu.value, memory))

    def gpu_copy(self, gpu: Handle, target: int, source: int, num_bytes: int) -> None:
        self.check(self._gpu_copy(gpu.value, target, source, num_bytes))

    def gpu_clear(self, gpu: Handle, memory: int, num_bytes: int) -> None:
        self.check(self._gpu_clear(gpu.value, memory, num_bytes))

    def gpu_free_bytes(self, gpu: Handle) -> int:
        """Return the bytes of a GPU's memory that nothing uses yet."""
        found = c_int64()
        self.check(self._gpu_free_bytes(gpu.value, ctypes.byref(found)))
        return found.value

    def gpu_synchronize(self, gpu: Handle) -> None:
        self.check(self._gpu_synchronize(gpu.value))

    def check_program(self, program: Handle) -> None:
        self.check(self._program_check(program.value))

    def set_num_threads(self, num_threads: int) -> None:
        self.check(self._set_num_threads(num_threads))

    def host_arch(self) -> str:
        return str(self._host_arch().decode())

    def host_features(self) -> tuple[str, ...]:
        return tuple(self._host_features().decode().split())

    def _view(self, artifact: Handle, function: Callable[..., Any], *arguments: Any) -> memoryview:
        size = c_size_t()
        address = function(artifact.value, *arguments, ctypes.byref(size))
        return _read_only(address, size.value, artifact)


class Handle:
    """An object of the core, closed when the last reference is gone, including those of running calls."""

    __slots__ = ("_close", "value")

    def __init__(self, value: int | None, close: Callable[[int | None], None]) -> None:
        self.value = value
        self._close = close

    def __del__(self) -> None:
        self._close(self.value)


@functools.cache
def core() -> Core:
    """Return the core, loaded on first use. Raises LlmosError if it was not built."""
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_core{suffix}"
        if path.exists():
            return Core(path)
    raise LlmosError(
        f"the native core of llmos is not built: there is no _core*.so in {folder}; install llmos with pip where there is a C compiler"
    )


def set_num_threads(num_threads: int) -> None:
    """Set the number of threads that share the work of a call, including the caller's. Raises InputError outside of 1 to 1024."""
    core().set_num_threads(num_threads)


def num_threads() -> int:
    """Return the number of threads: by default LLMOS_NUM_THREADS, else the physical cores that this process may use."""
    return int(core().num_threads())


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype = result
    function.argtypes = arguments
    return function


def _read_only(address: int | None, num_bytes: int, owner: Handle) -> memoryview:
    """Return a view of the core's memory that keeps `owner` open."""
    if not num_bytes or address is None:
        return memoryview(b"")
    buffer = (ctypes.c_uint8 * num_bytes).from_address(address)
    buffer.owner = owner  # type: ignore[attr-defined]
    return memoryview(buffer).cast("B").toreadonly()
