"""torch's quantized_decomposed ops: the bits of eager torch over types, granularities and sizes, and what reaches the IR of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor

from llmos.compiler.analysis.quantization import FLOAT8, QUANTIZE, Numbers, quantizations, summary
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.quantized import dequantize
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.bindings import ir
from llmos.runtime.errors import UnsupportedError
from tests.conformance.inprocess import Compiled
from tests.frontend.harness import SIZES, Spec, arrays, imported
from tests.passes.ir_tests import check
from tests.reference import Executor

ops = torch.ops.quantized_decomposed
RANGES = {
    "int8": (torch.int8, -128, 127),
    "narrow": (torch.int8, -127, 127),
    "int4": (torch.int8, -8, 7),
    "uint4": (torch.uint8, 0, 15),
    "uint8": (torch.uint8, 0, 255),
    "int16": (torch.int16, -(2**15), 2**15 - 1),
    "uint16": (torch.uint16, 0, 2**16 - 1),
    "int32": (torch.int32, -(2**31), 2**31 - 1),
}
X: tuple[Spec, ...] = (("B", "T", 8),)


def scales(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (0.01 + 0.003 * torch.arange(count)).to(dtype)


def zeros(count: int, low: int, high: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return ((low + high) // 2 + torch.arange(count) % 3).to(dtype)


def per_tensor(x: Tensor, dtype: torch.dtype, low: int, high: int) -> Iterator[Tensor]:
    scale, zero = 0.0123, (low + high) // 2 + 1
    q = ops.quantize_per_tensor(x, scale, zero, low, high, dtype)
    yield from (q, ops.dequantize_per_tensor(q, scale, zero, low, high, dtype))
    yield ops.quantize_per_tensor(x.half(), scale, zero, low, high, dtype)
    yield ops.dequantize_per_tensor(q, scale, zero, low, high, dtype, out_dtype=torch.bfloat16).float()
    known = torch.tensor([scale], dtype=torch.float64), torch.tensor([zero])
    q = ops.quantize_per_tensor.tensor(x, *known, low, high, dtype)
    yield from (q, ops.dequantize_per_tensor.tensor(q, *known, low, high, dtype))


def per_channel(x: Tensor, dtype: torch.dtype, low: int, high: int) -> Iterator[Tensor]:
    for axis in (2, -1):
        q = ops.quantize_per_channel(x, scales(8), zeros(8, low, high), axis, low, high, dtype)
        yield q
        if dtype != torch.uint16:  # of which torch subtracts nothing
            yield ops.dequantize_per_channel(q, scales(8), zeros(8, low, high, torch.int32), axis, low, high, dtype)
            yield ops.dequantize_per_channel(q, scales(8, torch.float64), None, axis, low, high, dtype, out_dtype=torch.float16)
    yield ops.quantize_per_channel(x.bfloat16(), scales(8, torch.float64), zeros(8, low, high), 2, low, high, dtype)


def per_token(x: Tensor, dtype: torch.dtype, low: int, high: int) -> Iterator[Tensor]:
    for kind in (torch.float32, torch.float64):
        scale = (x.abs().amax(-1, keepdim=True) / 100 + 0.01).to(kind)
        zero = torch.full_like(scale, 3, dtype=torch.int64)
        q = ops.quantize_per_token(x, scale, zero, low, high, dtype)
        yield q
        if dtype != torch.uint16:
            yield ops.dequantize_per_token(q, scale, zero, low, high, dtype, torch.float32)


def per_group(x: Tensor, dtype: torch.dtype, low: int, high: int) -> Iterator[Tensor]:
    rows = x[0, :1].repeat(3, 2)
    for count, size in ((4, 4), (2, 8), (1, 32)):
        scale, zero = scales(3 * count).reshape(3, count), zeros(3 * count, low, high, torch.int32).reshape(3, count)
        q = ops.quantize_per_channel_group(rows, scale, zero, low, high, dtype, size)
        yield q
        if dtype != torch.uint16:
            yield ops.dequantize_per_channel_group(q, scale, zero, low, high, dtype, size, torch.float32)
            yield ops.dequantize_per_channel_group(q, scale, None, low, high, dtype, size, torch.bfloat16).float()


def chosen(x: Tensor, dtype: torch.dtype, low: int, high: int) -> Iterator[Tensor]:
    """Parameters from data, and what is quantized by them."""
    eps = torch.finfo(torch.float32).eps
    for choose in (ops.choose_qparams.tensor, ops.choose_qparams_symmetric.tensor):
        scale, zero = choose(x, low, high, eps, dtype)
        q = ops.quantize_per_tensor.tensor(x, scale, zero, low, high, dtype)
        yield from (scale, zero, q, ops.dequantize_per_tensor.tensor(q, scale, zero, low, high, dtype))
    for pair in (ops.choose_qparams_per_token(x, torch.int8), ops.choose_qparams_per_token_asymmetric(x, torch.int8)):
        q = ops.quantize_per_token(x, *pair, -128, 127, torch.int8)
        yield from (*pair, q, ops.dequantize_per_token(q, *pair, -128, 127, torch.int8, torch.float32))


FAMILIES: dict[str, Callable[..., Iterator[Tensor]]] = {
    "per-tensor": per_tensor, "per-channel": per_channel, "per-token": per_token, "per-group": per_group, "chosen": chosen
}  # fmt: skip
CASES = [
    (family, kind)
    for family in FAMILIES
    for kind in RANGES
    if kind in ("int8", "uint4") or (family in ("per-tensor", "per-channel") and kind != "int4")
]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_bits_of_eager(family: str, kind: str) -> None:
    same_bits(imported(lambda x: tuple(FAMILIES[family](x, *RANGES[kind])), X))


def same_bits(model: ImportedModel) -> None:
    execute = Executor(model.module, model.weights)
    assert model.reference is not None
    for batch, tokens in SIZES:
        inputs = [3 * array for array in arrays(X, batch, tokens, seed=batch)]
        for number, (got, want) in enumerate(zip(execute(inputs), model.reference(inputs), strict=True)):
            assert (got.shape, got.dtype) == (want.shape, want.dtype)
            np.testing.assert_array_equal(got, want, err_msg=f"output {number}")


def test_what_the_ir_says() -> None:
    """Numbers are entries of the attribute, tensors are operands; a scale of one number doesn't become a tensor."""

    def model(x: Tensor) -> Tensor:
        q = ops.quantize_per_tensor(x, 0.05, 7, 0, 15, torch.uint8)
        q = ops.dequantize_per_tensor(q, 0.05, 7, 0, 15, torch.uint8)
        return ops.quantize_per_channel(q, scales(8), zeros(8, -8, 7), 2, -8, 7, torch.int8)

    module = imported(model).module
    first, second, third = quantizations(module)
    assert first.numbers == Numbers("uint8", (0, 15), ("input",), 0.05, 7) and first.granularity == "per-tensor"
    assert (second.kind, second.scale, second.zero_point, second.axes) == ("dequantize", 0.05, 7, ())
    assert third.numbers == Numbers("int8", (-8, 7), ("input", "scale", "zero_point")) and third.axes == (2,)
    assert isinstance(third.scale, ir.Value) and third.input == second.result
    check(
        module,
        """
        // CHECK: llmos.quantize = {dtype = "uint8", operands = ["input"],
        // CHECK-SAME: range = array<i64: 0, 15>, scale = 5.000000e-02 : f64, zero_point = 7 : i64}
        // CHECK: arith.mulf %{{.*}}, %{{.*}} : f32
        // CHECK: math.roundeven
        // CHECK: llmos.dequantize = {dtype = "uint8", operands = ["input"],
        // CHECK-SAME: range = array<i64: 0, 15>, scale = 5.000000e-02 : f64, zero_point = 7 : i64}
        // CHECK: ins(%{{.*}}, %{{.*}}, %{{.*}} : tensor<?x?x8xf32>, tensor<8xf32>, tensor<8xi64>) outs(%{{.*}} : tensor<?x?x8xi8>)
        // CHECK-SAME: llmos.quantize = {dtype = "int8", operands = ["input", "scale", "zero_point"], range = array<i64: -8, 7>}
        """,
    )


