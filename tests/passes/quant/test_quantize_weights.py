"""quantize-weights: numbers, scales and zero points are those of torch's arithmetic, and what no kernel multiplies so stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmos.compiler.analysis.quantization import quantizations
from llmos.compiler.frontend.quantized import dequantize
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.quant.nibbles import Nibbles
from llmos.passes.quant._fitted import NUMBERS, SCALE, SMOOTH, ZERO_POINT, add_fitted
from llmos.passes.quant.quantize_weights import QuantizeWeights
from llmos.runtime.errors import PassError, UserError
from tests.passes.ir_tests import apply, check, generics

from .quant_tests import Program, run

PREFIXES = (NUMBERS, SCALE, ZERO_POINT)


def linear(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, w)


def nibbles(w: torch.Tensor, group: int) -> torch.Tensor:
    """w [n, k] rounded to 16 numbers a group."""
    parts = w.view(len(w), -1, group)
    low, high = parts.amin(-1, keepdim=True).clamp(max=0), parts.amax(-1, keepdim=True).clamp(min=0)
    scale = high / 15 - low / 15
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round(-low / scale).clamp(0, 15)
    return (((torch.round(parts / scale) + zero).clamp(0, 15) - zero) * scale).view_as(w)


def bytes_(w: torch.Tensor) -> torch.Tensor:
    """w [n, k] rounded to 255 numbers a row."""
    scale = w.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return torch.round(w / scale).clamp(-127, 127) * scale


def module_of(x: torch.Tensor, w: torch.Tensor, step: QuantizeWeights) -> ir.Module:
    return apply(generics(linear, x, weights=(w,)), step)


def num_quantized(module: ir.Module) -> int:
    return sum(each.kind == "dequantize" for each in quantizations(module))


@pytest.mark.parametrize("group", [32, 64, 128])
def test_nibbles(group: int) -> None:
    torch.manual_seed(group)
    x, w = torch.randn(3, 256), torch.randn(40, 256)
    w[3, :group], w[4, :group], w[5, :group] = 0, w[4, :group].abs(), -w[5, :group].abs()
    module = module_of(x, w, QuantizeWeights(group=group))
    assert num_quantized(module) == 1
    np.testing.assert_allclose(run(module, [x], [w])[0], x @ nibbles(w, group).T, rtol=1e-4, atol=1e-4)


def test_bytes() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(3, 50), torch.randn(40, 50)
    w[3] = 0
    module = module_of(x, w, QuantizeWeights(bits=8))
    assert num_quantized(module) == 1
    np.testing.assert_allclose(run(module, [x], [w])[0], x @ bytes_(w).T, rtol=1e-4, atol=1e-4)


def test_floats_of_8_bits() -> None:
    """Codes are those of torch's float8_e4m3fn, numbers below its normal ones and halves between two included."""
    w = torch.randn(40, 256, generator=torch.Generator().manual_seed(0))
    w[:3] *= torch.exp2(-torch.arange(256) / 16.0)
    w[3] = 0
    every = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
    w[4] = torch.cat((every, (every[1:] + every[:-1]) / 2, torch.tensor([448.0] * 3)))  # the scale 1, and each half
    scale = w.abs().amax(-1, keepdim=True) / 448
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    x = torch.randn(3, 256)
    module = module_of(x, w, QuantizeWeights(bits=8, float8=True))
    assert [each.dtype for each in quantizations(module)] == ["float8_e4m3fn"] * 2
    wanted = (w / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(torch.float32) * scale
    for rows in torch.eye(256).split(64):
        np.testing.assert_array_equal(run(module, [rows], [w])[0], rows @ wanted.T)


def test_a_weight_whose_rows_are_k() -> None:
    x, w = torch.randn(3, 64), torch.randn(64, 40)
    module = apply(generics(lambda w, x: x @ w, x, weights=(w,)), QuantizeWeights(group=32))
    np.testing.assert_allclose(run(module, [x], [w])[0], x @ nibbles(w.T.contiguous(), 32).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [QuantizeWeights(), QuantizeWeights(bits=8), QuantizeWeights(bits=8, float8=True)])
def test_what_is_not_finite_gives_nan(step: QuantizeWeights) -> None:
    x, w = torch.randn(2, 128), torch.randn(40, 128)
    w[0, 5], w[1, 6] = float("nan"), float("inf")
    found = run(module_of(x, w, step), [x], [w])[0]
    assert np.isnan(found[:, :2]).all() and np.isfinite(found[:, 2:]).all()


def test_the_ir() -> None:
    check(
        module_of(torch.randn(3, 64), torch.randn(32, 64), QuantizeWeights(group=32)),
        """
        CHECK: tensor.expand_shape %{{.*}} output_shape [32, 2, 32] : tensor<32x64xf32> into tensor<32x2x32xf32>
        CHECK: math.roundeven
        CHECK: tensor.collapse_shape %{{.*}} : tensor<32x2x32xi8> into tensor<32x64xi8>
        CHECK: llmos.dequantize = {dtype = "uint4", operands = ["input", "scale", "zero_point"], range = array<i64: 0, 15>}
        CHECK: ins(%{{.*}}, %{{.*}} : tensor<?x64xf32>, tensor<32x64xf32>)
        """,
    )


def test_groups_that_divide_nothing_are_refused_in_a_line() -> None:
    with pytest.raises(
        UserError, match="groups of 128 weights divide no product's sums here, which are over 100 weights: choose"
    ) as raised:
        module_of(torch.randn(3, 100), torch.randn(64, 100), QuantizeWeights())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("k", "n", "step"), [(128, 16, QuantizeWeights()), (16, 64, QuantizeWeights(bits=8))])
