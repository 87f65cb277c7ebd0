"""What random graphs found, each as small as it could be made."""

from __future__ import annotations

import pytest
import torch

from .check import check
from .graph import Graph, Input
from .plan import LARGER

BTK, BKT, EMPTY, ONE = ("b", "t", 12), ("b", 6, "t"), ("b", 0, 12), ("b", 1, 12)

# name: (dims of each input, x0 and on, and statements; the last value is the result)
FOUND: dict[str, tuple[tuple[tuple[int | str, ...], ...], str]] = {
    "attention with a head of a dynamic size": ((BKT,), "F.scaled_dot_product_attention(x0, x0, x0)"),
    "attention with a head of no elements": ((BTK,), "F.scaled_dot_product_attention(x0[:, :, 0:0], x0[:, :, 0:0], x0, is_causal=True)"),
    "attention over no keys": ((BTK, EMPTY), "F.scaled_dot_product_attention(x0, x1, x1)"),
    "attention with one softmax for a batch of values": ((BTK,), "F.scaled_dot_product_attention(x0[:1], x0[:1], x0)"),
    "an empty slice behind the last element": ((ONE,), "torch.cat([x0[:, :1], x0[:, 1:]], 1)"),
    "a slice of a value without elements": ((BKT,), "x0[:, :, 0:0].narrow(1, 1, 1)"),
    "an empty input, viewed": ((EMPTY,), "x0.unsqueeze(0)"),
    "a diagonal as long as the side that is known": ((BTK,), "torch.ones(x0.shape[1], 3).diagonal(0, 0, -1)"),
    "a sum over a dynamic dim and over one of no elements": (
        (BTK, EMPTY),
        "torch.einsum('bij,bik->kj', x1, F.max_pool1d(F.interpolate(F.pad(x1, (1, 1, 1, 0)), scale_factor=2, mode='nearest'), 2, 1, 0))",
    ),
    "a grouped convolution of one filter a group and windows of one element": (
        (BKT,),
        "F.conv1d(x0, x0[:1, :2, :3].sum().reshape(1) * torch.ones(2, 3, 1), groups=2)",
    ),
    "an empty value, viewed": ((EMPTY,), "(x0 * 2).reshape(-1)"),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    dims, expression = FOUND[name]

    graph = Graph(tuple(Input(f"x{i}", torch.float32, each) for i, each in enumerate(dims)), LARGER)
    graph.write(expression)
    check(graph)
