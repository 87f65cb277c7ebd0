"""Calls of one entry from one thread, again and again on the same arrays: what stays the same is prepared once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import numpy as np

from llmos.runtime.device.base import Module
from llmos.runtime.dlpack import CAPSULE, Exported, pointer_of
from llmos.runtime.errors import ExecutionError
from llmos.runtime.program import Entry

_MAX_EXPORTED = 4096


class RepeatedCall:
    """Calls an entry without states, from one thread at a time.

    Inputs are contiguous, writable numpy arrays whose shapes stay as they are. An array that stands where it stood in the call before
    is not looked at again. Outputs are views of memory that the next call overwrites: the same objects where their shapes are the same.

    A step of a language model passes dozens of arrays and runs behind code that has read all weights, so that nothing of Python is in a
    cache: then each object that is looked at costs a read of memory.
    """

    def __init__(self, entry: Entry) -> None:
        assert entry.state is None and not entry.resized
        self._entry = entry
        self._specs = entry.spec.outputs
        self._is_ready = False  # whether inputs and outputs are those of `_given`
        self._given: list[np.ndarray | None] = [None] * len(entry.inputs)
        self._exported: dict[int, Exported] = {}
        self._inputs = (c_void_p * len(entry.inputs))()
        self._pointers = (c_void_p * len(self._specs))()
        self._dims = (c_int64 * max(1, sum(len(spec.shape) for spec in self._specs)))()
        self._shapes: list[tuple[int, ...]] = []
        self._memory = [np.empty(0, dtype) for _, dtype in entry.output_slices]
        self._outputs: tuple[np.ndarray, ...] = ()
        self._capsules: list[object] = []

    def __call__(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Run the entry. Raises as Entry does."""
        entry, given = self._entry, self._given
        module = entry.module
        if module is None:
            raise ExecutionError("the program is closed; load it again")
        for position, array in enumerate(inputs):
            if array is not given[position]:
                self._is_ready = False
                self._inputs[position] = (self._exported.get(id(array)) or self._export(position, array)).address
                given[position] = array
        if not self._is_ready:
            self._prepare(module)
        code = module.run(entry.index, self._inputs, len(given), self._pointers, len(self._outputs), entry.flags, None)
        if code:
            raise module.error(code)
        return self._outputs

    def _export(self, position: int, array: np.ndarray) -> Exported:
        if len(self._exported) >= _MAX_EXPORTED:
            used = {id(each) for each in self._given}
            self._exported = {key: exported for key, exported in self._exported.items() if key in used}
        exported = self._exported[id(array)] = Exported(self._entry.inputs[position].name, array)  # holds it, so that its id stays its own
        return exported

    def _prepare(self, module: Module) -> None:
        """Check the inputs, and make room for the outputs."""
        code = module.shapes(self._entry.index, self._inputs, len(self._given), self._dims)
        if code:
            raise module.error(code)
        shapes = [tuple(self._dims[part]) for part, _ in self._entry.output_slices]
        if shapes != self._shapes:
            self._outputs = tuple(self._output(index, shape) for index, shape in enumerate(shapes))
            self._capsules = [output.__dlpack__() for output in self._outputs]
            for index, capsule in enumerate(self._capsules):
                self._pointers[index] = pointer_of(capsule, CAPSULE)
            self._shapes = shapes
        self._is_ready = True

    def _output(self, index: int, shape: tuple[int, ...]) -> np.ndarray:
        size = math.prod(shape)
        if self._memory[index].size < size:
            self._memory[index] = np.empty(size, self._memory[index].dtype)
        return self._memory[index][:size].reshape(shape)
