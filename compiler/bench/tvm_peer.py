"""TVM as an engine of its own: Relax, compiled for the sizes of each call, with no tuning."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmos.compiler.bench.engines import Runner, torch_module

Compiled = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def load_tvm(source: Path, num_threads: int) -> Runner:
    """TVM's own front ends, passes and schedules; a program for each set of sizes, made at their first call."""
    os.environ["TVM_NUM_THREADS"] = str(num_threads)  # read when its runtime starts
    import tvm  # noqa: F401 -- to fail here where it isn't installed

    programs: dict[tuple[tuple[int, ...], ...], Compiled] = {}

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        shapes = tuple(each.shape for each in inputs)
        if shapes not in programs:
            programs[shapes] = _compiled(_relax_module(source, inputs))
        return programs[shapes](inputs)

    return run


def _relax_module(source: Path, inputs: Sequence[np.ndarray]) -> Any:
    """The model at the sizes of its inputs."""
    if source.suffix == ".onnx":
        import onnx
        from tvm.relax.frontend.onnx import from_onnx

        model = onnx.load(source)
        names = [value.name for value in model.graph.input]
        return from_onnx(model, shape_dict={name: list(each.shape) for name, each in zip(names, inputs, strict=False)})
    import torch
    from tvm.relax.frontend.torch import from_exported_program

    exported = torch.export.export(_as_module(torch_module(source)), tuple(torch.from_numpy(each) for each in inputs))
    return from_exported_program(exported)


def _as_module(function: Callable[..., Any]) -> Any:
    import torch

    if isinstance(function, torch.nn.Module):
        return function

    class Module(torch.nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return function(*inputs)

    return Module()


def _compiled(module: Any) -> Compiled:
    import tvm
    from tvm import relax

    cpu = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUName")()
    machine = relax.VirtualMachine(tvm.compile(module, tvm.target.Target({"kind": "llvm", "mcpu": cpu})), tvm.cpu())

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        made = machine["main"](*[tvm.runtime.tensor(each) for each in inputs])
        return [each.numpy() for each in ([made] if hasattr(made, "numpy") else list(made))]

    return run
