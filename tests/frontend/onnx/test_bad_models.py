"""ONNX models that no compiler can take: `check` and `compile` say why in one line with exit code 2, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from llmos.runtime.cli.command import run

node = helper.make_node


def value(name: str, shape: Sequence[int] | None = (2, 3), dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def constant(name: str, number: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(number), name)


def model(nodes: Sequence[onnx.NodeProto], *, weights: Sequence[onnx.TensorProto] = (), opset: int = 17, **other: Any) -> onnx.ModelProto:
    """From x to y, both [2, 3] where `inputs` or `outputs` don't say otherwise."""
    graph = helper.make_graph(list(nodes), "g", other.get("inputs", [value("x")]), other.get("outputs", [value("y")]), list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def branch(name: str) -> onnx.GraphProto:
    return helper.make_graph([node("Relu", [name], ["o"])], "branch", [], [value("o")])


BAD = {
    "cycle": (model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"], name="late"), node("Relu", ["b"], ["y"])]), "cycle"),
    "self-cycle": (model([node("Add", ["x", "y"], ["y"])]), "cycle"),
    "missing-weight": (model([node("Add", ["x", "w"], ["y"])]), "reads 'w'"),
    "missing-output": (model([node("Relu", ["x"], ["z"])]), "output 'y'"),
    "missing-in-a-branch": (
        model(
            [node("If", ["c"], ["y"], then_branch=branch("x"), else_branch=branch("gone"))],
            inputs=[value("x"), value("c", (), TensorProto.BOOL)],
        ),
        "reads 'gone'",
    ),
    "a-name-made-twice": (model([node("Relu", ["x"], ["y"]), node("Tanh", ["x"], ["y"])]), "makes 'y'"),
    "two-inputs-of-a-name": (model([node("Relu", ["x"], ["y"])], inputs=[value("x"), value("x")]), "two inputs"),
    "two-weights-of-a-name": (
        model([node("Add", ["x", "w"], ["y"])], weights=[constant("w", 1.0), constant("w", 2.0)]),
        "two initializers",
    ),
    "a-huge-constant": (
        model(
            [node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["y"])],
            weights=[constant("s", [2**40])],
            outputs=[value("y", None)],
        ),
        "1,099,511,627,776 elements",
    ),
    "a-huge-range": (
        model(
            [node("Range", ["a", "b", "c"], ["y"])],
            weights=[constant(n, v) for n, v in (("a", 0), ("b", 2**40), ("c", 1))],
            outputs=[value("y", None, TensorProto.INT64)],
        ),
        "1,099,511,627,776 elements",
    ),
}


OPS_AT_FAULT = ("a-huge-constant", "a-huge-range")


@pytest.mark.parametrize("command", ["check", "compile"])
@pytest.mark.parametrize("name", BAD)
def test_bad_models(name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    proto, message = BAD[name]
    path, out = tmp_path / "bad.onnx", tmp_path / "out"
    path.write_bytes(proto.SerializeToString())
    out.mkdir()
    monkeypatch.chdir(out)
    code = run(
        [command, str(path), *(["-o", str(out / "m.llmos"), "-q", "--no-cache", "--target", "native"] if command == "compile" else [])]
    )
    printed = capsys.readouterr()
    if command == "check" and name in OPS_AT_FAULT:  # a place that does not compile, in check's table
        assert code == 1 and message in printed.out and not printed.err, (code, printed)
    else:
        assert code == 2 and printed.err.startswith("error: ") and printed.err.count("\n") == 1 and message in printed.err, (code, printed)
    assert list(out.iterdir()) == []
