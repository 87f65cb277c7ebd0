"""Slices, pads, concatenations, gathers: programs that move data."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from llmos.runtime.errors import InputError

from .programs import V3, V4, Returns, assert_like_eager, compile_torch, dim, in_turn

F = torch.nn.functional
Tensor = torch.Tensor


def test_moves() -> None:
    module = Returns(
        every_second=lambda x: x[:, 1::2],
        corner=lambda x: x[:, ::3, 2:9:4],
        dropped=lambda x: x[:, 3],
        joined=lambda x: torch.cat([x, x * 2, x[:, :3]], 1),
        joined_last=lambda x: torch.cat([x, x.relu()], -1),
        joined_batch=lambda x: torch.cat([x, x], 0),
        padded=lambda x: F.pad(x, (1, 2, 3, 0), value=7.0),
        cropped=lambda x: F.pad(x, (-1, 2)),
        permuted=lambda x: x.permute(2, 0, 1),
        flat=lambda x: x.permute(1, 2, 0).reshape(-1),
        flipped=lambda x: x.flip(1, 2),
        rolled=lambda x: x.roll(2, 1),
        stacked=lambda x: torch.stack([x, x + 1], -1),
        tiled=lambda x: x.repeat(2, 1, 3),
        repeated=lambda x: x.repeat_interleave(3, 1),
        broadcast=lambda x: x.unsqueeze(1).expand(-1, 4, -1, -1).reshape(-1, 11),
        lower=lambda x: x.tril(),
        selected=lambda x: x.index_select(1, torch.tensor([3, 1, 1])),
        counted=lambda x: x + torch.arange(11),
        gated=lambda x: F.glu(x[:, :8], 1),
        slice_of_join=lambda x: torch.cat([x.sin(), x.cos()], -1)[..., 3:17],
    )
    program = compile_torch(module, [torch.randn(3, 9, 11)], [{0: dim("b")}])
    for batch in (1, 2, 17, 70):
        assert_like_eager(program, module, torch.randn(batch, 9, 11))


class Gathers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(7, 5))

    def forward(self, x: Tensor, ids: Tensor) -> dict[str, Tensor]:
        return {
            "rows": F.embedding(ids, self.table),
            "rows_plus": self.table[ids] + 1,
            "elements": x.gather(1, ids.clamp(0, 4)),
            "normalized": F.layer_norm(F.embedding(ids, self.table), (5,)),
        }


def test_gathers_check_what_data_asks_for() -> None:
    module = Gathers()
    program = compile_torch(module, [torch.randn(3, 5), torch.randint(0, 7, (3, 4))], [{0: dim("b")}] * 2)
    for batch in (1, 2, 17):
        assert_like_eager(program, module, torch.randn(batch, 5), torch.randint(0, 7, (batch, 4)))
    x = np.zeros((3, 5), np.float32)
    for wrong in (7, -8, 10**12, -(10**12)):
        ids = np.zeros((3, 4), np.int64)
        ids[2, 3] = wrong
        with pytest.raises(InputError, match="out of range"):
            program(x, ids)
    assert_like_eager(program, module, torch.randn(2, 5), torch.randint(0, 7, (2, 4)))  # an error leaves nothing behind


DTYPES = (torch.float32, torch.int64, torch.bool, torch.bfloat16)
AS_WIDE = (torch.float16, torch.uint8)  # as one of these


@pytest.mark.parametrize(
    ("dtype", "target"),
    [*in_turn((dtype,) for dtype in DTYPES), *(pytest.param(*each, marks=pytest.mark.slow) for each in product(AS_WIDE, (V4, V3)))],
)
def test_transpositions(dtype: torch.dtype, target: str) -> None:
    """Blocks of 16 by 16, and what is left of them on either side; what is computed on the way."""
    module = Returns(
        transposed=lambda x: x.transpose(0, 1).contiguous(),
        last_two=lambda x: x.transpose(1, 2).contiguous(),
        outermost=lambda x: x.permute(2, 0, 1).contiguous(),
        reverse=lambda x: x.permute(2, 1, 0).contiguous(),
        masked=lambda x: torch.where(x.transpose(1, 2) == 0, x.transpose(1, 2), x.transpose(1, 2)),
        narrow=lambda x: x[:, :, :3].transpose(1, 2).contiguous(),
        flat=lambda x: x.flatten(1).t().contiguous(),
    )
    sizes = [{0: dim("a"), 1: dim("b"), 2: dim("c", 4)}]
    example = torch.ones(3, 5, 7).to(dtype)
    program = compile_torch(module, [example], sizes, target)
    for shape in ((1, 1, 4), (2, 16, 16), (3, 17, 15), (1, 33, 300), (20, 5, 31)):
        x = torch.randint(0, 100, shape).to(dtype)
        assert_like_eager(program, module, x, exact=True)


def test_transpositions_of_known_size() -> None:
    for shape in ((3, 224, 50), (64, 3, 49), (16, 32, 8), (1, 40, 17)):
        module = Returns(
            transposed=lambda x: x.transpose(1, 2).contiguous(),
            scaled=lambda x: x.transpose(1, 2) * 2 + torch.arange(x.shape[1]),
            added=lambda x: x.transpose(1, 2) + x.transpose(1, 2).contiguous(),
        )
        program = compile_torch(module, [torch.randn(shape)])
        assert_like_eager(program, module, torch.randn(shape))


@pytest.mark.parametrize(("dtype", "channels", "target"), in_turn(product(DTYPES, (2, 3, 5, 7, 12))))
def test_images_become_channels_last(dtype: torch.dtype, channels: int, target: str) -> None:
    """Few channels are interleaved in registers, also where the image is padded on the way."""
    module = Returns(
        plain=lambda x: x.movedim(1, -1).contiguous(),
        scaled=lambda x: (x.movedim(1, -1) * 2).to(x.dtype),
        padded=lambda x: torch.nn.functional.pad(x.movedim(1, -1), (0, 0, 1, 2, 2, 1), value=1),
        before=lambda x: torch.nn.functional.pad(x.movedim(1, -1), (0, 0, 37, 0)),
        cropped=lambda x: torch.nn.functional.pad(x.movedim(1, -1), (0, 0, -1, 1)),
    )
    example = torch.randint(0, 100, (2, channels, 5, 6)).to(dtype)
    program = compile_torch(module, [example], [{0: dim("batch"), 3: dim("width", 4)}], target)
    for batch, width in ((1, 4), (2, 16), (1, 61), (2, 128)):
        x = torch.randint(0, 100, (batch, channels, 5, width)).to(dtype)
        assert_like_eager(program, module, x, exact=True)
