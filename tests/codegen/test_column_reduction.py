"""Reductions with lanes along the output: depthwise convolutions and pools over every edge, sums down columns of any width."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

import llmos
from llmos.compiler.driver import compile as compile_model

from .programs import V3, ChannelsLast, Returns, assert_like_eager, compile_torch, dim, in_turn, options, run

F = torch.nn.functional
Tensor = torch.Tensor


def depthwise(channels: int, size: int, **options: int) -> nn.Module:
    return ChannelsLast(nn.Sequential(nn.Conv2d(channels, channels, size, groups=channels, **options), nn.Hardswish()))


DEPTHWISE: tuple[tuple[int, int, dict[str, int]], ...] = (
    (1, 3, {"padding": 1}),
    (15, 3, {"padding": 1}),
    (16, 3, {"padding": 1, "stride": 2}),
    (17, 5, {"padding": 2}),
    (33, 2, {"padding": 1, "stride": 3}),
    (48, 7, {"padding": 3}),  # more taps than are written out
    (140, 3, {"padding": 2, "dilation": 2}),
    (300, 3, {"padding": 4, "dilation": 3, "stride": 2}),
    (40, 3, {}),
)


@pytest.mark.parametrize(("channels", "size", "options", "target"), in_turn(DEPTHWISE))
def test_depthwise(channels: int, size: int, options: dict[str, int], target: str) -> None:
    module = depthwise(channels, size, **options)
    program = compile_torch(module, [torch.randn(2, 12, 11, channels)], [{0: dim("n"), 1: dim("h", 7), 2: dim("w", 7)}], target)
    for shape in ((1, 7, 7), (2, 8, 19), (1, 23, 7)):
        assert_like_eager(program, module, torch.randn(*shape, channels), rtol=2e-5)


POOLS: dict[str, nn.Module] = {
    "max": nn.MaxPool2d(3, 2, 1),
    "max_dilated": nn.MaxPool2d(2, 1, 1, dilation=3),
    "max_ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "mean": nn.AvgPool2d(2),
    "mean_padded": nn.AvgPool2d(3, 1, 1),
    "mean_of_what_is_there": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "global_mean": nn.AdaptiveAvgPool2d(1),
    "global_max": nn.AdaptiveMaxPool2d(1),
}


@pytest.mark.sample(0, 2)
@pytest.mark.parametrize("channels", [3, 64, 150])
def test_pools(channels: int) -> None:
    smooth = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)  # a convolution asks for channels innermost
    module = Returns(**{name: ChannelsLast(nn.Sequential(smooth, pool)) for name, pool in POOLS.items()})
    program = compile_torch(module, [torch.randn(2, 12, 12, channels)], [{0: dim("n")}])
    for batch in (1, 3):
        assert_like_eager(program, module, torch.randn(batch, 12, 12, channels), rtol=2e-5)


def test_pools_of_images_as_they_come() -> None:
    """Without a convolution nothing is moved: lanes run along image rows, which are padded."""
    module = Returns(**POOLS)
    program = compile_torch(module, [torch.randn(2, 3, 12, 12)], [{0: dim("n")}])
    assert_like_eager(program, module, torch.randn(3, 3, 12, 12))


def test_padding_that_is_no_neutral_element() -> None:
    """Ones around the image count in a sum, zeros in a maximum of negative numbers."""
    weight = torch.randn(20, 1, 3, 3)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "ones": lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), value=1.0), weight, groups=20),
        "zeros": lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1),
        "lowest": lambda x: F.avg_pool2d(F.pad(x, (0, 2, 1, 0), value=-2.0), 2, 2),
        "one_side": lambda x: F.conv2d(F.pad(x, (2, 0, 0, 3)), weight, groups=20),
    }
    module = Returns(**{name: (lambda x, f=f: f(x.movedim(-1, 1)).movedim(1, -1).contiguous()) for name, f in functions.items()})
    program = compile_torch(module, [torch.randn(2, 9, 8, 20)], [{0: dim("n")}])
    assert_like_eager(program, module, torch.randn(3, 9, 8, 20) - 3, rtol=2e-5)


@pytest.mark.parametrize("width", [1, 15, 16, 17, 128, 300])
def test_sums_down_columns(width: int) -> None:
    module = Returns(
        sums=lambda x: x.sum((0, 1)),
        largest=lambda x: x.amax(1) * 2,
        where=lambda x: x.argmax(0),
        halves=lambda x: x.half().sum(1),
        counted=lambda x: (x > 0).sum(1),
    )
    program = compile_torch(module, [torch.randn(3, 4, width)], [{0: dim("a"), 1: dim("b")}])
    for a, b in ((1, 1), (2, 70), (40, 3)):
        assert_like_eager(program, module, torch.randn(a, b, width), rtol=2e-3, atol=1e-4)


def test_columns_of_unknown_width() -> None:
    module = Returns(sums=lambda x: x.sum(0), pooled=lambda x: x.unflatten(0, (1, -1)).mean(1))
    program = compile_torch(module, [torch.randn(6, 30)], [{0: dim("a"), 1: dim("b")}])
    for shape in ((1, 1), (7, 16), (5, 333)):
        assert_like_eager(program, module, torch.randn(shape))


def test_an_image_has_the_same_bits_in_a_batch() -> None:
    module = nn.Sequential(depthwise(70, 3, padding=1, stride=2), depthwise(70, 5, padding=2), ChannelsLast(nn.AdaptiveAvgPool2d(1)))
    program = compile_torch(module, [torch.randn(2, 21, 17, 70)], [{0: dim("n")}])
    images = torch.randn(5, 21, 17, 70)
    together = run(program, images)["output"]
    for i in range(5):
        assert np.array_equal(run(program, images[i : i + 1])["output"][0], together[i])


def test_a_mean_whose_windows_reach_past_the_padding_compiles_without_avx512(tmp_path: Path) -> None:
    """LLVM 22 never ended on the product of a condition for all lanes and a mask that is known."""
    node = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[2, 2, 2, 2])
    shapes = {"x": [1, 3, 28, 28], "y": [1, 3, 30, 30]}
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items())
    model = helper.make_model(helper.make_graph([node], "pool", [x], [y]), opset_imports=[helper.make_opsetid("", 22)])
    onnx.save(model, tmp_path / "pool.onnx")
    compile_model(tmp_path / "pool.onnx", options=options(V3)).save(tmp_path / "pool.llmos")
    image = np.random.default_rng(0).standard_normal((1, 3, 28, 28)).astype(np.float32)
    padded = np.pad(image, ((0, 0), (0, 0), (2, 2), (2, 2)))
    inside = np.pad(np.ones_like(image), ((0, 0), (0, 0), (2, 2), (2, 2)))
    sums, counts = (np.lib.stride_tricks.sliding_window_view(each, (3, 3), (2, 3)).sum((-1, -2)) for each in (padded, inside))
    np.testing.assert_allclose(llmos.load(tmp_path / "pool.llmos", target=V3)(image), sums / counts, rtol=1e-5, atol=1e-6)
