"""Loading an artifact and calling it: numpy or DLPack in, numpy out."""

from __future__ import annotations

import ctypes
import math
import os
import re
import threading
from collections.abc import Mapping
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np

from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.manifest import EntrySpec, Manifest, TensorSpec
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.device.base import Device, Module
from llmos.runtime.device.cpu import CpuDevice
from llmos.runtime.dlpack import CAPSULE, Exported, copied, export_slowly, export_updated, pointer_of, resolved
from llmos.runtime.errors import ArtifactError, ExecutionError, InputError
from llmos.runtime.native.abi import ERROR_STRIDES, POISON_ARENA, TENSOR_SHAPE
from llmos.runtime.native.binding import ProfileBuffer, ProfileRecord

Outputs = np.ndarray | tuple[np.ndarray, ...]


def load(
    path: str | os.PathLike[str],
    *,
    target: str | None = None,
    poison_arena: bool = False,
    device: Device | None = None,
    sealed: bool = False,
) -> Program:
    """Open an artifact, check it and its signature, and load the code for this machine.

    `target` asks for one code variant by name instead of the best; `poison_arena` (for tests) fills temporaries with NaN before each call.
    `device` is what loads and runs it, the CPU where there is none given. `sealed`: run a copy in memory, so that the file may change.
    Raises ArtifactError when the file is not whole, not trusted, or not for this machine.
    """
    artifact = Artifact.open(path, sealed=sealed)
    artifact.require_trust()
    chosen: Device = device or CpuDevice()
    try:
        module = chosen.load(artifact, target)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    return Program(artifact, module, chosen, POISON_ARENA if poison_arena else 0)


class Program:
    """A loaded artifact. May be called from many threads at once.

    `program(x)` calls `default`, the entry `main` or else the first; `program["name"](x)` calls another. Entries share the weights. After
    `close()` calls raise ExecutionError; running calls complete.

    A stateful model has one state for each Program; its calls are serialized, and `reset_state()` restores the initial state.
    """

    def __init__(self, artifact: Artifact, module: Module, device: Device, flags: int) -> None:
        self._artifact = artifact
        self.device = device
        self.target = module.target
        specs = artifact.manifest.entries
        self.entries: Mapping[str, Entry] = MappingProxyType(
            {spec.name: Entry(artifact, index, module, flags) for index, spec in enumerate(specs)}
        )
        self.default = self.entries.get("main") or self.entries[specs[0].name]

    @property
    def artifact(self) -> Artifact:
        return self._artifact

    @property
    def manifest(self) -> Manifest:
        return self._artifact.manifest

    def __call__(self, *inputs: Any, **named: Any) -> Outputs:
        """Run the default entry; see Entry.__call__."""
        return self.default(*inputs, **named)

    def __getitem__(self, name: str) -> Entry:
        if name not in self.entries:
            raise InputError(f"there is no entry {name!r}; there are: {', '.join(self.entries)}")
        return self.entries[name]

    def reset_state(self) -> None:
        """Restore the initial state; waits for a running call."""
        for entry in self.entries.values():
            if entry.state is not None:
                entry.state.reset()

    def check_integrity(self) -> None:
        """When idle, check that the file is unmodified and no run wrote past its memory. Raises ArtifactError or ExecutionError."""
        module = self.default.module
        if module is None:
            raise ExecutionError("the program is closed")
        module.check()
        self._artifact.verify()

    def close(self) -> None:
        for entry in self.entries.values():
            entry.module = None

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class DispatchTime:
    """One launch of a profiled run; times in seconds, the start relative to the start of the run."""

    name: str
    kind: str
    num_tiles: int
    start_s: float
    duration_s: float


@dataclass(frozen=True)
class Profile:
    """A profiled run: its outputs, the seconds spent in the artifact's code, and each launch in order."""

    outputs: Outputs
    total_s: float
    dispatches: tuple[DispatchTime, ...]


