"""ONNX's own node tests through the eager module: `python tests/frontend/onnx/node_suite.py [name part]` prints the score.

An op counts as refused when it raises UnsupportedError, as wrong when its numbers differ from ONNX's or anything else is raised.
Inputs that an op needs to know before any kernel runs (shapes, axes, pads) are bound to the case's values, as an exporter would write them.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx.backend.test.loader import load_model_tests

from llmos.compiler.frontend.onnx.dtypes import to_numpy, to_torch
from llmos.compiler.frontend.onnx.graph import Graph
from llmos.compiler.frontend.onnx.importer import build_module
from llmos.compiler.frontend.onnx.loading import load_model
from llmos.compiler.frontend.onnx.registry import Kind
from llmos.runtime.errors import UnsupportedError

KNOWN_EARLY = (Kind.INTS, Kind.FLOATS, Kind.ARRAY, Kind.VALUE)
# Outputs that are random by definition: only their shapes and types can be compared.
NARROW = ("int2", "uint2", "int4", "uint4", "float4_e2m1fn", "float8_e8m0fnu")
RANDOM = ("bernoulli", "randomuniform", "randomnormal")


@dataclass(frozen=True)
class Outcome:
    """What became of a case: "passed", "refused" or "wrong", and why."""

    name: str
    verdict: str
    reason: str = ""


@cache
def cases() -> dict[str, Any]:
    """All node cases of the ai.onnx domain by name, without those that spell out function bodies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    return {case.name: case for case in found if "_expanded" not in case.name and not _foreign(case.model)}


def run_case(case: Any) -> Outcome:
    try:
        for inputs, expected in case.data_sets:
            problem = _compare(case, inputs, expected)
            if problem:
                return Outcome(case.name, "wrong", problem)
    except UnsupportedError as error:
        return Outcome(case.name, "refused", str(error))
    except Exception as error:
        return Outcome(case.name, "wrong", f"{type(error).__name__}: {error} {getattr(error, '__notes__', '')}".replace("\n", " "))
    return Outcome(case.name, "passed")


def _foreign(model: onnx.ModelProto) -> bool:
    return any(node.domain not in ("", "ai.onnx") for node in model.graph.node)


def _compare(case: Any, inputs: list[Any], expected: list[Any]) -> str:
    names = [value.name for value in case.model.graph.input]
    if any(isinstance(value, list) or value is None for value in inputs):
        raise UnsupportedError("sequences and optionals as inputs of a model aren't supported.")
    feed = {name: _array(value) for name, value in zip(names, inputs, strict=True)}
    model = load_model(case.model)
    bound = {name: feed[name] for name in early_names(build_module(model, {}).graph) & set(feed)}
    module = build_module(model, bound)
    tensors = [to_torch(array) for name, array in feed.items() if name not in bound]
    with torch.no_grad():
        outputs = module(*tensors)
    for want, got in zip(expected, outputs, strict=True):
        problem = _difference(case, _array(want), to_numpy(got))
        if problem:
            return problem
    return ""


def _array(value: Any) -> np.ndarray:
    """Some cases give their data as TensorProto; the types that only ONNX has are beyond both numpy and torch."""
    array = onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    if array.dtype == object or array.dtype.kind in "SU" or str(array.dtype) in NARROW:
        raise UnsupportedError(f"{array.dtype} isn't an element type of torch.")
    return array


def early_names(graph: Graph) -> set[str]:
    """Names that some op needs to know before any kernel runs."""
    found = set()
    for node in graph.nodes:
        found |= {name for i, name in enumerate(node.inputs) if node.function.kind_of(i) in KNOWN_EARLY and not _takes_data(node.op, i)}
        for attribute in node.attributes.values():
            if isinstance(attribute, Graph):
                found |= early_names(attribute)
    return found


def _takes_data(op: str, index: int) -> bool:
    """Whether a VALUE input is data all the same."""
    return (op in ("Gather", "LSTM", "GRU", "RNN", "If", "Scan", "SequenceConstruct")) or (op in ("Loop", "SequenceInsert") and index > 1)


def _difference(case: Any, want: np.ndarray, got: np.ndarray) -> str:
    if want.shape != got.shape or want.dtype != got.dtype:
        return f"{got.dtype}{list(got.shape)} where {want.dtype}{list(want.shape)} is right"
    if any(word in case.name for word in RANDOM):
        return ""
    if want.dtype.kind in "fcV":
        wide = np.complex128 if want.dtype.kind == "c" else np.float64
        # Two units in the last place of float16 and of bfloat16.
        rtol = max(case.rtol, (2e-3 if want.dtype == np.float16 else 16e-3) if want.dtype.itemsize == 2 else 0)
        if np.allclose(got.astype(wide), want.astype(wide), rtol=rtol, atol=max(case.atol, 1e-6), equal_nan=True):
            return ""
        return f"off by {np.abs(got.astype(wide) - want.astype(wide)).max()}"
    return "" if np.array_equal(want, got) else f"{int((want != got).sum())} of {want.size} integers differ"


def run_all(part: str = "") -> Iterator[Outcome]:
    for name, case in cases().items():
        if part in name:
            yield run_case(case)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    outcomes = list(run_all(sys.argv[1] if len(sys.argv) > 1 else ""))
    for outcome in sorted(outcomes, key=lambda o: (o.verdict, o.name)):
        if outcome.verdict != "passed":
            print(outcome.verdict, outcome.name, outcome.reason[:200])
    print(dict(Counter(outcome.verdict for outcome in outcomes)))


if __name__ == "__main__":
    main()
