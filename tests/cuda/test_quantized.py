"""Quantized models on the fake GPU, against the CPU's code: weights in 8 and 4 bits, products of bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import llmos
from llmos.compiler.backends.options import CompileOptions

from . import fake


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(64, 96), torch.nn.Linear(96, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.nn.functional.silu(self.up(x)))


@pytest.mark.parametrize("quant", ["w8a16", "w4a16:g32", "w8a8", "w4a8:g32", "fp8"])
def test_a_quantized_model_computes_what_it_does_on_a_cpu(quant: str, tmp_path: Path) -> None:
    fake.driver().fake_cuda_reset()
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    rows = ({0: torch.export.Dim("rows", min=1, max=99)},)
    loaded = fake.program(Network(), (x,), rows, quant=quant)
    options = CompileOptions(target="native", quant=quant, accuracy_report=False, repro=None)
    llmos.compile(Network(), (x,), dynamic_shapes=rows, options=options).save(tmp_path / "cpu.llmos")
    wanted = np.asarray(llmos.load(tmp_path / "cpu.llmos")(x))
    (found,) = fake.both_orders(loaded, x)
    exact = Network()(x).detach().numpy()
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert np.abs(found - exact).max() > 1e-4 * np.abs(exact).max()  # it is quantized
    stored = sum(int(weight.num_bytes) for weight in loaded.manifest.weights)
    assert stored < (96 * 64 + 40 * 96) * 4 / 2.5  # a byte each, and scales
