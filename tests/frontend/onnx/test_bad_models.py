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


def changed(weight: onnx.TensorProto, **fields: Any) -> onnx.ModelProto:
    """x + w, with w damaged."""
    for name, content in fields.items():
        if name == "dims":
            del weight.dims[:]
            weight.dims.extend(content)
        else:
            setattr(weight, name, content)
    return model([node("Add", ["x", "w"], ["y"])], weights=[weight])


def ones() -> onnx.TensorProto:
    return constant("w", np.ones((2, 3), np.float32))


def external(**entries: Any) -> onnx.ModelProto:
    """x + w, with w in w.bin, which has 20 bytes."""
    weight = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(2, 3), data_location=TensorProto.EXTERNAL)
    for key, content in entries.items():
        weight.external_data.add(key=key, value=str(content))
    return model([node("Add", ["x", "w"], ["y"])], weights=[weight])


def shaped(op: str, *extra: Any, **attributes: Any) -> onnx.ModelProto:
    """y = op(x, extra...), of no declared shape."""
    names = [f"c{i}" for i in range(len(extra))]
    weights = [constant(name, each) for name, each in zip(names, extra, strict=True)]
    return model([node(op, ["x", *names], ["y"], **attributes)], weights=weights, outputs=[value("y", None)])


def sized(*dims: int, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], inputs=[value("x", dims, dtype)], outputs=[value("y", None)])


def with_opsets(*versions: int) -> onnx.ModelProto:
    proto = model([node("Relu", ["x"], ["y"])])
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid("", version) for version in versions)
    return proto


def with_function(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """y = my.F(x), whose body from a to b is `nodes`."""
    proto = model([node("F", ["x"], ["y"], domain="my")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    proto.opset_import.append(opsets[1])
    proto.functions.append(helper.make_function("my", "F", ["a"], ["b"], list(nodes), opsets))
    return proto


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
    "an-opset-to-come": (with_opsets(999), "uses opset 999"),
    "a-negative-opset": (with_opsets(-3), "uses opset -3"),
    "two-opsets": (with_opsets(12, 17), "versions 12 and 17"),
    "two-outputs-of-a-name": (model([node("Relu", ["x"], ["y"])], outputs=[value("y"), value("y")]), "two outputs"),
    "a-function-that-calls-itself": (with_function(node("F", ["a"], ["b"], domain="my")), "Cycle"),
    "a-function-without-its-output": (with_function(node("Relu", ["a"], ["c"])), "output 'b'"),
    "a-huge-input": (sized(2**40), "1,099,511,627,776 elements"),
    "an-input-of-no-known-type": (sized(2, dtype=99), "number 99"),
    "a-weight-cut-short": (changed(ones(), raw_data=b"1234567890"), "data of 'w'"),
    "a-weight-of-other-sizes": (changed(ones(), dims=(2**40, 3)), "data of 'w'"),
    "a-weight-of-negative-sizes": (changed(ones(), dims=(-2, -3)), "sizes [-2, -3]"),
    "a-weight-of-no-known-type": (changed(ones(), data_type=77), "data of 'w'"),
    "external-data-cut-short": (external(location="w.bin"), "too short"),
    "external-data-missing": (external(location="nowhere.bin"), "missing"),
    "external-data-by-an-absolute-path": (external(location="/etc/passwd"), "outside"),
    "external-data-outside": (external(location="../../etc/passwd"), "outside"),
    "external-data-before-its-file": (external(location="w.bin", offset=-100), "data of 'w'"),
    "external-data-at-no-number": (external(location="w.bin", offset="abc"), "data of 'w'"),
    "a-product-that-does-not-fit": (shaped("MatMul", np.ones((4, 5), np.float32)), "MatMul 'y'"),
    "an-attribute-of-another-type": (shaped("Softmax", axis="one"), "Softmax 'y'"),
    "a-huge-resize": (
        model([node("Resize", ["x", "", "s"], ["y"])], weights=[constant("s", np.full(2, 1e12, np.float32))], outputs=[value("y", None)]),
        "along an axis",
    ),
    "a-tile-no-machine-holds": (shaped("Tile", np.array([2**40, 2**10])), "bytes"),
    "branches-of-other-outputs": (
        model(
            [node("If", ["c"], ["y"], then_branch=branch("x"), else_branch=helper.make_graph([], "none", [], []))],
            inputs=[value("x"), value("c", (), TensorProto.BOOL)],
        ),
        "1 outputs and one of 0",
    ),
    "a-body-of-other-inputs": (
        model([node("Loop", ["n", "", "x"], ["y"], body=branch("x"))], weights=[constant("n", 3)], outputs=[value("y", None)]),
        "takes 0 inputs and is given 3",
    ),
}

# What refuses these is not the file itself but an op in it, or what exports it: rows of check's table.
WHOLE_FILE = frozenset(
    {"cycle", "self-cycle", "missing-weight", "missing-output", "missing-in-a-branch", "a-name-made-twice", "two-inputs-of-a-name"}
    | {"two-weights-of-a-name", "an-opset-to-come", "a-negative-opset", "two-opsets", "two-outputs-of-a-name"}
    | {"a-function-that-calls-itself", "a-function-without-its-output"}
)


@pytest.mark.parametrize("command", ["check", "compile"])
@pytest.mark.parametrize("name", BAD)
def test_bad_models(name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    proto, message = BAD[name]
    path, out = tmp_path / "bad.onnx", tmp_path / "out"
    path.write_bytes(proto.SerializeToString())
    (tmp_path / "w.bin").write_bytes(bytes(20))
    out.mkdir()
    monkeypatch.chdir(out)
    code = run(
        [command, str(path), *(["-o", str(out / "m.llmos"), "-q", "--no-cache", "--target", "native"] if command == "compile" else [])]
    )
    printed = capsys.readouterr()
    if command == "check" and name not in WHOLE_FILE:
        assert code == 1 and message in printed.out and not printed.err, (code, printed)
    else:
        assert code == 2 and printed.err.startswith("error: ") and printed.err.count("\n") == 1 and message in printed.err, (code, printed)
    assert list(out.iterdir()) == []
