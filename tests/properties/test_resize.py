"""Resizing, static and at sizes that weren't traced: ONNX's Resize against onnxruntime and ONNX's evaluator, torch's ops against eager.

`LLMOS_PROPERTY_CASES=1000` tries that many more programs than CI does.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from llmos.compiler.frontend.onnx import export_onnx, import_onnx
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.sizes import Symbol, SymbolTable
from tests.codegen.programs import Returns, assert_like_eager, compile_torch, dim
from tests.conformance.inprocess import Compiled
from tests.frontend.harness import module_of
from tests.properties.onnx_nodes import agree, expected, one_node

CASES = int(os.environ.get("LLMOS_PROPERTY_CASES", "0"))
COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")
NEAREST = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
aten = torch.ops.aten


def image(rng: random.Random, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    generator = np.random.default_rng(rng.randrange(2**30))
    if dtype.startswith("float"):
        return generator.standard_normal(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return generator.integers(max(limits.min, -1000), min(limits.max, 1000), shape, endpoint=True).astype(dtype)


def attributes(rng: random.Random) -> dict[str, Any]:
    mode = rng.choice(["nearest", "linear", "cubic"])
    found: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": rng.choice(COORDINATES), "nearest_mode": rng.choice(NEAREST)}
    if mode != "nearest" and rng.random() < 0.3:
        found["antialias"] = 1
    if mode == "cubic" and rng.random() < 0.3:
        found |= {"exclude_outside": 1, "cubic_coeff_a": -0.5}
    return found


def resize(x: np.ndarray, by: dict[str, np.ndarray], dims: dict[str, Any] | None = None, **how: Any) -> onnx.ModelProto:
    order = ["x", "", "scales"] if "scales" in by else ["x", "", "", "sizes"]
    return one_node("Resize", {"x": x}, by, order=order, dims=dims, **how)


@pytest.mark.parametrize("seed", range(CASES or 14))
def test_onnx_resize(seed: int) -> None:
    rng = random.Random(seed)
    shape, how = (1, 2, rng.randint(1, 9), rng.randint(1, 9)), attributes(rng)
    integers = how["mode"] == "cubic" and how["coordinate_transformation_mode"] != "align_corners" and "antialias" not in how
    x = image(rng, shape, rng.choice(["float32", "float64", *(["uint8", "int8", "int32"] if integers else [])]))
    scales = [1, 1, *(rng.randint(3, 30) / 10 + 0.03 for _ in range(2))]  # whose products aren't whole: there the two references differ
    by = {"sizes": np.array([1, 2, rng.randint(2, 14), rng.randint(2, 14)])} if rng.random() < 0.5 else {"scales": np.float32(scales)}
    model = resize(x, by, **how)
    with torch.no_grad():
        got = export_onnx(model).program.module()(torch.from_numpy(x))[0].numpy()
    answers = [outputs[0] for outputs in expected(model, {"x": x})]
    assert any(agree(got, want) for want in answers), (how, by, x.dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_a_cubic_that_overshoots_is_saturated(dtype: str) -> None:
    limits = np.iinfo(dtype)
    x = np.tile(np.array([limits.min, limits.max], dtype), 4).reshape(1, 1, 1, 8)
    model = resize(x, {"scales": np.float32([1, 1, 1, 2.5])}, mode="cubic")
    (got,) = Compiled(import_onnx(model))([x])
    assert {limits.min, limits.max} <= set(got.reshape(-1).tolist())
    np.testing.assert_array_equal(got, expected(model, {"x": x})[0][0])


@pytest.mark.parametrize("seed", range(CASES or 2))
def test_onnx_resize_of_dynamic_dimensions(seed: int) -> None:
    rng = random.Random(seed)
    how = attributes(rng)
    scales = np.float32([1, 1, rng.choice([0.5, 1.5, 2, 2.3, 1.3]), rng.choice([0.75, 2.5, 3, 0.4, 0.7, 1 / 3])])
    by = {"scales": scales} if seed % 2 else {"sizes": np.array([1, 2, rng.randint(1, 14), rng.randint(1, 14)])}
    model = resize(image(rng, (1, 2, 5, 7)), by, {"x": [1, 2, "h", "w"]}, **how)
    run = Compiled(import_onnx(model, dynamic={"h": (5, 512), "w": (5, 512)}))
    for size in ((6, 5), (5, 7), (9, 6), (24, 17)):
        x = image(rng, (1, 2, *size))
        (got,) = run([x])
        assert any(agree(got, outputs[0]) for outputs in expected(model, {"x": x})), (how, by, size)


@pytest.mark.parametrize("seed", range(CASES or 8))
def test_onnx_sizes_are_the_same_static_and_dynamic(seed: int) -> None:
    """The product in float32, rounded down: 13 for 10 times 1.3, and 1298 for 999."""
    rng = random.Random(seed)
    scale = np.float32([1.3, 2.3, 1 / 3, 0.7, 1.7, 2][seed] if seed < 6 else rng.uniform(0.1, 5))
    x = np.zeros((1, 10), np.float32)
    model = resize(x, {"scales": np.float32([1, scale])}, {"x": [1, "w"]}, mode="nearest")
    largest = rng.choice([1000, 2**20, 2**31 - 1])
    run = Compiled(import_onnx(model, dynamic={"w": (2, largest)}))
    size = SymbolTable((Symbol("w", 2, largest),)).parse(run.entry.outputs[0].shape[1])
    for n in (*range(2, 140), *(rng.randint(2, 1000) for _ in range(40)), *(rng.randint(2, 2**17) for _ in range(40))):
        assert int(size.subs(dict.fromkeys(size.free_symbols, n))) == math.floor(np.float32(n) * scale), (scale, n, size)
    assert all(run([np.zeros((1, n), np.float32)])[0].shape[1] == math.floor(np.float32(n) * scale) for n in (2, 9, 10, 11, 110, 999))
    static = export_onnx(resize(x, {"scales": np.float32([1, scale])}, mode="nearest")).program.module()(torch.from_numpy(x))[0]
    assert static.shape[1] == math.floor(np.float32(10) * scale) == expected(model, {"x": x})[0][0].shape[1]


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nearest": lambda x: aten.upsample_nearest2d(x, [11, 11]),
    "nearest-scales": lambda x: aten.upsample_nearest2d(x, [11, x.shape[3] * 2], 2.3, 1.7),
    "nearest-exact": lambda x: aten._upsample_nearest_exact2d(x, [11, 11], 2.3, None),
    "nearest-1d": lambda x: aten.upsample_nearest1d(x[0], [13]),
    "nearest-3d": lambda x: aten.upsample_nearest3d(x[None], [5, 9, 13]),
    "bilinear": lambda x: F.interpolate(x, (x.shape[2] // 2, x.shape[3] * 3), mode="bilinear"),
    "bilinear-scales": lambda x: aten.upsample_bilinear2d(x, [11, 11], False, 2.3, 1.7),
    "bilinear-corners": lambda x: F.interpolate(x, (x.shape[2] + 3, 5), mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, scale_factor=(0.5, 2.5), mode="bicubic"),
    "nearest-scale": lambda x: F.interpolate(x, scale_factor=1.7),
    "nearest-exact-scale": lambda x: F.interpolate(x, scale_factor=(0.7, 2.3), mode="nearest-exact"),
    "bilinear-scale": lambda x: F.interpolate(x, scale_factor=(1.3, 0.7), mode="bilinear"),
    "bilinear-recomputed": lambda x: F.interpolate(x, scale_factor=(1.3, 0.7), mode="bilinear", recompute_scale_factor=True),
    "bilinear-int": lambda x: F.interpolate(x, (int(x.shape[2] * 0.7), math.ceil(x.shape[3] / 1.5)), mode="bilinear"),
    "bicubic-scale": lambda x: F.interpolate(x, scale_factor=(2.3, 1.4), mode="bicubic"),
    "linear-scale": lambda x: F.interpolate(x[0], scale_factor=2.3, mode="linear"),
    "trilinear-scale": lambda x: F.interpolate(x[None], scale_factor=(1.5, 1.3, 0.7), mode="trilinear"),
    "antialiased": lambda x: F.interpolate(x, (x.shape[2] // 2, 5), mode="bilinear", antialias=True),
    "antialiased-bicubic": lambda x: aten._upsample_bicubic2d_aa(x, [5, 4], True),
}


@pytest.mark.sample(0, 2, 4, 6)
@pytest.mark.parametrize("name", list(FUNCTIONS)[:: 1 if CASES else 3])
def test_torch_resizing_of_dynamic_dimensions(name: str) -> None:
    function = FUNCTIONS[name]
    dims = ({2: Dim("h", min=2, max=512), 3: Dim("w", min=2, max=512)},)
    run = Compiled(import_torch(module_of(function), (torch.randn(1, 2, 6, 8),), dims))
    for size in ((2, 5), (4, 2), (6, 8), (10, 50), (11, 11), (22, 7)):
        x = torch.randn(1, 2, *size)
        (got,), want = run([x.numpy()]), function(x).numpy()
        assert agree(got, want, 1e-5), size


@pytest.mark.sample(1)
@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_scales_that_leave_or_double_a_size(num_axes: int) -> None:
    """Of 2 elements a scale of 1.4 makes 2, one of 2.3 makes 4: torch's kernel of images then forgets the scale, its others do not."""

    def output(mode: str, scale: float) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: F.interpolate(x, scale_factor=scale, mode=mode)

    modes = ("nearest", "nearest-exact", {1: "linear", 2: "bilinear", 3: "trilinear"}[num_axes])
    module = Returns(**{f"{mode}_{scale}": output(mode, scale) for mode in modes for scale in (1.2, 1.4, 1.9, 2.0, 2.3, 2.7)})
    for dynamic, heights in ((False, (2,)), (True, (2, 3, 4, 5, 10))):
        example = torch.randn(2, 3, *[2] * num_axes)
        program = compile_torch(module, [example], [{2: dim("height", 2)}] if dynamic else None)
        for height in heights:
            x = torch.randn(2, 3, height, *[2] * (num_axes - 1))
            assert_like_eager(program, module, x)
