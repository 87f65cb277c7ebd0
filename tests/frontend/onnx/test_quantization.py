"""Quantizing ONNX nodes: the bits of onnxruntime and ONNX's evaluator, and what of scale, zero point, axis and block reaches the IR."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from llmos.compiler.analysis.quantization import Quantization, quantizations, summary
from llmos.compiler.backends.common import generalization, layout
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.onnx import import_onnx
from llmos.compiler.frontend.onnx.dtypes import from_storage, to_storage
from llmos.compiler.ir.bindings import ir
from llmos.passes import run_pipeline
from llmos.runtime.errors import UserError
from tests.conformance.inprocess import Compiled
from tests.passes.ir_tests import QUIET, check
from tests.properties.onnx_nodes import expected
from tests.reference import Executor

from .quantized_nodes import RANGES, Case, fused_cases, linear_cases, model_of

MODELS = Path(os.environ.get("LLMOS_TEST_MODELS", Path(__file__).parents[4] / "shared" / "models"))
CASES = [*linear_cases(), *fused_cases()]
SIZES = (5, 3, 1)
BEFORE_FOLDING = [*generalization(), *layout()]


# onnxruntime has the factors of QLinearAdd in another order, approximates the sigmoid, rounds exponentials to integers, and sums a
# window of dequantized numbers from its first on.
ROUNDED_OTHERWISE = ("QLinearAdd", "QLinearSigmoid", "QLinearSoftmax", "QLinearAveragePool")


GROUPS = [CASES[i : i + 12] for i in range(0, len(CASES), 12)]


def named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@cache
def imported(group: int) -> ImportedModel:
    return import_onnx(model_of(GROUPS[group]))


@pytest.mark.parametrize("group", range(len(GROUPS)), ids=lambda group: GROUPS[group][0].name)
def test_bits(group: int) -> None:
    """The reference interpreter gives what either of the two evaluators gives, at sizes other than the traced one."""
    cases = GROUPS[group]
    execute = Executor(imported(group).module, imported(group).weights)
    for n in SIZES:
        inputs = [case.input(n, seed=n) for case in cases]
        got = iter(execute([to_storage(x) for x in inputs]))
        for case, x in zip(cases, inputs, strict=True):
            wanted = expected(case.model(), {"x0": x})
            found = [next(got) for _ in range(case.outputs)]
            steps = 1 if case.op in ROUNDED_OTHERWISE else 0
            assert any(all(_same(g, w, steps) for g, w in zip(found, want, strict=True)) for want in wanted), (case.name, n, found, wanted)


def _same(got: np.ndarray, want: np.ndarray, steps: int) -> bool:
    if steps:
        return got.dtype == want.dtype and int(np.abs(got.astype(int) - want).max()) <= steps
    elem_type = helper.np_dtype_to_tensor_dtype(want.dtype)
    return got.shape == want.shape and np.array_equal(from_storage(got, elem_type), want)


@pytest.mark.parametrize("group", range(len(GROUPS)), ids=lambda group: GROUPS[group][0].name)
def test_attributes(group: int) -> None:
    linear = [case for case in GROUPS[group] if case.op in ("QuantizeLinear", "DequantizeLinear")]
    module = import_onnx(model_of(linear)).module if linear and len(linear) < len(GROUPS[group]) else imported(group).module
    for case, found in zip(linear, quantizations(module), strict=bool(linear)):
        _check_view(case, found)


def _check_view(case: Case, found: Quantization) -> None:
    assert found.kind == ("quantize" if case.op == "QuantizeLinear" else "dequantize")
    kind = str(case.constants["zero"].dtype) if "zero" in case.constants else found.dtype
    assert found.dtype == kind and (kind == "int32" or found.range == RANGES[kind])
    scale, axis = case.constants["scale"], case.attributes.get("axis", 1) % len(case.dims)
    block = case.attributes.get("block_size")
    assert found.group == ((axis, block) if block else None)
    assert found.axes == (() if scale.size == 1 else (axis,) if scale.ndim == 1 else tuple(range(scale.ndim)))
    assert isinstance(found.scale, ir.Value) and found.multiplier is None
    assert (found.zero_point is not None) == ("zero" in case.constants)


FUSED = {
    "qlinear-conv-uint8-int8": "1 dequantize int8 per-channel, 1 dequantize uint8 per-tensor, 1 quantize uint8 per-channel",
    "dynamic": "1 quantize uint8 per-tensor",
    "qlinearadd": "2 dequantize uint8 per-tensor, 1 quantize uint8 per-tensor",
    "qlinearmul": "2 dequantize uint8 per-tensor, 1 quantize uint8 per-tensor",
    "matmul-integer-uint8-int8-no-zero": "1 dequantize int8 per-tensor, 1 dequantize uint8 per-tensor",
}


def test_fused_ops_are_said_in_these() -> None:
    for name, text in FUSED.items():
        module = import_onnx(named(name).model()).module
        assert summary(module) == text


def test_requantization_has_the_product_of_the_scales() -> None:
    module = import_onnx(named("qlinear-matmul-int8-int8").model()).module
    left, right, result = quantizations(module)
    assert left.scale is None and right.scale is None and left.axes == () and right.axes == (1,)
    assert result.scale is None and result.multiplier is not None and result.axes == (1,)


def test_the_region_is_the_arithmetic() -> None:
    check(
        import_onnx(named("quantize-int8-per-channel").model()).module,
        """
        // CHECK: [[BY_CHANNEL:#map[0-9]*]] = affine_map<(d0, d1, d2) -> (d1)>
        // CHECK: linalg.generic {indexing_maps = [#map, [[BY_CHANNEL]], [[BY_CHANNEL]], #map]
        // CHECK-SAME: tensor<?x3x4xf32>, tensor<3xf32>, tensor<3xi8>) outs({{.*}} : tensor<?x3x4xi8>)
        // CHECK-SAME: llmos.quantize = {dtype = "int8", operands = ["input", "scale", "zero_point"], range = array<i64: -128, 127>}
        // CHECK: arith.divf
        // CHECK: math.roundeven
        // CHECK: arith.addf
        // CHECK: arith.maximumf
        // CHECK: arith.minimumf
        """,
    )
    check(
        import_onnx(named("dequantize-uint8-per-block").model()).module,
        """
        // CHECK: [[BY_BLOCK:#map[0-9]*]] = affine_map<(d0, d1) -> (d0, d1 floordiv 4)>
        // CHECK: llmos.dequantize = {dtype = "uint8", operands = ["input", "scale", "zero_point"], range = array<i64: 0, 255>}
        // CHECK: arith.subf
        // CHECK: arith.mulf
        """,
    )


@pytest.mark.parametrize("name", ["quantize-int4-per-block", "dequantize-int8-per-channel", "qlinear-conv-uint8-int8", "dynamic"])
def test_attributes_last_until_a_pass_can_decide(name: str) -> None:
    """Through canonicalization, generalization and the change of layouts, with axes that are still right."""
    model = import_onnx(named(name).model())
    before = [(each.kind, each.numbers, each.granularity) for each in quantizations(model.module)]
    run_pipeline(model.module, BEFORE_FOLDING, options=QUIET)
    assert [(each.kind, each.numbers, each.granularity) for each in quantizations(model.module)] == before


def test_axes_follow_a_change_of_layout() -> None:
    """channels-last exchanges the loops of what surrounds a convolution; its channels are the result's last axis then."""
    case = named("qlinear-conv-uint8-int8")
    model = import_onnx(case.model())
    run_pipeline(model.module, BEFORE_FOLDING, options=QUIET)
    result = next(each for each in quantizations(model.module) if each.kind == "quantize")
    shape = ir.RankedTensorType(result.result.type).shape
    assert [shape[axis] for axis in result.axes] == [4]


