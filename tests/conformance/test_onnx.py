"""A fixed sample of ONNX's own tests, through kernels: none is wrong or crashes, `llmos check` agrees, none is newly refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.conformance.onnx_suite import onnx_suites
from tests.conformance.outcome import Outcome
from tests.conformance.report import listed
from tests.conformance.workers import run_cases

# Every so many cases of the sorted names, and so many times as many among the slow tests; of the small suite of models more.
STRIDES, MORE = {"onnx-node": 72, "onnx-model": 9}, 6
SAMPLES = [
    pytest.param((suite, times), id=suite.name if times == 1 else f"{suite.name}-more", marks=pytest.mark.slow if times > 1 else ())
    for suite in onnx_suites()
    for times in (1, MORE)
]


@pytest.fixture(scope="module", params=SAMPLES)
def outcomes(request: pytest.FixtureRequest) -> Sequence[Outcome]:
    suite, times = request.param
    names = suite.cases()[:: STRIDES[suite.name] // times]
    assert len(names) > 15
    return list(run_cases(suite, names, jobs=1, timeout_s=120))


def test_nothing_is_wrong_or_crashes(outcomes: Sequence[Outcome]) -> None:
    assert [outcome for outcome in outcomes if outcome.verdict in ("wrong", "crashed")] == []


def test_check_and_compile_agree(outcomes: Sequence[Outcome]) -> None:
    assert [outcome for outcome in outcomes if outcome.check_disagrees] == []


def test_what_is_refused_is_in_the_document(outcomes: Sequence[Outcome]) -> None:
    assert {outcome.case for outcome in outcomes if outcome.verdict == "refused"} <= listed()
