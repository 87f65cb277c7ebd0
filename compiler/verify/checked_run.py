"""A checked run of compiled code: each dispatch is compared with the reference interpreter, and memory between dispatches is checked.

Every dispatch runs twice: on the results of the previous dispatches (accumulated), and alone, on the reference's values. Its operands must
be unchanged since they were written; dead values are overwritten with 0xFF (NaN), so that a later read is detected.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmos.compiler.analysis.loops import is_loop, root_of
from llmos.compiler.backends.base import CompiledModel
from llmos.compiler.execution.interpreter import Step, Trace
from llmos.compiler.execution.native import ERRORS, CompiledCode, Launch, aligned_copy, poisoned_array
from llmos.compiler.execution.reference import element_dtype
from llmos.compiler.ir.attributes import COMPUTES, WITHIN
from llmos.compiler.ir.bindings import ir
from llmos.compiler.verify.accuracy import empty_outputs, given_arrays
from llmos.runtime.artifact.deviation import Deviation, measure
from llmos.runtime.errors import ToleranceError

ROUNDED_NUMBERS = 2e-3  # what an error of integers counts beside one of floats: a step of 8-bit numbers is 1/255


@dataclass(frozen=True)
class Observed:
    """One dispatch: the deviation of its results, run alone and on its predecessors' results; None if not measured.

    overwritten: the dispatch whose result this one should have read, if it was overwritten. non_finite: whether a result holds a NaN or
    Inf that the reference's doesn't.
    """

    name: str
    alone: Deviation | None
    accumulated: Deviation | None
    overwritten: str = ""
    overwritten_by: str = ""
    non_finite: bool = False


@dataclass
class CheckedRun:
    """Runs the entry of one code variant once; `observed` then holds a record for each dispatch."""

    main: ir.Operation
    trace: Trace  # of the planned module on the same inputs
    names: Sequence[str]  # of the manifest's kernels
    observed: list[Observed] = field(default_factory=list)

    def __post_init__(self) -> None:
        ops = [op.operation for op in self.main.regions[0].blocks[0].operations]
        self._units = [op for op in ops if op.name == "func.call" or is_loop(op)]
        self._steps: Mapping[ir.Operation, Step] = {step.op: step for step in self.trace.steps}
        self._arguments = set(self.main.regions[0].blocks[0].arguments)
        returned = list(self.main.regions[0].blocks[0].operations)[-1].operands
        self._returned = {root_of(value) for value in returned}
        self._last_use = self._last_uses(ops)
        self._memory: dict[ir.Value, tuple[int, bytes]] = {}  # address of a value, and the bytes written there

    def _last_uses(self, ops: Sequence[ir.Operation]) -> dict[ir.Value, int]:
        """The number of the last dispatch that reads each value; a size that the host function reads is needed up to the next one."""
        number = 0
        last: dict[ir.Value, int] = {}
        for op in ops:
            if op in self._units:
                last |= {root_of(value): number for value in self._operands(op)}
                number += 1
            elif COMPUTES in op.attributes:
                last[root_of(op.operands[0])] = number
        return last

    def run(
        self,
        code: CompiledCode,
        model: CompiledModel,
        weights: Sequence[np.ndarray],
        inputs: Sequence[np.ndarray],
        sizes: Mapping[str, int],
    ) -> list[np.ndarray]:
        """Run the entry; return outputs, then updated inputs. Raises ToleranceError if the code reports an error."""
        entry = model.entries[0]
        given, outputs = given_arrays(entry, inputs), empty_outputs(code, model, entry, sizes)
        status = code.call(entry.symbol, given, outputs, weights, self._on_launch)
        if status:
            where = self.observed[-1].name if self.observed else "the host function"
            raise ToleranceError(f"the compiled model reports '{ERRORS.get(status, status)}' in {where}")
        return [*outputs, *[given[position] for position in entry.updated]]

    def _operands(self, op: ir.Operation) -> list[ir.Value]:
        """Return the tensor operands of a dispatch; for a loop, those known to be in memory before it."""
        values = [root_of(v) for v in op.operands if isinstance(v.type, ir.RankedTensorType)]
        return values if op.name == "func.call" else [v for v in self._captured_by(op) if isinstance(v.type, ir.RankedTensorType)]

    def _captured_by(self, op: ir.Operation) -> list[ir.Value]:
        return [root_of(v) for v in self._steps[op].operands] if op in self._steps else []

    def _on_launch(self, launch: Launch) -> int:
        if launch.dispatch < 0:  # within a loop
            return launch.run()
        op = self._units[launch.dispatch]
        is_call = op.name == "func.call"
        lost, by = self._lost(op)
        alone = self._alone(op, launch) if is_call else None
        status = launch.run()
        accumulated, non_finite = self._results(op, launch) if is_call else (None, False)
        self.observed.append(Observed(self.names[launch.dispatch], alone, accumulated, lost, by, non_finite))
        self._poison(launch.dispatch)
        return status

    def _lost(self, op: ir.Operation) -> tuple[str, str]:
        """Return the producer of an operand that was overwritten, and the last dispatch that wrote there since."""
        for value in self._operands(op):
            if value not in self._memory:
                continue
            address, written = self._memory[value]
            if ctypes.string_at(address, len(written)) != written:
                later = [
                    v for v, (a, data) in self._memory.items() if v != value and a < address + len(written) and address < a + len(data)
                ]
                return self._name_of(value), self._name_of(later[-1]) if later else "a write out of bounds"
        return "", ""

    def _name_of(self, value: ir.Value) -> str:
        return self.names[self._units.index(value.owner.operation)]

    def _tensors(self, op: ir.Operation) -> list[ir.Value]:
        return [v for v in op.operands if isinstance(v.type, ir.RankedTensorType)]

    def _alone(self, op: ir.Operation, launch: Launch) -> Deviation | None:
        """Run the dispatch on the reference's values; weights and inputs are the code's own, in its packed layout."""
        operands = self._tensors(op)
        if WITHIN in op.attributes:
            return None  # alone it would overwrite operands of later dispatches
        kept = []
        addresses = []
        for position, value in enumerate(operands):
            if root_of(value) in self._arguments:
                addresses.append(launch.address(position))
                continue
            kept.append(aligned_copy(self.trace.values[value]))
            addresses.append(kept[-1].ctypes.data)
        expected = self._steps[op].outputs
        made = [poisoned_array(array.shape, array.dtype) for array in expected]
        status = launch.run([*addresses, *[array.ctypes.data for array in made]])
        if status:
            return Deviation(np.inf, np.inf, 0.0)
        return _worst(made, expected, [element_dtype(result.type) for result in op.results])

    def _results(self, op: ir.Operation, launch: Launch) -> tuple[Deviation, bool]:
        """Return the deviation of the results, and whether one isn't finite where the reference's is."""
        first, expected = len(self._tensors(op)), self._steps[op].outputs
        got = []
        for number, (value, array) in enumerate(zip(op.results, expected, strict=True)):
            address = launch.address(first + number)
            data = ctypes.string_at(address, array.nbytes)
            updated = WITHIN in op.attributes  # so it has the memory of the old value, which is dead from now on
            self._memory = {each: held for each, held in self._memory.items() if each != value and not (updated and held[0] == address)}
            self._memory[value] = (address, data)
            got.append(np.frombuffer(data, array.dtype).reshape(array.shape))
        deviation = _worst(got, expected, [element_dtype(result.type) for result in op.results])
        return deviation, not np.isfinite(deviation.max_error)

    def _poison(self, dispatch: int) -> None:
        """Poison values that are dead after a dispatch."""
        for value in [v for v in self._memory if v not in self._returned and self._last_use.get(v, -1) <= dispatch]:
            address, data = self._memory.pop(value)
            ctypes.memset(address, 0xFF, len(data))


def _worst(got: Sequence[np.ndarray], want: Sequence[np.ndarray], dtypes: Sequence[str]) -> Deviation:
    """The largest of several results; integers, which may have been rounded the other way, where no float is off more than one rounds."""
    found = [measure(_unwrapped(a, b), b, dtype) for a, b, dtype in zip(got, want, dtypes, strict=True)]
    return max(found, key=lambda each: each.max_error * (1.0 if each.differing is None else ROUNDED_NUMBERS))


def _unwrapped(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Bytes, whose sign isn't known, as the numbers nearest to the wanted ones: 128 beside 127 is no -128."""
    return want.astype(np.int16) + (got - want) if got.dtype == want.dtype == np.int8 else got
