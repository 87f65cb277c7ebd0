"""Every axis argument of every op, counted from the end: the same as counted from the front, and as torch has it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model

SHAPE = (3, 4, 5)
RANK = len(SHAPE)
OPTIONS = CompileOptions(target="native", cache=False, repro=None, accuracy_report=False)
Tensor = torch.Tensor

TORCH: dict[str, Callable[[Tensor, Tensor, int], Any]] = {
    "sum": lambda x, i, d: x.sum(d),
    "mean_keep": lambda x, i, d: x.mean(d, keepdim=True),
    "prod": lambda x, i, d: x.prod(d),
    "amax": lambda x, i, d: x.amax(d),
    "two": lambda x, i, d: x.sum((d, (d + 1) % RANK)),
    "std": lambda x, i, d: x.std(d),
    "logsumexp": lambda x, i, d: x.logsumexp(d),
    "norm": lambda x, i, d: x.norm(dim=d),
    "argmax": lambda x, i, d: x.argmax(d),
    "max_dim": lambda x, i, d: x.max(d)[1],
    "any": lambda x, i, d: (x > 1).any(d),
    "softmax": lambda x, i, d: x.softmax(d),
    "log_softmax": lambda x, i, d: x.log_softmax(d),
    "cumsum": lambda x, i, d: x.cumsum(d),
    "cumprod": lambda x, i, d: x.cumprod(d),
    "cummax": lambda x, i, d: x.cummax(d)[0],
    "logcumsumexp": lambda x, i, d: x.logcumsumexp(d),
    "sort": lambda x, i, d: x.sort(d)[0],
    "argsort": lambda x, i, d: x.argsort(dim=d, stable=True),
    "topk": lambda x, i, d: x.topk(2, d)[0],
    "kthvalue": lambda x, i, d: x.kthvalue(2, d)[0],
    "median": lambda x, i, d: x.median(d)[0],
    "mode": lambda x, i, d: x.round().mode(d)[0],
    "flip": lambda x, i, d: x.flip(d),
    "roll": lambda x, i, d: x.roll(1, d),
    "unsqueeze": lambda x, i, d: x.unsqueeze(d),
    "squeeze": lambda x, i, d: x.sum(d, keepdim=True).squeeze(d),
    "select": lambda x, i, d: x.select(d, -1),
    "narrow": lambda x, i, d: x.narrow(d, 1, 2),
    "slice": lambda x, i, d: torch.ops.aten.slice(x, d, -2, None),
    "split": lambda x, i, d: x.split(2, d)[1],
    "chunk": lambda x, i, d: x.chunk(2, d)[0],
    "unbind": lambda x, i, d: x.unbind(d)[1],
    "cat": lambda x, i, d: torch.cat([x, x * 2], d),
    "stack": lambda x, i, d: torch.stack([x, x * 2], d),
    "repeat_interleave": lambda x, i, d: x.repeat_interleave(2, d),
    "transpose": lambda x, i, d: x.transpose(d, 0),
    "movedim": lambda x, i, d: x.movedim(d, -1),
    "unflatten": lambda x, i, d: x.narrow(d, 0, 2).unflatten(d, (1, 2)),
    "flatten": lambda x, i, d: x.flatten(0, d),
    "diff": lambda x, i, d: x.diff(dim=d),
    "glu": lambda x, i, d: F.glu(x.narrow(d, 0, 2), d),
    "normalize": lambda x, i, d: F.normalize(x, dim=d),
    "cosine": lambda x, i, d: F.cosine_similarity(x, x + 1, d),
    "index_select": lambda x, i, d: x.index_select(d, i[0, 0] % 3),
    "gather": lambda x, i, d: x.gather(d, i % 3),
    "take_along": lambda x, i, d: x.take_along_dim(i % 3, d),
    "scatter": lambda x, i, d: x.scatter(d, i % 3, 1.0),
    "scatter_add": lambda x, i, d: x.scatter_add(d, i % 3, x),
    **{
        f"scatter_{name}": lambda x, i, d, name=name: x.scatter_reduce(d, i % 3, x, name)
        for name in ("sum", "prod", "mean", "amax", "amin")
    },
    "index_add": lambda x, i, d: x.index_add(d, i[0, 0, :3] % 3, x.narrow(d, 0, 3)),
    "index_copy": lambda x, i, d: x.index_copy(d, torch.tensor([2, 0]), x.narrow(d, 0, 2)),
    "index_fill": lambda x, i, d: x.index_fill(d, i[0, 0] % 3, 2.0),
    "index_reduce": lambda x, i, d: x.index_reduce(d, i[0, 0, :3] % 3, x.narrow(d, 0, 3), "prod"),
    "select_scatter": lambda x, i, d: x.select_scatter(x.select(d, 0), d, 1),
    "slice_scatter": lambda x, i, d: x.slice_scatter(x.narrow(d, 0, 1), d, 1, 2),
    "diagonal": lambda x, i, d: x.diagonal(0, d, (d + 1) % RANK),
    "renorm": lambda x, i, d: x.renorm(2, d, 1.0),
    "cross": lambda x, i, d: torch.linalg.cross(x.narrow(d, 0, 3), x.narrow(d, 0, 3).flip(d), dim=d),
    "tensor_split": lambda x, i, d: x.tensor_split(2, d)[1],
    "trapezoid": lambda x, i, d: torch.trapezoid(x, dim=d),
    "nansum": lambda x, i, d: x.nansum(d),
    "count_nonzero": lambda x, i, d: x.count_nonzero(d),
    "unfold": lambda x, i, d: x.unfold(d, 2, 1),
}  # fmt: skip


class _Axis(torch.nn.Module):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self._axis = axis

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Any]:
        return {name: function(x, i, self._axis).clone() for name, function in TORCH.items()}


@pytest.mark.slow
@pytest.mark.parametrize("axis", [-1, -2, -3])
def test_torch(axis: int, tmp_path: Path) -> None:
    module = _Axis(axis)
    rng = np.random.default_rng(5)
    x, i = rng.standard_normal(SHAPE, np.float32), rng.integers(0, 60, SHAPE)
    compile_model(module, (torch.from_numpy(x), torch.from_numpy(i)), options=OPTIONS).save(tmp_path / "axes.llmos")
    program = llmos.load(tmp_path / "axes.llmos")
    found = dict(zip([spec.name for spec in program["main"].outputs], program(x, i), strict=True))
    expected, front = (_Axis(each)(torch.from_numpy(x), torch.from_numpy(i)) for each in (axis, axis + RANK))
    for name, want in expected.items():
        np.testing.assert_allclose(found[name], want.numpy(), rtol=1e-5, atol=1e-5, err_msg=f"{name} over {axis}")
        if name not in ("unsqueeze", "stack"):  # which count a dim more
            assert torch.equal(want, front[name]), name


def _axis_nodes() -> list[tuple[str, list[str], dict[str, Any], str]]:
    """Op, inputs, attributes, and the name of the axis argument: an attribute, or an input of int64."""
    plain = ("ArgMax", "ArgMin", "Softmax", "LogSoftmax", "Hardmax", "LpNormalization")
    reduced = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceProd", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare")
    return [
        *[(op, ["x"], {}, "axis") for op in plain],
        *[(op, ["x"], {"keepdims": 0}, "axes") for op in reduced],
        ("CumSum", ["x"], {"exclusive": 1}, "scalar"),
        ("Concat", ["x", "x"], {}, "axis"),
        ("Gather", ["x", "at"], {}, "axis"),
        ("GatherElements", ["x", "all"], {}, "axis"),
        *[("ScatterElements", ["x", "all", "x"], {"reduction": name}, "axis") for name in ("none", "add", "mul", "max", "min")],
        ("Flatten", ["x"], {}, "axis"),
        ("Split", ["x", "parts"], {}, "axis"),
        ("Unsqueeze", ["sum"], {}, "axes"),
        ("LayerNormalization", ["x", "one"], {}, "axis"),
        ("TopK", ["x", "two"], {}, "axis"),
        ("Compress", ["x", "kept"], {}, "axis"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("axis", range(RANK))
def test_onnx(axis: int, tmp_path: Path) -> None:
    """Both ways to say an axis give the same bits."""
    nodes = [helper.make_node("ReduceSum", ["x", "last"], ["sum"], keepdims=0)]
    constants = {
        "at": np.array([2, 0]), "parts": np.array([1, SHAPE[axis] - 1]), "one": np.ones((), np.float32), "two": np.array([2]),
        "kept": np.array([True, False, True]), "last": np.array([-1]),
    }  # fmt: skip
    names = []
    for number, (op, inputs, attributes, kind) in enumerate(_axis_nodes()):
        for sign in (axis, axis - RANK):
            name, counted = f"{op}{number}_{'back' if sign < 0 else 'front'}", sign
            given, more = list(inputs), dict(attributes)
            if kind == "axis":
                more["axis"] = counted
            else:
                given.append(f"{name}_axis")
                constants[f"{name}_axis"] = np.array(counted) if kind == "scalar" else np.array([counted])
            outputs = [name, f"{name}_rest"] if op in ("Split", "TopK") else [name]
            nodes.append(helper.make_node(op, given, outputs, **more))
            names.append(name)
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *SHAPE[1:]]),
        helper.make_tensor_value_info("all", TensorProto.INT64, ["batch", *SHAPE[1:]]),
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in names]
    initial = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "axes", values, results, initial)
    path = tmp_path / "axes.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString())
    compile_model(path, options=OPTIONS).save(tmp_path / "axes.llmos")
    program = llmos.load(tmp_path / "axes.llmos")
    rng = np.random.default_rng(random.Random(axis).randrange(1000))
    found = program(rng.standard_normal(SHAPE, np.float32), rng.integers(0, 3, SHAPE))
    by_name = dict(zip([spec.name for spec in program["main"].outputs], found, strict=True))
    for name in names:
        if name.endswith("_front"):
            np.testing.assert_array_equal(by_name[name], by_name[name.replace("_front", "_back")], err_msg=name)
