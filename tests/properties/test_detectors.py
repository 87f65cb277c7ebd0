"""What detectors end in: suppression of boxes, selections, and sizes that ONNX graphs take from data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import llmos
from llmos.runtime.errors import InputError
from llmos.runtime.program import Program
from tests.properties.data_sizes import assert_same, compiled


def boxes_of(rng: np.random.Generator, num: int, kinds: int) -> tuple[np.ndarray, np.ndarray]:
    corners = np.sort(rng.random((1, num, 2, 2), np.float32), axis=2).reshape(1, num, 4)
    return corners, rng.random((1, kinds, num), np.float32)


def detector() -> onnx.ModelProto:
    """Decoded boxes and scores, suppression, and the boxes, classes and scores of what is left."""
    constants = {
        "most": np.int64([5]),
        "overlap": np.float32([0.4]),
        "least": np.float32([0.3]),
        "column": np.int64([2]),
        "last": np.int64(2),
    }
    constants |= {"half": np.float32(0.5), "pairs": np.int64([0, 2])}
    nodes = [
        helper.make_node("Sigmoid", ["raw"], ["scores"]),
        helper.make_node("Mul", ["boxes", "half"], ["scaled"]),
        helper.make_node("NonMaxSuppression", ["scaled", "scores", "most", "overlap", "least"], ["chosen"]),
        helper.make_node("Gather", ["chosen", "last"], ["place"], axis=1),
        helper.make_node("Gather", ["scaled", "place"], ["kept"], axis=1),
        helper.make_node("GatherND", ["scores", "chosen"], ["sure"]),
        helper.make_node("Shape", ["chosen"], ["size"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, "num", 4]),
            helper.make_tensor_value_info("raw", TensorProto.FLOAT, [1, 3, "num"]),
        ],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in (("chosen", 7), ("kept", 1), ("sure", 1), ("size", 7))],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_detector_of_onnx(tmp_path: Path) -> None:
    model = detector()
    onnx.save(model, tmp_path / "m.onnx")
    llmos.compile(tmp_path / "m.onnx").save(tmp_path / "m.llmos")
    program, session = llmos.load(tmp_path / "m.llmos", poison_arena=True), onnxruntime.InferenceSession(model.SerializeToString())
    rng = np.random.default_rng(0)
    for num, lift in ((1, 0), (2, 0), (7, 0), (60, 0), (60, -9)):
        boxes, raw = boxes_of(rng, num, 3)
        want = session.run(None, {"boxes": boxes, "raw": raw * 4 - 2 + lift})
        assert_same(program(boxes, raw * 4 - 2 + np.float32(lift)), want, f"{num} boxes, scores {lift} higher")


def test_a_detector_of_torch(tmp_path: Path) -> None:
    """YOLO's head with suppression as matrices: a box goes where a better one of its class overlaps it."""

    class Head(nn.Module):
        def forward(self, predicted: Tensor) -> tuple[Tensor, ...]:
            scores, kinds = predicted[:, 4:].max(1)
            sure = scores > 0.5
            boxes, scores, kinds = predicted[sure, :4], scores[sure], kinds[sure]
            order = torch.argsort(scores, descending=True, stable=True)
            boxes, scores, kinds = boxes[order], scores[order], kinds[order]
            low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
            shared = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp(min=0).prod(-1)
            area = boxes[:, 2:].prod(-1)
            overlap = shared / (area[:, None] + area - shared)
            worse = torch.arange(boxes.shape[0])[:, None] < torch.arange(boxes.shape[0])
            hidden = ((overlap > 0.3) & worse & (kinds[:, None] == kinds)).any(0)
            return boxes[~hidden], scores[~hidden], kinds[~hidden]

    generator = torch.Generator().manual_seed(0)
    module = Head()
    dims = ({0: torch.export.Dim("anchors", min=1, max=500)},)
    program = compiled(module, (torch.rand(20, 7, generator=generator),), dims, tmp_path / "m.llmos")
    for anchors, lift in ((1, 0.0), (3, 0.0), (40, 0.0), (40, -1.0), (120, 0.4)):
        predicted = torch.rand(anchors, 7, generator=generator) + lift
        assert_same(program(predicted.numpy()), module(predicted), f"{anchors} anchors, {lift} higher")


