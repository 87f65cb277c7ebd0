"""Concatenations against torch: few and many pieces, short and long rows, any axis and dtype, pieces that are computed on the way."""

from __future__ import annotations

import torch

from .programs import V3, Returns, assert_like_eager, compile_torch, dim


def test_pieces_of_dynamic_sizes() -> None:
    module = Returns(
        first=lambda x, y: torch.cat([x, y, x, y, x[:1], y], 0),
        middle=lambda x, y: torch.cat([x[:, :2], x.flip(1), x * 2, x[:, 1:], x, x.relu()], 1),
        last=lambda x, y: torch.cat([x, y[: x.shape[0]].exp(), x[..., ::2], x, x.transpose(1, 1), x[..., :1]], -1),
        stacked=lambda x, y: torch.stack([x + i for i in range(9)], -1),
        front=lambda x, y: torch.stack([x * i for i in range(7)], 0),
        transposed=lambda x, y: torch.cat([x.transpose(0, 2)] * 5, 1),
        masks=lambda x, y: torch.cat([x > 0, x < 1, x > 2, x > 3, x > 4, x > -1], 1),
        halves=lambda x, y: torch.cat([x.half() + i for i in range(6)], 2),
    )
    sizes = [{0: dim("a", 2, 60), 1: dim("b", 3), 2: dim("c", 3)}, {0: dim("d", 64, 128), 1: dim("b", 3), 2: dim("c", 3)}]
    program = compile_torch(module, [torch.randn(3, 4, 6), torch.randn(70, 4, 6)], sizes, V3)
    for a, b, c, d in ((3, 4, 6, 70), (2, 3, 3, 64), (17, 5, 33, 65), (2, 3, 700, 64)):
        assert_like_eager(program, module, torch.randn(a, b, c), torch.randn(d, b, c), rtol=1e-3)


def test_long_rows_of_known_sizes() -> None:
    module = Returns(
        channels=lambda x: torch.cat([x, x.relu(), x[:, :16]], 1),
        inner=lambda x: torch.cat([x, x.sin()], -1),
        nothing=lambda x: torch.cat([x, x[:, :0], x, x[:, :0], x, x], 1),
        whole=lambda x: torch.cat([x.to(torch.int8)] * 40, 0),
    )
    x = torch.randn(2, 32, 5, 80)
    assert_like_eager(compile_torch(module, [x], None, V3), module, x)
