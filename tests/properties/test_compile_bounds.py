"""Code is as long for large windows and tensors as for small ones: the length of a compile's kernels, counted in ops, at two sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.backends.cpu.planned import CpuPlanned
from llmos.compiler.backends.cpu.program import emit_kernels
from llmos.compiler.backends.cpu.target import resolve
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import run_passes
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.bindings import ir
from tests.codegen.programs import V3, Returns, assert_like_eager, compile_torch, dim
from tests.frontend.harness import module_of

F = torch.nn.functional
Case = Callable[[int], tuple[Callable[[torch.Tensor], object], tuple[int, ...]]]
UNROLLED = 3  # times as long: a window of a few places is written out, and vectors have a remainder or none

# name -> (size -> (function, shape of its input), small and large size)
CASES: dict[str, tuple[Case, int, int]] = {
    "max_pool": (lambda k: (lambda x: F.max_pool2d(x, k, return_indices=True), (1, 4, 70, 70)), 7, 61),
    "average_pool": (lambda k: (lambda x: F.avg_pool3d(x, k, 2, 1), (1, 2, 40, 40, 40)), 5, 31),
    "adaptive_max_pool": (lambda k: (lambda x: F.adaptive_max_pool3d(x, (k, k + 6, k + 8)), (1, 512, 10, 9, 5)), 1, 7),
    "adaptive_average_pool": (lambda k: (lambda x: F.adaptive_avg_pool2d(x, (k, k + 1)), (1, 3, 101, 103)), 2, 13),
    "convolution": (lambda k: (lambda x: F.conv2d(x, torch.ones(8, 8, k, k)), (1, 8, 64, 64)), 7, 41),
    "depthwise": (lambda k: (lambda x: F.conv2d(x, torch.ones(8, 1, k, k), groups=8), (1, 8, 64, 64)), 7, 41),
    "sort": (lambda n: (lambda x: torch.sort(x), (2, n)), 50, (1 << 20) + 2),
    "topk": (lambda k: (lambda x: torch.topk(x, k), (2, 100_000)), 3, 70_000),
    "cumsum": (lambda n: (lambda x: (x.cumsum(0), x.cumsum(1)), (n, n)), 17, 4097),
    "instance_norm": (lambda n: (lambda x: F.instance_norm(x), (1, 32, n)), 81, (1 << 18) + 1),
    "softmax": (lambda n: (lambda x: x.softmax(-1), (3, n)), 81, (1 << 20) + 1),
    "cholesky": (lambda n: (lambda x: torch.linalg.cholesky(x), (n, n)), 3, 300),
    "qr": (lambda n: (lambda x: torch.linalg.qr(x)[1], (n, n)), 3, 300),
    "repeat": (lambda n: (lambda x: x.repeat(n, 3), (2, 5)), 3, 3000),
    "padding": (lambda n: (lambda x: F.pad(x, (n, n, n, n), "circular"), (1, 1, 5000, 5000)), 3, 4000),
    "roll": (lambda n: (lambda x: x.roll(n, 0).flip(0), (5000,)), 3, 4000),
    "searchsorted": (lambda n: (lambda x: torch.bucketize(x, x.reshape(-1)), (n,)), 1500, (1 << 20) + 3),
    "resize": (lambda n: (lambda x: F.interpolate(x, size=(n, n), mode="bilinear"), (1, 3, 31, 33)), 5, 800),
}


def num_ops(function: Callable[[torch.Tensor], object], shape: tuple[int, ...]) -> int:
    """Ops of all kernels of a function."""
    imported = import_torch(module_of(function), (torch.empty(shape),))
    planned = run_passes(imported, CompileOptions(repro=None), CpuBackend())
    assert isinstance(planned, CpuPlanned)
    kernels = emit_kernels(planned.program, resolve("x86-64-v3")[0])
    count = 0

    def visit(_: ir.Operation) -> ir.WalkResult:
        nonlocal count
        count += 1
        return ir.WalkResult.ADVANCE

    kernels.operation.walk(visit)
    return count


@pytest.mark.parametrize("name", CASES)
def test_length_of_code(name: str) -> None:
    case, small, large = CASES[name]
    assert num_ops(*case(large)) <= UNROLLED * num_ops(*case(small))


def test_adaptive_pools_of_any_sizes() -> None:
    """Windows that differ in length, more of them than elements too; NaN and infinities stay within windows."""
    module = Returns(
        values=lambda x: F.adaptive_max_pool3d(x[:, None], (3, 7, 4)),
        places=lambda x: F.adaptive_max_pool2d(x, (3, 4), return_indices=True)[1],
        flat=lambda x: F.adaptive_max_pool1d(x[0], 7, return_indices=True)[1],
        means=lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
        volumes=lambda x: F.adaptive_avg_pool3d(x[:, None], (1, 5, 6)),
    )
    program = compile_torch(module, (torch.randn(2, 3, 10, 9),), [{1: dim("c", 2), 2: dim("h", 2)}], V3)
    for shape in ((2, 3, 10, 9), (2, 5, 2, 9), (2, 2, 33, 9), (2, 17, 4, 9)):
        x = torch.randn(shape)
        x[0, 0, 0, 0], x[0, 1, -1, -1] = float("nan"), float("inf")
        assert_like_eager(program, module, x)
