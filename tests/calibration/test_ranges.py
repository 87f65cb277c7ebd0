"""Static W8A8 of a small convolutional net: ranges from data, bytes between dispatches, and labels that hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.runtime.errors import UserError


class Net(torch.nn.Module):
    """Convolution, pool, residual block with a depthwise convolution, averages, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = torch.nn.Conv2d(16, 16, 1)
        self.classes = torch.nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.max_pool2d(self.first(x).relu(), 2)
        x = (x + self.pointwise(self.depthwise(x).relu())).relu()
        return self.classes(x.mean((2, 3)))


def options(calibrate: list[tuple[np.ndarray, ...]] | None) -> CompileOptions:
    return CompileOptions(target="native", cache=False, repro=None, accuracy_report=False, quant="w8a8-static", calibrate=calibrate)


def images(count: int, seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).standard_normal((count, 1, 3, 12, 12)).astype(np.float32))


def test_it_takes_data() -> None:
    with pytest.raises(UserError, match="give some with --calibrate FILE"):
        llmos.compile(Net().eval(), (torch.randn(1, 3, 12, 12),), options=options(None))


@pytest.mark.slow
def test_classes_are_near_those_of_floats(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, calls = Net().eval(), [(each,) for each in images(8, seed=1)]
    llmos.compile(net, (torch.randn(1, 3, 12, 12),), options=options(calls)).save(tmp_path / "m.llmos")
    program = llmos.load(tmp_path / "m.llmos", poison_arena=True)
    assert sum(str(each.dtype) == "int8" for each in program.manifest.weights) >= 3
    for image in images(8, seed=2):
        want = net(torch.from_numpy(image)).detach().numpy()
        got = np.asarray(program(image))
        assert 0 < np.abs(got - want).max() < 0.05 * np.ptp(want)
