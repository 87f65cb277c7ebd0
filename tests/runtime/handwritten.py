"""The parts of a hand-written artifact: kernels.c as its code, two weights, two symbols, and an entry per thing that can happen."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from llmos.runtime.artifact.manifest import EntrySpec, KernelSpec, TensorSpec

NATIVE = Path(__file__).parents[2] / "runtime" / "native"
SCALE = np.array([1.0, 2.0, -3.0, 0.5], np.float32)
SHIFT = np.array([0.25, -1.0, 4.0, 8.0], np.float32)


@dataclass(frozen=True)
class Constant:
    """A weight that is in memory."""

    array: np.ndarray

    @property
    def dtype(self) -> str:
        return str(self.array.dtype.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def load(self) -> Callable[[], np.ndarray]:
        return lambda: self.array


def compile_c(output: Path, *arguments: str | Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.fail("these tests need a C compiler named cc")
    command = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", NATIVE / "include", *arguments, "-o", output]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output


def entry(
    name: str,
    inputs: dict[str, tuple[str, tuple[int | str, ...]]],
    outputs: dict[str, tuple[str, tuple[int | str, ...]]],
    updated: str = "",
) -> EntrySpec:
    def specs(tensors: dict[str, tuple[str, tuple[int | str, ...]]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(tensor, dtype, shape, tensor == updated) for tensor, (dtype, shape) in tensors.items())

    return EntrySpec(name, f"__tvm_ffi_{name}", f"__llmos_shapes_{name}", specs(inputs), specs(outputs))


ENTRIES = (
    entry("main", {"x": ("float32", ("batch", 4))}, {"y": ("float32", ("batch", 4))}),
    entry(
        "pair",
        {"a": ("float32", ("batch", "tokens")), "b": ("int64", ("2*tokens + 1",))},
        {"total": ("float32", ("batch",)), "last": ("int64", ())},
    ),
    entry("lookup", {"index": ("int64", ("batch",))}, {"y": ("int64", ("batch",))}),
    entry("uninitialised", {}, {"y": ("float32", (16,))}),
    entry("greedy", {}, {"y": ("float32", (1,))}),
    entry("overrun", {}, {"y": ("float32", (1,))}),
    entry("slow", {"turns": ("int64", (1,))}, {"y": ("int64", (64,))}),
    entry("echo", {"x": ("bfloat16", ("batch",))}, {"y": ("bfloat16", ("batch",))}),
    entry("add", {"a": ("float32", ("batch",)), "b": ("float32", ("batch",))}, {"y": ("float32", ("batch",))}),
    entry("device", {"x": ("float32", ("batch",))}, {"y": ("float32", ("batch",))}),
    entry("write", {"table": ("float32", ("batch", 4)), "index": ("int64", ("tokens",)), "row": ("float32", (4,))}, {}, "table"),
)
KERNELS = tuple(KernelSpec(name, "elementwise") for name in ("scale_rows", "sum_rows", "look_up", "turn", "add_all", "write_rows"))