@pytest.mark.parametrize("name", ["quantize-int4-per-block", "quantize-half", "dequantize-int16-last-axis", "qlinear-matmul-uint8-uint8"])
def test_compiled_code_gives_the_same_bits(name: str) -> None:
    case = named(name)
    model = import_onnx(case.model())
    execute = Executor(model.module, model.weights)
    x = [to_storage(case.input(3 if "n" in case.dims else 1))]
    wanted = execute(x)
    for got, want in zip(Compiled(import_onnx(case.model()))(x), wanted, strict=True):
        assert got.dtype == want.dtype and np.array_equal(got, want)


def test_scales_of_another_shape_are_refused() -> None:
    for shape in ((2, 2), (5,)):
        with pytest.raises(UserError, match=r"scale|size of tensor"):
            import_onnx(Case("bad", "QuantizeLinear", ("n", 6), np.float32, {"scale": np.ones(shape, np.float32)}, {"axis": 1}).model())


@pytest.mark.parametrize(("value", "what"), [(0.0, "0"), (np.nan, "NaN or infinity"), (-np.inf, "NaN or infinity")])
@pytest.mark.parametrize("op_type", ["QuantizeLinear", "DequantizeLinear"])
def test_scales_that_say_nothing_are_refused_in_a_line(op_type: str, value: float, what: str) -> None:
    scale = np.array([0.5, value, 0.5, 0.5, 0.5, 0.5], np.float32)
    dtype = np.float32 if op_type == "QuantizeLinear" else np.int8
    with pytest.raises(UserError, match=rf"\({op_type}\) has {what} in its scale 'scale0'; quantize the model again") as raised:
        import_onnx(Case("bad", op_type, ("n", 6), dtype, {"scale": scale}, {"axis": 1}).model())
    assert "\n" not in str(raised.value)


BAD_SCALES = [0.0, np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("op_type", sorted({case.op for case in CASES if any("scale" in name for name in case.constants)}))
def test_every_stored_scale_is_looked_at(op_type: str) -> None:
    """Of each op that has some, each of its scales, as an initializer or a Constant."""
    case = next(case for case in CASES if case.op == op_type and any("scale" in name for name in case.constants))
    for name in [each for each in case.constants if "scale" in each]:
        for bad, as_node in product(BAD_SCALES, (False, True)):
            values = np.array(case.constants[name])
            values.reshape(-1)[-1] = bad
            model = replace(case, constants={**case.constants, name: values}).model()
            if as_node:
                [tensor] = [each for each in model.graph.initializer if each.name == f"{name}0"]
                model.graph.initializer.remove(tensor)
                model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
            what = "0" if bad == 0 else "NaN or infinity"
            with pytest.raises(UserError, match=rf"\({op_type}\) has {what} in its scale '{name}0'; quantize the model again$"):
                import_onnx(model)


@pytest.mark.skipif(not MODELS.is_dir(), reason=f"no models in {MODELS}; set LLMOS_TEST_MODELS")
@pytest.mark.slow
def test_every_quantization_of_a_real_model_is_found() -> None:
    module = import_onnx(onnx.load(MODELS / "shufflenet-int8/shufflenet-v2-12-int8.onnx")).module
    assert summary(module) == (
        "90 dequantize uint8 per-tensor, 57 dequantize int8 per-tensor, 56 quantize uint8 per-channel, 20 quantize uint8 per-tensor"
    )
