"""What IR tests share: a module at the stage a pass sees it, and CHECK lines matched in-process."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import Options
from filecheck.parser import Parser, pattern_for_opts

from llmos.compiler.backends.common import generalization
from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import passes_of
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.bindings import context, ir
from llmos.passes import Pass, PipelineOptions, run_pipeline

PRELUDE = generalization()
PIPELINE = passes_of(CompileOptions(), CpuBackend())
CONTEXT = CpuBackend().context(CompileOptions())
QUIET = PipelineOptions(repro=None)


class Call(torch.nn.Module):
    """A function of tensors as a module; `weights` are parameters, given first."""

    def __init__(self, function: Any, *weights: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        self.weights = torch.nn.ParameterList(weights)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*self.weights, *inputs)


def generics(function: Any, *inputs: torch.Tensor, weights: Sequence[torch.Tensor] = (), dynamic: bool = True) -> ir.Module:
    """A function as linalg.generic ops: what comes into our own passes. The inputs' first dims are dynamic, as `batch`."""
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = (tuple({0: batch} for _ in inputs),) if dynamic else None
    module = import_torch(Call(function, *weights).eval(), inputs, shapes, name="m").module
    run_pipeline(module, PRELUDE, options=QUIET, context=CONTEXT)
    return module


def parse(text: str) -> ir.Module:
    with context(), ir.Location.unknown():
        return ir.Module.parse(text)


def apply(module: ir.Module, *passes: Pass) -> ir.Module:
    run_pipeline(module, passes, options=QUIET, context=CONTEXT)
    return module


def check(module: ir.Module, checks: str) -> None:
    """Match FileCheck lines (CHECK, CHECK-NEXT, CHECK-NOT, ...) against a module's text."""
    options = Options(match_filename="checks", input_file="-", check_prefixes=["CHECK"])
    text = str(module)
    parser = Parser(options, io.StringIO(checks), *pattern_for_opts(options))
    assert Matcher(options, FInput("module", text), parser).run() == 0, text


def functions(module: ir.Module) -> list[ir.Operation]:
    return [op.operation for op in module.body.operations]


def kinds(module: ir.Module) -> list[str]:
    """The kinds of the dispatches in the order in which the public function calls them."""
    named = {ir.StringAttr(f.attributes["sym_name"]).value: f for f in functions(module)}
    main = next(f for f in functions(module) if "sym_visibility" not in f.attributes)
    calls = [op.operation for op in main.regions[0].blocks[0].operations if op.operation.name == "func.call"]
    callees = [named[ir.FlatSymbolRefAttr(call.attributes["callee"]).value] for call in calls]
    return [ir.StringAttr(callee.attributes["llmos.dispatch"]).value for callee in callees]
