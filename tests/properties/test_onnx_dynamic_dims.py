"""A dimension that an ONNX model declares dynamic stays so, whatever the node: compiled once and run at 1, 2, the traced size and more.

`LLMOS_PROPERTY_CASES=500` tries that many more slices than CI does.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from llmos.compiler.frontend.coverage import check_onnx, format_rows
from llmos.compiler.frontend.onnx import export_onnx, import_onnx
from llmos.compiler.ir.guards import guards_of
from llmos.compiler.ir.sizes import SymbolTable
from tests.conformance.inprocess import Compiled
from tests.properties.onnx_nodes import agree, expected, one_node

CASES = int(os.environ.get("LLMOS_PROPERTY_CASES", "0"))
SIZES = (1, 2, 3, 4, 6, 9, 13)
TRACED = 3

X = np.zeros((2, TRACED), np.float32)
ENDS = (0, 1, 2, 5, 9, -1, -2, -5, -9, 2**62, -(2**62))


def array(*numbers: int) -> np.ndarray:
    return np.array(numbers)


def node(op: str, constants: dict[str, np.ndarray] | None = None, lead: int = 0, **attributes: Any) -> onnx.ModelProto:
    """One node of an input [2, n], with `lead` dims of size 1 before it."""
    shape = (1,) * lead + X.shape
    return one_node(op, {"x": np.zeros(shape, np.float32)}, constants or {}, dims={"x": [*shape[:-1], "n"]}, **attributes)


def stays_dynamic(model: onnx.ModelProto, sizes: tuple[int, ...] = SIZES, tolerance: float = 1e-5) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the graph doesn't allow")
        run = Compiled(import_onnx(model))
    lead = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][:-1]
    for size in sizes:
        x = np.random.default_rng(size).standard_normal((*lead, size)).astype(np.float32)
        outputs, answers = run([x]), expected(model, {"x": x})
        assert any(all(agree(got, want, tolerance) for got, want in zip(outputs, each, strict=True)) for each in answers), size


@pytest.mark.parametrize("seed", range(CASES or 4))
def test_slices(seed: int) -> None:
    rng = random.Random(seed)
    start, end, step = rng.choice(ENDS), rng.choice(ENDS), rng.choice([1, 2, 3, -1, -2])
    names = {"starts": array(start), "ends": array(end), "axes": array(1), "steps": array(step)}
    stays_dynamic(node("Slice", names))


ALL: dict[str, onnx.ModelProto] = {
    **{
        f"{op}-{exclusive}{reverse}": node(op, {"axis": np.array(-1)}, exclusive=exclusive, reverse=reverse)
        for op in ("CumSum", "CumProd")
        for exclusive in (0, 1)
        for reverse in (0, 1)
    },
    "CenterCropPad": node("CenterCropPad", {"shape": array(4)}, axes=[1]),
    "Pad": node("Pad", {"pads": array(0, 2, 1, 0)}),
    "Pad-edge": node("Pad", {"pads": array(0, 2, 0, 3)}, mode="edge"),
    "Tile": node("Tile", {"repeats": array(2, 3)}),
    "Concat": node("Concat", {"c": np.ones((2, 2), np.float32)}, axis=1),
    "Flatten": node("Flatten", lead=1),
    "ReduceMean": node("ReduceMean", {"axes": array(1)}),
    "ReduceMax": node("ReduceMax", {"axes": array(-1)}, keepdims=0),
    "ArgMax": node("ArgMax", axis=1),
    "Softmax": node("Softmax", axis=1),
    "LogSoftmax": node("LogSoftmax", axis=-1),
    "Hardmax": node("Hardmax", axis=1),
    "Transpose": node("Transpose", perm=[1, 0]),
    "Unsqueeze": node("Unsqueeze", {"axes": array(0, 2)}),
    "Trilu": node("Trilu", upper=0),
    "LpNormalization": node("LpNormalization", axis=1),
    "Gather": node("Gather", {"indices": array(0, -1)}, axis=1),
    "Resize-down": node("Resize", {"s": np.float32([1, 0.5])}, order=["x", "", "s"], mode="nearest"),
    "Resize-to": node("Resize", {"s": array(2, 5)}, order=["x", "", "", "s"], mode="linear"),
    "AveragePool": node("AveragePool", lead=1, kernel_shape=[2], pads=[1, 0]),
    "MaxPool": node("MaxPool", lead=1, kernel_shape=[2], pads=[0, 1]),
    "MaxPool-ceil": node("MaxPool", lead=1, kernel_shape=[2], strides=[2], pads=[1, 0]),
    "GlobalAveragePool": node("GlobalAveragePool", lead=1),
    "LpPool": node("LpPool", lead=1, kernel_shape=[2], pads=[1, 0]),
    "ConvTranspose": node("ConvTranspose", {"w": np.ones((2, 1, 3), np.float32)}, lead=1, strides=[2]),
    "InstanceNormalization": node("InstanceNormalization", {"s": np.ones(2, np.float32), "b": np.zeros(2, np.float32)}, lead=1),
    "Split": node("Split", {"split": array(1, 1)}, axis=0, outputs=2),
    "Split-dynamic": node("Split", axis=1, outputs=2),
    "Expand": node("Expand", {"shape": array(3, 1, 1)}),
    "Shape": node("Shape"),
    "Size": node("Size"),
}


@pytest.mark.parametrize(
    "name", ALL if CASES else random.Random(0).sample(sorted(ALL), 7) + ["CumSum-11", "CenterCropPad", "Split-dynamic"]
)
def test_nodes(name: str) -> None:
    sizes = tuple(size for size in SIZES if size > 1) if name in ("Resize-down", "InstanceNormalization") else SIZES
    stays_dynamic(ALL[name], sizes)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_means_of_integers(dtype: str) -> None:
    x = np.zeros((2, TRACED), dtype)
    model = one_node("ReduceMean", {"x": x}, {"axes": array(1)}, dims={"x": [2, "n"]})
    run = Compiled(import_onnx(model))
    for size in SIZES:
        x = np.random.default_rng(size).integers(-50, 50, (2, size)).astype(dtype)
        (got,) = run([x])
        assert any(agree(got, want) for (want,) in expected(model, {"x": x})), size


# What takes some sizes only: those are conditions of a call.
CONDITIONAL: dict[str, tuple[onnx.ModelProto, int]] = {
    "Reshape": (node("Reshape", {"shape": array(-1, 3, 2)}), 3),
    "Reshape-pairs": (node("Reshape", {"shape": array(2, -1, 4)}), 4),
    "SpaceToDepth": (node("SpaceToDepth", lead=2, blocksize=2), 2),
}


def conditions(model: onnx.ModelProto) -> Callable[[int], bool]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the graph doesn't allow")
        module = import_onnx(model).module.operation
    guards = guards_of(module, SymbolTable.of(module))
    return lambda size: all(guard.holds({"n": size}) for guard in guards)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_size_that_must_divide_stays_dynamic(name: str) -> None:
    model, divisor = CONDITIONAL[name]
    stays_dynamic(model, tuple(divisor * times for times in (1, 2, 3, 7)))
    accepts = conditions(model)
    assert [size for size in range(1, 25) if accepts(size)] == list(range(divisor, 25, divisor))


def test_a_dimension_that_is_squeezed_is_one_at_every_call() -> None:
    """The sizes that leave one window are taken, the others refused."""
    nodes = [
        onnx.helper.make_node("MaxPool", ["x"], ["largest"], kernel_shape=[3], strides=[3]),
        onnx.helper.make_node("Squeeze", ["largest", "axes"], ["y"]),
    ]
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 1, "n"])]
    constants = [onnx.numpy_helper.from_array(np.array([2]), "axes")]
    graph = onnx.helper.make_graph(nodes, "squeezed", inputs, [onnx.helper.make_empty_tensor_value_info("y")], constants)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        imported = import_onnx(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]))
    table = SymbolTable.of(imported.module)
    guards, program = guards_of(imported.module.operation, table), Compiled(imported)
    for size in (3, 4, 5):
        x = np.random.default_rng(size).standard_normal((2, 1, size), np.float32)
        assert np.array_equal(program([x])[0], x[..., :3].max(-1))
    assert guards, "sizes of two windows and more must be refused"


def test_the_node_that_fixes_a_dimension_is_said() -> None:
    model = node("Reshape", {"shape": array(2, 3)})
    with pytest.warns(UserWarning, match=r"'n' at 3 \(because of node Reshape 'y0'\)"):
        assert export_onnx(model).inputs[0].shape == (2, 3)
    assert any("because of node Reshape 'y0'" in row for row in format_rows(check_onnx(model)).splitlines())


def test_a_smallest_size_is_a_range_and_said() -> None:
    """The three largest of a dimension: it has three elements at least."""
    with pytest.warns(UserWarning, match=r"'n' of 3 or more \(because of node TopK"):
        exported = export_onnx(node("TopK", {"k": array(3)}, outputs=2))
    assert exported.inputs[0].shape == (2, "n")
    assert [(int(each.lower)) for each in exported.program.range_constraints.values()] == [3]
    (note,) = exported.notes
    assert f"note         {note}" in format_rows(check_onnx(node("TopK", {"k": array(3)}, outputs=2))).splitlines()


def test_a_smallest_size_of_several_inputs_is_a_range_and_said() -> None:
    """The dimension of two inputs, of which one has three elements at least."""
    nodes = [onnx.helper.make_node("TopK", ["x", "k"], ["largest", "places"]), onnx.helper.make_node("Add", ["x", "y"], ["sum"])]
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, "n"]) for name in "xy"]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in ("largest", "sum")]
    graph = onnx.helper.make_graph(nodes, "both", inputs, outputs, [onnx.numpy_helper.from_array(np.array([3]), "k")])
    with pytest.warns(UserWarning, match=r"'n' of 3 or more \(because of node TopK"):
        program = Compiled(import_onnx(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])))
    for size in (3, 4, 9):
        x, y = (np.random.default_rng(seed).standard_normal((2, size), np.float32) for seed in (1, 2))
        largest, total = program([x, y])
        assert np.array_equal(largest, -np.sort(-x)[:, :3])
        assert np.array_equal(total, x + y)
