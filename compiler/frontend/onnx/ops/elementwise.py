"""Elementwise ops: arithmetic, comparison, logic, activations."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from llmos.compiler.frontend.onnx.dtypes import INTEGER_RANGE
from llmos.compiler.frontend.onnx.registry import Known, Operand, Value, op, unary
from llmos.compiler.frontend.onnx.values import ConstantValue, scalar_of
from llmos.runtime.errors import UnsupportedError

UNARY = (
    unary("Abs", torch.abs),
    unary("Acos", torch.acos),
    unary("Acosh", torch.acosh),
    unary("Asin", torch.asin),
    unary("Asinh", torch.asinh),
    unary("Atan", torch.atan),
    unary("Atanh", torch.atanh),
    unary("Ceil", torch.ceil),
    unary("Cos", torch.cos),
    unary("Cosh", torch.cosh),
    unary("Erf", torch.erf),
    unary("Exp", torch.exp),
    unary("Floor", torch.floor),
    unary("IsNaN", torch.isnan),
    unary("Log", torch.log),
    unary("Mish", F.mish),
    unary("Neg", torch.neg),
    unary("Not", torch.logical_not),
    unary("Reciprocal", torch.reciprocal),
    unary("Relu", torch.relu),
    unary("Round", torch.round),
    unary("Sigmoid", torch.sigmoid),
    unary("Sin", torch.sin),
    unary("Sinh", torch.sinh),
    unary("Softsign", F.softsign),
    unary("Sqrt", torch.sqrt),
    unary("Tan", torch.tan),
    unary("Tanh", torch.tanh),
)


@op("Add")
def add(a: Operand, b: Operand) -> torch.Tensor:
    """Lower Add; uint16 and uint32 go through a wider type and wrap."""
    return _wide(a, b, lambda x, y: x + y)


@op("Sub")
def sub(a: Operand, b: Operand) -> torch.Tensor:
    """Lower Sub; uint16 and uint32 go through a wider type and wrap."""
    return _wide(a, b, lambda x, y: x - y)


@op("Mul")
def mul(a: Operand, b: Operand) -> torch.Tensor:
    """Lower Mul; uint16 and uint32 go through a wider type and wrap."""
    return _wide(a, b, lambda x, y: x * y)


@op("Div")
def div(a: Operand, b: Operand) -> torch.Tensor:
    """Lower Div; integers truncate toward zero."""
    if _is_floating(a, b):
        return a / b  # type: ignore[no-any-return]
    tensor = a if isinstance(a, torch.Tensor) else torch.full((), a, dtype=b.dtype)
    return _wide(tensor, b, lambda x, y: torch.div(x, y, rounding_mode="trunc"))


@op("Mod", since=10)
def mod(a: torch.Tensor, b: torch.Tensor, *, fmod: int = 0) -> torch.Tensor:
    """Lower Mod: the remainder with the divisor's sign, or the dividend's with `fmod`."""
    if fmod:
        return torch.fmod(a, b)
    if a.is_floating_point() and b.is_floating_point():
        return torch.remainder(a, b)
    return _wide(a, b, torch.remainder)


@op("Pow")
def power(base: torch.Tensor, exponent: Operand) -> torch.Tensor:
    """Lower Pow; the result has the base's dtype."""
    if isinstance(exponent, torch.Tensor) and exponent.dtype in (torch.uint16, torch.uint32, torch.uint64):
        exponent = exponent.to(torch.int64)  # torch doesn't promote these
    if isinstance(exponent, torch.Tensor) and exponent.dtype != base.dtype:
        wide = torch.promote_types(base.dtype, exponent.dtype)
        return torch.pow(base.to(wide), exponent.to(wide)).to(base.dtype)
    return torch.pow(base, exponent).to(base.dtype)


@op("Max")
def maximum(*items: torch.Tensor) -> torch.Tensor:
    """Lower Max of any number of tensors; NaN propagates."""
    result = items[0]
    for item in items[1:]:
        result = _wide(result, item, torch.maximum)
    return result


