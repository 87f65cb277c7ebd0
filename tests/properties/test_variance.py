"""Norms, variances and means of windows: digits are lost neither to a mean far from zero, nor to a half type, nor to a constant input."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from llmos.compiler.integrations.onnx_backend import LlmosBackend
from tests.codegen.programs import V3, Returns, compile_torch, dim, run

F = torch.nn.functional
Tensor = torch.Tensor
Function = Callable[[Tensor], Tensor]
EPSILON = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}

# mean and spread of the elements; a spread of 0 is a constant
MOMENTS = {
    torch.float64: ((0.0, 1.0), (1e8, 1.0), (3.5, 0.0)),
    torch.float32: ((0.0, 1.0), (1e4, 1.0), (-3e6, 100.0), (0.1, 0.0), (1e15, 0.0)),
    torch.float16: ((0.0, 1.0), (300.0, 1.0), (0.0, 300.0), (0.0, 60000.0), (60000.0, 0.0)),
    torch.bfloat16: ((0.0, 1.0), (100.0, 1.0), (0.0, 1e18), (1e18, 0.0)),
}

FUNCTIONS: dict[str, Function] = {
    "var": lambda x: x.var((0, 2)),
    "var_mean": lambda x: torch.cat(torch.var_mean(x, (2, 3), correction=0), 0),
    "std": lambda x: x.std(),
    "std_mean": lambda x: torch.cat(torch.std_mean(x, 1), 0),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[3:]),
    "layer_norm_all": lambda x: F.layer_norm(x, x.shape[1:]),
    "group_norm": lambda x: F.group_norm(x, 2),
    "rms_norm": lambda x: F.rms_norm(x, x.shape[3:], eps=None if x.dtype is not torch.float64 else 2.0**-23),  # its default in float32
    "instance_norm": lambda x: F.instance_norm(x),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "average": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average_without_pads": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average_1d": lambda x: F.avg_pool1d(x.flatten(1, 2), 3, ceil_mode=True),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "global": lambda x: F.adaptive_avg_pool2d(x, 1),
}


def elements(shape: tuple[int, ...], dtype: torch.dtype, mean: float, spread: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (mean + spread * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)).to(dtype)


def exact(name: str, x: Tensor) -> Tensor:
    """In float64, and moved to 0 where a function takes the mean off anyway: float64 isn't wide enough for it either."""
    has_mean = "average" in name or name in ("adaptive", "global", "std_mean", "var_mean", "rms_norm")
    return x.double() if has_mean else x.double() - x.double().flatten()[0]


def tolerance(dtype: torch.dtype, mean: float, spread: float) -> float:
    """Of a result's scale: a few roundings, and that of a mean that is large beside the spread."""
    compute = max(EPSILON[torch.float32], EPSILON[dtype]) if dtype is not torch.float64 else EPSILON[dtype]
    arithmetic = EPSILON[torch.float32] if dtype is not torch.float64 else EPSILON[torch.float64]
    return 2 * compute + 16 * arithmetic * (1 + abs(mean) / spread if spread else 1)


def difference(name: str, found: np.ndarray, want: np.ndarray, dtype: torch.dtype, mean: float, spread: float) -> str:
    """Empty where results agree. Of a constant input they are 0 but for what the rounding of its mean makes of it: over the root of 1e-5 or
    of its own square where it is normal, its square in a variance.
    """
    found, want = found.astype(np.float64), want.astype(np.float64)
    same = found == want
    limit = tolerance(dtype, mean, spread) * np.abs(want[np.isfinite(want)]).max(initial=0.0) + 1e-30
    if spread == 0:
        rounding = tolerance(dtype, mean, spread) * abs(mean)
        limit += rounding**2 if name.startswith("var") else rounding if name.startswith("std") else min(2.0, rounding / 1e-5**0.5)
    with np.errstate(invalid="ignore"):
        wrong = ~(same | (np.abs(found - want) <= limit))
    return f"{found[wrong][:3]} instead of {want[wrong][:3]}, by more than {limit}" if wrong.any() else ""


