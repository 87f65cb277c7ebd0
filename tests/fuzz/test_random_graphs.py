"""Twelve random graphs with fixed numbers, twenty by TVM; a hundred among the slow tests, and thousands by `make fuzz`."""

from __future__ import annotations

import pytest

from .plan import FIRST_OF_ALL, random_plan
from .worker import PASSED, judge

IN_A_GROUP, MAX_OPS = 4, 6
FIRST = [*range(0, 100, IN_A_GROUP), *range(FIRST_OF_ALL, FIRST_OF_ALL + 20, IN_A_GROUP)]


@pytest.mark.sample(0, 16, 25)
@pytest.mark.parametrize("first", FIRST)
def test_a_random_graph_gives_what_torch_gives(first: int) -> None:
    _check_group(first, "")


@pytest.mark.sample(1, 2, 3, 17, 26)
@pytest.mark.parametrize("first", FIRST)
def test_a_random_graph_by_tvm_gives_what_torch_gives(first: int) -> None:
    pytest.importorskip("tvm", reason="TVM is not installed: pip install 'llmos[tvm]'")
    _check_group(first, "tvm")


def _check_group(first: int, backend: str) -> None:
    passed = 0
    for seed in range(first, first + IN_A_GROUP):
        plan = random_plan(seed, MAX_OPS)
        verdict = judge(plan, backend)
        passed += verdict.kind == PASSED
        assert not verdict.failed, f"graph {seed}: {verdict.kind}: {verdict.message}{plan.graph()!r}"
    assert passed >= IN_A_GROUP // 2  # the others hold what torch.export or llmos refuses
