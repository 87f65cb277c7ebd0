"""Every elementwise op over what is special: NaN, infinities, both zeros, subnormals, extremes and large arguments, in every type.

LLMOS_ALL_SPECIALS=1 takes every op in every type; otherwise each type but float32 has a share of the ops.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator

from llmos.compiler.integrations.onnx_backend import LlmosBackend
from tests.codegen.programs import V3, Returns, compile_torch, run

F = torch.nn.functional
Tensor = torch.Tensor
EVERYTHING = bool(os.environ.get("LLMOS_ALL_SPECIALS"))
SHARE = 8  # of the ops of other types than float32: one in so many
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
EPSILON = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def float_specials(dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    top = math.log2(info.max)
    found = [0.0, math.inf, math.nan, info.max, info.tiny, info.smallest_normal / 8, info.eps, 1.0 + info.eps, 1.0 - info.eps]
    found += [0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, math.pi / 2, math.pi, 7.5, 20.5, 89.0, 1e4, 6e4, 0.95 * info.max]
    found += [2.0 ** (top * share) * (1 + 0.4 * share) for share in (0.1, 0.3, 0.5, 0.8, -0.3, -0.5, -0.8)]
    found += [
        2.0 ** min(23, top),
        2.0 ** min(24, top) + 2,
        2.0 ** min(31, top),
        2.0 ** min(50, top) * 1.3,
        2.0 ** min(63, top),
        1e30,
        6.4e37,
    ]
    return torch.tensor([*found, *[-v for v in found]], dtype=torch.float64).to(dtype)


def integer_specials(dtype: torch.dtype) -> Tensor:
    info = torch.iinfo(dtype)
    found = {0, 1, 2, 3, 7, 31, 63, info.max, info.max - 1, info.max // 2, info.max // 2 + 1, info.min, info.min + 1, -1, -2, -5, -64}
    return torch.tensor(sorted(v for v in found if info.min <= v <= info.max), dtype=dtype)


def pairs(values: Tensor, most: int = 24) -> tuple[Tensor, Tensor]:
    """Every pair of a choice of values."""
    chosen = values[torch.linspace(0, len(values) - 1, min(most, len(values))).round().long()]
    chosen = torch.cat([chosen, values[:4]])
    return tuple(v.flatten().contiguous() for v in torch.meshgrid(chosen, chosen, indexing="ij"))  # type: ignore[return-value]


UNARY = (
    "abs acos acosh angle asin asinh atan atanh ceil cos cosh deg2rad digamma erf erfc erfinv exp exp2 expm1 fix floor frac isfinite isinf"
    " isnan isneginf isposinf lgamma log log10 log1p log2 logical_not logit nan_to_num neg positive rad2deg reciprocal relu round rsqrt"
    " sigmoid sign sgn signbit sin sinc sinh sqrt square tan tanh trunc i0 bitwise_not"
)
ACTIVATIONS = (
    "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu6 selu silu softplus softshrink softsign"
    " tanhshrink"
)
BINARY = (
    "add atan2 bitwise_and bitwise_or bitwise_xor copysign div eq floor_divide fmax fmin fmod gcd ge gt heaviside hypot lcm le logaddexp"
    " logaddexp2 logical_and logical_or logical_xor lt maximum minimum mul ne nextafter pow remainder sub true_divide xlogy ldexp"
    " bitwise_left_shift bitwise_right_shift"
)

FORMS: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(torch, name) for name in UNARY.split()},
    **{name: getattr(F, name) for name in ACTIVATIONS.split()},
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "special_erfcx": torch.special.erfcx,
    "special_entr": torch.special.entr,
    "special_log_ndtr": torch.special.log_ndtr,
    "special_ndtr": torch.special.ndtr,
    "special_i0e": torch.special.i0e,
    "special_i1": torch.special.i1,
    "clamp": lambda x: x.clamp(-2, 3),
    "clamp_min": lambda x: x.clamp(min=1),
    "clamp_max": lambda x: x.clamp(max=1),
    "threshold": lambda x: F.threshold(x, 1, 2),
    "pow_2": lambda x: x**2,
    "pow_3": lambda x: x**3,
    "pow_half": lambda x: x**0.5,
    "pow_minus_half": lambda x: x**-0.5,
    "pow_minus_1": lambda x: x**-1.0,
    "pow_minus_2": lambda x: x**-2.0,
    "pow_third": lambda x: x ** (1 / 3),
    "pow_0": lambda x: x**0,
    "two_to": lambda x: 2**x,
    "round_2": lambda x: torch.round(x, decimals=2),
    "remainder_3": lambda x: x % 3,
    "fmod_3": lambda x: torch.fmod(x, 3),
    "floor_divide_3": lambda x: x // 3,
    "div_trunc_minus_2": lambda x: torch.div(x, -2, rounding_mode="trunc"),
    "to_bool": lambda x: x.bool(),
    "to_float16": lambda x: x.to(torch.float16),
    "to_bfloat16": lambda x: x.to(torch.bfloat16),
    "to_float32": lambda x: x.to(torch.float32),
    "to_float64": lambda x: x.to(torch.float64),
}
BINARY_FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{name: getattr(torch, name) for name in BINARY.split()},
    "div_floor": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "div_trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "where": lambda x, y: torch.where(x > y, x, y),
    "clamp_tensor": lambda x, y: x.clamp(max=y),
    "clamp_min_tensor": lambda x, y: x.clamp(min=y),
    "prelu": lambda x, y: torch.ops.aten._prelu_kernel(x, y),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=2),
    "lerp": lambda x, y: torch.lerp(x, y, 0.25),
    "lerp_far": lambda x, y: torch.lerp(x, y, 0.75),
    "lerp_all": lambda x, y: torch.lerp(x, y, 1.0),
}
CONVERSIONS = ("to_float16", "to_bfloat16", "to_float32", "to_float64")
"""What eager torch and this compiler leave undefined: shifts by negative counts, division of integers by zero."""


def defined(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Where an op of integers says what it gives."""
    if "shift" in name:
        return (y >= 0) & (y < x.dtype.itemsize * 8)
    if any(part in name for part in ("div", "remainder", "fmod")) and not x.is_floating_point():
        return (y != 0) & ~((x == torch.iinfo(x.dtype).min) & (y == -1))
    if name in ("gcd", "lcm"):
        return (x.abs() < 1 << 20) & (y.abs() < 1 << 20) & (x != torch.iinfo(x.dtype).min) & (y != torch.iinfo(y.dtype).min)
    if name == "pow" and not x.is_floating_point():
        return y >= 0
    return torch.ones_like(x, dtype=torch.bool)


