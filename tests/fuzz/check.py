"""Random graphs through the whole road, at every size, against eager torch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.runtime.artifact.bfloat16 import from_bfloat16
from llmos.runtime.program import Program

from .graph import HALF, Graph, Tensor

Array = np.ndarray
# The comparison below is made at more sizes than the accuracy report's.
OPTIONS = CompileOptions(target="native", cache=False, repro=None, accuracy_report=False)


class WrongResult(AssertionError):
    """The compiled program's answer is not torch's."""


def check(graph: Graph, backend: str = "") -> None:
    """Compile a graph and compare it at each of its sizes. Raises WrongResult, or what the compile or the run raises."""
    program = _compile(graph, backend)
    module = graph.module()
    for sample in range(len(graph.sizes)):
        inputs = graph.arguments(sample)
        found = program(*[_to_array(each) for each in inputs])
        compare(graph, sample, found if isinstance(found, tuple) else (found,), _run(module, inputs), inputs)
        program.check_integrity()


def _compile(graph: Graph, backend: str) -> Program:
    options = replace(OPTIONS, backend=backend)
    artifact = compile_model(graph.module(), graph.arguments(0), dynamic_shapes=_dynamic_shapes(graph), options=options)
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(Path(folder) / "program.llmos")
        return llmos.load(Path(folder) / "program.llmos", poison_arena=True)


def _dynamic_shapes(graph: Graph) -> tuple[dict[int, torch.export.Dim], ...]:
    least = [min(sizes[i] for sizes in graph.sizes) for i in range(2)]
    dims = {d: torch.export.Dim(name, min=low, max=128) for d, name, low in zip("bt", ("batch", "tokens"), least, strict=True)}
    return tuple({axis: dims[d] for axis, d in enumerate(each.dims) if isinstance(d, str)} for each in graph.inputs)


def compare(graph: Graph, sample: int, found: Sequence[Array], expected: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """Every output of one graph. float32 may differ by its budget and by what float32 itself makes of float64's answer."""
    wide = _in_double(graph, inputs, [each.shape for each in expected])
    for value, array, want, exact in zip(graph.outputs(), found, expected, wide or expected, strict=True):
        name, want_array = f"{value.name} at (b, t) = {graph.sizes[sample]}", _to_float(want)
        have = from_bfloat16(array) if want.dtype == torch.bfloat16 else array
        if have.shape != want_array.shape or (want.dtype != torch.bfloat16 and have.dtype != want_array.dtype):
            raise WrongResult(f"{name}: {have.dtype}{list(have.shape)} instead of {want_array.dtype}{list(want_array.shape)}")
        if not want_array.size:
            continue
        if not np.issubdtype(want_array.dtype, np.floating):
            if not np.array_equal(have, want_array):
                raise WrongResult(f"{name}: {_first(have, want_array, have != want_array)}")
            continue
        noise = np.abs(_to_float(exact).astype(np.float64) - want_array).max(initial=0.0)
        budget = (2e-2 if value.half or want.dtype in HALF else 1e-4) * np.abs(want_array).max(initial=0.0) + 10 * noise + 1e-6
        wrong = ~(np.abs(have.astype(np.float64) - want_array) <= budget)
        if wrong.any():
            raise WrongResult(f"{name}: {_first(have, want_array, wrong)} (budget {budget:.1e})")


def _in_double(graph: Graph, inputs: Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor] | None:
    try:
        outputs = list(_run(graph.module().double(), [each.double() if each.dtype == torch.float32 else each for each in inputs]))
    except (RuntimeError, TypeError, ValueError):
        return None  # the program itself asks for float32 somewhere
    return outputs if [each.shape for each in outputs] == list(shapes) else None  # or reads the bits of its numbers


def _run(module: torch.nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        outputs: tuple[Tensor, ...] = module(*inputs)
    return outputs


def _to_array(tensor: Tensor) -> Array:
    dense = tensor.detach().contiguous()
    return dense.view(torch.int16).numpy().view(np.uint16) if dense.dtype == torch.bfloat16 else dense.numpy()


def _to_float(tensor: Tensor) -> Array:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


def _first(found: Array, want: Array, wrong: Array) -> str:
    where = tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.ndim else ()
    return f"{int(wrong.sum())} of {wrong.size} wrong, at {where} {found[where]} instead of {want[where]}"
