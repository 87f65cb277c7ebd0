"""A device that runs nothing: it checks sizes, returns zeros, and counts calls, to test the layers above a device."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Mapping
from ctypes import c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.manifest import EntrySpec, Manifest
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.artifact.sizes import evaluate
from llmos.runtime.device import base
from llmos.runtime.device.base import Buffer, Verdict
from llmos.runtime.device.cpu import CpuBuffer, require_room
from llmos.runtime.device.host_memory import available_bytes
from llmos.runtime.errors import InputError, LlmosError
from llmos.runtime.native.abi import ERROR_INPUT, OK, TENSOR_DATA, TENSOR_NDIM, TENSOR_SHAPE


class NullDevice:
    """See device.base.Device.

    runs: calls of each entry. launches: would-be launches by kernel name. num_allocations, allocated_bytes, num_copies,
    num_synchronizations: totals so far. Buffers are process memory.
    """

    name = "null"
    target = "native"

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.num_allocations = self.allocated_bytes = self.num_copies = self.num_synchronizations = 0

    def judge(self, artifact: Artifact) -> tuple[Verdict, ...]:
        """Accept any code variant, since none is run."""
        return tuple(Verdict(code, (), index == 0) for index, code in enumerate(artifact.manifest.code))

    def load(self, artifact: Artifact, target: str | None = None) -> NullModule:
        index = base.choose(artifact.manifest.name, self.judge(artifact), self.name, target)
        return NullModule(self, artifact.manifest, artifact.manifest.code[index].target)

    def allocate(self, num_bytes: int) -> CpuBuffer:
        self.num_allocations += 1
        self.allocated_bytes += num_bytes
        return CpuBuffer(num_bytes)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.zeros(shape, DTYPES[dtype].storage)

    def free_bytes(self) -> int:
        return available_bytes()

    def copy(self, target: Buffer, source: Buffer) -> None:
        require_room(target, source)
        self.num_copies += 1

    def synchronize(self) -> None:
        self.num_synchronizations += 1


@dataclass
class NullModule:
    """An artifact without its code; see device.base.Module."""

    device: NullDevice
    manifest: Manifest
    target: str
    _problem: str = ""

    def shapes(self, entry: int, inputs: Any, num_inputs: int, dims: Any) -> int:
        """Compute output sizes from the manifest; data-dependent sizes get their bounds."""
        spec = self.manifest.entries[entry]
        try:
            sizes = self._sizes(spec, [int(inputs[position]) for position in range(num_inputs)])
        except InputError as error:
            self._problem = str(error)
            return ERROR_INPUT
        for position, dim in enumerate(dim for tensor in spec.outputs for dim in tensor.shape):
            dims[position] = evaluate(dim, sizes)
        return OK

    def run(self, entry: int, inputs: Any, num_inputs: int, outputs: Any, num_outputs: int, flags: int, profile: int | None) -> int:
        """Write zeros; updated inputs are left unchanged."""
        spec = self.manifest.entries[entry]
        for position, tensor in enumerate(spec.outputs):
            address = int(outputs[position])
            count = 1
            for size in _shape(address):
                count *= size
            ctypes.memset(c_void_p.from_address(address + TENSOR_DATA).value or 0, 0, count * DTYPES[tensor.dtype].num_bytes)
        self.device.runs[spec.name] += 1
        self.device.launches.update(kernel.name for kernel in self.manifest.kernels if self._is_of(kernel.name, spec.name))
        return OK

    def error(self, code: int) -> LlmosError:
        return InputError(self._problem)

    def check(self) -> None:
        pass

    def _is_of(self, kernel: str, entry: str) -> bool:
        """Whether a kernel belongs to an entry; with several entries, kernel names start with the entry's name."""
        return len(self.manifest.entries) == 1 or kernel.startswith(f"{entry}.")

    def _sizes(self, spec: EntrySpec, inputs: list[int]) -> Mapping[str, int]:
        """Return the sizes of all symbols in a call, as the C core does. Raises InputError for a wrong rank or size."""
        ranges = {symbol.name: symbol for symbol in self.manifest.symbols}
        sizes = {name: symbol.min for name, symbol in ranges.items()}
        shapes = [(tensor, _shape(address)) for tensor, address in zip(spec.inputs, inputs, strict=True)]
        for tensor, shape in shapes:
            if len(shape) != len(tensor.shape):
                raise InputError(f'input "{tensor.name}": expected {len(tensor.shape)} dims, got {len(shape)}')
            sizes |= {str(dim): size for dim, size in zip(tensor.shape, shape, strict=True) if dim in ranges}
        for tensor, shape in shapes:
            for axis, (dim, size) in enumerate(zip(tensor.shape, shape, strict=True)):
                if evaluate(dim, sizes) != size or (dim in ranges and not ranges[str(dim)].min <= size <= ranges[str(dim)].max):
                    raise InputError(f'input "{tensor.name}": dim {axis} ({dim}) can\'t be {size}')
        return {**sizes, **{symbol.name: evaluate(symbol.bound, sizes) for symbol in self.manifest.computed}}


def _shape(tensor: int) -> tuple[int, ...]:
    """Return the shape of the DLTensor at an address."""
    ndim = c_int32.from_address(tensor + TENSOR_NDIM).value
    sizes = c_void_p.from_address(tensor + TENSOR_SHAPE).value
    return tuple((c_int64 * ndim).from_address(sizes)) if sizes and ndim else ()