def taken(names: Sequence[str], dtype: torch.dtype) -> list[str]:
    """The ops of a type: all, or a share of them that is another for each type."""
    if EVERYTHING or dtype is torch.float32:
        return list(names)
    return [name for name in names if zlib.crc32(f"{name} {dtype}".encode()) % SHARE == 0]


def as_float(found: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return found.view(ml_dtypes.bfloat16) if dtype is torch.bfloat16 else found


def to_numpy(x: Tensor) -> np.ndarray:
    return x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if x.dtype is torch.bfloat16 else x.numpy()


# Units in the last place that a result may be off by where its definition is ill-conditioned or torch's own is no better; of float64 powers
# the error grows with the logarithm of the result (passes/_math/double.py).
LOOSE: Mapping[str, float] = {
    **dict.fromkeys(("pow", "two_to", "pow_minus_2", "pow_third"), 4096.0),
    **dict.fromkeys(("lgamma", "digamma", "erfinv", "erfc", "special_ndtr", "special_erfcx", "special_log_ndtr"), 256.0),
    "logit": 32.0,
}
# What a result near zero may be off by, in units of its type at 1.
AROUND_ZERO: Mapping[str, float] = {
    **dict.fromkeys(("logaddexp", "logaddexp2", "special_ndtr", "tanhshrink"), 1.0),
    **dict.fromkeys(("gelu", "Gelu", "GeluTanh"), 32.0),
    **dict.fromkeys(("lgamma", "digamma"), 20.0),
}
# Where torch's own are wrong: NaN of a large quotient, a rounding beside the pole at -1.
NUMPY: Mapping[str, Callable[..., np.ndarray]] = {
    "fmod": np.fmod,
    "remainder": np.remainder,
    "digamma": lambda x: np.where(np.abs(x + 1) < 1e-12, -1 / (x + 1), np.nan),
}


def agree(name: str, found: np.ndarray, want: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Where results agree: NaN with NaN, infinities exactly, other numbers to some units in the last place."""
    if want.dtype.kind in "biu":
        return np.asarray(found == want)
    epsilon, tiny = EPSILON[dtype], torch.finfo(dtype).smallest_normal
    f, w = found.astype(np.float64), want.astype(np.float64)
    with np.errstate(all="ignore"):
        near = np.abs(f - w) <= LOOSE.get(name, 16) * epsilon * np.abs(w) + 128 * tiny + AROUND_ZERO.get(name, 0) * epsilon
    return np.where(np.isfinite(w), near, (f == w) | (np.isnan(f) & np.isnan(w)))


def disagreement(name: str, found: np.ndarray, want: np.ndarray, right: np.ndarray, shown: Sequence[np.ndarray]) -> str:
    """Empty where results are right."""
    wrong = ~right
    if not wrong.any():
        return ""
    places = np.flatnonzero(wrong)[:6]
    rows = [f"({', '.join(str(a[i]) for a in shown)}): {found[i]}, not {want[i]}" for i in places]
    return f"{name}: {int(wrong.sum())} wrong: {'; '.join(rows)}"


def runs(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> bool:
    try:
        result = function(*inputs)
    except (RuntimeError, TypeError, ZeroDivisionError):
        return False
    return not result.is_complex()


def sweep(functions: Mapping[str, Callable[..., Tensor]], inputs: Sequence[Tensor]) -> list[str]:
    """What is wrong of the functions over the inputs, in one program."""
    dtype = inputs[0].dtype
    chosen = {name: functions[name] for name in taken(list(functions), dtype)}
    safe = [x.clamp(1, 1) if len(inputs) > 1 and i and not x.is_floating_point() else x for i, x in enumerate(inputs)]
    chosen = {name: function for name, function in chosen.items() if runs(function, safe)}
    program = compile_torch(Returns(**chosen), list(inputs), target=V3)
    messages = []
    for name, found in run(program, *inputs).items():
        where = defined(name, inputs[0], inputs[1]) if len(inputs) > 1 else torch.ones(len(inputs[0]), dtype=torch.bool)
        args = [x[where] for x in inputs]
        want = chosen[name](*args)
        mine, eager = as_float(found, want.dtype)[where.numpy()], to_numpy(want)
        right = agree(name, mine, eager, want.dtype)
        if want.is_floating_point():  # torch's float32 overflows early in some functions, and rounds worse
            right |= agree(name, mine, to_numpy(chosen[name](*[x.double() for x in args]).to(want.dtype)), want.dtype)
        if name in NUMPY and dtype.is_floating_point:
            with np.errstate(all="ignore"):
                right |= agree(name, mine, NUMPY[name](*[x.double().numpy() for x in args]).astype(mine.dtype), want.dtype)
        messages.append(disagreement(name, mine, eager, right, [to_numpy(x) for x in args]))
    return [f"{dtype} {message}" for message in messages if message]


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda t: str(t).removeprefix("torch."))
def test_functions_of_floats(dtype: torch.dtype) -> None:
    values = float_specials(dtype)
    wrong = sweep(FORMS, [values]) + sweep(BINARY_FORMS, pairs(values))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda t: str(t).removeprefix("torch."))
def test_functions_of_integers(dtype: torch.dtype) -> None:
    values = integer_specials(dtype)
    wrong = sweep(FORMS, [values]) + sweep(BINARY_FORMS, pairs(values))
    assert not wrong, "\n".join(wrong)


ONNX_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Erf Exp Floor HardSwish IsInf IsNaN Log Mish Neg Reciprocal Relu Round Sigmoid Sign"
    " Sin Sinh Softsign Sqrt Tan Tanh Elu Celu Selu LeakyRelu ThresholdedRelu HardSigmoid Softplus Gelu Shrink Clip"
)
ONNX_BINARY = "Add Sub Mul Div Max Min Pow Equal Greater GreaterOrEqual Less LessOrEqual PRelu Mean Sum BitwiseAnd BitwiseOr BitwiseXor"
MORE_NODES: Mapping[str, tuple[str, dict[str, object]]] = {
    "IsPosInf": ("IsInf", {"detect_negative": 0}),
    "GeluTanh": ("Gelu", {"approximate": "tanh"}),
    "ShrinkBias": ("Shrink", {"bias": 1.0, "lambd": 2.0}),
    "HardSigmoidSteep": ("HardSigmoid", {"alpha": 3.0, "beta": 0.25}),
    "Fmod": ("Mod", {"fmod": 1}),
    "Mod": ("Mod", {}),
}


def onnx_model(names: Sequence[str], dtype: np.dtype) -> onnx.ModelProto:
    """Every op of the names, over x or over x and y."""
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    given = [helper.make_tensor_value_info(letter, kind, [None]) for letter in "xy"]
    nodes = []
    for name in names:
        op, attributes = MORE_NODES.get(name, (name, {}))
        inputs = ["x", "y"] if op in (*ONNX_BINARY.split(), "Mod") else ["x"]
        nodes.append(helper.make_node(op, inputs, [name], **attributes))
    graph = helper.make_graph(nodes, "specials", given, [onnx.ValueInfoProto(name=name) for name in names])
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)]))


def evaluates(name: str, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether an op has this type, in ONNX and in its evaluator."""
    try:
        model = onnx_model([name], x.dtype)
        onnx.checker.check_model(model, full_check=True)
        reference(model, x, y)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, TypeError, ValueError, RuntimeError):
        return False
    return True


def reference(model: onnx.ModelProto, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, {"x": x, "y": y}))


