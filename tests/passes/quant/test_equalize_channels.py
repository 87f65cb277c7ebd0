"""equalize-channels: the function keeps its bits, channels get like ranges, and static W8A8 of a net with unlike ones gets accurate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import llmos
from llmos.compiler.backends.common import before_integers
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.calibration.statistics import prepend_results
from llmos.compiler.execution.interpreter import Interpreter
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.attributes import tensor_attributes
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.passes import run_pipeline
from llmos.passes.quant._static import static_products
from llmos.passes.quant.equalize_channels import EqualizeChannels
from tests.passes.ir_tests import CONTEXT, QUIET, apply

WIDTH = 8


class Net(nn.Module):
    """As MobileNet: a convolution, depthwise and 1x1 ones, batch norm, two kinds of ReLU, pools, a classifier."""

    def __init__(self, unlike: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.depthwise, self.point = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), nn.Conv2d(WIDTH, 2 * WIDTH, 1)
        self.last = nn.Linear(2 * WIDTH, 5)
        if unlike:
            self._spread()
        self.eval()

    def _spread(self) -> None:
        """Multiply channels by 1/16 to 16, and divide what reads them: the function is the same."""
        with torch.no_grad():
            for made, read in ((self.norm, self.depthwise), (self.depthwise, self.point), (self.point, self.last)):
                channels = len(made.weight)
                factors = 2.0 ** torch.linspace(-4, 4, channels)[torch.randperm(channels)]
                made.weight.transpose(0, -1).mul_(factors)
                made.bias.mul_(factors)
                read.weight.transpose(0 if read is self.depthwise else 1, -1).div_(factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = nn.functional.leaky_relu(nn.functional.max_pool2d(self.depthwise(x), 2))
        return self.last(torch.relu(self.point(x)).mean((2, 3)))


def imported(model: nn.Module, size: int = 6) -> tuple[ir.Module, Mapping[str, Any]]:
    x = torch.randn(2, 3, size, size)
    found = import_torch(model, (x,), ({0: torch.export.Dim("batch", min=1, max=64)},), name="m")
    run_pipeline(found.module, before_integers(CompileOptions()), options=QUIET, context=CONTEXT)
    return found.module, found.weights


def run(module: ir.Module, weights: Mapping[str, Any], x: np.ndarray) -> list[np.ndarray]:
    with module.context:
        return [np.asarray(each) for each in Interpreter(module).run([x], weights).outputs]


def with_weights(module: ir.Module) -> ir.Module:
    """A copy that returns each product's weight before its outputs."""
    with module.context, ir.Location.unknown():
        copy = ir.Module.parse(str(module))
        entry = EntryFunc.of(copy)
        values = [each.op.operands[each.weight] for each in static_products(entry)]
        prepend_results(entry, values, [tensor_attributes(f"w{number}", "float32") for number in range(len(values))])
    return copy


def images(count: int, size: int = 6) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, size, size)).astype(np.float32)


def test_channels_get_like_ranges_and_the_function_keeps_its_bits() -> None:
    module, weights = imported(Net())
    *unlike, before = run(with_weights(module), weights, images(3))
    apply(module, EqualizeChannels())
    *alike, after = run(with_weights(module), weights, images(3))
    np.testing.assert_array_equal(after, before)
    gain = np.abs(weights["norm.weight"].array)
    assert largest_ratio(unlike, gain) > 8 and largest_ratio(alike, gain) < 2


def largest_ratio(found: Sequence[np.ndarray], gain: np.ndarray) -> float:
    """Of the ranges of a channel where it is made and where it is read, in powers of two. A channel is multiplied by those alone."""
    stem, depthwise, point, last = map(np.abs, found)
    made = (stem.max((0, 1, 2)) * gain, depthwise.max((0, 1, 2)), point.max((0, 1, 2)))
    read = (depthwise.max((0, 1, 2)), point.max((0, 1, 3)), last.max(0))
    return max(float(np.abs(np.log2(first / second)).max()) for first, second in zip(made, read, strict=True))


def test_a_bound_becomes_one_of_each_channel() -> None:
    """ReLU6."""
    first, second = nn.Linear(8, 16), nn.Linear(16, 4)
    with torch.no_grad():
        first.weight *= 2.0 ** torch.linspace(-4, 4, 16)[:, None]
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8, bias=False), first, nn.ReLU6(), second).eval()
    module, weights = imported(model, 2)
    [before] = run(module, weights, 9 * images(3, 2))
    text = str(module)
    apply(module, EqualizeChannels())
    assert len(str(module)) > len(text) * 1.5
    np.testing.assert_array_equal(run(module, weights, 9 * images(3, 2))[0], before)


class Residual(nn.Module):
    """What lies between the products is read twice, or passes through what no factor does."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.a, self.b, self.activation = nn.Linear(12, 12), nn.Linear(12, 12), activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.a(x.flatten(1)))
        return self.b(x)


@pytest.mark.parametrize(
    "activation", [lambda x: x + x.relu(), torch.tanh, lambda x: x * x, lambda x: x.softmax(-1), torch.nn.functional.gelu]
)
def test_others_stay(activation: Any) -> None:
    module, _ = imported(Residual(activation), 2)
    text = str(module)
    assert str(apply(module, EqualizeChannels())) == text


@pytest.mark.slow
def test_static_w8a8_of_unlike_channels_gets_accurate(tmp_path: Path) -> None:
    model, x = Net(), images(64)
    with torch.no_grad():
        want = model(torch.from_numpy(x)).numpy()
    errors = []
    for quant in ("w8a8-static", "w8a8-static:cle"):
        options = CompileOptions(
            target="native", quant=quant, calibrate=[(each[None],) for each in images(32)], repro=None, accuracy_report=False
        )
        shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
        llmos.compile(model, (torch.from_numpy(x[:2]),), dynamic_shapes=shapes, options=options).save(tmp_path / "m.llmos")
        errors.append(float(np.abs(np.asarray(llmos.load(tmp_path / "m.llmos")(x)) - want).mean()))
    assert errors[1] < errors[0] / 3, errors
