"""What is rounded to fewer bits to be stored writes its own bytes alone: vectors of every rest, against a page that faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import llmos
from llmos.compiler.backends.options import CompileOptions
from tests.codegen.programs import Returns, runnable

from .guarded import GuardedProgram

OPTIMIZED = True  # what touches memory beside a buffer may be LLVM's work

DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16, torch.bool)
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "elementwise": lambda x: x * 3.0,
    "row": lambda x: x / x.abs().amax(-1, keepdim=True) * 9.0,
    "column": lambda x: x.cumsum(0),
    "transposed": lambda x: x.T.contiguous(),
}


def narrowed(function: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function's value in another type; integers from a 64-bit value too."""
    if dtype == torch.int32:
        return lambda x: function(x).to(torch.int64).to(torch.int32)
    return lambda x: function(x).to(dtype)


@pytest.mark.parametrize("target", ["x86-64-v4", "x86-64-v3"])
@pytest.mark.parametrize("columns", [1, 17, 65, *(pytest.param(each, marks=pytest.mark.slow) for each in (2, 9, 15, 33))])
def test_only_its_own_bytes(columns: int, target: str, tmp_path: Path) -> None:
    outputs = {f"{name}_{str(dtype)[6:]}": narrowed(each, dtype) for name, each in FUNCTIONS.items() for dtype in DTYPES}
    options = CompileOptions(target=runnable(target), repro=None, cache=False, accuracy_report=False)
    module, x = Returns(**outputs), 7 * torch.rand(3, columns, generator=torch.Generator().manual_seed(columns)) + 1
    llmos.compile(module, (x,), options=options).save(tmp_path / "m.llmos")
    guarded = GuardedProgram(tmp_path / "m.llmos")
    expected = module(x)
    for at_end in (True, False):
        codes, found = guarded([x.numpy()], at_end)
        assert not any(codes)
        for name, got in zip(outputs, found, strict=True):
            want = expected[name]
            bits = want.view(torch.int16).numpy().view(np.uint16) if want.dtype == torch.bfloat16 else want.numpy()
            np.testing.assert_array_equal(got.ravel().view(np.uint8), bits.ravel().view(np.uint8), err_msg=name)