def test_onnx_sizes_from_data(tmp_path: Path) -> None:
    """Slice, TopK, Range, Expand and Tile by numbers that are inputs, or counts of what a threshold leaves."""
    constants = {"axis": np.int64([0]), "zero": np.int64(0), "one": np.int64(1), "ones": np.int64([1]), "most": np.int64([4])}
    nodes = [
        helper.make_node("Slice", ["x", "start", "end", "axis"], ["sliced"]),
        helper.make_node("TopK", ["x", "end"], ["best", "where"]),
        helper.make_node("Squeeze", ["end", "axis"], ["number"]),
        helper.make_node("Range", ["zero", "number", "one"], ["range"]),
        helper.make_node("ReduceSum", ["range"], ["range_sum"], keepdims=0),
        helper.make_node("Concat", ["end", "ones"], ["pair"], axis=0),
        helper.make_node("Expand", ["x", "pair"], ["wide"]),
        helper.make_node("Tile", ["x", "end"], ["long"]),
        *[helper.make_node("ReduceSum", [name], [f"{name}_sum"], keepdims=0) for name in ("wide", "long")],
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Squeeze", ["places", "axis"], ["found"]),
        helper.make_node("Gather", ["x", "found"], ["values"]),
        helper.make_node("Shape", ["values"], ["count"]),
        helper.make_node("Min", ["count", "most"], ["few"]),
        helper.make_node("TopK", ["values", "few"], ["most_of_few", "their_places"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
        *[helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in ("start", "end")],
    ]
    floats, integers = ("sliced", "best", "wide_sum", "long_sum", "most_of_few"), ("where", "range_sum", "count", "their_places")
    outputs = [helper.make_tensor_value_info(name, kind, None) for names, kind in ((floats, 1), (integers, 7)) for name in names]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    llmos.compile(tmp_path / "m.onnx").save(tmp_path / "m.llmos")
    program, session = llmos.load(tmp_path / "m.llmos", poison_arena=True), onnxruntime.InferenceSession(model.SerializeToString())
    x = np.float32([2, 0, 5, 0, 1, 7, 3, 4])
    for given, start, end in ((x, 1, 3), (x, -3, 8), (x * 0, 5, 2), (x[:2], 0, 1)):
        feed = {"x": given, "start": np.int64([start]), "end": np.int64([end])}
        assert_same(program(**feed), session.run(None, feed), f"{start}:{end} of {len(given)}")
    with pytest.raises(InputError, match="out of range"):
        program(x=x, start=np.int64([0]), end=np.int64([9]))  # TopK of 9 of 8


@pytest.mark.parametrize("kept", [[], [1], [0, 2, 3]])
def test_onnx_selections(kept: list[int], onnx_selections: tuple[Program, Any]) -> None:
    program, session = onnx_selections
    x = np.float32([[3, 0, 1], [1, 2, 0], [3, 0, 1], [0, 0, 0]])[:, :3]
    condition = np.isin(np.arange(4), kept)
    assert_same(program(x, condition), session.run(None, {"x": x, "condition": condition}), f"{kept}")


@pytest.fixture(scope="module")
def onnx_selections(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Any]:
    """NonZero, Compress and Unique of x [rows, 3]."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Transpose", ["places"], ["pairs"]),
        helper.make_node("GatherND", ["x", "pairs"], ["found"]),
        helper.make_node("Compress", ["x", "condition"], ["rows_kept"], axis=0),
        helper.make_node("ReduceSum", ["rows_kept"], ["total"]),
        helper.make_node("Unique", ["x"], ["values", "first", "inverse", "counts"]),
        helper.make_node("Unique", ["x"], ["rows_once", "row_first", "row_inverse", "row_counts"], axis=0, sorted=0),
    ]
    floats, integers = (
        ("found", "rows_kept", "total", "values", "rows_once"),
        ("places", "first", "inverse", "counts", "row_first", "row_inverse"),
    )
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in floats]
    outputs += [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in (*integers, "row_counts")]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3]),
        helper.make_tensor_value_info("condition", TensorProto.BOOL, ["rows"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("onnx") / "m.llmos"
    onnx.save(model, path.with_suffix(".onnx"))
    llmos.compile(path.with_suffix(".onnx")).save(path)
    return llmos.load(path, poison_arena=True), onnxruntime.InferenceSession(model.SerializeToString())
