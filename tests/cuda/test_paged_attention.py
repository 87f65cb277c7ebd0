"""Attention over a paged cache, and the writes into it, on the fake GPU: the tests of the CPU's kernels, and both orders of threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from llmos.runtime.program import Program
from tests.codegen.programs import dim
from tests.codegen.test_paged_attention import (
    CASES,
    Attentions,
    Case,
    Tokens,
    caches_of,
    called,
    operands_of,
    test_a_prompt_in_chunks_or_beside_others_has_the_same_bits,
    test_an_index_outside_is_an_error_of_the_call,
    test_positions_that_nobody_wrote_are_not_read,
    test_results_and_caches_are_eager_torchs,
)

from . import fake

__all__ = [
    "test_a_prompt_in_chunks_or_beside_others_has_the_same_bits",
    "test_an_index_outside_is_an_error_of_the_call",
    "test_positions_that_nobody_wrote_are_not_read",
    "test_results_and_caches_are_eager_torchs",
]

WIDE = Case(128, 1, 40, dtype=torch.bfloat16)  # query heads in several parts


@pytest.fixture(autouse=True)
def machine() -> Iterator[None]:
    """A fresh fake machine for each test."""
    fake.driver().fake_cuda_reset()
    yield
    fake.driver().fake_cuda_reset()


def compiled(cases: Sequence[Case]) -> Program:
    tokens, requests, blocks, width = dim("tokens"), dim("requests"), dim("blocks"), dim("width")
    example = Tokens(((3, 4), (0, 5)))
    each = {0: tokens}
    shapes = [each, each, each, {0: requests, 1: width}, [[each] * 3 for _ in cases], [{0: blocks} for _ in cases]]
    return fake.program(Attentions(cases), (*example.indices(), operands_of(cases, example.count), caches_of(cases)), shapes)


@pytest.fixture(scope="module")
def program() -> Program:
    """What the tests of the CPU's kernels call."""
    return compiled(CASES)


def test_no_bit_depends_on_the_order_of_threads(program: Program) -> None:
    tokens = Tokens(((0, 17), (15, 2), (31, 20), (0, 1)))
    outputs, written = called(program, tokens.indices(), operands_of(CASES, tokens.count), caches_of(CASES))
    fake.driver().fake_cuda_reverse(1)
    again, rewritten = called(program, tokens.indices(), operands_of(CASES, tokens.count), caches_of(CASES))
    for first, second in zip([*outputs, *written], [*again, *rewritten], strict=True):
        np.testing.assert_array_equal(first.view(np.uint8), second.view(np.uint8))


def test_a_group_that_registers_do_not_hold_is_taken_in_parts() -> None:
    loaded, tokens = compiled([WIDE]), Tokens(((60, 2), (0, 1)))
    operands, caches = operands_of([WIDE], tokens.count), caches_of([WIDE])
    outputs, _ = called(loaded, tokens.indices(), operands, caches)
    expected = Attentions([WIDE])(*tokens.indices(), operands, caches)
    assert np.abs(outputs[0] - expected[0].numpy()).max() < 3e-6
    (launch,) = [line for line in fake.calls() if line.startswith("cuLaunchKernel") and "paged_attention" in line]
    assert launch.split()[2:4] == ["12", "256"]  # blocks of 256 threads: 3 tokens, one head, 4 parts of 10
