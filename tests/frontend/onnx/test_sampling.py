"""Ops that read at places that data gives, and counts of n-grams: against ONNX's own evaluator, at sizes other than the traced ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from llmos.compiler.frontend.onnx import export_onnx
from llmos.runtime.errors import UnsupportedError

KINDS = {"i": TensorProto.INT64, "f": TensorProto.FLOAT}


def one_node(op: str, arrays: list[np.ndarray], shapes: list[list[Any]], opset: int = 22, **attributes: Any) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(len(arrays))]
    infos = [
        helper.make_tensor_value_info(name, KINDS[array.dtype.kind], shape)
        for name, array, shape in zip(names, arrays, shapes, strict=True)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node(op, names, ["y"], **attributes)], "one", infos, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def agrees(model: onnx.ModelProto, arrays: list[np.ndarray]) -> None:
    """The exported program gives what ONNX's evaluator gives."""
    with torch.no_grad():
        (got,) = export_onnx(model).program.module()(*[torch.from_numpy(array) for array in arrays])
    (want,) = ReferenceEvaluator(model).run(None, {f"x{i}": array for i, array in enumerate(arrays)})
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("shift", ["half_pixel", "output_half_pixel"])
def test_boxes_partly_outside(mode: str, shift: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 9, 7), dtype=np.float32)
    boxes = np.array([[0, 0, 4, 4], [-6, -5, 5, 20], [3, 2, 3.2, 2.1], [5, 6, 30, 30], [1, 1, 12, 16]], np.float32)
    arrays = [x, boxes, np.array([0, 1, 1, 0, 1])]
    attributes = {"output_height": 3, "output_width": 2, "sampling_ratio": 2, "spatial_scale": 0.5, "mode": mode}
    shapes = [["n", 3, "h", "w"], ["boxes", 4], ["boxes"]]
    agrees(one_node("RoiAlign", arrays, shapes, coordinate_transformation_mode=shift, **attributes), arrays)


def test_boxes_with_samples_that_data_counts_are_refused() -> None:
    arrays = [np.zeros((1, 1, 4, 4), np.float32), np.zeros((1, 4), np.float32), np.zeros(1, np.int64)]
    with pytest.raises(UnsupportedError, match="give it a sampling_ratio"):
        export_onnx(one_node("RoiAlign", arrays, [[1, 1, 4, 4], [1, 4], [1]]))


def test_deformed_convolution_of_any_batch() -> None:
    rng = np.random.default_rng(1)
    shapes = [(3, 4, 6, 5), (6, 2, 3, 2), (3, 2 * 6 * 2, 3, 5), (6,), (3, 2 * 6, 3, 5)]
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    dims: list[list[Any]] = [list(shape) for shape in shapes]
    for place in (0, 2, 4):
        dims[place][0] = "n"
    agrees(one_node("DeformConv", arrays, dims, group=2, offset_group=2, strides=[2, 1], dilations=[1, 2], pads=[1, 1, 0, 1]), arrays)


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
def test_counts_of_n_grams(mode: str) -> None:
    """Single numbers aren't counted, though they are in the pool; index 5 has no n-gram."""
    x = np.array([[1, 1, 3, 3, 3, 7], [8, 6, 7, 5, 6, 8]])
    pool = [2, 3, 5, 4, 5, 6, 7, 8, 6, 7]
    attributes = {"ngram_counts": [0, 4], "ngram_indexes": [0, 1, 2, 3, 4, 6, 7], "pool_int64s": pool, "mode": mode}
    weights = [0.5, 1.5, 2.0, 0.25, 3.0, 9.0, 4.0, 0.75]
    model = one_node(
        "TfIdfVectorizer", [x], [["n", 6]], min_gram_length=2, max_gram_length=2, max_skip_count=3, weights=weights, **attributes
    )
    agrees(model, [x])
