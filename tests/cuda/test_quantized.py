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
    def __init__(self, k: int = 64, hidden: int = 96, n: int = 40) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(k, hidden), torch.nn.Linear(hidden, n)

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


INSTRUCTION = b"mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32"


@pytest.mark.parametrize(("k", "hidden", "n"), [(64, 96, 40), (68, 100, 12)])
def test_products_of_bytes_are_those_of_tensor_cores_and_exact(k: int, hidden: int, n: int, tmp_path: Path) -> None:
    """The integers are the CPU's, and so all that follows is."""
    fake.driver().fake_cuda_reset()
    rows = ({0: torch.export.Dim("rows", min=1, max=99)},)
    loaded = fake.program(Network(k, hidden, n), (torch.zeros(3, k),), rows, quant="w8a8")
    artifact = loaded.artifact
    assert INSTRUCTION in bytes(artifact.member(artifact.manifest.code[0].modules["ptx"]))
    options = CompileOptions(target="native", quant="w8a8", accuracy_report=False, repro=None)
    llmos.compile(Network(k, hidden, n), (torch.zeros(3, k),), dynamic_shapes=rows, options=options).save(tmp_path / "cpu.llmos")
    cpu = llmos.load(tmp_path / "cpu.llmos")
    for count in (1, 65):
        x = torch.randn(count, k, generator=torch.Generator().manual_seed(count))
        wanted, (found,) = np.asarray(cpu(x)), fake.both_orders(loaded, x)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
        np.testing.assert_array_equal(found[-1:], np.asarray(loaded(x[-1:])))
