"""ONNX's ConvTranspose of any pads, output shape and auto_pad: wherever onnxruntime computes one, the same shape and numbers.

`LLMOS_PROPERTY_CASES=1000` tries that many more nodes than CI does.
"""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from llmos.compiler.frontend.onnx import export_onnx, import_onnx
from tests.conformance.inprocess import Compiled
from tests.properties.onnx_nodes import agree, by_onnxruntime, one_node

CASES = int(os.environ.get("LLMOS_PROPERTY_CASES", "0"))


def node(rng: random.Random) -> tuple[onnx.ModelProto, np.ndarray]:
    rank, groups = rng.randint(1, 2), rng.randint(1, 2)
    sizes, kernel, strides, dilations = ([rng.randint(1, top) for _ in range(rank)] for top in (5, 3, 4, 2))
    numbers = np.random.default_rng(rng.randrange(2**30))
    x = numbers.standard_normal((1, 2 * groups, *sizes)).astype(np.float32)
    weights = {"w": numbers.standard_normal((2 * groups, 2, *kernel)).astype(np.float32)}
    if rng.random() < 0.7:
        weights["b"] = numbers.standard_normal(2 * groups).astype(np.float32)
    how: dict[str, Any] = {"group": groups, "strides": strides, "dilations": dilations, "kernel_shape": kernel}
    how["auto_pad"] = rng.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
    natural = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(sizes, strides, dilations, kernel, strict=True)]
    if rng.random() < 0.5:
        how["output_shape"] = [max(n + rng.randint(-3, 3), 1) for n in natural]
    elif how["auto_pad"] == "NOTSET":
        how["pads"] = [rng.randint(0, 1) for _ in range(2 * rank)]
    if rng.random() < 0.4:
        how["output_padding"] = [rng.randrange(max(s, d)) for s, d in zip(strides, dilations, strict=True)]
    return one_node("ConvTranspose", {"x": x}, weights, **how), x


@pytest.mark.parametrize("seed", range(CASES or 24))
def test_as_onnxruntime(seed: int) -> None:
    model, x = node(random.Random(seed))
    want = by_onnxruntime(model, {"x": x})
    if want is None:
        return  # an output shape that it refuses
    with torch.no_grad():
        got = export_onnx(model).program.module()(torch.from_numpy(x))[0].numpy()
    assert agree(got, want[0]), onnx.helper.printable_node(model.graph.node[0])


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER"])
def test_what_lies_beyond_the_windows_is_the_bias(auto_pad: str) -> None:
    x, weights = np.ones((1, 1, 3), np.float32), {"w": np.ones((1, 1, 2), np.float32), "b": np.float32([7])}
    model = one_node("ConvTranspose", {"x": x}, weights, strides=[2], output_shape=[7], auto_pad=auto_pad)
    (got,) = Compiled(import_onnx(model))([x])
    assert got.reshape(-1).tolist() == [8, 8, 8, 8, 8, 8, 7]
