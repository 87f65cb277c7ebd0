"""Several entries of one artifact on the fake GPU: their weights lie once, and each starts its own kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import llmos
from llmos.compiler.frontend.torch import import_torch
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.device.cuda import CudaDevice
from llmos.runtime.program import load

from . import fake


class Up(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(16, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).exp()


class Pooled(torch.nn.Module):
    def __init__(self, model: Up) -> None:
        super().__init__()
        self.inner = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.inner.linear.weight[ids].softmax(-1) + self.inner.linear.bias[:16]


X, IDS = torch.randn(3, 16), torch.tensor([3, 1, 7, 9])


def test_each_entry_computes_what_its_model_does() -> None:
    fake.driver().fake_cuda_reset()
    model = Up()
    rows = {0: torch.export.Dim("rows", min=1, max=99)}
    models = {
        "up": import_torch(model, (X,), dynamic_shapes=(rows,)),
        "pooled": import_torch(Pooled(model), (IDS,), dynamic_shapes=({0: torch.export.Dim("ids", min=1, max=9)},)),
    }
    path = fake.compiled_entries(models)
    program = load(path, device=CudaDevice(), poison_arena=True)
    assert sorted(weight.shape for weight in program.manifest.weights) == [(16,), (24,), (24, 16)]
    with torch.no_grad():
        for _ in range(2):
            np.testing.assert_allclose(program["up"](X), model(X).numpy(), rtol=2e-6)
            np.testing.assert_allclose(program["pooled"](IDS), Pooled(model)(IDS).numpy(), rtol=2e-6)
    launched = [line.split()[1] for line in fake.calls() if line.startswith("cuLaunchKernel")]
    assert set(launched) == {"up_d0_contraction", "pooled_d0_row_reduction"}
    assert [each.name for each in program["pooled"].profile(IDS).dispatches] == ["pooled.d0_row_reduction"]


def test_a_compile_makes_one_module_of_all_kernels(tmp_path: Path) -> None:
    model = Up()
    artifact = llmos.compile({"up": model, "pooled": Pooled(model)}, {"up": (X,), "pooled": (IDS,)}, target="cuda:sm_80,cuda:sm_90a")
    artifact.save(tmp_path / "both.llmos")
    stored = Artifact.open(tmp_path / "both.llmos")
    for code in stored.manifest.code:
        assert bytes(stored.member(code.modules["ptx"])).count(b".visible .entry") == 2