@pytest.mark.parametrize(
    ("family", "granularity"),
    [("per-tensor", "per-tensor"), ("per-channel", "per-channel"), ("per-token", "per-token"), ("per-group", "per-group")],
)
def test_granularity(family: str, granularity: str) -> None:
    module = imported(lambda x: tuple(FAMILIES[family](x, *RANGES["int8"]))).module
    found = [each.granularity for each in quantizations(module)]
    assert set(found) - {"per-channel"} <= {granularity} and granularity in found


class Quantized(torch.nn.Module):
    """A linear layer as PT2E export leaves it: weights int8 per channel, activations uint8 per tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 128, (5, 8), dtype=torch.int8, generator=torch.Generator().manual_seed(0)))
        self.register_buffer("scale", scales(5))
        self.register_buffer("zero", torch.zeros(5, dtype=torch.int64))
        self.bias = torch.nn.Parameter(torch.arange(5.0))

    def forward(self, x: Tensor) -> Tensor:
        x = ops.quantize_per_tensor(x, 0.02, 127, 0, 255, torch.uint8)
        x = ops.dequantize_per_tensor(x, 0.02, 127, 0, 255, torch.uint8)
        w = ops.dequantize_per_channel(self.weight, self.scale, self.zero, 0, -128, 127, torch.int8)
        y = torch.relu(torch.nn.functional.linear(x, w, self.bias))
        return ops.quantize_per_tensor(y, 0.1, 0, 0, 255, torch.uint8)


def test_a_pt2_file_of_a_quantized_model(tmp_path: Path) -> None:
    """A file is read, its quantizations are seen, and the compiled program has the bits of the interpreter."""
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    torch.export.save(torch.export.export(Quantized(), (x,)), tmp_path / "m.pt2")
    model = import_torch(tmp_path / "m.pt2")
    assert summary(model.module) == "2 quantize uint8 per-tensor, 1 dequantize int8 per-channel, 1 dequantize uint8 per-tensor"
    (wanted,) = Executor(model.module, model.weights)([x.numpy()])
    assert model.reference is not None
    np.testing.assert_array_equal(wanted, model.reference([x.numpy()])[0])
    np.testing.assert_array_equal(Compiled(model)([x.numpy()])[0], wanted)


def test_scales_that_are_no_tokens_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"give them as \[..., 1\]"):
        imported(lambda x: ops.quantize_per_token(x, x[0, 0], torch.zeros(8), 0, 255, torch.uint8))


def test_an_attribute_survives_its_text() -> None:
    """What a saved stage keeps."""
    module = imported(lambda x: ops.quantize_per_tensor(x, 0.05, 7, 0, 15, torch.uint8)).module
    again = ir.Module.parse(str(module), module.context)
    assert QUANTIZE in str(again) and [each.numbers for each in quantizations(again)] == [each.numbers for each in quantizations(module)]


class Float8(torch.nn.Module):
    """All codes of E4M3, per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.arange(256, dtype=torch.int32).to(torch.uint8).reshape(2, 128))
        self.register_buffer("scale", torch.tensor([1.0, 0.3]))

    def forward(self, x: Tensor) -> Tensor:
        return x + dequantize(self.codes, self.scale, None, FLOAT8, 0, 0, torch.float32)


def test_float8_codes_are_decoded_exactly() -> None:
    """Subnormal numbers, both zeros and NaN included."""
    x = torch.zeros(2, 128)
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128).view(ml_dtypes.float8_e4m3fn)
    wanted = codes.astype(np.float32) * np.array([[1.0], [0.3]], np.float32)
    model = import_torch(Float8(), (x,))
    (found,) = quantizations(model.module)
    assert (found.dtype, found.range, found.granularity) == (FLOAT8, (-448, 448), "per-channel")
    np.testing.assert_array_equal(Float8()(x).numpy(), wanted)
    np.testing.assert_array_equal(Executor(model.module, model.weights)([x.numpy()])[0], wanted)
    np.testing.assert_array_equal(Compiled(model)([x.numpy()])[0], wanted)
