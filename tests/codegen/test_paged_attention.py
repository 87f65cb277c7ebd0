"""Attention over a paged cache: head sizes, groups, windows, caps and cache types; what else is in the step changes no bit of a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import llmos.compiler.frontend.paged_attention  # noqa: F401  registers the ops
from llmos.compiler.analysis.paged_attention import BLOCK_SIZE, BlockLayout
from llmos.compiler.bench.work import evaluate
from llmos.runtime.errors import InputError
from llmos.runtime.program import Program

from .programs import V3, V4, compile_torch, dim, to_array

NUM_BLOCKS, TABLE = 24, 5


@dataclass(frozen=True)
class Case:
    """One attention: sizes of heads, and the parameters of the op."""

    head_dim: int
    kv_heads: int
    group: int
    window: int = 0
    softcap: float = 0.0
    dtype: torch.dtype = torch.float32
    sinks: bool = False

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        return NUM_BLOCKS, self.kv_heads, self.layout.num_elements

    @property
    def layout(self) -> BlockLayout:
        return BlockLayout(self.head_dim, self.dtype == torch.int8)


CASES = (
    Case(64, 2, 4),
    Case(8, 3, 1, window=7),
    Case(20, 1, 3, softcap=5.0, dtype=torch.bfloat16),
    Case(80, 1, 17, window=33, softcap=30.0, sinks=True),
    Case(128, 1, 2, dtype=torch.bfloat16),
    Case(64, 2, 3, dtype=torch.int8),
    Case(20, 2, 1, window=9, softcap=5.0, dtype=torch.int8),
)


class Attentions(torch.nn.Module):
    """Every case over the same tokens; each writes its keys and values, then attends, in place."""

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__()
        self.cases = cases
        self.sinks = torch.linspace(-9.0, 9.0, 17)

    def forward(
        self,
        slots: torch.Tensor,
        positions: torch.Tensor,
        requests: torch.Tensor,
        tables: torch.Tensor,
        operands: list[list[torch.Tensor]],
        caches: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        made = []
        for case, (query, key, value), cache in zip(self.cases, operands, caches, strict=True):
            new = torch.ops.llmos.write_kv_cache(cache, key, value, slots)
            sinks = self.sinks if case.sinks else None
            scale = case.head_dim**-0.5
            made.append(torch.ops.llmos.paged_attention(query, new, tables, positions, requests, sinks, scale, case.window, case.softcap))
            cache.copy_(new)
        return tuple(made)


@dataclass(frozen=True)
class Tokens:
    """Tokens of a step: for each request its first position and how many tokens it has; blocks in random order."""

    spans: Sequence[tuple[int, int]]
    seed: int = 0

    def indices(self) -> list[torch.Tensor]:
        """slots, positions, requests, tables."""
        rng = np.random.default_rng(self.seed)
        tables = rng.permutation(NUM_BLOCKS)[: len(self.spans) * TABLE].reshape(-1, TABLE)
        positions = np.concatenate([np.arange(first, first + count) for first, count in self.spans])
        requests = np.repeat(np.arange(len(self.spans)), [count for _, count in self.spans])
        slots = tables[requests, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        return [torch.from_numpy(each.astype(np.int32)) for each in (slots, positions, requests, tables)]

    @property
    def count(self) -> int:
        return sum(count for _, count in self.spans)


def operands_of(cases: Sequence[Case], count: int, seed: int = 1) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    heads = [(case, (case.kv_heads * case.group, case.kv_heads, case.kv_heads)) for case in cases]
    return [[torch.randn(count, each, case.head_dim, generator=generator) for each in counts] for case, counts in heads]


def caches_of(cases: Sequence[Case], seed: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [cache_of(case, generator) for case in cases]


def cache_of(case: Case, generator: torch.Generator) -> torch.Tensor:
    made = torch.randn(case.cache_shape, generator=generator)
    if not case.layout.has_scales:
        return made.to(case.dtype)
    cache, scales = (made * 40).to(torch.int8), (made[..., :32] / 40).abs().bfloat16()
    cache[..., case.layout.scales :] = scales.view(torch.int8)
    return cache


def compiled(cases: Sequence[Case], target: str) -> Program:
    tokens, requests, blocks, width = dim("tokens"), dim("requests"), dim("blocks"), dim("width")
    example = Tokens(((3, 4), (0, 5)))
    each = {0: tokens}
    shapes = [each, each, each, {0: requests, 1: width}, [[each] * 3 for _ in cases], [{0: blocks} for _ in cases]]
    module = Attentions(cases)
    return compile_torch(module, [*example.indices(), operands_of(cases, example.count), caches_of(cases)], shapes, target)


def called(
    program: Program, indices: Sequence[torch.Tensor], operands: list[list[torch.Tensor]], caches: list[torch.Tensor]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs; the caches are updated."""
    arrays = [to_array(each) for each in caches]
    found = program(*map(to_array, indices), *[to_array(each) for group in operands for each in group], *arrays)
    return [found] if isinstance(found, np.ndarray) else list(found), arrays


