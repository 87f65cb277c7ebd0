"""Compiling small programs and running them against eager torch or numpy."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llmos
from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.backends.cpu.target import CpuTarget, resolve
from llmos.compiler.backends.lowering import lower
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import planned_of, run_passes
from llmos.compiler.driver import compile as compile_model
from llmos.compiler.driver.packaging import contents
from llmos.compiler.driver.saved import Sidecar
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.bindings import context, ir
from llmos.compiler.ir.weights import Weight
from llmos.passes import Pass, PipelineOptions, run_pipeline
from llmos.runtime.artifact.bfloat16 import from_bfloat16
from llmos.runtime.artifact.writer import write_artifact
from llmos.runtime.program import Program

V3, V4 = "x86-64-v3", "x86-64-v4"
Array = np.ndarray


def dim(name: str, low: int = 1, high: int = 2048) -> torch.export.Dim:
    return torch.export.Dim(name, min=low, max=high)


def options(target: str) -> CompileOptions:
    return CompileOptions(target=target, cache=False, repro=None, accuracy_report=False)


def runnable(target: str) -> str:
    """The target, or its kernels emulated on what this machine runs: no kernel is tested only where its hardware happens to be."""
    wanted = CpuTarget.parse(target)
    if wanted.runs_here():
        return target
    best = resolve("native")[0]
    if wanted.arch != best.arch:
        pytest.skip(f"this machine runs {best}, not {target}")
    return f"{target}@{best}"


def in_turn(cases: Iterable[Sequence[Any]], targets: Sequence[Any] = (V4, V3), each: int = 1) -> list[Any]:
    """Parameters (*case, target): each case for so many of the targets, in turn; for the others among the slow tests."""
    return [
        pytest.param(*case, target, marks=() if (place - number) % len(targets) < each else pytest.mark.slow)
        for number, case in enumerate(cases)
        for place, target in enumerate(targets)
    ]


class ChannelsLast(torch.nn.Module):
    """A module on [n, c, ...], given and giving [n, ..., c]: what is between has its channels innermost."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x.movedim(-1, 1)).movedim(1, -1).contiguous()


class Returns(torch.nn.Module):
    """Named outputs, each a function of the inputs: many small programs in one artifact."""

    def __init__(self, **outputs: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self._functions = outputs
        for name, function in outputs.items():
            if isinstance(function, torch.nn.Module):
                self.add_module(f"m_{name}", function)

    def forward(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: function(*inputs) for name, function in self._functions.items()}


def load(artifact: Any) -> Program:
    """A program of an artifact, whose file is gone when it is loaded. Temporaries hold NaN before each call."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.llmos"
        artifact.save(path)
        return llmos.load(path, poison_arena=True)


def compile_torch(module: torch.nn.Module, example: Sequence[Any], dynamic: Sequence[Any] | None = None, target: str = V4) -> Program:
    """A program of a module; `dynamic`: for each input, its dynamic dims; lists of inputs take lists of them."""
    shapes: Any = None
    if dynamic is not None:
        variadic = module.forward.__code__.co_flags & inspect.CO_VARARGS
        shapes = {"inputs": tuple(dynamic)} if variadic else tuple(dynamic)
    return load(compile_model(module.eval(), tuple(example), dynamic_shapes=shapes, options=options(runnable(target))))


def compile_text(text: str, weights: Mapping[str, Array] | None = None, target: str = V4, passes: Sequence[Pass] = ()) -> Program:
    """A program of linalg text (docs/architecture.md, "The linalg stage"); `passes`: instead of the usual ones."""
    target = runnable(target)
    with context(), ir.Location.unknown():
        module = ir.Module.parse(text)
    chosen = options(target)
    if passes:
        run_pipeline(module, passes, options=PipelineOptions(repro=None), context=CpuBackend().context(chosen))
    imported = ImportedModel("program", module, {name: Weight.of(array) for name, array in (weights or {}).items()})
    backend = CpuBackend()
    planned = planned_of(imported, chosen, backend) if passes else run_passes(imported, chosen, backend)
    (found,) = resolve(target)
    compiled = planned.record.with_code([found], [lower(planned, found, chosen, backend)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.llmos"
        write_artifact(path, contents(Sidecar("program", imported.weights, {}, {}, None), compiled, backend))
        return llmos.load(path, poison_arena=True)


def to_array(tensor: torch.Tensor) -> Array:
    """As a program takes and gives it: bfloat16 as uint16."""
    dense = tensor.detach().contiguous()
    return dense.view(torch.int16).numpy().view(np.uint16) if dense.dtype == torch.bfloat16 else dense.numpy()


def run(program: Program, *inputs: torch.Tensor) -> dict[str, Array]:
    """Outputs by name."""
    found = program(*[to_array(each) for each in inputs])
    arrays = found if isinstance(found, tuple) else (found,)
    return {spec.name: array for spec, array in zip(program["main"].outputs, arrays, strict=True)}


def assert_like_eager(
    program: Program, module: torch.nn.Module, *inputs: torch.Tensor, rtol: float = 1e-5, atol: float = 1e-5, exact: bool = False
) -> None:
    """Every output close to eager torch's, relative to its own scale; integers and bool, or all with `exact`, equal."""
    found = run(program, *inputs)
    with torch.no_grad():
        expected = module(*inputs)
    if not isinstance(expected, dict):
        leaves = torch.utils._pytree.tree_leaves(expected)
        expected = dict(zip(found, leaves, strict=True))
    wrong = [message for name in expected if (message := _difference(name, found[name], expected[name], rtol, atol, exact))]
    assert not wrong, f"inputs {[tuple(each.shape) for each in inputs]}: " + "; ".join(wrong)


def _difference(name: str, found: Array, expected: torch.Tensor, rtol: float, atol: float, exact: bool) -> str:
    if expected.dtype == torch.bfloat16:
        found, expected = from_bfloat16(found), expected.float()
    want = expected.detach().numpy()
    if found.shape != want.shape or found.dtype != want.dtype:
        return f"{name}: {found.dtype}{found.shape} instead of {want.dtype}{want.shape}"
    if exact or not np.issubdtype(want.dtype, np.floating):
        return (
            ""
            if np.array_equal(found, want, equal_nan=np.issubdtype(want.dtype, np.floating))
            else f"{name}: {_first(found, want, found != want)}"
        )
    finite = np.isfinite(want)
    scale = np.abs(want[finite]).max(initial=0.0)
    same = np.where(
        finite,
        np.abs(np.where(finite, found, 0) - np.where(finite, want, 0)) <= atol + rtol * scale,
        (found == want) | (np.isnan(found) & np.isnan(want)),
    )
    return "" if same.all() else f"{name}: {_first(found, want, ~same)}"


def _first(found: Array, want: Array, wrong: Array) -> str:
    where = tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.ndim else ()
    return f"{int(wrong.sum())} of {wrong.size} wrong, at {where} {found[where]} instead of {want[where]}"
