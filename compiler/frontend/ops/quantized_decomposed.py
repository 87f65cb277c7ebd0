"""torch's `quantized_decomposed.*` ops, which torchao's PT2E export leaves in a program, in the types and order of their eager kernels.

Formulas: torch/ao/quantization/fx/_decomposed.py. torch multiplies by the reciprocal of the scale; per token and per group it adds the zero
point before it rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # defines the ops, in a .pt2 file too

from llmos.compiler.analysis.quantization import Numbers, Role
from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Splat, Tensor
from llmos.compiler.frontend.ops.quantization import Operand, block_reads, emit, parameter, whole
from llmos.compiler.frontend.scalars import Scalar, compute_dtype
from llmos.runtime.errors import UnsupportedError

Lowering = Callable[..., Tensor]


def table() -> dict[str, Lowering]:
    """Return the lowerings by overload name."""
    named: dict[str, Lowering] = {
        "quantize_per_tensor.default": quantize_per_tensor,
        "quantize_per_tensor.tensor": quantize_per_tensor,
        "quantize_per_tensor.tensor2": quantize_per_tensor,
        "dequantize_per_tensor.default": dequantize_per_tensor,
        "dequantize_per_tensor.tensor": dequantize_per_tensor,
        "dequantize_per_tensor.tensor2": dequantize_per_tensor,
        "quantize_per_channel.default": quantize_per_channel,
        "dequantize_per_channel.default": dequantize_per_channel,
        "quantize_per_token.default": quantize_per_token,
        "dequantize_per_token.default": dequantize_per_token,
        "quantize_per_channel_group.default": quantize_per_channel_group,
        "dequantize_per_channel_group.default": dequantize_per_channel_group,
        "convert_element_type.no_fuse": lambda b, result, x, *_: b.cast(x, result.dtype),
    }
    return {f"quantized_decomposed.{name}": lowering for name, lowering in named.items()}


# -- one scale
def quantize_per_tensor(
    b: Builder, result: Meta, x: Tensor, scale: float | Tensor, zero: int | Tensor, low: Any, high: Any, dtype: Any = None
) -> Tensor:
    """Lower quantized_decomposed.quantize_per_tensor in float32; the scale is inverted in float64.

    Raises UnsupportedError for a scale or zero point that follows from sizes, and for a range that data gives.
    """
    operands, numbers = _of_one_scale(b, result.dtype, x, scale, zero, low, high)

    def body(v: Scalar, *given: Scalar) -> Scalar:
        scale_of, zero_of = _known_or(numbers, operands, given)
        inverse = (1.0 / _in(scale_of, torch.float64)).to(torch.float32)
        shifted = s.round_even(v.to(torch.float32) * inverse) + _in(zero_of, torch.float32)
        return _clamped(shifted, numbers)

    return emit(b, result, "quantize", operands, body, numbers)


def dequantize_per_tensor(
    b: Builder,
    result: Meta,
    x: Tensor,
    scale: float | Tensor,
    zero: int | Tensor,
    low: Any,
    high: Any,
    dtype: Any = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Lower quantized_decomposed.dequantize_per_tensor: (x - zero) * scale, each rounded to the result's type.

    Raises UnsupportedError as `quantize_per_tensor`.
    """
    operands, numbers = _of_one_scale(b, x.dtype, x, scale, zero, low, high)
    inner = compute_dtype(result.dtype)

    def body(v: Scalar, *given: Scalar) -> Scalar:
        scale_of, zero_of = _known_or(numbers, operands, given)
        value = v.to(result.dtype).to(inner) - _in(zero_of, inner)
        return value.to(result.dtype).to(inner) * _in(scale_of, inner)

    return emit(b, result, "dequantize", operands, body, numbers)


def _of_one_scale(
    b: Builder, dtype: torch.dtype, x: Tensor, scale: float | Tensor, zero: int | Tensor, low: Any, high: Any
) -> tuple[list[Operand], Numbers]:
    """Split the parameters into operands (tensors) and numbers. Raises UnsupportedError for a number computed from sizes."""
    operands = [whole(b, x)]
    given: tuple[tuple[Role, Any], ...] = (("scale", scale), ("zero_point", zero))
    for role, value in given:
        if isinstance(value, Tensor):
            operands.append(parameter(b, role, _single(b, value), x, 0))
        elif not isinstance(value, int | float):
            raise UnsupportedError(f"a {role.replace('_', ' ')} that follows from sizes isn't supported: make it a constant or a tensor")
    numbers = Numbers(
        _name(dtype),
        (_bound(low), _bound(high)),
        scale=None if isinstance(scale, Tensor) else float(scale),
        zero_point=None if isinstance(zero, Tensor) else int(zero),
    )
    return operands, numbers


