"""A fixed sample of ONNX's own node tests: none may give wrong numbers, and what passes today keeps passing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

# node_suite.py is also a script of its own, beside this file.
_SPEC = importlib.util.spec_from_file_location("node_suite", Path(__file__).with_name("node_suite.py"))
assert _SPEC is not None and _SPEC.loader is not None


@pytest.fixture(scope="module")
def suite() -> ModuleType:
    import sys

    module = importlib.util.module_from_spec(_SPEC)
    sys.modules[_SPEC.name] = module
    _SPEC.loader.exec_module(module)
    return module


def test_sample_is_right_or_refused(suite: ModuleType) -> None:
    names = sorted(suite.cases())[::9]
    assert len(names) >= 150
    outcomes = [suite.run_case(suite.cases()[name]) for name in names]
    wrong = [outcome for outcome in outcomes if outcome.verdict == "wrong"]
    assert not wrong, wrong
    assert sum(outcome.verdict == "passed" for outcome in outcomes) >= 115


@pytest.mark.slow
def test_whole_suite(suite: ModuleType) -> None:
    outcomes = list(suite.run_all())
    assert not [outcome for outcome in outcomes if outcome.verdict == "wrong"]
    assert sum(outcome.verdict == "passed" for outcome in outcomes) >= 1060