@op("Min")
def minimum(*items: torch.Tensor) -> torch.Tensor:
    """Lower Min of any number of tensors; NaN propagates."""
    result = items[0]
    for item in items[1:]:
        result = _wide(result, item, torch.minimum)
    return result


@op("Sum")
def total(*items: torch.Tensor) -> torch.Tensor:
    """Lower Sum of any number of tensors."""
    result = items[0]
    for item in items[1:]:
        result = result + item
    return result


@op("Mean")
def mean(*items: torch.Tensor) -> torch.Tensor:
    """Lower Mean of any number of tensors."""
    return total(*items) / len(items)


@op("And")
def logical_and(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Lower And of bools."""
    return torch.logical_and(a, b)


@op("Or")
def logical_or(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Lower Or of bools."""
    return torch.logical_or(a, b)


@op("Xor")
def logical_xor(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Lower Xor of bools."""
    return torch.logical_xor(a, b)


@op("BitwiseNot")
def bitwise_not(x: torch.Tensor) -> torch.Tensor:
    """Lower BitwiseNot of integers."""
    return torch.bitwise_not(x.to(_WIDER.get(x.dtype, x.dtype))).to(x.dtype)


@op("BitwiseAnd")
def bitwise_and(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Lower BitwiseAnd of integers."""
    return torch.bitwise_and(a, b)


@op("BitwiseOr")
def bitwise_or(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Lower BitwiseOr of integers."""
    return torch.bitwise_or(a, b)


@op("BitwiseXor")
def bitwise_xor(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Lower BitwiseXor of integers."""
    return torch.bitwise_xor(a, b)


@op("BitShift")
def bit_shift(a: torch.Tensor, b: torch.Tensor, *, direction: str) -> torch.Tensor:
    """Lower BitShift; a count that is negative or at least the type's width leaves only sign bits."""
    if a.dtype == torch.uint64:
        return _shift_unsigned(a.view(torch.int64), b.to(torch.int64), direction).view(torch.uint64)
    bits = a.dtype.itemsize * 8
    wide, count = a.to(torch.int64), b.to(torch.int64)
    if direction == "RIGHT":
        # A shift by 63 leaves only sign bits for every type up to int64.
        return torch.bitwise_right_shift(wide, torch.where((count < 0) | (count >= bits), 63, count)).to(a.dtype)
    legal = (count >= 0) & (count < bits)
    shifted = torch.bitwise_left_shift(wide, torch.where(legal, count, 0))
    return torch.where(legal, shifted, 0).to(a.dtype)


def _shift_unsigned(bits: torch.Tensor, count: torch.Tensor, direction: str) -> torch.Tensor:
    """Shift 64-bit words logically."""
    legal = (count >= 0) & (count < 64)
    held = torch.where(legal, count, 0)
    if direction == "LEFT":
        return torch.where(legal, torch.bitwise_left_shift(bits, held), 0)
    # Mask the sign copies of an arithmetic shift: keep the low 64 - count bits.
    kept = torch.where(held == 0, -1, torch.bitwise_left_shift(torch.ones_like(held), 64 - held) - 1)
    return torch.where(legal, torch.bitwise_right_shift(bits, held) & kept, 0)


@op("Equal")
def equal(a: Operand, b: Operand) -> torch.Tensor:
    """Lower Equal, to bool."""
    return _wide(a, b, lambda x, y: x == y, keep=False)


@op("Greater")
def greater(a: Operand, b: Operand) -> torch.Tensor:
    """Lower Greater, to bool; false for NaN."""
    return _wide(a, b, lambda x, y: x > y, keep=False)


@op("GreaterOrEqual")
def greater_or_equal(a: Operand, b: Operand) -> torch.Tensor:
    """Lower GreaterOrEqual, to bool; false for NaN."""
    return _wide(a, b, lambda x, y: x >= y, keep=False)


@op("Less")
def less(a: Operand, b: Operand) -> torch.Tensor:
    """Lower Less, to bool; false for NaN."""
    return _wide(a, b, lambda x, y: x < y, keep=False)


@op("LessOrEqual")
def less_or_equal(a: Operand, b: Operand) -> torch.Tensor:
    """Lower LessOrEqual, to bool; false for NaN."""
    return _wide(a, b, lambda x, y: x <= y, keep=False)


@op("Where")
def where(condition: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Lower Where: a where the condition holds, else b."""
    return torch.where(condition, a, b)


@op("IsInf")
def is_inf(x: torch.Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> torch.Tensor:
    """Lower IsInf, of one sign or both."""
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if not detect_negative and not detect_positive:
        return torch.zeros_like(x, dtype=torch.bool)
    return x == (math.inf if detect_positive else -math.inf)


@op("Clip", since=11)
def clip(x: torch.Tensor, low: Operand = None, high: Operand = None) -> torch.Tensor:
    """Lower Clip from opset 11, with bounds as inputs: min(max(x, low), high), so that `high` takes precedence if they cross."""
    if x.dtype not in (*_WIDER, torch.uint64) and not isinstance(low, torch.Tensor) and not isinstance(high, torch.Tensor):
        return x if low is None and high is None else torch.clamp(x, low, high)
    if low is not None:
        x = _wide(x, _like(low, x), torch.maximum)
    return x if high is None else _wide(x, _like(high, x), torch.minimum)


def _like(value: Any, x: torch.Tensor) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=x.dtype)


@op("Clip", since=6)
def clip_by_attributes(x: torch.Tensor, *, min: float = -3.4028234663852886e38, max: float = 3.4028234663852886e38) -> torch.Tensor:
    """Lower Clip of opsets 6 to 10, with bounds as attributes, by default those of float32."""
    return torch.clamp(x, min, max)


@op("Elu")
def elu(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """Lower Elu: x above 0, else alpha * (exp(x) - 1)."""
    return F.elu(x, alpha)


@op("Celu")
def celu(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """Lower Celu: max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    return F.relu(x) + torch.clamp(alpha * torch.expm1(x / alpha), max=0)


@op("Selu")
def selu(x: torch.Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> torch.Tensor:
    """Lower Selu: gamma * x above 0, else gamma * alpha * (exp(x) - 1)."""
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


@op("LeakyRelu")
def leaky_relu(x: torch.Tensor, *, alpha: float = 0.01) -> torch.Tensor:
    """Lower LeakyRelu: x above 0, else alpha * x."""
    return F.leaky_relu(x, alpha)


@op("PRelu")
def prelu_by_channel(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Lower PRelu before opset 7: the slope has one number, or one for each channel."""
    return prelu(x, slope.reshape([-1] + [1] * (x.ndim - 2)) if slope.numel() != 1 else slope.reshape(()))


@op("PRelu", since=7)
def prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Lower PRelu from opset 7: the slope broadcasts to x."""
    return torch.where(x < 0, x * slope, x)


@op("ThresholdedRelu")
def thresholded_relu(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """Lower ThresholdedRelu: x above alpha, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


@op("HardSigmoid")
def hard_sigmoid(x: torch.Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> torch.Tensor:
    """Lower HardSigmoid: clamp(alpha * x + beta, 0, 1)."""
    return torch.clamp(alpha * x + beta, 0, 1)


@op("HardSwish")
def hard_swish(x: torch.Tensor) -> torch.Tensor:
    """Lower HardSwish: multiply x by a factor in [0, 1], as ONNX defines it, so that no intermediate exceeds x."""
    return x * torch.clamp(x / 6 + 0.5, 0, 1)


@op("Sign")
def sign(x: torch.Tensor) -> torch.Tensor:
    """Lower Sign; NaN for NaN, for which torch gives 0."""
    return torch.where(x.isnan(), x, torch.sign(x)) if x.is_floating_point() else torch.sign(x)


@op("Softplus")
def softplus(x: torch.Tensor) -> torch.Tensor:
    """Lower Softplus: log(1 + exp(x)) without overflow, and without torch's switch to x above a threshold."""
    return torch.clamp(x, min=0) + torch.log1p(torch.exp(-torch.abs(x)))


@op("Gelu", since=20)
def gelu(x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    """Lower Gelu, by erf or, for `approximate` "tanh", by tanh."""
    return F.gelu(x, approximate=approximate)


@op("Swish", since=24)
def swish(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """Lower Swish: x * sigmoid(alpha * x)."""
    return x * torch.sigmoid(alpha * x)


@op("Shrink")
def shrink(x: torch.Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> torch.Tensor:
    """Lower Shrink: x - bias above lambd, x + bias below -lambd, else 0; integers in their own type."""
    if not x.is_floating_point():
        return _shrunk_integers(x, bias, lambd)
    inside = torch.where(x > lambd, x - bias, torch.zeros_like(x))
    return torch.where(x < -lambd, x + bias, inside)


def _shrunk_integers(x: torch.Tensor, bias: float, lambd: float) -> torch.Tensor:
    """As `shrink`: exact for an integer `bias`, else through float64. No unsigned number is below a negative one."""
    low, high = INTEGER_RANGE.get(x.dtype, (0, 2**64 - 1))

    def moved(by: float) -> torch.Tensor:
        return _wide(x, int(by), lambda v, w: v + w) if by == int(by) else (x.to(torch.float64) + by).to(x.dtype)

    limits = math.floor(lambd), math.ceil(-lambd)
    zeros = torch.zeros_like(x)
    above = _wide(x, limits[0], lambda v, w: v > w, keep=False) if low <= limits[0] < high else zeros.to(torch.bool) ^ (limits[0] < low)
    below = _wide(x, limits[1], lambda v, w: v < w, keep=False) if low < limits[1] <= high else zeros.to(torch.bool) ^ (limits[1] > high)
    return torch.where(below, moved(bias), torch.where(above, moved(-bias), zeros))


@op("Identity")
def identity(x: Value) -> Any:
    """Lower Identity, of any value."""
    return (x,)


@op("Dropout", since=7)
def dropout(x: torch.Tensor, *, ratio: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower Dropout of opsets 7 to 11, an identity; the mask is all true."""
    return x, torch.ones_like(x, dtype=torch.bool)


@op("Dropout", since=12)
def dropout_with_inputs(
    x: torch.Tensor, ratio: Known = None, training: Known = None, *, seed: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower Dropout from opset 12: return the input and the mask, unless a constant `training` enables dropout.

    Raises UnsupportedError for a mode or, in training, a ratio that is computed from data.
    """
    if training is not None and not isinstance(training, ConstantValue):
        raise UnsupportedError("Dropout whose mode is computed from data isn't supported; export the model for inference.")
    if ratio is not None and not isinstance(ratio, ConstantValue):
        raise UnsupportedError("Dropout whose ratio is computed from data isn't supported.")
    share = 0.5 if ratio is None else float(scalar_of(ratio))
    if training is None or not bool(scalar_of(training)) or share == 0:
        return x, torch.ones_like(x, dtype=torch.bool)
    return torch.native_dropout(x, share, True)


# Ops that torch's eager kernels lack for unsigned integers above 8 bits go through a wider signed type. uint64 is unchanged: it can be
# traced and compiled, but not run in eager torch.
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64}


def _wide(a: Any, b: Any, function: Any, keep: bool = True) -> torch.Tensor:
    dtype = next(item.dtype for item in (a, b) if isinstance(item, torch.Tensor))
    if dtype not in _WIDER:
        return function(a, b)  # type: ignore[no-any-return]
    wide = [item.to(_WIDER[dtype]) if isinstance(item, torch.Tensor) else item for item in (a, b)]
    result: torch.Tensor = function(*wide)
    return (result & INTEGER_RANGE[dtype][1]).to(dtype) if keep else result


def _is_floating(*items: Any) -> bool:
    return any(item.is_floating_point() for item in items if isinstance(item, torch.Tensor))
