"""label-dispatches names what torch modules turn into."""

from __future__ import annotations

import pytest
import torch

from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.bindings import ir
from llmos.passes import run_pipeline

from .ir_tests import CONTEXT, PIPELINE, QUIET


def labels(module: torch.nn.Module, *shape: int) -> list[str]:
    """Labels of a module's dispatches, for one float input with a dynamic first dim."""
    imported = import_torch(module.eval(), (torch.randn(*shape),), ({0: torch.export.Dim("batch", max=64)},), name="m")
    run_pipeline(imported.module, PIPELINE, options=QUIET, context=CONTEXT)
    attributes = [op.operation.attributes for op in imported.module.body.operations]
    return [ir.StringAttr(a["llmos.label"]).value for a in attributes if "llmos.label" in a]


class RmsNorm(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (torch.nn.Softmax(-1), "softmax"),
        (torch.nn.LogSoftmax(-1), "log_softmax"),
        (torch.nn.LayerNorm(24), "layer_norm"),
        (RmsNorm(), "rms_norm"),
        (torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.GELU()), "matmul+bias+gelu"),
        (torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.GELU("tanh")), "matmul+bias+gelu_tanh"),
        (torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.SiLU()), "matmul+bias+silu"),
        (torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.ReLU()), "matmul+bias+relu"),
    ],
)
def test_names_the_computation(module: torch.nn.Module, expected: str) -> None:
    assert labels(module, 3, 24) == [expected]


def test_names_a_convolution() -> None:
    found = labels(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU()), 2, 3, 9, 9)
    assert found == ["pad", "conv+bias+relu", "copy"]
