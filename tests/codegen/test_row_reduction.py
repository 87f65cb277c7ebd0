"""Row kernels: what a row of a tensor may be read by, besides its own reductions."""

from __future__ import annotations

import pytest
import torch

from llmos.compiler.frontend.torch import import_torch
from tests.conformance.compiled import run_compiled


class FirstOfTheLargest(torch.nn.Module):
    """A vector along the row has as many dims as one number a row, and is neither."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.arange(x.shape[1]) == x.argmax(1, keepdim=True)).float()


class ScaledByAVector(torch.nn.Module):
    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, 1) * torch.exp(scale + 1)


class Folded(torch.nn.Module):
    """Computed from constants alone, in a type other than float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tensor([1.5, 2.0, -3.0, 100.0]).to(self.dtype)


@pytest.mark.parametrize("size", [4, 17, 64])
def test_vector_along_the_row(size: int) -> None:
    x, scale = torch.randn(size, size, generator=torch.Generator().manual_seed(size)), torch.linspace(-1, 1, size)
    for module, inputs in ((FirstOfTheLargest(), (x,)), (ScaledByAVector(), (x, scale))):
        ((found,),) = run_compiled(import_torch(module, inputs), [inputs])
        torch.testing.assert_close(torch.from_numpy(found), module(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64])
def test_constants_are_folded_in_their_own_type(dtype: torch.dtype) -> None:
    x = torch.ones(2, 4, dtype=dtype)
    ((found,),) = run_compiled(import_torch(Folded(dtype), (x,)), [(x,)])
    got = torch.from_numpy(found).view(torch.bfloat16) if dtype == torch.bfloat16 else torch.from_numpy(found)
    assert torch.equal(got, Folded(dtype)(x))