def test_small_ones_stay(k: int, n: int, step: QuantizeWeights) -> None:
    assert num_quantized(module_of(torch.randn(3, k), torch.randn(n, k), step)) == 0


def test_products_of_activations_stay() -> None:
    x = torch.randn(64, 128)
    assert num_quantized(apply(generics(lambda x: x @ x.T, x, dynamic=False), QuantizeWeights())) == 0


def test_two_products_share_the_numbers() -> None:
    x, w = torch.randn(3, 128), torch.randn(128, 128)
    module = apply(generics(lambda w, x: linear(w, torch.relu(linear(w, x))), x, weights=(w,)), QuantizeWeights())
    assert num_quantized(module) == 1


@pytest.mark.parametrize(
    "step", [QuantizeWeights(bits=3), QuantizeWeights(float8=True), QuantizeWeights(group=20), QuantizeWeights(group=0)]
)
def test_what_no_kernel_has_is_refused(step: QuantizeWeights) -> None:
    with pytest.raises(PassError, match="4 or 8 bits and groups of a multiple of 8"):
        module_of(torch.randn(3, 128), torch.randn(64, 128), step)


def names(module: ir.Module) -> list[str]:
    with module.context:
        return [each.name for each in EntryFunc.of(module).arguments]


@pytest.mark.parametrize("is_transposed", [False, True])
def test_fitted_numbers_take_the_place_of_rounding(is_transposed: bool) -> None:
    rng = np.random.default_rng(0)
    x, w = torch.randn(3, 64), torch.randn(40, 64)
    made = Nibbles(rng.integers(0, 16, (40, 64), np.uint8), rng.random((40, 2), np.float32), rng.integers(0, 16, (40, 2), np.uint8))
    parts = zip(PREFIXES, (made.numbers, made.scale, made.zero_point), strict=True)
    arrays = [(prefix, each.T.copy() if is_transposed else each) for prefix, each in parts]
    w = w.T.contiguous() if is_transposed else w
    module = generics((lambda w, x: x @ w) if is_transposed else linear, x, weights=(w,))
    more = {}
    for prefix, array in arrays:
        more |= {name: weight.array for name, weight in add_fitted(EntryFunc.of(module), prefix, {0: array, 1: array}).items()}
    apply(module, QuantizeWeights(group=32, rounding="gptq"))
    assert [name for name in names(module) if name.startswith("quant.")] == [f"{prefix}0" for prefix in PREFIXES]
    np.testing.assert_allclose(run(module, [x], [w], more)[0], x.numpy() @ made.values.T, rtol=1e-4, atol=1e-4)


def test_a_vector_divides_the_activation_and_multiplies_its_weights() -> None:
    x, w, v, s = torch.randn(3, 64), torch.randn(40, 64), torch.randn(32, 64), torch.rand(64) + 0.5
    module = generics(lambda w, v, x: (linear(w, x), linear(v, x)), x, weights=(w, v))
    add_fitted(EntryFunc.of(module), SMOOTH, {0: s.numpy()})
    apply(module, QuantizeWeights(group=32, rounding="awq"))
    for got, weight in zip(run(module, [x], [w, v], {"quant.smooth.0": s.numpy()}), (w, v), strict=True):
        np.testing.assert_allclose(got, (x * (1 / s)) @ nibbles(weight * s, 32).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "is_kept"), [("uint4", True), ("uint8", False)])
def test_what_a_model_stores_in_as_few_bits_stays(dtype: str, is_kept: bool) -> None:
    """Rounded to float16 and extended behind the dequantization, as some files have it."""
    numbers, scale, x = torch.randint(0, 16, (40, 64), dtype=torch.uint8), torch.rand(40, 1).half(), torch.randn(3, 64)

    def function(numbers: torch.Tensor, scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return linear(dequantize(numbers, scale, None, dtype, 1, 64, torch.float16).float(), x)

    before = Program.of(function, [numbers, scale], x)
    after = str(apply(before.module, QuantizeWeights(group=32)))
    assert ("round" not in after) == is_kept