def _single(b: Builder, x: Tensor) -> Tensor:
    """Return a one-element tensor as a tensor of rank 0."""
    while x.rank:
        x = b.squeeze(x, 0)
    return x


def _bound(value: Any) -> int:
    """Return a bound of the quantized range as an int. Raises UnsupportedError for a tensor that isn't constant."""
    if isinstance(value, Tensor) and isinstance(value.fact, Splat):
        return int(value.fact.value)
    if isinstance(value, int):
        return value
    raise UnsupportedError("a range of quantized numbers that data gives isn't supported: make its ends constants")


def _known_or(numbers: Numbers, operands: Sequence[Operand], given: Sequence[Scalar]) -> tuple[float | Scalar, float | Scalar]:
    """Return scale and zero point, each a number or a Scalar read from its operand."""
    read = dict(zip([each.role for each in operands[1:]], given, strict=True))
    scale = read["scale"] if numbers.scale is None else numbers.scale
    zero = read["zero_point"] if numbers.zero_point is None else numbers.zero_point
    return scale, zero


def _in(value: float | Scalar, dtype: torch.dtype) -> Scalar:
    return value.to(dtype) if isinstance(value, Scalar) else s.constant(value, dtype)


def _clamped(value: Scalar, numbers: Numbers) -> Scalar:
    low, high = (s.constant(bound, value.dtype) for bound in numbers.range)
    return value.max(low).min(high)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -- a scale for each channel, token or group
def quantize_per_channel(
    b: Builder, result: Meta, x: Tensor, scales: Tensor, zeros: Tensor, axis: int, low: int, high: int, dtype: Any = None
) -> Tensor:
    """Lower quantized_decomposed.quantize_per_channel with scales [channels] along `axis`; half floats in float32."""
    operands = [whole(b, x), parameter(b, "scale", scales, x, axis), parameter(b, "zero_point", zeros, x, axis)]
    wide = _promoted(compute_dtype(x.dtype), scales.dtype)
    total = _promoted(wide, zeros.dtype)
    numbers = Numbers(_name(result.dtype), (low, high))

    def body(v: Scalar, scale: Scalar, zero: Scalar) -> Scalar:
        product = _rounded(_rounded(v, wide) * _rounded(_reciprocal(scale), wide), wide)
        return _clamped(_rounded(s.round_even(product), total) + _rounded(zero, total), numbers)

    return emit(b, result, "quantize", operands, body, numbers)


def quantize_per_token(
    b: Builder, result: Meta, x: Tensor, scales: Tensor, zeros: Tensor, low: int, high: int, dtype: Any = None
) -> Tensor:
    """Lower quantized_decomposed.quantize_per_token with scales [..., 1], one for each position of all axes but the last.

    Raises UnsupportedError for scales of another shape.
    """
    operands = [whole(b, x), _by_token(b, "scale", scales, x), _by_token(b, "zero_point", zeros, x)]
    return _quantize_sums(b, result, operands, low, high)


def quantize_per_channel_group(
    b: Builder, result: Meta, x: Tensor, scales: Tensor, zeros: Tensor, low: int, high: int, dtype: Any = None, group_size: int = 128
) -> Tensor:
    """Lower quantized_decomposed.quantize_per_channel_group: x [rows, columns], scales [rows, columns / group_size].

    Raises UnsupportedError for a dynamic number of columns.
    """
    operands = [whole(b, x), _by_group(b, "scale", scales, x, group_size), _by_group(b, "zero_point", zeros, x, group_size)]
    return _quantize_sums(b, result, operands, low, high)


def _quantize_sums(b: Builder, result: Meta, operands: Sequence[Operand], low: int, high: int) -> Tensor:
    """round(x * (1 / scale) + zero), each step in torch's type of its operands."""
    x, scales, zeros = (each.tensor for each in operands)
    wide = _promoted(x.dtype, scales.dtype)
    total = _promoted(wide, zeros.dtype)
    numbers = Numbers(_name(result.dtype), (low, high))

    def body(v: Scalar, scale: Scalar, zero: Scalar) -> Scalar:
        product = _rounded(_rounded(v, wide) * _rounded(_reciprocal(scale), wide), wide)
        shifted = _rounded(_rounded(product, total) + _rounded(zero, total), total)
        return _clamped(s.round_even(shifted), numbers)

    return emit(b, result, "quantize", operands, body, numbers)


