"""Fault localization: compare two stages of one program op by op.

Each op of the stage after a pass, and its values, are compared with the op that it originates from. The location of an op names its origin:
the stage before the pass was parsed from text, which gives every op a unique location.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llmos.compiler.execution.interpreter import Step, Trace
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import callee_of, is_public
from llmos.compiler.ir.ops import VIEWS
from llmos.runtime.artifact.bfloat16 import from_bfloat16
from llmos.runtime.artifact.deviation import measure

_PLACE = re.compile(r'"-":(\d+):(\d+)')


def place(op: ir.Operation) -> str:
    """Return line and column of the text that an op was parsed from; "" for one created later."""
    found = _PLACE.search(str(op.location))
    return found.group(0) if found else ""


def same(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Whether two values hold the same numbers: elementwise for equal shapes, in any order for others (a change of layout)."""
    if a.size != b.size:
        return False
    if a.shape == b.shape:
        return _close(a, b, tolerance)
    return _close(np.sort(_plain(a), axis=None), np.sort(_plain(b), axis=None), tolerance)


def _close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    if a.dtype == b.dtype == np.int8:  # with a sign or not: one step is what a number between two is rounded to
        return bool((np.abs((a - b).astype(np.int16)) <= 1).all())
    return measure(_plain(a), _plain(b), "float64").max_error <= tolerance


def _plain(array: np.ndarray) -> np.ndarray:
    """Convert bfloat16 (as uint16, which no other value is) to float32."""
    return from_bfloat16(array) if array.dtype == np.uint16 else array


@dataclass(frozen=True)
class Side:
    """One stage with its values."""

    functions: Mapping[str, ir.Operation]
    trace: Trace

    @cached_property
    def steps(self) -> dict[ir.Operation, Step]:
        return {step.op: step for step in self.trace.steps}

    @cached_property
    def by_place(self) -> dict[str, ir.Operation]:
        """Return the ops of the entry by location in the text."""
        return {place(step.op): step.op for step in self.trace.steps}

    def value(self, value: ir.Value) -> np.ndarray | None:
        return self.trace.values.get(value)

    def callee(self, op: ir.Operation) -> ir.Operation | None:
        return self.functions.get(callee_of(op)) if op.name == "func.call" else None

    def makers(self, op: ir.Operation) -> list[ir.Operation | None]:
        """Return the op that defines each tensor result: itself, or the callee's op that defines the returned value."""
        callee = self.callee(op)
        if callee is None:
            return [op] * len(op.results)
        returned = list(callee.regions[0].blocks[0].operations)[-1].operands
        return [None if isinstance(value.owner, ir.Block) else value.owner.operation for value in returned]

    def readers(self, op: ir.Operation) -> Iterator[tuple[ir.Operation, ir.Value]]:
        """Yield each op that reads a tensor of the entry within `op`, with that tensor: the op itself, or ops of its callee."""
        callee = self.callee(op)
        if callee is None:
            yield from ((op, value) for value in op.operands if value in self.trace.values)
            return
        for value, argument in zip(op.operands, callee.regions[0].blocks[0].arguments, strict=True):
            if value in self.trace.values:
                yield from ((reader, value) for reader in _uses(argument))


def _uses(value: ir.Value) -> Iterator[ir.Operation]:
    """Yield the ops that read a value, also through views."""
    for use in value.uses:
        op = use.owner.operation
        if op.name in VIEWS:
            yield from _uses(op.results[0])
        else:
            yield op


@dataclass(frozen=True)
class Comparison:
    """The stage before a pass and the one after it."""

    before: Side
    after: Side
    tolerance: float

    def fault(self, wrong: int) -> ir.Operation | None:
        """The op of the entry after the pass where the error of output `wrong` enters; None where nothing tells."""
        returned = list(next(iter(self._main.regions[0].blocks)).operations)[-1].operands[wrong]
        owner = self._maker(returned)
        if owner is None:
            return None
        expected = self.before.trace.outputs[wrong]
        if self._own_is_right(owner) and self.after.value(returned) is not None and not self._exists_elsewhere(expected):
            return owner  # its value equals that of an op before the last one
        return self._first_wrong(owner, set())

    @property
    def _main(self) -> ir.Operation:
        return next(filter(is_public, self.after.functions.values()))

    def _maker(self, value: ir.Value) -> ir.Operation | None:
        return None if isinstance(value.owner, ir.Block) else value.owner.operation

    def _first_wrong(self, op: ir.Operation, seen: set[ir.Operation]) -> ir.Operation:
        """Walk back from an op with a wrong value to the first one whose operands are all correct."""
        seen.add(op)
        for value in self.after.steps[op].operands if op in self.after.steps else ():
            maker = self._maker(value)
            if maker is None or maker in seen:
                continue
            if not self._own_is_right(maker):
                return self._first_wrong(maker, seen)
        return self._misled(op) or op

    def _own_is_right(self, op: ir.Operation) -> bool:
        """Whether every result equals that of the op it originates from or, if that is unknown, that of any op."""
        step = self.after.steps.get(op)
        if step is None:
            return True
        for maker, got in zip(self.after.makers(op), step.outputs, strict=True):
            origin = self.before.by_place.get(place(maker)) if maker is not None else None
            known = list(self.before.steps[origin].outputs) if origin is not None else list(self.before.trace.values.values())
            if not any(same(got, array, self.tolerance) for array in known):
                return False
        return True

    def _misled(self, op: ir.Operation) -> ir.Operation | None:
        """Return the producer of a correct operand that isn't the value `op` read before the pass, if that value no longer exists."""
        for reader, value in self.after.readers(op):
            origin = self.before.by_place.get(place(reader))
            maker, got = self._maker(value), self.after.value(value)
            if origin is None or maker is None or got is None:
                continue
            expected = [self.before.trace.values[v] for v in self.before.steps[origin].operands]
            gone = [array for array in expected if array.size == got.size and not self._exists_elsewhere(array)]
            if gone and not any(same(got, array, self.tolerance) for array in expected):
                return maker
        return None

    def _exists_elsewhere(self, array: np.ndarray) -> bool:
        return any(same(array, other, self.tolerance) for other in self.after.trace.values.values())
