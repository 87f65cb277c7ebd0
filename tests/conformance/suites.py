"""The suites, in the order of the tables."""

from __future__ import annotations

from collections.abc import Mapping

from tests.conformance.dynamic_suite import DynamicSuite
from tests.conformance.onnx_suite import onnx_suites
from tests.conformance.opinfo import OpInfoSuite
from tests.conformance.outcome import Suite
from tests.conformance.transformers_suite import TransformersSuite


def all_suites() -> Mapping[str, Suite]:
    """Every suite by name; nothing is loaded before its `cases` is called."""
    return {suite.name: suite for suite in (*onnx_suites(), OpInfoSuite(), DynamicSuite(), TransformersSuite())}
