"""A GPU for tests: the fake driver of fake_cuda.c, in the place of the machine's, and models compiled, loaded and run on it."""

from __future__ import annotations

import ctypes
import functools
import itertools
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmos.compiler.backends.base import CompiledModel
from llmos.compiler.backends.cuda.emit import BETWEEN, make_entry_kernels
from llmos.compiler.backends.cuda.emulation import emulate
from llmos.compiler.backends.cuda.planned import CudaPlanned
from llmos.compiler.backends.cuda.target import HostTarget
from llmos.compiler.backends.entries import together
from llmos.compiler.backends.lowering import lower, lower_each
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import run_passes
from llmos.compiler.backends.registry import get_backend
from llmos.compiler.codegen.llvm import compile_object
from llmos.compiler.driver.packaging import contents
from llmos.compiler.driver.saved import Sidecar
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.torch import import_torch
from llmos.runtime.artifact.writer import write_artifact
from llmos.runtime.device.cuda import CudaDevice
from llmos.runtime.program import Program, load

MACHINE = HostTarget("x86_64", "x86_64-unknown-linux-gnu", "x86-64-v3")  # with fused multiply-adds
_COUNT = itertools.count()


@functools.cache
def folder() -> Path:
    """Of this process's builds."""
    return Path(tempfile.mkdtemp(prefix="llmos-fake-cuda-"))


@functools.cache
def driver() -> ctypes.CDLL:
    """Build the fake driver and load it: by its name, libcuda.so.1, the core finds it."""
    library = folder() / "libcuda.so.1"
    source = Path(__file__).parent / "fake_cuda.c"
    command = [
        "cc",
        "-std=gnu11",
        "-O1",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-shared",
        "-U_FORTIFY_SOURCE",
        "-Wl,-soname,libcuda.so.1",
    ]
    subprocess.run([*command, str(source), "-o", str(library), "-lpthread", "-ldl"], check=True)
    loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    loaded.fake_cuda_log.restype = ctypes.c_char_p
    for count in (loaded.fake_cuda_live, loaded.fake_cuda_all_live, loaded.fake_cuda_allocated):
        count.restype = ctypes.c_int64
    loaded.fake_cuda_machine.argtypes = [ctypes.c_int] * 4 + [ctypes.c_size_t]
    return loaded


def calls() -> list[str]:
    """Return the calls of the driver since the last reset."""
    return driver().fake_cuda_log().decode().splitlines()


def install(text: str) -> None:
    """Make the kernels of LLVM IR text those of the next module that is loaded."""
    stem = folder() / f"kernels{next(_COUNT)}"
    stem.with_suffix(".o").write_bytes(compile_object(emulate(text), MACHINE))
    subprocess.run(["cc", "-shared", "-o", str(stem.with_suffix(".so")), str(stem.with_suffix(".o"))], check=True)
    assert driver().fake_cuda_code(str(stem.with_suffix(".so")).encode()) == 0


def compiled(model: Any, inputs: Sequence[torch.Tensor], dynamic_shapes: Any = None, **options: Any) -> Path:
    """Compile a model for the fake GPU, and install its kernels there. Returns the artifact."""
    chosen = CompileOptions(**{"target": "cuda:sm_90a", "cache": False, "repro": None, **options})
    imported = model if isinstance(model, ImportedModel) else import_torch(model, tuple(inputs), dynamic_shapes=dynamic_shapes)
    backend = get_backend("cuda")
    (target,) = backend.targets(chosen.target)
    planned = run_passes(imported, chosen, backend)
    text = str(lower(planned, target, chosen, backend, until="ll"))
    return _written(text, planned.record, Sidecar("test", imported.weights, imported.metadata, imported.assets), chosen)


def compiled_entries(models: Mapping[str, ImportedModel], **options: Any) -> Path:
    """Compile several models as the entries of one artifact for the fake GPU, and install their kernels there. Returns the artifact."""
    chosen = CompileOptions(**{"target": "cuda:sm_90a", "cache": False, "repro": None, **options})
    backend = get_backend("cuda")
    (target,) = backend.targets(chosen.target)
    plans = {name: run_passes(model, chosen, backend) for name, model in models.items()}
    placed, record = together({name: plan for name, plan in plans.items() if isinstance(plan, CudaPlanned)})
    (text,) = lower_each([(make_entry_kernels(placed, target, chosen), target)], chosen, backend, after="kernels.mlir", until="ll")
    return _written(str(text), record, Sidecar("test", {}), chosen)


def _written(text: str, record: CompiledModel, sidecar: Sidecar, options: CompileOptions) -> Path:
    """Make code of LLVM IR text, install its kernels, and write the artifact."""
    backend = get_backend("cuda")
    (target,) = backend.targets(options.target)
    install(text.split(BETWEEN)[0])
    record = record.with_code([target], lower_each([(text, target)], options, backend, after="ll"))
    path = folder() / f"model{next(_COUNT)}.llmos"
    write_artifact(path, contents(sidecar, record, backend))
    return path


def program(model: Any, inputs: Sequence[torch.Tensor], dynamic_shapes: Any = None, **options: Any) -> Program:
    """Return a model compiled for the fake GPU and loaded there; its temporaries are poisoned with NaN before each call."""
    driver()
    return load(compiled(model, inputs, dynamic_shapes, **options), device=CudaDevice(), poison_arena=True)


def both_orders(loaded: Program, *inputs: Any) -> list[np.ndarray]:
    """Run with the threads and blocks in order and in reverse: no bit may depend on it. Returns the outputs."""
    found = []
    for order in (0, 1):
        driver().fake_cuda_reverse(order)
        made = loaded(*inputs)
        found.append(list(made) if isinstance(made, tuple) else [made])
    driver().fake_cuda_reverse(0)
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first.view(np.uint8), second.view(np.uint8))
    return found[0]