def dequantize_per_channel(
    b: Builder,
    result: Meta,
    x: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    axis: int,
    low: int,
    high: int,
    dtype: Any = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Lower quantized_decomposed.dequantize_per_channel: (x - zero) * scale with scales [channels] along `axis`."""
    operands = [whole(b, x), parameter(b, "scale", scales, x, axis)]
    if zeros is not None:
        operands.append(parameter(b, "zero_point", zeros, x, axis))
    return _dequantize(b, result, operands, low, high)


def dequantize_per_token(
    b: Builder, result: Meta, x: Tensor, scales: Tensor, zeros: Tensor, low: int, high: int, dtype: Any = None, output_dtype: Any = None
) -> Tensor:
    """Lower quantized_decomposed.dequantize_per_token with scales [..., 1], one for each position of all axes but the last.

    Raises UnsupportedError for scales of another shape.
    """
    operands = [whole(b, x), _by_token(b, "scale", scales, x), _by_token(b, "zero_point", zeros, x)]
    return _dequantize(b, result, operands, low, high)


def dequantize_per_channel_group(
    b: Builder,
    result: Meta,
    x: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    low: int,
    high: int,
    dtype: Any = None,
    group_size: int = 128,
    output_dtype: Any = None,
) -> Tensor:
    """Lower quantized_decomposed.dequantize_per_channel_group: x [rows, columns], scales [rows, columns / group_size].

    Raises UnsupportedError for a dynamic number of columns.
    """
    operands = [whole(b, x), _by_group(b, "scale", scales, x, group_size)]
    if zeros is not None:
        operands.append(_by_group(b, "zero_point", zeros, x, group_size))
    return _dequantize(b, result, operands, low, high)


def _dequantize(b: Builder, result: Meta, operands: Sequence[Operand], low: int, high: int) -> Tensor:
    """(x - zero) * scale: the difference in the promoted type of x and zero (an integer's for integers), the product in the scale's."""
    x, scales = operands[0].tensor, operands[1].tensor
    difference = _promoted(x.dtype, operands[2].tensor.dtype) if len(operands) > 2 else x.dtype
    wide = _promoted(difference, scales.dtype)

    def body(v: Scalar, scale: Scalar, zero: Scalar | None = None) -> Scalar:
        value = v if zero is None else v.to(difference) - zero.to(difference)
        return (_rounded(value, wide) * _rounded(scale, wide)).to(wide)

    return emit(b, result, "dequantize", operands, body, Numbers(_name(x.dtype), (low, high)))


def _by_token(b: Builder, role: Role, tensor: Tensor, x: Tensor) -> Operand:
    padded = (1,) * (x.rank - tensor.rank) + tensor.shape
    if len(padded) != x.rank or padded[-1] != 1 or any(p != 1 and b.sizes.differ(p, dim) for p, dim in zip(padded, x.shape, strict=True)):
        raise UnsupportedError(f"scales of shape {list(tensor.shape)} for a tensor of shape {list(x.shape)}: give them as [..., 1]")
    return Operand(role, tensor, b.reads(tensor, x.shape))


def _by_group(b: Builder, role: Role, tensor: Tensor, x: Tensor, group_size: int) -> Operand:
    rows, columns = x.shape
    if not isinstance(columns, int):
        raise UnsupportedError("groups along a dimension of dynamic size aren't supported")
    size = columns if group_size > columns and tensor.shape[-1] == 1 else group_size
    grouped = b.reshape(tensor, (rows, columns // size))
    return Operand(role, grouped, block_reads(b, grouped, x, 1, size))


def _promoted(*dtypes: torch.dtype) -> torch.dtype:
    """Return the type torch promotes these to. Raises UnsupportedError where torch has none, as for uint16 and int32."""
    try:
        return functools.reduce(torch.promote_types, dtypes)
    except RuntimeError:
        names = " and ".join(map(_name, dtypes))
        raise UnsupportedError(f"torch computes nothing of {names}: give zero points of the quantized type") from None


def _reciprocal(scale: Scalar) -> Scalar:
    """1 / scale in the scale's own type."""
    inner = compute_dtype(scale.dtype)
    return (1.0 / scale.to(inner)).to(scale.dtype)


def _rounded(value: Scalar, dtype: torch.dtype) -> Scalar:
    """Round a number to `dtype` and return it in the compute type of `dtype`."""
    return value.to(dtype).to(compute_dtype(dtype))


__all__ = ["table"]
