"""The runner: a case that ends, hangs or kills its process is one outcome, and every other case is run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmos.runtime.errors import UnsupportedError
from tests.conformance.outcome import Outcome, judge
from tests.conformance.report import Result, general, listed, reasons, table, write
from tests.conformance.workers import run_cases


def refuse() -> str:
    raise UnsupportedError("op 'x7' isn't supported")


def work() -> str:
    """A second of this processor, however busy it is."""
    end = time.process_time() + 1
    while time.process_time() < end:
        pass
    return ""


def test_a_case_that_takes_too_long() -> None:
    assert judge("slow", work, limit_s=0.5).reason == "it took 1 s of a processor, more than 0"
    assert judge("slow", work).verdict == "passed"


def fail() -> str:
    raise ValueError("a bug")


class Suite:
    """Cases that do what their name says."""

    name, title = "own", "Own cases"

    def cases(self) -> Sequence[str]:
        return ["abort", "exit", "fail", "hang", "off", "refuse", *[f"right{i}" for i in range(5)]]

    def run(self, case: str) -> Outcome:
        if case == "abort":
            os.kill(os.getpid(), signal.SIGKILL)
        if case == "exit":
            os._exit(3)
        if case == "hang":
            time.sleep(60)
        return judge(case, {"refuse": refuse, "fail": fail, "off": lambda: "off by 1"}.get(case, str))


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    suite = Suite()
    return {outcome.case: outcome for outcome in run_cases(suite, suite.cases(), jobs=2, timeout_s=2)}


@pytest.mark.parametrize(
    ("case", "verdict", "reason"),
    [
        ("abort", "crashed", "SIGKILL"),
        ("exit", "crashed", "exit code 3"),
        ("fail", "crashed", "ValueError: a bug"),
        ("hang", "crashed", "no answer in 2 s"),
        ("off", "wrong", "off by 1"),
        ("refuse", "refused", "op 'x7' isn't supported"),
        ("right4", "passed", ""),
    ],
)
def test_verdict(outcomes: dict[str, Outcome], case: str, verdict: str, reason: str) -> None:
    assert outcomes[case].verdict == verdict
    assert reason in outcomes[case].reason


def test_every_case_has_an_outcome(outcomes: dict[str, Outcome]) -> None:
    assert sorted(outcomes) == sorted(Suite().cases())


def test_document_lists_what_does_not_pass(outcomes: dict[str, Outcome], tmp_path: Path) -> None:
    result = Result(Suite(), sorted(outcomes.values(), key=lambda outcome: outcome.case))
    write([result], tmp_path / "coverage.md")
    assert listed(tmp_path / "coverage.md") >= {"abort", "exit", "fail", "hang", "off", "refuse"}
    assert not {case for case in listed(tmp_path / "coverage.md") if case.startswith("right")}
    assert result.failed
    assert "| Own cases | 11 | 5 | 45.5 | 1 | 1 | 4 | 0 |" in table([result])
    assert reasons(result, ("refused",)).startswith("* **refused** (1): op '…' isn't supported")


def test_check_that_promises_too_much_is_an_error() -> None:
    assert Outcome("a", "refused", checked="compiles").check_disagrees
    assert Outcome("a", "passed", checked="refused").check_disagrees
    assert not Outcome("a", "refused", checked="refused").check_disagrees
    assert not Outcome("a", "refused").check_disagrees


def test_reasons_that_differ_in_names_and_places_are_one() -> None:
    assert general("node 'a' has 3 dims (/x/y.py:12: z = f(x))") == general("node 'b' has 17 dims (/x/w.py:1: q)")
