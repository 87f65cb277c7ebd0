"""Streaming attention: head sizes, lengths, masks, grouped heads, and what must not be fused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from .programs import V3, V4, Returns, assert_like_eager, compile_torch, dim, run

attend = torch.nn.functional.scaled_dot_product_attention
Tensor = torch.Tensor
Function = Callable[..., Tensor]
LENGTHS = ((1, 1, 1), (2, 3, 17), (1, 31, 33), (3, 33, 64), (2, 65, 130), (1, 7, 500))


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2), -1)


MASKED: dict[str, Function] = {
    "plain": lambda q, k, v, mask, bias: attend(q, k, v),
    "bool": lambda q, k, v, mask, bias: attend(q, k, v, attn_mask=mask[:, None, None]),
    "additive": lambda q, k, v, mask, bias: attend(q, k, v, attn_mask=bias),
    "by_hand": lambda q, k, v, mask, bias: torch.softmax(q @ k.transpose(-1, -2) * 0.2 + (1 - mask.float())[:, None, None] * -1e9, -1) @ v,
    "merged_heads": lambda q, k, v, mask, bias: attend(q, k, v, attn_mask=mask[:, None, None]).transpose(1, 2).flatten(2) * 2,
    "leaking": lambda q, k, v, mask, bias: (probabilities(q, k) @ v).mean() + probabilities(q, k).amax(),
    "computed_keys": lambda q, k, v, mask, bias: attend(q, k * 2, v),
    "computed_values": lambda q, k, v, mask, bias: attend(q, k, torch.relu(v)),
}


def with_own_queries(function: Function, factor: float) -> Function:
    """Else the programs would share Q K^T, and what is used twice is not fused."""
    return lambda q, *rest: function(q * factor, *rest)


def operands(batch: int, queries: int, keys: int, depth: int) -> list[Tensor]:
    q, k, v = (torch.randn(batch, 3, length, depth) for length in (queries, keys, keys))
    mask = torch.rand(batch, keys) > 0.4
    mask[:, 0] = True
    return [q, k, v, mask, torch.randn(batch, 3, queries, keys)]


BRIEFLY = ("bool", "additive")


@pytest.mark.sample(0, 2, 5, 6)
@pytest.mark.parametrize(
    ("depth", "target", "names"),
    [(64, V4, tuple(MASKED)), *((depth, V4, BRIEFLY) for depth in (1, 20, 32, 128)), (20, V3, BRIEFLY), (64, V3, ("computed_keys",))],
)
def test_heads_of_every_size(depth: int, target: str, names: tuple[str, ...]) -> None:
    b, t, s = dim("b"), dim("t"), dim("s")
    module = Returns(**{name: with_own_queries(MASKED[name], 1 + i * 0.1) for i, name in enumerate(names)})
    shapes = [{0: b, 2: t}, {0: b, 2: s}, {0: b, 2: s}, {0: b, 1: s}, {0: b, 2: t, 3: s}]
    program = compile_torch(module, operands(2, 5, 6, depth), shapes, target)
    fused = [kernel.kind for kernel in program.manifest.kernels].count("attention")
    assert fused == (0 if depth == 1 else len([name for name in names if name != "leaking"]))  # a head of one is an outer product
    for lengths in LENGTHS:
        assert_like_eager(program, module, *operands(*lengths, depth))


def test_self_attention_with_causal_mask_and_grouped_heads() -> None:
    module = Returns(
        causal=lambda q: attend(q, q, q, is_causal=True),
        grouped=lambda q: attend(q, q[:, :2], q[:, 2:], enable_gqa=True),
        one_head=lambda q: attend(q, q[:, :1].expand(-1, 4, -1, -1), q),
        scaled=lambda q: attend(q, q, q, scale=0.1),
        lower=lambda q: torch.softmax((q @ q.transpose(-1, -2)).tril(), -1) @ q,
    )
    program = compile_torch(module, [torch.randn(2, 4, 5, 16)], [{0: dim("b"), 2: dim("t")}])
    for batch, tokens in ((1, 1), (2, 3), (3, 33), (2, 130)):
        assert_like_eager(program, module, torch.randn(batch, 4, tokens, 16))


@pytest.fixture(scope="module")
def masked() -> object:
    module = Returns(y=lambda q, mask: attend(q, q, q, attn_mask=mask[:, None, None]))
    b, t = dim("b"), dim("t")
    return compile_torch(module, [torch.randn(2, 4, 5, 32), torch.rand(2, 5) > 0.5], [{0: b, 2: t}, {0: b, 1: t}])


def test_a_row_with_every_key_masked_is_zero(masked: object) -> None:
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1] = False
    y = run(masked, torch.randn(2, 4, 5, 32), mask)["y"]  # type: ignore[arg-type]
    assert not y[1].any()
    assert y[0].all()


def test_neither_the_batch_nor_masked_keys_change_a_bit(masked: object) -> None:
    torch.manual_seed(0)
    for tokens, padded in ((1, 7), (5, 64), (63, 64), (64, 130), (70, 200)):
        q, mask = torch.randn(3, 4, padded, 32), torch.zeros(3, padded, dtype=torch.bool)
        mask[0, :tokens] = True
        mask[1:] = True
        together = run(masked, q, mask)["y"][0, :, :tokens]  # type: ignore[arg-type]
        alone = run(masked, q[:1, :, :tokens].contiguous(), mask[:1, :tokens].contiguous())["y"][0]  # type: ignore[arg-type]
        np.testing.assert_array_equal(together, alone)


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)
        self.layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y, weights = self.attention(x, x, x)
        return {"y": y, "weights": weights, "layer": self.layer(x)}


def test_torch_modules_with_attention() -> None:
    module = Encoder().eval()
    program = compile_torch(module, [torch.randn(3, 7, 32)], [{0: dim("b"), 1: dim("t")}])
    for batch, tokens in ((1, 1), (2, 3), (3, 33), (2, 130)):
        assert_like_eager(program, module, torch.randn(batch, tokens, 32))