@pytest.mark.parametrize("dtype", [*FLOATS[:3], torch.int64, torch.uint8], ids=lambda t: str(t).removeprefix("torch."))
def test_onnx(dtype: torch.dtype) -> None:
    values = float_specials(dtype) if dtype.is_floating_point else integer_specials(dtype)
    x, y = (v.numpy() for v in pairs(values, 18))
    names = taken([*ONNX_UNARY.split(), *ONNX_BINARY.split(), *MORE_NODES], dtype)
    names = [name for name in names if evaluates(name, x, y)]
    model = onnx_model(names, x.dtype)
    found = LlmosBackend.prepare(model).run([x, y])
    wide = reference(onnx_model(names, np.dtype(np.float64)), x.astype(np.float64), y.astype(np.float64)) if x.dtype.kind == "f" else None
    wrong = []
    for i, (name, want) in enumerate(zip(names, reference(model, x, y), strict=True)):
        kind = torch.float32 if dtype is torch.float64 else dtype  # attributes, and some of the evaluator's functions, are float32
        right = agree(name, found[i], want, kind)
        if wide is not None and want.dtype.kind == "f":  # the evaluator's own float32 and float16 round and overflow on the way
            with np.errstate(all="ignore"):
                right |= agree(name, found[i], wide[i].astype(want.dtype), kind)
        if name == "PRelu":  # of 0 the evaluator takes the slope's product, NaN for a slope without an end; the specification has 0
            right |= (x == 0) & (found[i] == 0)
        wrong.append(disagreement(name, found[i], want, right, [x, y]))
    assert not any(wrong), "\n".join(message for message in wrong if message)
