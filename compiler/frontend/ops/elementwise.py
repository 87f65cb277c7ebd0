"""Ops that compute each element by itself: arithmetic, comparison, activation, selection, conversion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND as KIND
from torch._prims_common import elementwise_dtypes

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Iota, Meta, Splat, Tensor
from llmos.compiler.frontend.scalars import Deferred, Number, Scalar, compute_dtype, select
from llmos.runtime.errors import UnsupportedError

Operand: TypeAlias = Tensor | Number | Deferred
Lowering = Callable[..., Any]


def promoted(operands: Sequence[Operand], kind: KIND) -> torch.dtype:
    """Return the dtype torch computes in, by its promotion rules (tensors over rank-0 tensors over numbers)."""
    return elementwise_dtypes(*[_sample(x) for x in operands], type_promotion_kind=kind)[0]


def result_type(operands: Sequence[Operand], kind: KIND = KIND.DEFAULT) -> torch.dtype:
    """Return the dtype of torch's result."""
    return elementwise_dtypes(*[_sample(x) for x in operands], type_promotion_kind=kind)[1]


def _sample(x: Operand) -> torch.Tensor | Number:
    """Return a value that torch's promotion rules treat as they treat `x`."""
    if isinstance(x, Tensor):
        return torch.empty((1,) * x.rank, dtype=x.dtype, device="meta")
    return torch.zeros((), dtype=x.dtype).item() if isinstance(x, Deferred) else x


def apply(b: Builder, result: Meta, body: Callable[..., Scalar], operands: Sequence[Operand], dtype: torch.dtype) -> Tensor:
    """Apply `body` elementwise, computing in `dtype` (half floats in float32); numbers become constants in the body."""
    kind = compute_dtype(dtype)
    tensors = [x for x in operands if isinstance(x, Tensor)]

    def compute(*loaded: Scalar) -> Scalar:
        queue = iter(loaded)
        # A number is rounded to the half float before it is extended to float32, as eager mode does.
        return body(*[next(queue).to(dtype).to(kind) if isinstance(x, Tensor) else s.constant(x, dtype).to(kind) for x in operands])

    return b.elementwise(compute, tensors, result.dtype, result.shape)


