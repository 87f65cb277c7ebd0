"""Snapshots of a compile: the imported module, and the module after each pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llmos.compiler.backends.base import Backend, CompiledModel, CompileObserver, Planned
from llmos.compiler.backends.lowering import lower_each
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import run_passes
from llmos.compiler.backends.registry import backend_of
from llmos.compiler.execution.interpreter import Interpreter, OpCache, Trace
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.weights import Weight
from llmos.passes import Pass, PassContext, PassRun, PipelineOptions, run_pipeline


@dataclass(frozen=True)
class Stage:
    """A module as text (with its ops' source locations), and the pass that produced it, with its place among all; None for the import."""

    text: str
    made_by: Pass | None
    index: int = -1

    @property
    def name(self) -> str:
        return self.made_by.name if self.made_by else "import"


class _Snapshots(CompileObserver):
    """Saves the module after each pass that changes it."""

    def __init__(self, first: ir.Module) -> None:
        self.stages = [Stage(_text(first), None)]

    def pass_finished(self, run: PassRun, module: ir.Module) -> None:
        text = _text(module)
        if text != self.stages[-1].text:
            self.stages.append(Stage(text, run.step, run.index))


def _text(module: ir.Module) -> str:
    return str(module.operation.get_asm(enable_debug_info=True))


@dataclass(frozen=True)
class Passed:
    """A model after its passes, with all its stages."""

    stages: tuple[Stage, ...]
    planned: Planned
    options: CompileOptions
    backend: Backend

    @cached_property
    def compiled(self) -> CompiledModel:
        """Return the compiled code, generated on first use."""
        text = self.options.target
        targets = self.backend.code_targets(text, self.backend.targets(text), [self.planned])
        code = lower_each([(self.planned, target) for target in targets], self.options, self.backend)
        return self.planned.record.with_code(targets, code)


def snapshots_of(imported: ImportedModel, options: CompileOptions) -> Passed:
    """Run the passes of a compile, and save the module after each."""
    snapshots, backend = _Snapshots(imported.module), backend_of(options)
    planned = run_passes(imported, options, backend, snapshots)
    return Passed(tuple(snapshots.stages), planned, options, backend)


@dataclass
class Runner:
    """Runs stages on one set of inputs; identical ops are compiled once for all of them."""

    inputs: tuple[np.ndarray, ...]
    weights: Mapping[str, Weight]
    context: ir.Context
    cache: OpCache

    def module(self, text: str) -> ir.Module:
        return ir.Module.parse(text, self.context)

    def trace(self, module: ir.Module) -> Trace:
        """Return all values of a module. Raises UnsupportedError if upstream can't lower it."""
        return Interpreter(module, self.cache).run(self.inputs, self.weights)

    def folded(self, module: ir.Module) -> dict[str, np.ndarray]:
        """Return the weights that a module computes from others."""
        return Interpreter(module, self.cache).folded(self.weights)

    def repeated(self, before: Stage, step: Pass, context: PassContext) -> tuple[ir.Module, ir.Module]:
        """Rerun a pass; return the modules before and after it, in which an op's location is its position in the text before."""
        with self.context:
            plain = str(self.module(before.text))
        first, second = self.module(plain), self.module(plain)
        run_pipeline(second, [step], options=PipelineOptions(None, None), context=context)
        return first, second
