"""Unpacked layers of every format: the bits of the weight that the format's library dequantizes, and its numbers in the smallest form."""

from __future__ import annotations

import pytest
import torch

from llmos.models.quantized_checkpoints.checkpoint import scheme_of
from llmos.models.quantized_checkpoints.weight import QuantizedWeight

from .cases import CASES, Case, awq_case, gptq_case

SHAPES = ((32, 64), (96, 128), (16, 192))


def weight_of(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Rows of different sizes, off the middle."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * (0.01 + torch.rand(rows, 1, generator=generator)) + 0.02


def unpack(case: Case, weight: torch.Tensor, seed: int = 3) -> tuple[QuantizedWeight, torch.Tensor]:
    tensors, wanted = case.pack(weight, seed)
    scheme = scheme_of({"quantization_config": case.config})
    assert scheme is not None and set(tensors) <= set(scheme.tensors)
    return scheme.unpack("layer", tensors), wanted


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("name", CASES)
def test_bits_of_the_library(name: str, shape: tuple[int, int]) -> None:
    found, wanted = unpack(CASES[name], weight_of(*shape))
    assert found.dequantized().dtype == wanted.dtype
    torch.testing.assert_close(found.dequantized(), wanted, rtol=0, atol=0)
    assert found.values.is_contiguous() and found.scales.is_contiguous()


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_groups_and_orders(group_size: int) -> None:
    """Symmetric numbers are signed without zero points; columns are out of order only where activations ordered them among groups."""
    for desc_act in (False, True):
        for sym in (False, True):
            found, wanted = unpack(gptq_case(4, group_size, sym, desc_act), weight_of(16, 256))
            assert torch.equal(found.dequantized(), wanted)
            assert found.dtype == ("int4" if sym else "uint4") and (found.zero_points is None) == sym
            assert (found.order is None) == (not desc_act or group_size == -1)
            assert found.group_size == max(group_size, 0) and found.scales.shape == ((16,) if group_size == -1 else (16, 256 // group_size))
    found, wanted = unpack(awq_case(group_size), weight_of(16, 256))
    assert torch.equal(found.dequantized(), wanted) and found.dtype == "uint4"


def test_zero_points_of_version_1_borrow_from_each_other() -> None:
    """A zero point of 0 less 1 takes 1 from the next one: a word is one number."""
    weight = weight_of(32, 64).abs()  # nothing below 0
    case = gptq_case(4, 32, False, False)
    tensors, wanted = case.pack(weight, 0)
    assert bool((tensors["qzeros"] == -0x11111111).all())
    found, _ = unpack(case, weight)
    assert found.zero_points is not None and not found.zero_points.any()
    assert torch.equal(found.dequantized(), wanted)
