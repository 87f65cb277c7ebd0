"""channels-last: what takes the layout, where tensors are moved, and that networks compute what they did."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmos.compiler.analysis.generic import permuted_operand
from llmos.compiler.ir.bindings import ir
from llmos.passes import Upstream
from llmos.passes.channels_last import ChannelsLast
from tests.codegen.programs import assert_like_eager, compile_torch, dim

from .ir_tests import apply, check, functions, generics

F = torch.nn.functional
Tensor = torch.Tensor


def laid_out(function: object, *inputs: Tensor, weights: tuple[Tensor, ...] = ()) -> ir.Module:
    return apply(generics(function, *inputs, weights=weights), ChannelsLast(), Upstream("canonicalize"), Upstream("cse"))


def moves(module: ir.Module) -> int:
    """Ops that only move an activation."""
    ops = [op.operation for op in functions(module)[0].regions[0].blocks[0].operations]
    return sum(1 for op in ops if permuted_operand(op) is not None and op.results[0].type.is_dynamic_dim(0))


X = torch.randn(2, 8, 12, 12)
W = torch.randn(16, 8, 3, 3)


def test_a_convolution() -> None:
    check(
        laid_out(lambda w, x: torch.relu(F.conv2d(x, w, padding=1)), X, weights=(W,)),
        """
        CHECK-DAG: #[[X:.*]] = affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d1 + d4, d2 + d5, d6)>
        CHECK-DAG: #[[W:.*]] = affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d4, d5, d6, d3)>
        CHECK-DAG: #[[Y:.*]] = affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d1, d2, d3)>
        CHECK: linalg.generic{{.*}}ins(%arg0 : tensor<?x8x12x12xf32>)
        CHECK: tensor.pad{{.*}}low[0, 1, 1, 0] high[0, 1, 1, 0]
        CHECK: linalg.generic{{.*}}ins(%{{.*}} : tensor<16x8x3x3xf32>)
        CHECK: linalg.generic {indexing_maps = [#[[X]], #[[W]], #[[Y]]]
        CHECK-SAME: ins(%{{.*}}, %{{.*}} : tensor<?x14x14x8xf32>, tensor<3x3x8x16xf32>)
        CHECK: arith.maximumf
        CHECK: -> tensor<?x12x12x16xf32>
        CHECK: linalg.generic{{.*}}ins(%{{.*}} : tensor<?x12x12x16xf32>)
        CHECK: -> tensor<?x16x12x12xf32>
        CHECK: return
        """,
    )


def test_a_pointwise_convolution_is_a_matrix_product() -> None:
    pointwise, wide = torch.randn(8, 16, 1, 1), torch.randn(16, 8, 3, 3)
    check(
        laid_out(lambda v, w, x: F.conv2d(F.conv2d(x, w), v).mean((2, 3)), X, weights=(pointwise, wide)),
        """
        CHECK-DAG: #[[X:.*]] = affine_map<(d0, d1, d2, d3, d4) -> (d0, d1, d2, d4)>
        CHECK-DAG: #[[W:.*]] = affine_map<(d0, d1, d2, d3, d4) -> (0, 0, d4, d3)>
        CHECK: linalg.generic {indexing_maps = [#[[X]], #[[W]],
        CHECK-SAME: tensor<?x10x10x16xf32>, tensor<1x1x16x8xf32>
        """,
    )


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda w, x: F.conv2d(x, w), 2),  # in and out
        (lambda w, x: F.conv2d(x, w).mean((2, 3)), 1),  # means have no order
        (lambda w, x: F.conv2d(x, w).amax((2, 3), keepdim=True), 1),
        (lambda w, x: F.max_pool2d(F.conv2d(x, w, padding=1).exp(), 2).mean((2, 3)), 1),
        (lambda w, x: F.conv2d(torch.cat([x, x * 2], 1)[:, 4:12], w).mean((2, 3)), 1),
        (lambda w, x: F.conv2d(F.interpolate(x, scale_factor=2), w).mean((2, 3)), 2),  # the copies themselves
        (lambda w, x: F.conv2d(F.channel_shuffle(x, 4), w).mean((2, 3)), 2),  # the shuffle itself
        (lambda w, x: F.conv2d(x, w).permute(0, 2, 3, 1).contiguous(), 1),  # asked for: no move
        (lambda w, x: F.conv2d(x, w).flatten(2).transpose(1, 2).contiguous().softmax(-1), 1),
        (lambda w, x: F.conv2d(x.flatten(1).unflatten(1, (8, 12, 12)), w).flatten(1), 2),
    ],
)
def test_moves(function: object, expected: int) -> None:
    assert moves(laid_out(function, X, weights=(W,))) == expected


@pytest.mark.parametrize(
    "function",
    [
        lambda w, x: x * 2 + F.max_pool2d(x, 3),  # no convolution at all
        lambda w, x: F.conv2d(x, w[:, :, :1, :1]),  # one tap saves less than two moves cost
    ],
)
def test_what_is_not_worth_it_stays(function: object) -> None:
    x = torch.randn(2, 8, 3, 3)
    module = generics(function, x, weights=(W,))
    before = str(module)
    assert str(apply(module, ChannelsLast())) == before


class Sum(nn.Module):
    """Branches, added up or joined along the channels."""

    def __init__(self, *branches: nn.Module, join: bool = False) -> None:
        super().__init__()
        self.branches, self.join = nn.ModuleList(branches), join

    def forward(self, x: Tensor) -> Tensor:
        made = [branch(x) for branch in self.branches]
        return torch.cat(made, 1) if self.join else torch.relu(torch.stack(made).sum(0) if len(made) > 2 else made[0] + made[1])


class Gate(nn.Module):
    """Squeeze and excite (Hu et al., 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.SiLU(), nn.Conv2d(4, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Lambda(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator, no-any-return]


def conv(num_in: int, num_out: int, size: int = 3, **options: int) -> nn.Sequential:
    norm = nn.BatchNorm2d(num_out)
    norm.running_mean, norm.running_var = torch.randn(num_out), torch.rand(num_out) + 0.5
    return nn.Sequential(nn.Conv2d(num_in, num_out, size, padding=size // 2, **options), norm)


NETWORKS: dict[str, nn.Module] = {
    "resnet": nn.Sequential(
        conv(3, 24, 7, stride=2),
        nn.MaxPool2d(3, 2, 1),
        Sum(nn.Sequential(conv(24, 50, stride=2), nn.ReLU(), conv(50, 50)), conv(24, 50, 1, stride=2)),
    ),
    "mobilenet": nn.Sequential(
        conv(3, 20), Sum(nn.Identity(), nn.Sequential(conv(20, 40, 1), nn.ReLU6(), conv(40, 40, groups=40), conv(40, 20, 1)))
    ),
    "depthwise": nn.Sequential(conv(3, 70, 5, stride=2), conv(70, 70, 5, stride=2, groups=70), nn.Hardswish(), conv(70, 3, 1)),
    "gated": nn.Sequential(conv(3, 33), Gate(33), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(33, 7)),
    "branches": nn.Sequential(conv(3, 12), Sum(conv(12, 5, 1), conv(12, 17), nn.AvgPool2d(3, 1, 1), join=True), conv(34, 6)),
    "pyramid": nn.Sequential(
        conv(3, 16), Sum(nn.Sequential(nn.MaxPool2d(2), conv(16, 16), nn.Upsample(scale_factor=2)), nn.Identity(), join=True)
    ),
    "shuffle": nn.Sequential(conv(3, 24), nn.ChannelShuffle(3), conv(24, 24, groups=3), Lambda(lambda x: x[:, 4:20]), conv(16, 8)),
    "focus": nn.Sequential(nn.PixelUnshuffle(2), conv(12, 16), conv(16, 12), nn.PixelShuffle(2)),
    "attention": nn.Sequential(conv(3, 16), Lambda(lambda x: torch.softmax(x.flatten(2).transpose(1, 2) @ x.flatten(2), -1))),
    "normed": nn.Sequential(
        conv(3, 16), nn.GroupNorm(4, 16), Lambda(lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (16,)).permute(0, 3, 1, 2)), conv(16, 4)
    ),
    "transposed": nn.Sequential(conv(3, 8), nn.ConvTranspose2d(8, 6, 3, 2, 1), nn.PReLU(6), nn.Conv2d(6, 5, 3, dilation=2)),
}


@pytest.mark.sample(0, 2, 4, 6, 8, 10, 12, 14, 16, 18)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    module = NETWORKS[name].eval()
    program = compile_torch(module, [torch.randn(2, 3, 20, 20)], [{0: dim("batch", 1, 64)}])
    for batch in (1, 3):
        assert_like_eager(program, module, torch.randn(batch, 3, 20, 20), rtol=2e-5)


def test_flatten_to_a_linear_layer() -> None:
    module = nn.Sequential(conv(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), conv(6, 16), nn.Flatten(), nn.Linear(16 * 36, 10)).eval()
    program = compile_torch(module, [torch.randn(2, 1, 12, 12)], [{0: dim("batch", 1, 64)}])
    for batch in (1, 5):
        assert_like_eager(program, module, torch.randn(batch, 1, 12, 12), rtol=2e-5)


def test_dynamic_images() -> None:
    module = nn.Sequential(conv(3, 18, stride=2), nn.SiLU(), conv(18, 18, groups=18), nn.AvgPool2d(2), conv(18, 5)).eval()
    program = compile_torch(module, [torch.randn(2, 3, 20, 24)], [{0: dim("batch"), 2: dim("height", 8), 3: dim("width", 8)}])
    for shape in ((1, 3, 8, 8), (2, 3, 33, 17), (1, 3, 9, 65)):
        assert_like_eager(program, module, torch.randn(shape), rtol=2e-5)


def test_one_and_three_spatial_dims() -> None:
    line = nn.Sequential(nn.Conv1d(4, 24, 5, padding=2), nn.GELU(), nn.Conv1d(24, 24, 3, groups=24), nn.MaxPool1d(2), nn.Conv1d(24, 7, 3))
    program = compile_torch(line.eval(), [torch.randn(2, 4, 50)], [{0: dim("batch")}])
    for batch in (1, 3):
        assert_like_eager(program, line, torch.randn(batch, 4, 50), rtol=2e-5)
    volume = nn.Sequential(nn.Conv3d(2, 9, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(9, 4, 2), nn.AdaptiveAvgPool3d(1))
    program = compile_torch(volume.eval(), [torch.randn(2, 2, 6, 8, 10)], [{0: dim("batch")}])
    assert_like_eager(program, volume, torch.randn(3, 2, 6, 8, 10), rtol=2e-5)
