"""Each op family against eager torch, at sizes other than the traced ones and at 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.frontend.harness import SIZES, X, check

BT = ("B", "T", 8)
LONGER = ((2, 5), (4, 9))
WIDE = ((2, 9), (4, 6))

ELEMENTWISE: dict[str, Any] = {
    "activations": lambda x: tuple(
        f(x) for f in (F.silu, F.mish, F.elu, F.selu, F.celu, F.leaky_relu, F.hardswish, F.hardsigmoid, F.softplus, F.logsigmoid, F.relu6)
    ),
    "gates": lambda x: (
        F.gelu(x),
        F.gelu(x, approximate="tanh"),
        x.tanh(),
        x.sigmoid(),
        F.softsign(x),
        F.hardtanh(x),
        F.tanhshrink(x),
        F.glu(x),
    ),
    "unary": lambda x: tuple(
        getattr(x, f)() for f in ("exp", "sin", "cos", "floor", "round", "sign", "erf", "log1p", "abs", "neg", "trunc", "atan")
    ),
    "in place": lambda x: x.clone().relu_().add_(1).mul_(2),
    "reductions": lambda x: (x.sum(), x.sum((0, 2)), x.mean(1, keepdim=True), x.prod(-1), (x > 0).sum(1), (x > 0).any(1), (x > 0).all()),
    "extremes": lambda x: (*x.max(1), *x.min(-1, keepdim=True), x.argmax(-1), x.amax((0, 1)), x.argmin()),
    "norms": lambda x: (x.norm(dim=-1), F.normalize(x, dim=1), x.norm(p=1, dim=(1, 2)), x.abs().max()),
    "softmax": lambda x: (x.softmax(1), x.log_softmax(-1), x.logsumexp(1), F.layer_norm(x, (8,)), F.rms_norm(x, (8,))),
    "cumulative": lambda x: (x.cumsum(1), x.cumsum(-1)),
    "half": lambda x: (
        x.half() * 2 + 1,
        F.layer_norm(x.half(), (8,)),
        x.bfloat16().softmax(-1).float(),
        x.int().bfloat16().float(),
        (x.half() @ x.half().mT),
    ),
    "size as a number": lambda x: x * x.shape[1] + torch.full((x.shape[1], 8), 2.0),
}
VIEWS: dict[str, Any] = {
    "flatten two dynamic dims": lambda x: x.view(x.shape[0] * x.shape[1], 8) * 2,
    "unflatten": lambda x: x.reshape(-1, 4).reshape(x.shape[0], -1),
    "heads": lambda x: x.view(x.shape[0], x.shape[1], 2, 4).transpose(1, 2).reshape(x.shape[0], 2, -1),
    "permute": lambda x: (x.permute(2, 0, 1) + 1, x.transpose(0, 1), x.mT.contiguous().view(x.shape[0], -1)),
    "split and stack": lambda x: torch.stack([a + b for a, b in zip(x.split(4, -1), x.chunk(2, -1), strict=True)]),
    "unbind": lambda x: x.unbind(-1)[2] + x.view(*x.shape[:2], 2, 4).unbind(2)[1].sum(-1),
    "slice": lambda x: (x[:, -1], x[..., ::2], x[..., 2:-1], x[0], x[:, :, 3]),
    "pad": lambda x: (F.pad(x, (1, 2, 3, 0), value=1.5), F.pad(x, (-1, 2)), F.pad(x, (2, 1), mode="reflect")),
    "repeat": lambda x: (x.repeat(1, 2, 3), x.repeat_interleave(2, dim=1), x.expand(2, *x.shape), x[None].tile(2, 1, 1, 1)),
    "arange": lambda x: x + torch.arange(x.shape[1])[None, :, None] + torch.arange(8.0),
    "flip and roll": lambda x: (x.flip(1, 2), x.roll(2, 1)),
    "triangle": lambda x: ((x @ x.mT).tril(), torch.full((x.shape[1],) * 2, 2.0).triu(1)),
    "outputs that are inputs": lambda x: (x, x.expand(2, -1, -1, -1)),
    "assignment": lambda x: torch.index_put(x, (torch.tensor([0]),), torch.tensor(1.0)),
}
BINARY: dict[str, Any] = {
    "arithmetic": lambda x, y: (x + y, x - 2 * y, x * y, x / y, x**2, x.pow(3.0), 1 - x, 1 / x, 2.0**x, x % 0.7, x // 0.3),
    "choice": lambda x, y: (torch.maximum(x, y), torch.minimum(x, y), x > y, (x > y) & (x > 0), x.clamp(-1, 1), torch.where(x > 0, x, y)),
    "cat": lambda x, y: torch.cat([x, y, x[:, :1]], 1),
    "products": lambda x, y: (x @ y.transpose(1, 2), torch.bmm(x, y.mT), x[0] @ y[0].t(), x @ torch.ones(8)),
    "einsum": lambda x, y: (torch.einsum("btk,bsk->bts", x, y), torch.einsum("btk,btk->b", x, y)),
    "einsum of an ellipsis": lambda x, y: (torch.einsum("...k,...k->...", x, y), torch.einsum("b...,k", x, y[0, 0])),
    "einsum of a diagonal": lambda x, y: (torch.einsum("bii->bi", x @ y.mT), torch.einsum("ii,i->", x[0] @ y[0].t(), y[0, :, 0])),
    "broadcast batch": lambda x, y: torch.matmul(x[:, None], y.mT[:, None].expand(-1, 3, -1, -1)),
}
LAYERS: dict[str, tuple[nn.Module, Any]] = {
    "attention": (nn.MultiheadAttention(8, 2, batch_first=True), (BT, BT, BT)),
    "transformer": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), X),
    "group norm": (nn.GroupNorm(2, 8), (("B", 8, 5, 5),)),
    "instance norm": (nn.InstanceNorm2d(8, affine=True), (("B", 8, 5, 5),)),
    "batch norm": (nn.BatchNorm1d(8), (("B", 8, "T"),)),
    "convolutions": (
        nn.Sequential(
            nn.Conv2d(4, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 3, padding="same", groups=8),
            nn.Conv2d(8, 6, 3, 1, 2, dilation=2, groups=2),
            nn.BatchNorm2d(6),
        ),
        (("B", 4, 13, 9),),
    ),
    "transposed convolution": (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), (("B", 4, 5, 6),)),
    "pixel shuffle": (nn.PixelShuffle(2), (("B", 8, 3, 4),)),
    "lstm": (nn.LSTM(8, 5, 2, batch_first=True, bidirectional=True), X),
    "gru": (nn.GRU(8, 5, batch_first=True), X),
    "rnn": (nn.RNN(8, 5), X),
    "embedding": (nn.Embedding(6, 4), (("int64", "B", "T"),)),
}


@pytest.mark.parametrize("name", [*ELEMENTWISE, *VIEWS])
def test_one_tensor(name: str) -> None:
    check((ELEMENTWISE | VIEWS)[name])


@pytest.mark.parametrize("name", BINARY)
def test_two_tensors(name: str) -> None:
    check(BINARY[name], (BT, BT))


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    torch.manual_seed(0)
    layer, specs = LAYERS[name]
    check(layer, specs)


def test_variance_of_more_than_one_row() -> None:
    check(lambda x: (x.var(-1), x.std(1, correction=0), *torch.var_mean(x, (0, 2))), sizes=LONGER)


def test_integers() -> None:
    check(lambda i: (i // 4, i % 4, i / 2, -i, (i - 3) // 2, (i - 3) % 4, i << 1, i & 3, i.clamp(2, 4)), (("int64", "B", "T"),))


def test_masks() -> None:
    check(lambda m: (~m, m.sum(-1), m.float().mean(), m.long().cumsum(-1)), (("bool", "B", "T"),))
    check(lambda m: (m + m.roll(1, -1), m + True, m.long() + m), (("bool", "B", "T"),))
    check(lambda x, m: (x.masked_fill(m, -1e9).softmax(1), torch.where(m, x, x.new_zeros(()))), (BT, ("bool", "B", "T", 1)))


def test_gathers() -> None:
    check(lambda x, i: (x.gather(2, i), x[:, :, [3, 1]], x.index_select(1, torch.tensor([0]))), (BT, ("int64", "B", "T", 8)))
    check(
        lambda x, i: (x[torch.arange(x.shape[0]), i], x[torch.arange(x.shape[0])[:, None], i[:, None]]),
        (BT, ("int64", "B")),
        sizes=((2, 9), (4, 6)),
    )


def test_pooling() -> None:
    check(
        lambda x: (
            F.max_pool2d(x, 3, 2, 1),
            F.avg_pool2d(x, 3, 2, 1),
            F.avg_pool2d(x, 2, ceil_mode=True),
            F.max_pool2d(x, 2, ceil_mode=True),
            F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
            F.adaptive_avg_pool2d(x, 1),
            F.adaptive_avg_pool2d(x, (4, 3)),
            F.interpolate(x, scale_factor=2),
        ),
        (("B", 2, 9, 7),),
        sizes=((2, 1), (1, 1)),
    )


@pytest.mark.sample(0)
@pytest.mark.parametrize(
    ("mode", "padding", "aligned"),
    [
        ("bilinear", "zeros", False),
        ("nearest", "reflection", True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("bilinear", "zeros", True),
                ("bilinear", "border", False),
                ("bilinear", "border", True),
                ("bilinear", "reflection", False),
                ("bilinear", "reflection", True),
                ("nearest", "zeros", True),
                ("nearest", "border", True),
            )
        ),
    ],
)
def test_sampling_of_volumes(mode: str, padding: str, aligned: bool) -> None:
    """Places inside and up to three sizes outside; a volume of one layer among them."""

    def sampled(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(x, 1.5 * grid, mode, padding, align_corners=aligned)

    check(sampled, (("B", 2, 3, "T", 4), ("B", 2, 3, "T", 3)), sizes=((2, 5), (1, 2)), tolerance=1e-5)


HEADS = (("B", 4, "T", 4), ("B", 4, "T", 4), ("B", 4, "T", 4))


def test_attention() -> None:
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3), HEADS)
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2), HEADS)
    check(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), (*HEADS, ("bool", "B", 1, 1, "T")))


def test_grouped_query_attention() -> None:
    shared = ("B", 2, "T", 4)
    masked = lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m, enable_gqa=True)  # noqa: E731
    check(masked, (HEADS[0], shared, shared, ("B", 1, "T", "T")))


def test_ops_that_torch_mlir_lowers() -> None:
    check(lambda x: (*x.topk(3, -1), *x.sort(-1)))
    check(lambda x, i: x.scatter(2, i, 1.0), (BT, ("int64", "B", "T", 2)), sizes=SIZES)


def test_loops_over_single_elements_of_one_matrix() -> None:
    """A matrix of one element: loops of one turn must stay loops."""
    check(lambda x: torch.linalg.inv(torch.linalg.inv(x[:1, :1, 0] + 5) @ x[:1, :1, 1]))


def test_float64_becomes_half_by_way_of_float32() -> None:
    """In two roundings, as in torch's kernels: 1 + 2^-11 + 2^-30 is 1 in float16, not the number above it."""
    steps = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
    check(lambda x: tuple(((x * 0 + 1).double() + step + 2.0**-30).to(dtype).float() for dtype, step in steps.items()), X, tolerance=0)