def unary(body: Callable[..., Scalar], kind: KIND = KIND.INT_TO_FLOAT) -> Lowering:
    """Make the lowering of an op of one tensor; further arguments are numbers passed to the body."""

    def lower(b: Builder, result: Meta, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("inplace", None)
        return apply(b, result, lambda v: body(v, *args, **kwargs), [x], promoted([x], kind))

    return lower


def binary(body: Callable[[Scalar, Scalar], Scalar], kind: KIND = KIND.DEFAULT) -> Lowering:
    """Make the lowering of an op of two tensors or numbers, computed in their promoted dtype."""

    def lower(b: Builder, result: Meta, x: Operand, y: Operand) -> Tensor:
        return apply(b, result, body, [x, y], promoted([x, y], kind))

    return lower


def add(b: Builder, result: Meta, x: Operand, y: Operand, *, alpha: Number = 1) -> Tensor:
    """Lower aten.add: x + alpha * y. A known range plus an integer stays known; a zero that can't change x adds nothing."""
    if isinstance(y, int) and isinstance(alpha, int) and isinstance(x, Tensor) and isinstance(x.fact, Iota) and result.dtype == x.dtype:
        return _shifted(b, x, x.fact, y * alpha)
    if (alone := _added_zero(x, y, alpha, result)) is not None:
        return alone
    return apply(b, result, lambda v, w: v + _scaled(w, alpha), [x, y], promoted([x, y], KIND.DEFAULT))


def _shifted(b: Builder, x: Tensor, fact: Iota, offset: int) -> Tensor:
    if offset == 0:
        return x
    moved = b.elementwise(lambda v: v + offset, [x], x.dtype)
    return Tensor(moved.value, x.shape, x.dtype, moved.axes, Iota(fact.axis, fact.start + offset, fact.step))


def _added_zero(x: Operand, y: Operand, alpha: Number, result: Meta) -> Tensor | None:
    """Return x where x + alpha * y is x: for floats if the product is -0, since -0 + 0 is 0; never for complex numbers."""
    if not isinstance(x, Tensor) or not isinstance(y, int | float) or not isinstance(alpha, int | float):
        return None
    if x.dtype != result.dtype or x.dtype.is_complex or (added := y * alpha) != 0:
        return None
    return x if not x.dtype.is_floating_point or math.copysign(1, added) < 0 else None


def _scaled(v: Scalar, alpha: Number) -> Scalar:
    return v if alpha == 1 else v * alpha


def sub(b: Builder, result: Meta, x: Operand, y: Operand, *, alpha: Number = 1) -> Tensor:
    """Lower aten.sub: x - alpha * y."""
    return apply(b, result, lambda v, w: v - _scaled(w, alpha), [x, y], promoted([x, y], KIND.DEFAULT))


def rsub(b: Builder, result: Meta, x: Operand, y: Operand, alpha: Number = 1) -> Tensor:
    """Lower aten.rsub: y - alpha * x."""
    return apply(b, result, lambda v, w: w - _scaled(v, alpha), [x, y], promoted([x, y], KIND.DEFAULT))


def div(b: Builder, result: Meta, x: Operand, y: Operand, *, rounding_mode: str | None = None) -> Tensor:
    """Lower aten.div: true division in floats, or rounded ("floor", "trunc") in the promoted dtype."""
    kind = KIND.INT_TO_FLOAT if rounding_mode is None else KIND.DEFAULT
    body = {None: lambda v, w: v / w, "floor": floor_quotient, "trunc": trunc_quotient}[rounding_mode]
    return apply(b, result, body, [x, y], promoted([x, y], kind))


def trunc_quotient(v: Scalar, w: Scalar) -> Scalar:
    """Return v / w rounded toward zero, in the dtype of both."""
    return s.trunc(v / w) if v.is_float else v / w


def floor_quotient(v: Scalar, w: Scalar) -> Scalar:
    """Return v / w rounded down, in the dtype of both (Python's //)."""
    if v.is_unsigned:
        return v / w
    if v.is_float:
        return _float_floor_quotient(v, w)
    quotient, rest = v / w, fmod(v, w)
    return select(rest.differs(0) & ((rest < 0) ^ (w < 0)), quotient - 1, quotient)


def _float_floor_quotient(v: Scalar, w: Scalar) -> Scalar:
    """Return the floor of the exact quotient, which the rounded one may exceed; infinities, NaN and zero divisors as in torch."""
    quotient = v / w
    whole = s.floor(quotient)
    rest = s.fma(whole, -w, v)
    whole = select(rest.differs(0) & ((rest < 0) ^ (w < 0)), whole - 1.0, whole)
    of_infinite = select(v.differs(0) & ((v < 0) ^ (w < 0)), v.like(-1.0), quotient)
    whole = select(isinf(w), of_infinite, whole)
    return select(w.equals(0), quotient, select(isinf(v) | isnan(v), v - v, whole))


def fmod(v: Scalar, w: Scalar) -> Scalar:
    """Return the remainder with the dividend's sign (C's fmod and %)."""
    from llmos.compiler.ir.bindings import arith

    build = arith.remf if v.is_float else arith.remui if v.is_unsigned else arith.remsi
    return Scalar(build(v.value, w.value), v.dtype)


def modulo(v: Scalar, w: Scalar) -> Scalar:
    """Return the remainder with the divisor's sign (Python's %)."""
    r = fmod(v, w)
    if v.is_unsigned:
        return r
    return select(r.differs(0) & ((r < 0) ^ (w < 0)), r + w, r)


def power(b: Builder, result: Meta, x: Operand, y: Operand) -> Tensor:
    """Lower aten.pow; exponents -1, -0.5, 0.5, 1, 2 and 3 become products, roots and quotients."""
    dtype = promoted([x, y], KIND.BOOL_TO_LONG)
    small = {0.5: s.sqrt, -0.5: s.rsqrt, 1: lambda v: v, 2: lambda v: v * v, 3: lambda v: v * v * v, -1: lambda v: 1.0 / v}
    if isinstance(x, Tensor) and isinstance(y, int | float) and y in small and (dtype.is_floating_point or y > 0):
        return apply(b, result, small[y], [x], dtype)
    return apply(b, result, _unsigned_power if dtype == torch.uint8 else s.power, [x, y], dtype)


def _unsigned_power(v: Scalar, w: Scalar) -> Scalar:
    """Compute a uint8 power in int32, in which no exponent becomes negative."""
    return s.power(v.to(torch.int32), w.to(torch.int32)).to(v.dtype)


def comparison(relation: str) -> Lowering:
    """Make the lowering of aten.eq, ne, lt, le, gt or ge, to bool; a comparison of known values becomes a splat constant."""

    def lower(b: Builder, result: Meta, x: Operand, y: Operand) -> Tensor:
        known = _known_comparison(b, relation, x, y)
        if known is not None:
            return b.full(result.shape, torch.bool, known)
        return apply(b, result, lambda v, w: s.compare(relation, v, w), [x, y], promoted([x, y], KIND.DEFAULT))

    return lower


def _known_comparison(b: Builder, relation: str, x: Operand, y: Operand) -> bool | None:
    """Return the result of comparing indices with a number where the symbols' ranges decide it, else None."""
    if not (isinstance(x, Tensor) and isinstance(x.fact, Iota) and isinstance(y, int)):
        return None
    ends = [x.fact.start, x.fact.start + x.fact.step * (b.sizes.bounds(x.shape[x.fact.axis])[1] - 1)]
    low, high = min(ends), max(ends)
    always = {"ge": low >= y, "gt": low > y, "le": high <= y, "lt": high < y, "ne": not low <= y <= high, "eq": False}
    never = {"ge": high < y, "gt": high <= y, "le": low > y, "lt": low >= y, "ne": False, "eq": not low <= y <= high}
    return True if always[relation] else False if never[relation] else None


def logical(body: Callable[[Scalar, Scalar], Scalar]) -> Lowering:
    """Make the lowering of an op on the truth of its operands, to bool."""
    return lambda b, result, x, y: apply(b, result, body, [x, y], torch.bool)


def both(b: Builder, result: Meta, x: Operand, y: Operand) -> Tensor:
    """Lower aten.bitwise_and; a mask known to be all true is dropped."""
    for known, other in ((x, y), (y, x)):
        if isinstance(other, Tensor) and other.dtype == torch.bool and _is_splat(known, True):
            return b.expand(other, result.shape)
    return apply(b, result, lambda v, w: v & w, [x, y], promoted([x, y], KIND.DEFAULT))


def _is_splat(x: Operand, value: Number) -> bool:
    return x is value or (isinstance(x, Tensor) and isinstance(x.fact, Splat) and x.fact.value == value)


def where(b: Builder, result: Meta, condition: Tensor, x: Operand, y: Operand) -> Tensor:
    """Lower aten.where with a bool condition; one that is known everywhere selects without an op."""
    if isinstance(condition.fact, Splat):
        chosen = x if condition.fact.value else y
        if isinstance(chosen, Tensor):
            return b.expand(b.cast(chosen, result.dtype), result.shape)
    return _select(b, result, condition, x, y)


def _select(b: Builder, result: Meta, condition: Tensor, x: Operand, y: Operand) -> Tensor:
    def compute(*loaded: Scalar) -> Scalar:
        queue = iter(loaded)
        flag = next(queue).to(torch.bool)
        a, c = (next(queue).to(result.dtype) if isinstance(v, Tensor) else s.constant(v, result.dtype) for v in (x, y))
        return select(flag, a, c)

    return b.elementwise(compute, [v for v in (condition, x, y) if isinstance(v, Tensor)], result.dtype, result.shape)


def masked_fill(b: Builder, result: Meta, x: Tensor, mask: Tensor, value: Operand) -> Tensor:
    """Lower aten.masked_fill: `value`, a number or a tensor of rank 0, where `mask` is true."""
    return where(b, result, mask, value, x) if isinstance(value, Tensor) else _select(b, result, mask, value, x)


def clamp(b: Builder, result: Meta, x: Tensor, low: Operand | None = None, high: Operand | None = None) -> Tensor:
    """Lower aten.clamp, clamp_min and clamp_max: min(max(x, low), high), with bounds as numbers or tensors; NaN propagates."""
    given = [v for v in (low, high) if v is not None]

    def body(v: Scalar, *limits: Scalar) -> Scalar:
        queue = iter(limits)
        v = v.max(next(queue)) if low is not None else v
        return v.min(next(queue)) if high is not None else v

    return apply(b, result, body, [x, *given], promoted([x, *given], KIND.DEFAULT))


def convert(b: Builder, result: Meta, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Lower every overload of `Tensor.to`: the result's metadata gives the dtype."""
    return b.cast(x, result.dtype)


def identity(b: Builder, result: Meta, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Return the operand: aten.clone, contiguous, detach and other ops that change no element."""
    return x


def dropout(b: Builder, result: Meta, x: Tensor, p: float, train: bool) -> Tensor:
    """Lower aten.dropout in inference, an identity. Raises UnsupportedError in training mode."""
    if train and p > 0:
        raise UnsupportedError("dropout in training mode: call model.eval() before compiling")
    return x


# Activations, with the formulas of torch's documentation


def relu(v: Scalar) -> Scalar:
    """Return max(v, 0)."""
    return v.max(0)


def gelu(v: Scalar, approximate: str = "none") -> Scalar:
    """Return v Φ(v), by erf or, for `approximate` "tanh", by the approximation of Hendrycks and Gimpel (arXiv:1606.08415)."""
    if approximate == "tanh":
        return 0.5 * v * (1.0 + s.tanh(math.sqrt(2.0 / math.pi) * (v + 0.044715 * (v * v * v))))
    return 0.5 * v * (1.0 + s.erf(v * math.sqrt(0.5)))


def silu(v: Scalar) -> Scalar:
    """Return v sigmoid(v)."""
    return v / (1.0 + s.exp(-v))


def softplus(v: Scalar, beta: Number = 1, threshold: Number = 20) -> Scalar:
    """Return log(1 + exp(beta v)) / beta; v itself above `threshold`."""
    scaled = v * beta
    return select(scaled > threshold, v, s.log1p(s.exp(scaled)) / beta)


def mish(v: Scalar) -> Scalar:
    """Return v tanh(softplus(v)) (arXiv:1908.08681)."""
    return v * s.tanh(softplus(v))


def elu(v: Scalar, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1) -> Scalar:
    """Return scale * v above 0, else alpha * scale * (exp(input_scale * v) - 1)."""
    return select(v > 0, v * scale, s.expm1(v * input_scale) * (alpha * scale))


def selu(v: Scalar) -> Scalar:
    """Return elu with the fixed alpha and scale of self-normalizing networks (arXiv:1706.02515)."""
    return elu(v, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def celu(v: Scalar, alpha: Number = 1.0) -> Scalar:
    """Return v above 0, else alpha * (exp(v / alpha) - 1)."""
    return select(v > 0, v, s.expm1(v / alpha) * alpha)


def leaky_relu(v: Scalar, slope: Number = 0.01) -> Scalar:
    """Return v above 0, else slope * v."""
    return select(v > 0, v, v * slope)


def hardtanh(v: Scalar, low: Number = -1, high: Number = 1) -> Scalar:
    """Return v clamped to [low, high]."""
    return v.max(low).min(high)


def hardsigmoid(v: Scalar) -> Scalar:
    """Return clamp(v + 3, 0, 6) / 6."""
    return (v + 3.0).max(0.0).min(6.0) / 6.0


def hardswish(v: Scalar) -> Scalar:
    """Return v clamp(v + 3, 0, 6) / 6."""
    return v * (v + 3.0).max(0.0).min(6.0) / 6.0


def log_sigmoid(v: Scalar) -> Scalar:
    """Return log(sigmoid(v)), without overflow for large |v|."""
    return v.min(0.0) - s.log1p(s.exp(-s.absolute(v)))


def threshold(v: Scalar, limit: Number, value: Number) -> Scalar:
    """Return v above `limit`, else `value`."""
    return select(v <= limit, v.like(value), v)


def softshrink(v: Scalar, lambd: Number = 0.5) -> Scalar:
    """Return v moved toward 0 by `lambd`, 0 inside [-lambd, lambd]; NaN stays NaN."""
    return select(v > lambd, v - lambd, select(v < -lambd, v + lambd, v * 0.0))


def hardshrink(v: Scalar, lambd: Number = 0.5) -> Scalar:
    """Return v outside [-lambd, lambd], else 0; NaN stays NaN."""
    return select((v >= -lambd) & (v <= lambd), v.like(0), v)


def sign(v: Scalar) -> Scalar:
    """Return -1, 0 or 1 in v's dtype, 0 for NaN; a bool itself."""
    if v.dtype == torch.bool:
        return v
    return (v > 0).to(v.dtype) - (v < 0).to(v.dtype)


def isinf(v: Scalar) -> Scalar:
    """Return whether v is an infinity, as bool; false for integers."""
    return s.absolute(v).equals(math.inf) if v.is_float else s.constant(False, torch.bool)


def isnan(v: Scalar) -> Scalar:
    """Return whether v is NaN, as bool."""
    return v.differs(v)


def prelu(b: Builder, result: Meta, x: Tensor, weight: Tensor) -> Tensor:
    """Lower aten.prelu: v above 0, else weight * v; weight [channels] or [1] for x [batch, channels, ...]."""
    if weight.rank == 1 and x.rank > 1:
        for _ in range(x.rank - 2):
            weight = b.unsqueeze(weight, weight.rank)
    return apply(b, result, lambda v, w: select(v > 0, v, v * w), [x, weight], x.dtype)


def lerp(b: Builder, result: Meta, x: Tensor, y: Tensor, weight: Operand) -> Tensor:
    """Lower aten.lerp: interpolate from the nearer end, so that a weight of 1 gives exactly y."""

    def body(v: Scalar, w: Scalar, t: Scalar) -> Scalar:
        return select(s.absolute(t) < 0.5, v + t * (w - v), w - (w - v) * (1.0 - t))

    return apply(b, result, body, [x, y, weight], result.dtype)


def addcmul(b: Builder, result: Meta, x: Tensor, y: Tensor, z: Tensor, *, value: Number = 1) -> Tensor:
    """Lower aten.addcmul: x + value * y * z, of floats by a fused multiply-add."""

    def body(v: Scalar, w: Scalar, t: Scalar) -> Scalar:
        return s.fma(_scaled(w, value), t, v) if v.is_float else v + _scaled(w, value) * t

    return apply(b, result, body, [x, y, z], result.dtype)


def addcdiv(b: Builder, result: Meta, x: Tensor, y: Tensor, z: Tensor, *, value: Number = 1) -> Tensor:
    """Lower aten.addcdiv: x + value * y / z."""
    return apply(b, result, lambda v, w, t: v + _scaled(w, value) / t, [x, y, z], result.dtype)


def ldexp(v: Scalar, w: Scalar) -> Scalar:
    """Return v * 2^w, in floats."""
    return v * s.exp2(w)


def log_add_exp(exponential: Callable[[Scalar], Scalar], unit: float) -> Callable[[Scalar, Scalar], Scalar]:
    """Make log_b(b^v + b^w), where `exponential` computes b^v and `unit` is the natural logarithm of b."""

    def body(v: Scalar, w: Scalar) -> Scalar:
        top = v.max(w)
        grown = top + s.log1p(exponential(v.min(w) - top)) / unit
        return select(v.equals(w) & isinf(v), v, grown)

    return body


def polygamma(b: Builder, result: Meta, order: int, x: Tensor) -> Tensor:
    """Lower aten.polygamma: derivative `order` of digamma, in floats."""
    from llmos.compiler.frontend.ops import special

    body = special.digamma if order == 0 else special.polygamma(order)
    return apply(b, result, body, [x], promoted([x], KIND.INT_TO_FLOAT))


def rounded(v: Scalar, decimals: int) -> Scalar:
    """Round to `decimals` places, halves to even; scales by a power of ten, as torch does."""
    if not v.is_float:
        return v
    scale = 10.0 ** abs(decimals)
    return s.round_even(v * scale) / scale if decimals >= 0 else s.round_even(v / scale) * scale
