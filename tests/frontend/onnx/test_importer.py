"""The importer on small graphs: symbolic shapes, names, refusals, damaged files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from llmos.compiler.frontend.onnx import export_onnx, unsupported_ops
from llmos.compiler.frontend.onnx.loading import load_model, read_tensor
from llmos.compiler.frontend.onnx.registry import supported_ops
from llmos.runtime.errors import UnsupportedError, UserError


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    constants: dict[str, np.ndarray] | None = None,
    outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def merge_heads() -> onnx.ModelProto:
    """[batch, tokens, 4, 8] to [batch, tokens, 32] with the shape computed in the graph."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["b"]),
        helper.make_node("Slice", ["s", "one", "two"], ["t"]),
        helper.make_node("Slice", ["s", "two", "four"], ["rest"]),
        helper.make_node("ReduceProd", ["rest"], ["width"], keepdims=1),
        helper.make_node("Unsqueeze", ["b", "axis"], ["b1"]),
        helper.make_node("Concat", ["b1", "t", "width"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    constants = {"zero": np.array(0), "one": np.array([1]), "two": np.array([2]), "four": np.array([4]), "axis": np.array([0])}
    return model(nodes, {"x": ["batch", "tokens", 4, 8]}, constants)


def test_shape_arithmetic_leaves_no_trace() -> None:
    program = export_onnx(merge_heads())
    calls = [node for node in program.program.graph.nodes if node.op == "call_function" and "sym_size" not in str(node.target)]
    assert [str(node.target) for node in calls] == ["aten.reshape.default"]
    (y,) = program.program.module()(torch.ones(5, 9, 4, 8))
    assert y.shape == (5, 9, 32)


def test_names_come_from_the_file() -> None:
    program = export_onnx(merge_heads())
    assert program.inputs[0].name == "x" and program.inputs[0].shape == ("batch", "tokens", 4, 8) and program.output_names == ("y",)


@pytest.mark.parametrize(
    ("dynamic", "shape"),
    [
        ({"tokens": 6}, ("batch", 6, 4, 8)),
        (["n", "m"], ("n", "m", 4, 8)),
        ({"batch": (1, 4), "tokens": (1, 16)}, ("batch", "tokens", 4, 8)),
    ],
)
def test_dynamic(dynamic: Any, shape: tuple[Any, ...]) -> None:
    assert export_onnx(merge_heads(), dynamic=dynamic).inputs[0].shape == shape


def test_ranges_reach_export() -> None:
    program = export_onnx(merge_heads(), dynamic={"batch": (1, 4), "tokens": (2, 16)}).program
    assert sorted((int(r.lower), int(r.upper)) for r in program.range_constraints.values()) == [(1, 4), (2, 16)]


def test_unknown_dimension_name() -> None:
    with pytest.raises(UserError, match="no dynamic dimension 'height'; it has: batch, tokens"):
        export_onnx(merge_heads(), dynamic={"height": 3})


def test_dotted_and_odd_weight_names() -> None:
    names = ["a.b.weight", "a.b", "a/b:0", "model..bias"]
    nodes = [helper.make_node("Add", ["x", names[0]], ["t0"])]
    nodes += [helper.make_node("Add", [f"t{i}", name], [f"t{i + 1}"]) for i, name in enumerate(names[1:])]
    constants = {name: np.arange(1, 4, dtype=np.float32) * 10**i for i, name in enumerate(names)}
    program = export_onnx(model(nodes, {"x": ["n", 3]}, constants, outputs=("t3",)))
    (y,) = program.program.module()(torch.zeros(4, 3))
    assert y[0].tolist() == [1111, 2222, 3333]
    assert {"a.b.weight", "a/b:0"} <= set(program.module.state_dict())


def test_unsupported_ops_are_all_named_at_once() -> None:
    nodes = [
        helper.make_node("ImageDecoder", ["x"], ["u"], name="first"),
        helper.make_node("StringNormalizer", ["u"], ["y"], name="second"),
    ]
    small = model(nodes, {"x": [3]}, opset=20)
    with pytest.raises(UnsupportedError, match=r"ImageDecoder .*'first'.*StringNormalizer .*'second'"):
        export_onnx(small)
    assert [(problem.op, problem.node) for problem in unsupported_ops(small)] == [("ImageDecoder", "first"), ("StringNormalizer", "second")]


def test_an_attribute_that_nobody_reads_is_refused() -> None:
    small = model([helper.make_node("Relu", ["x"], ["y"], name="r", shape=3)], {"x": [3]})
    with pytest.raises(UnsupportedError, match="attribute shape=3"):
        export_onnx(small)


def test_a_shape_computed_from_data_is_refused() -> None:
    nodes = [helper.make_node("Cast", ["x"], ["s"], to=TensorProto.INT64), helper.make_node("Reshape", ["x", "s"], ["y"], name="shaped")]
    with pytest.raises(UnsupportedError, match=r"Reshape 'shaped': input 's' is computed from the data"):
        export_onnx(model(nodes, {"x": [2]}))


def test_bound_inputs_leave_the_signature() -> None:
    program = export_onnx(model([helper.make_node("Add", ["x", "k"], ["y"])], {"x": [3], "k": []}), bind={"k": 2.0})
    assert [spec.name for spec in program.inputs] == ["x"]
    assert program.program.module()(torch.zeros(3))[0].tolist() == [2, 2, 2]
    assert program.reference([np.zeros(3, np.float32)])[0].tolist() == [2, 2, 2]


def test_function_bodies_stand_in_for_ops_without_a_function() -> None:
    assert "RotaryEmbedding" not in supported_ops()
    half = helper.make_node("RotaryEmbedding", ["x", "cos", "sin"], ["y"], num_heads=2)
    angles = np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4)
    small = model([half], {"x": [1, 2, 16]}, {"cos": np.cos(angles)[None], "sin": np.sin(angles)[None]}, opset=23)
    program = export_onnx(small)
    x = program.examples[0].numpy()
    want = onnx.reference.ReferenceEvaluator(small).run(None, {"x": x})[0]
    assert np.allclose(program.program.module()(torch.from_numpy(x))[0].numpy(), want, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_damaged_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(merge_heads().SerializeToString()[:100] if content is None else content)
    with pytest.raises(UserError, match="ONNX"):
        export_onnx(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        export_onnx(tmp_path / "absent.onnx")


def external(tmp_path: Path) -> Path:
    weight = np.arange(4096, dtype=np.float32).reshape(64, 64)
    small = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 64]}, {"w": weight})
    onnx.save(small, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return tmp_path / "m.onnx"


def test_external_data_is_mapped(tmp_path: Path) -> None:
    path = external(tmp_path)
    loaded = load_model(path)
    assert isinstance(read_tensor(loaded.folder, loaded.proto.graph.initializer[0]), np.memmap)
    (y,) = export_onnx(path).program.module()(torch.eye(64)[:2])
    assert y[1].tolist() == list(range(64, 128))


def test_external_data_too_short(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "m.data").write_bytes(b"123")
    with pytest.raises(UserError, match="too short for 'w'"):
        export_onnx(path)


@pytest.mark.parametrize("domains", [("", ""), ("", "ai.onnx"), ("ai.onnx", "", "ai.onnx")])
@pytest.mark.parametrize("in_function", [False, True])
def test_equal_imports_of_an_opset_are_one(domains: tuple[str, ...], in_function: bool) -> None:
    imports = [helper.make_opsetid(domain, 17) for domain in domains]
    node = helper.make_node("F", ["x"], ["y"], domain="my") if in_function else helper.make_node("Relu", ["x"], ["y"], domain=domains[-1])
    proto = model([node], {"x": ["n"]})
    del proto.opset_import[:]
    proto.opset_import.extend(imports)
    if in_function:
        proto.opset_import.extend([helper.make_opsetid("my", 1)] * 2)
        body = [helper.make_node("Relu", ["a"], ["b"], domain=domains[0])]
        proto.functions.append(helper.make_function("my", "F", ["a"], ["b"], body, imports))
    program = export_onnx(proto)
    assert program.program.module()(torch.tensor([-1.0, 2.0]))[0].tolist() == [0, 2]
    assert program.reference([np.float32([-1, 2])])[0].tolist() == [0, 2]


def test_old_opset_is_converted() -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"], broadcast=1, axis=0)]
    program = export_onnx(model(nodes, {"x": [2, 3]}, {"w": np.float32([10, 20])}, opset=6))
    (y,) = program.program.module()(torch.zeros(2, 3))
    assert y.tolist() == [[10, 10, 10], [20, 20, 20]]