class Entry:
    """One function of a program."""

    def __init__(self, artifact: Artifact, index: int, module: Module, flags: int) -> None:
        manifest = artifact.manifest
        self.spec: EntrySpec = manifest.entries[index]
        self.state = State(artifact, self.spec.states) if self.spec.states else None
        self.module: Module | None = module
        self._kernels = manifest.kernels
        self.index = index
        self.flags = flags
        self._num_inputs = len(self.spec.inputs)
        self._num_given = self.spec.num_inputs
        self._updated = frozenset(self.spec.updated)
        self.resized = _resized_outputs(self.spec, manifest.computed_names)
        self.output_slices = tuple(_output_slice(self.spec.outputs, position) for position in range(len(self.spec.outputs)))
        # Free argument buffers; list.append and list.pop are atomic, so threads and reentrant calls can share the list.
        self._idle: list[_Buffers] = []

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return the specs of a call's inputs."""
        return self.spec.inputs[: self.spec.num_inputs]

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the specs of a call's outputs."""
        return self.spec.outputs[: self.spec.num_outputs]

    def __call__(self, *inputs: Any, **named: Any) -> Outputs:
        """Run the entry on inputs in the model's order or by name: numpy arrays or anything with __dlpack__, in CPU memory, or Exported.

        Returns one numpy array, or a tuple if the entry has several outputs; bfloat16 is returned as uint16. Non-contiguous inputs are
        copied first. Raises InputError that names the invalid input, or ExecutionError if the run fails.

        An input whose `updated` is true is updated in place without a copy: it must be writable, contiguous, and must not overlap another
        input. A call that fails before it starts doesn't change it; one that fails at run time, because of an index or a size in the data,
        may have written a part of it. Two concurrent calls must not share it.
        """
        if named or len(inputs) != self._num_given:
            inputs = self._in_order(inputs, named)
        return self._run(inputs, None)

    def with_states(self, *arrays: Any) -> tuple[np.ndarray, ...]:
        """Run without side effects: take the inputs, then the states; return the outputs, then the states' new values, then those of
        updated inputs."""
        if len(arrays) != self._num_inputs:
            raise InputError(f'entry "{self.spec.name}": expected {self._num_inputs} inputs and states, got {len(arrays)}')
        own = {position: copied(arrays[position]) for position in self.spec.updated}
        return (*self._arrays(tuple(own.get(i, value) for i, value in enumerate(arrays)), None), *own.values())

    def profile(self, *inputs: Any, **named: Any) -> Profile:
        """Run the entry once and time each launch."""
        inputs = self._in_order(inputs, named)
        capacity = max(4096, 4 * len(self._kernels))
        records = (ProfileRecord * capacity)()
        buffer = ProfileBuffer(ctypes.addressof(records), capacity, 0, 0)
        outputs = self._run(inputs, ctypes.addressof(buffer))
        times = tuple(self._time(record) for record in records[: min(buffer.num_records, capacity)])
        return Profile(outputs, buffer.total_ns * 1e-9, times)

    def _run(self, inputs: tuple[Any, ...], profile: int | None) -> Outputs:
        arrays = self._arrays(inputs, profile) if self.state is None else self._advance(self.state, inputs, profile)
        return arrays[0] if len(arrays) == 1 else arrays

    def _advance(self, state: State, inputs: tuple[Any, ...], profile: int | None) -> tuple[np.ndarray, ...]:
        """Run on the current state and store the new one; a failed call leaves the state unchanged."""
        with state.lock:
            arrays = self._arrays((*inputs, *state.arrays), profile, state.spare)
            count = self.spec.num_outputs
            state.spare, state.arrays = state.arrays, arrays[count:]
        return arrays[:count]

    def _arrays(self, inputs: tuple[Any, ...], profile: int | None, last: tuple[np.ndarray, ...] = ()) -> tuple[np.ndarray, ...]:
        """Run a call and return its outputs. last: arrays that the last outputs are written to."""
        try:
            buffers = self._idle.pop()
        except IndexError:
            buffers = _Buffers(self._num_inputs, self.spec.outputs)
        try:
            return self._run_with(buffers, inputs, profile, last)
        finally:
            self._idle.append(buffers)

    def _run_with(
        self, buffers: _Buffers, inputs: tuple[Any, ...], profile: int | None, last: tuple[np.ndarray, ...]
    ) -> tuple[np.ndarray, ...]:
        module = self.module  # keeps the code loaded until this call ends
        if module is None:
            raise ExecutionError("the program is closed; load it again")
        num_inputs = self._num_inputs
        capsules = self._export(inputs, buffers.inputs)
        code = module.shapes(self.index, buffers.inputs, num_inputs, buffers.dims)
        if code == ERROR_STRIDES:
            inputs = tuple(value if i in self._updated else copied(value) for i, value in enumerate(inputs))
            capsules = self._export(inputs, buffers.inputs)
            code = module.shapes(self.index, buffers.inputs, num_inputs, buffers.dims)
        if code:
            raise module.error(code)
        arrays, dims = [], buffers.dims
        first_given = len(self.output_slices) - len(last)
        for position, (part, dtype) in enumerate(self.output_slices):
            array = np.empty(dims[part], dtype) if position < first_given else last[position - first_given]
            capsule = array.__dlpack__()
            buffers.outputs[position] = pointer_of(capsule, CAPSULE)
            capsules.append(capsule)
            arrays.append(array)
        code = module.run(self.index, buffers.inputs, num_inputs, buffers.outputs, len(arrays), self.flags, profile)
        if code:
            raise module.error(code)
        for position in self.resized:
            arrays[position] = _cut(arrays[position], int(buffers.outputs[position] or 0))
        return tuple(arrays)

    def _export(self, inputs: tuple[Any, ...], pointers: Any) -> list[Any]:
        """Write the address of each input's DLTensor; the returned objects keep them alive."""
        capsules = []
        for position, value in enumerate(inputs):
            if type(value) is Exported:
                pointers[position] = value.address
                continue
            if position in self._updated:
                capsule, pointers[position] = export_updated(self.spec.inputs[position].name, value)
                capsules.append(capsule)
                continue
            if not isinstance(value, np.ndarray):
                value = resolved(value)
            try:
                capsule = value.__dlpack__()
                pointers[position] = pointer_of(capsule, CAPSULE)
            except (AttributeError, BufferError, TypeError, ValueError, RuntimeError):
                capsule, pointers[position] = export_slowly(self.spec.inputs[position].name, value)
            capsules.append(capsule)
        return capsules

    def _in_order(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        names = [spec.name for spec in self.inputs]
        listed = ", ".join(names) or "none"
        if len(inputs) > len(names):
            raise InputError(f'entry "{self.spec.name}": expected {len(names)} inputs ({listed}), got {len(inputs)}')
        values = dict(zip(names, inputs, strict=False))
        for name, value in named.items():
            if name not in names:
                raise InputError(f'entry "{self.spec.name}" has no input "{name}"; its inputs are: {listed}')
            if name in values:
                raise InputError(f'input "{name}": given twice, in order and by name')
            values[name] = value
        for name in names:
            if name not in values:
                raise InputError(f'input "{name}": missing; entry "{self.spec.name}" takes: {listed}')
        return tuple(values[name] for name in names)

    def _time(self, record: Any) -> DispatchTime:
        known = 0 <= record.dispatch < len(self._kernels)
        name, kind = (self._kernels[record.dispatch].name, self._kernels[record.dispatch].kind) if known else (str(record.dispatch), "?")
        return DispatchTime(name, kind, record.num_tiles, record.start_ns * 1e-9, record.duration_ns * 1e-9)


class State:
    """The state of an entry in one Program: arrays in the order of the manifest's `states`.

    Double-buffered: a call reads `arrays` and writes `spare`, and both are swapped after success, so that calls don't allocate states and
    a failed call leaves the state unchanged. To keep an array beyond a call, copy it.
    """

    def __init__(self, artifact: Artifact, names: tuple[str, ...]) -> None:
        self._artifact = artifact
        self._names = names
        self.lock = threading.Lock()
        self.arrays: tuple[np.ndarray, ...] = ()
        self.spare: tuple[np.ndarray, ...] = ()
        self.reset()

    def reset(self) -> None:
        with self.lock:
            self.arrays = tuple(self._artifact.weights[name].copy() for name in self._names)
            self.spare = tuple(map(np.empty_like, self.arrays))


class _Buffers:
    """The C arrays of one call: tensor addresses and output dims."""

    def __init__(self, num_inputs: int, outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = (c_void_p * max(1, num_inputs))()
        self.outputs = (c_void_p * max(1, len(outputs)))()
        self.dims = (c_int64 * max(1, sum(len(spec.shape) for spec in outputs)))()


def _output_slice(outputs: tuple[TensorSpec, ...], position: int) -> tuple[slice, np.dtype[Any]]:
    begin = sum(len(spec.shape) for spec in outputs[:position])
    spec = outputs[position]
    return slice(begin, begin + len(spec.shape)), np.dtype(DTYPES[spec.dtype].storage)


def _resized_outputs(spec: EntrySpec, computed: frozenset[str]) -> tuple[int, ...]:
    """Return the positions of outputs of data-dependent size: each is allocated at its bound and truncated after the call."""
    return tuple(
        position
        for position, tensor in enumerate(spec.outputs)
        if any(isinstance(dim, str) and computed.intersection(re.findall(r"\w+", dim)) for dim in tensor.shape)
    )


def _cut(array: np.ndarray, tensor: int) -> np.ndarray:
    """Return an output truncated to the shape that the call has written into its DLTensor."""
    sizes = c_void_p.from_address(tensor + TENSOR_SHAPE).value
    shape = tuple((c_int64 * array.ndim).from_address(sizes)) if sizes else ()
    return array if shape == array.shape else array.reshape(-1)[: math.prod(shape)].reshape(shape)