@pytest.mark.sample(0, 2)
@pytest.mark.parametrize("dtype", list(MOMENTS)[1:], ids=lambda t: str(t).removeprefix("torch."))
def test_torch(dtype: torch.dtype) -> None:
    module = Returns(**FUNCTIONS)
    shape = (2, 6, 5, 7)
    program = compile_torch(module, [elements(shape, dtype, 0.0, 1.0)], [{0: dim("n")}], target=V3)
    for mean, spread in MOMENTS[dtype]:
        x = elements((3, *shape[1:]), dtype, mean, spread)
        for name, found in run(program, x).items():
            if dtype is torch.bfloat16:
                found = found.view(ml_dtypes.bfloat16)
            want = FUNCTIONS[name](exact(name, x)).to(dtype).double().numpy()
            message = difference(name, found, want, dtype, mean, spread)
            assert not message, f"{name} of {mean} ± {spread}: {message}"


NODES = {
    "InstanceNormalization": ({}, 2),
    "MeanVarianceNormalization": ({}, 0),
    "LayerNormalization": ({"axis": 1}, 0),
    "GroupNormalization": ({"num_groups": 3, "stash_type": 1}, 2),
    "BatchNormalization": ({"training_mode": 1}, 4),
    "AveragePool": ({"kernel_shape": [3, 3], "pads": [0, 0, 2, 1]}, 0),
    "GlobalAveragePool": ({}, 0),
    "ReduceMean": ({}, 0),
}


def reference(op: str, x: np.ndarray) -> np.ndarray:
    """The definition of an op in float64, with scale 1 and bias 0."""
    w = torch.from_numpy(x.astype(np.float64))
    w = w if op in ("AveragePool", "GlobalAveragePool", "ReduceMean") else w - w.flatten()[0]
    functions: dict[str, Function] = {
        "InstanceNormalization": lambda w: F.instance_norm(w),
        "MeanVarianceNormalization": lambda w: (w - w.mean((0, 2, 3), True)) / (w.std((0, 2, 3), correction=0, keepdim=True) + 1e-9),
        "LayerNormalization": lambda w: F.layer_norm(w, w.shape[1:]),
        "GroupNormalization": lambda w: F.group_norm(w, 3),
        "BatchNormalization": lambda w: F.batch_norm(w, None, None, training=True),
        "AveragePool": lambda w: F.avg_pool2d(F.pad(w, (0, 1, 0, 2)), 3, 1) / F.avg_pool2d(F.pad(torch.ones_like(w), (0, 1, 0, 2)), 3, 1),
        "GlobalAveragePool": lambda w: w.mean((2, 3), True),
        "ReduceMean": lambda w: w.mean().reshape(1, 1, 1, 1),
    }
    return functions[op](w).numpy()


def model(dtype: np.dtype, shape: tuple[int, ...]) -> onnx.ModelProto:
    """All the ops, of one input."""
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    ones, zeros = np.ones(shape[1], dtype), np.zeros(shape[1], dtype)
    parameters = {"s": ones, "b": zeros, "m": zeros, "v": ones, "whole": np.ones(shape[1:], dtype)}
    held = [numpy_helper.from_array(array, name) for name, array in parameters.items()]
    nodes = []
    for op, (attributes, count) in NODES.items():
        inputs = ["x", "whole"] if op == "LayerNormalization" else ["x", *"sbmv"[:count]]
        outputs = [op, "mean", "variance"] if op == "BatchNormalization" else [op]
        nodes.append(helper.make_node(op, inputs, outputs, **attributes))
    x = helper.make_tensor_value_info("x", kind, shape)
    results = [helper.make_tensor_value_info(op, kind, None) for op in NODES]
    return helper.make_model(helper.make_graph(nodes, "norms", [x], results, held), opset_imports=[helper.make_opsetid("", 21)])


@pytest.mark.sample(0, 2)
@pytest.mark.parametrize("dtype", MOMENTS, ids=lambda t: str(t).removeprefix("torch."))
def test_onnx(dtype: torch.dtype) -> None:
    shape = (2, 6, 5, 7)
    kind = np.dtype(ml_dtypes.bfloat16) if dtype is torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype
    prepared = LlmosBackend.prepare(model(kind, shape))
    for mean, spread in MOMENTS[dtype]:
        x = elements(shape, dtype, mean, spread)
        array = x.view(torch.uint16).numpy().view(kind) if dtype is torch.bfloat16 else x.numpy()
        for op, found in zip(NODES, prepared.run([array]), strict=True):
            want = reference(op, array).astype(kind)
            arithmetic = torch.float32 if op == "GroupNormalization" and dtype is torch.float64 else dtype  # its stash_type
            message = difference(op, found, want, arithmetic, mean, spread)
            assert not message, f"{op} of {mean} ± {spread}: {message}"
