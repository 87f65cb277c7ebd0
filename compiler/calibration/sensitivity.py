"""What the rounding of each product costs, measured: one program in which every product is there in float and quantized."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.calibration.native import NativeProgram
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.ir.weights import Weight
from llmos.compiler.verify.accuracy import excess, is_logits
from llmos.passes.quant._switches import SWITCHES, add_switches
from llmos.passes.quant.quantize_contractions import QuantizeContractions
from llmos.runtime.artifact.deviation import Tolerance, measure


@dataclass(frozen=True)
class Excess:
    """Errors as parts of a budget: the worst and the mean over calls of the worst output."""

    worst: float
    mean: float


@dataclass(frozen=True)
class Judge:
    """Compares outputs with those of the float model on calibration inputs."""

    calls: Sequence[Sequence[np.ndarray]]
    wanted: Sequence[Sequence[np.ndarray]]
    budget: Tolerance

    @classmethod
    def of(cls, program: NativeProgram, calls: Sequence[Sequence[np.ndarray]], budget: Tolerance) -> Judge:
        """By what a program of the float model gives."""
        return cls(calls, [program.run(each) for each in calls], budget)

    def some(self, count: int) -> Judge:
        """Of `count` calls, evenly spaced."""
        chosen = sorted({int(i) for i in np.linspace(0, len(self.calls) - 1, min(count, len(self.calls)))})
        return Judge([self.calls[i] for i in chosen], [self.wanted[i] for i in chosen], self.budget)

    def excess(self, program: NativeProgram) -> Excess:
        """What the outputs of a program are off by."""
        found = [self._of_call(program, *each) for each in zip(self.calls, self.wanted, strict=True)]
        return Excess(max(found), statistics.mean(found))

    def worst_first(self, program: NativeProgram) -> Judge:
        """With the calls first on which a program is off most."""
        found = [self._of_call(program, *each) for each in zip(self.calls, self.wanted, strict=True)]
        order = sorted(range(len(found)), key=lambda number: found[number], reverse=True)
        return Judge([self.calls[i] for i in order], [self.wanted[i] for i in order], self.budget)

    def is_within(self, program: NativeProgram, limit: float) -> bool:
        """Whether all calls are off by at most `limit`; the first that isn't ends the look."""
        return all(self._of_call(program, *each) <= limit for each in zip(self.calls, self.wanted, strict=True))

    def _of_call(self, program: NativeProgram, call: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
        specs = program.signature.outputs
        figures = [
            measure(got, want, spec.dtype, logits=is_logits(spec.name))
            for got, want, spec in zip(program.run(call), wanted, specs, strict=True)
        ]
        return max((excess(each, self.budget) for each in figures), default=0.0)


@dataclass(frozen=True)
class SwitchedProgram:
    """A program in which each product is quantized or not, from one call to the next."""

    program: NativeProgram
    num_products: int

    @classmethod
    def of(cls, prepared: ImportedModel, num_products: int, options: CompileOptions) -> SwitchedProgram:
        """Compile what `before_quantizing` gave."""
        with prepared.module.context, ir.Location.unknown():
            module = ir.Module.parse(str(prepared.module))
            add_switches(EntryFunc.of(module), num_products)
        switches = {SWITCHES: Weight.of(np.zeros(num_products, np.int32))}
        model = ImportedModel(prepared.name, module, {**prepared.weights, **switches})
        return cls(NativeProgram.of(model, [QuantizeContractions()], options), num_products)

    def quantizing(self, numbers: Collection[int]) -> NativeProgram:
        """The program with these products quantized, until the next call."""
        self.program.weights[SWITCHES][...] = [number in numbers for number in range(self.num_products)]
        return self.program

    def keeping(self, numbers: Collection[int]) -> NativeProgram:
        """The program with these products in float, until the next call."""
        return self.quantizing(set(range(self.num_products)) - set(numbers))
