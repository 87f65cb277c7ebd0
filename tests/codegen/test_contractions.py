"""Contractions of many shapes with prologues and epilogues, and convolutions and pooling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from .programs import V3, V4, Returns, assert_like_eager, compile_torch, dim

F, nn = torch.nn.functional, torch.nn
Tensor = torch.Tensor
ROWS = (1, 2, 7, 8, 9, 16, 17, 63, 64, 65, 257)
COLUMNS = (1, 2, 15, 16, 17, 47, 48, 49, 96, 100, 145)


class Linears(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({f"n{n}": nn.Linear(k, n) for n in COLUMNS} | {"plain": nn.Linear(k, 50, bias=False)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: layer(x) for name, layer in self.layers.items()}


@pytest.mark.sample(2, 3)
@pytest.mark.parametrize(("k", "target"), [*((k, V4) for k in (1, 17, 48)), (17, V3), (601, V3)])
def test_linear_layers_of_every_tail(k: int, target: str) -> None:
    module = Linears(k)
    program = compile_torch(module, [torch.randn(5, k)], [{0: dim("b")}], target)
    for rows in ROWS:
        assert_like_eager(program, module, torch.randn(rows, k))


WIDTH = 48
FUSED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": lambda x, w: F.gelu(x @ w),
    "gelu_tanh": lambda x, w: F.gelu(x @ w, approximate="tanh"),
    "residual": lambda x, w: x + x @ w,
    "transposed_weight": lambda x, w: x @ w.t(),
    "left_prologue": lambda x, w: torch.relu(x) @ w,
    "right_prologue": lambda x, w: x @ torch.tanh(w),
    "cast_after": lambda x, w: (x @ w).double(),
    "cast_before": lambda x, w: x.double().float() @ w,
    "two_epilogues": lambda x, w: torch.relu(x @ w) + torch.sigmoid(x @ w),
    "chained": lambda x, w: (x @ w) @ w,
    "row_added": lambda x, w: x @ w + x.sum(-1, keepdim=True),
    "compared": lambda x, w: (x @ w) > 0,
    "turned": lambda x, w: -(x @ w).t(),
    "heads": lambda x, w: (x @ w).reshape(-1, 4, 12).transpose(0, 1),
    "heads_turned": lambda x, w: (x @ w).reshape(-1, 4, 12).permute(2, 1, 0) * 2,
    "with_itself": lambda x, w: x @ x.t(),
    "gram": lambda x, w: x.t() @ x,
    "vector": lambda x, w: x @ w[:, 0],
    "softmax_after": lambda x, w: torch.softmax(x @ w, -1),
    "norm_after": lambda x, w: F.layer_norm(x + x @ w, (WIDTH,)),
    "gated": lambda x, w: F.silu(x @ w) * (x @ w.t()),
    "scaled_sum": lambda x, w: torch.addmm(x, x, w, beta=0.5, alpha=2.0),
}


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: function(x, self.w) for name, function in FUSED.items()}


@pytest.mark.parametrize("target", [V4, V3])
def test_prologues_and_epilogues(target: str) -> None:
    torch.manual_seed(0)
    module = Fused()
    program = compile_torch(module, [torch.randn(5, WIDTH)], [{0: dim("b")}], target)
    for rows in (1, 2, 9, 16, 50, 130):
        assert_like_eager(program, module, torch.randn(rows, WIDTH))


def test_batched_products() -> None:
    module = Returns(
        rows=lambda x, y: x @ y.transpose(1, 2),
        chained=lambda x, y: x @ y.transpose(1, 2) @ y,
        broadcast=lambda x, y: x[:, None] @ y.transpose(1, 2)[None],
        transposed=lambda x, y: torch.einsum("bik,bjk->bji", x, y),
        batch_last=lambda x, y: torch.einsum("bik,bjk->ijb", x, y),
        batch_summed=lambda x, y: torch.einsum("bik,bjk->ij", x, y),
        column_summed=lambda x, y: torch.einsum("bik,bjk->ik", x, y),
        dot=lambda x, y: (x[:, 0] * y[:, 0]).sum(-1),
        outer=lambda x, y: torch.einsum("bi,bj->bij", x[:, 0], y[:, 0]),
        one_of_many=lambda x, y: x[:1] @ y.transpose(1, 2),
        prologues=lambda x, y: torch.relu(x) @ torch.tanh(y).transpose(1, 2) + 1,
    )
    b = dim("b")
    program = compile_torch(module, [torch.randn(3, 4, 19), torch.randn(3, 5, 19)], [{0: b, 1: dim("n")}, {0: b, 1: dim("m")}])
    for batch, i, j in ((1, 1, 1), (2, 3, 50), (3, 17, 48), (5, 64, 1), (2, 70, 100)):
        assert_like_eager(program, module, torch.randn(batch, i, 19), torch.randn(batch, j, 19))


def test_matrix_by_vector() -> None:
    module = Returns(right=lambda x, y: x @ y, left=lambda x, y: y @ x.t(), sum=lambda x, y: (x * y).sum(1))
    program = compile_torch(module, [torch.randn(3, 19), torch.randn(19)], [{0: dim("b")}, {}])
    for rows in (1, 2, 50):
        assert_like_eager(program, module, torch.randn(rows, 19), torch.randn(19))


class Windows(nn.Module):
    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: layer(x) for name, layer in self.layers.items()}


def planes() -> Windows:
    return Windows(
        plain=nn.Conv2d(6, 8, 3),
        padded=nn.Conv2d(6, 8, 3, padding=1),
        strided=nn.Conv2d(6, 8, 3, stride=2, padding=1),
        dilated=nn.Conv2d(6, 8, 3, dilation=2, padding=2),
        grouped=nn.Conv2d(6, 8, 3, groups=2),
        depthwise=nn.Conv2d(6, 6, 3, groups=6, padding=1),
        pointwise=nn.Conv2d(6, 50, 1),
        flat=nn.Conv2d(6, 8, (1, 5), padding=(0, 2)),
        reflected=nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
        normalized=nn.Sequential(nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        transposed=nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1),
        highest=nn.MaxPool2d(3, 2, 1),
        average=nn.AvgPool2d(3, 2, 1),
        whole=nn.AdaptiveAvgPool2d(1),
        groups=nn.GroupNorm(2, 6),
        upsampled=nn.Upsample(scale_factor=2, mode="bilinear"),
    ).eval()


@pytest.mark.sample(1)
@pytest.mark.parametrize("target", [V4, V3])
def test_windows_over_planes(target: str) -> None:
    module = planes()
    program = compile_torch(module, [torch.randn(2, 6, 12, 13)], [{0: dim("b")}], target)
    for batch in (1, 3, 8):
        assert_like_eager(program, module, torch.randn(batch, 6, 12, 13))


def test_windows_over_lines_and_volumes() -> None:
    lines = Windows(plain=nn.Conv1d(5, 7, 3), padded=nn.Conv1d(5, 7, 3, padding=1), depthwise=nn.Conv1d(5, 10, 5, groups=5))
    program = compile_torch(lines, [torch.randn(2, 5, 20)], [{0: dim("b"), 2: dim("t", 6, 4000)}])
    for batch, length in ((1, 7), (3, 50), (2, 1000)):
        assert_like_eager(program, lines, torch.randn(batch, 5, length))
    volumes = Windows(plain=nn.Conv3d(2, 3, 2), average=nn.AvgPool3d(2))
    program = compile_torch(volumes, [torch.randn(2, 2, 5, 6, 7)], [{0: dim("b")}])
    assert_like_eager(program, volumes, torch.randn(3, 2, 5, 6, 7))


@pytest.mark.sample(2)
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_pixels_far_apart_read_where_they_are(size: int) -> None:
    """A window of one pixel at a stride: rows of the left side that are no neighbors, of few pixels and of one image."""
    torch.manual_seed(0)
    convs = {
        f"kernel_{kernel}_stride_{stride}_groups_{groups}": torch.nn.Conv1d(12, 6, kernel, stride=stride, groups=groups)
        for kernel in (1, 2)
        for stride in (1, 2, 3)
        for groups in (1, 2)
    }
    module, x = Returns(**convs), torch.randn(1, 12, size)
    assert_like_eager(compile_torch(module, [x]), module, x)