@pytest.fixture(scope="module", params=[V3, V4])
def program(request: pytest.FixtureRequest) -> Program:
    return compiled(CASES, request.param)


SPANS = (((0, 1),), ((0, 40), (70, 3)), ((5, 1), (63, 1), (16, 1), (79, 1)), ((0, 17), (15, 2), (31, 20), (0, 1)))


@pytest.mark.parametrize("spans", SPANS)
def test_results_and_caches_are_eager_torchs(program: Program, spans: tuple[tuple[int, int], ...]) -> None:
    assert [kernel.kind for kernel in program.manifest.kernels].count("paged_attention") == len(CASES)
    tokens = Tokens(spans)
    operands, caches = operands_of(CASES, tokens.count), caches_of(CASES)
    outputs, updated = called(program, tokens.indices(), operands, caches)
    with torch.no_grad():
        expected = Attentions(CASES)(*tokens.indices(), operands, caches)
    for found, wanted in zip(outputs, expected, strict=True):
        assert np.abs(found - wanted.numpy()).max() < 3e-6
    for array, cache in zip(updated, caches, strict=True):
        assert np.array_equal(array, to_array(cache))


def test_the_work_is_both_products_and_the_blocks_that_are_listed(program: Program) -> None:
    found = [each.details for each in program.manifest.kernels if each.kind == "paged_attention"]
    for case, details in zip(CASES, found, strict=True):
        symbols = {"tokens": 3, "requests": 2, "blocks": NUM_BLOCKS, "width": TABLE}
        heads = case.kv_heads * case.group
        others = 2 * 3 * heads * case.head_dim * 4 + 2 * TABLE * 4 + 2 * 3 * 4 + (heads * 4 if case.sinks else 0)
        cached = 2 * TABLE * case.kv_heads * case.layout.num_elements * case.dtype.itemsize
        assert evaluate(str(details["flops"]), symbols) == 4 * 3 * heads * case.head_dim * TABLE * BLOCK_SIZE
        assert evaluate(str(details["bytes"]), symbols) == cached + others


def rows(operands: list[list[torch.Tensor]], keep: slice) -> list[list[torch.Tensor]]:
    return [[each[keep] for each in group] for group in operands]


def test_a_prompt_in_chunks_or_beside_others_has_the_same_bits(program: Program) -> None:
    tokens = Tokens(((0, 60), (2, 9), (40, 1)))
    operands = operands_of(CASES, tokens.count)
    together, _ = called(program, tokens.indices(), operands, caches_of(CASES))
    slots, positions, requests, tables = tokens.indices()
    caches = caches_of(CASES)
    parts = []
    for low, high in ((0, 1), (1, 30), (30, 47), (47, 60)):
        keep = slice(low, high)
        found, arrays = called(program, [slots[keep], positions[keep], requests[keep], tables[:1]], rows(operands, keep), caches)
        caches = [torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) if a.dtype == np.uint16 else torch.from_numpy(a) for a in arrays]
        parts.append(found)
    for number, whole in enumerate(together):
        assert np.array_equal(whole[:60], np.concatenate([part[number] for part in parts]))


def test_positions_that_nobody_wrote_are_not_read(program: Program) -> None:
    """A block that another request left may hold anything behind the last position."""
    tokens = Tokens(((0, 21),))
    operands = operands_of(CASES, tokens.count)
    clean, _ = called(program, tokens.indices(), operands, [torch.zeros_like(each) for each in caches_of(CASES)])
    nans = [torch.full_like(each, torch.nan if each.is_floating_point() else -1) for each in caches_of(CASES)]
    dirty, _ = called(program, tokens.indices(), operands, nans)
    for a, b in zip(clean, dirty, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("which", "value"),
    [("slots", -1), ("slots", NUM_BLOCKS * BLOCK_SIZE), ("positions", -1), ("positions", TABLE * BLOCK_SIZE), ("requests", 1)]
    + [("requests", -1), ("tables", -1), ("tables", NUM_BLOCKS), ("positions", 2**31 - 1)],
)
def test_an_index_outside_is_an_error_of_the_call(program: Program, which: str, value: int) -> None:
    tokens = Tokens(((0, 3),))
    indices = dict(zip(("slots", "positions", "requests", "tables"), tokens.indices(), strict=True))
    indices[which].view(-1)[0 if which == "tables" else -1] = value
    with pytest.raises(InputError, match="out of range"):
        called(program, list(indices.values()), operands_of(CASES, tokens.count), caches_of(CASES))
