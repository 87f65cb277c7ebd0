"""`llmos::quantize` and `llmos::dequantize`: one linalg.generic each, marked by an attribute (compiler/analysis/quantization.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND as KIND

from llmos.compiler.analysis.quantization import FLOAT8, RANGES, Kind, Numbers, Role, mark, range_of
from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor, affine_dim
from llmos.compiler.frontend.ops.elementwise import result_type
from llmos.compiler.frontend.scalars import Scalar, compute_dtype
from llmos.compiler.ir.bindings import ir
from llmos.runtime.errors import UnsupportedError


@dataclass(frozen=True)
class Operand:
    """One input of the op: its role and its indexing over the result's dimensions."""

    role: Role
    tensor: Tensor
    reads: Sequence[ir.AffineExpr]


def emit(b: Builder, result: Meta, kind: Kind, operands: Sequence[Operand], body: Callable[..., Scalar], numbers: Numbers) -> Tensor:
    """Emit one marked elementwise op; `body` takes one Scalar for each operand. The roles in `numbers` are those of the operands."""
    identity = [affine_dim(i) for i in range(len(result.shape))]
    (value,) = b.generic(
        [(each.tensor, each.reads) for each in operands],
        [(b.empty(result.shape, result.dtype), result.dtype, identity)],
        ["parallel"] * len(result.shape),
        lambda *scalars: [body(*scalars[:-1]).to(result.dtype)],
    )
    mark(value.owner.operation, kind, replace(numbers, operands=tuple(each.role for each in operands)))
    return b.dense_tensor(value, result.shape, result.dtype)


def parameter(b: Builder, role: Role, tensor: Tensor, x: Tensor, axis: int, block_size: int = 0) -> Operand:
    """Read a scale or zero point over the dimensions of x: one number, one a slice of `axis`, or one for `block_size` elements along it.

    Raises UnsupportedError for any other shape.
    """
    if tensor.rank == 0 or (tensor.rank == 1 and tensor.shape[0] == 1 and not block_size):
        tensor = b.squeeze(tensor, 0) if tensor.rank else tensor
        return Operand(role, tensor, b.reads(tensor, x.shape))
    axis %= x.rank
    if block_size:
        return Operand(role, tensor, block_reads(b, tensor, x, axis, block_size))
    if tensor.rank != 1:
        raise UnsupportedError("a scale of rank 2 or more needs a block size")
    for position in range(x.rank):
        if position != axis:
            tensor = b.unsqueeze(tensor, position)
    return Operand(role, tensor, b.reads(tensor, x.shape))


def block_reads(b: Builder, tensor: Tensor, x: Tensor, axis: int, block_size: int) -> list[ir.AffineExpr]:
    """Return the index expressions of a scale that has one number for `block_size` elements along `axis` of x.

    Raises UnsupportedError if its rank isn't that of x.
    """
    if tensor.rank != x.rank:
        raise UnsupportedError(f"a scale of rank {tensor.rank} for blocks of a tensor of rank {x.rank}")
    reads = b.reads(tensor, x.shape)
    blocks = ir.AffineExpr.get_floor_div(affine_dim(axis), block_size)
    return [blocks if isinstance(expr, ir.AffineDimExpr) and expr.position == axis else expr for expr in reads]


def whole(b: Builder, x: Tensor) -> Operand:
    """Read the tensor to quantize or dequantize elementwise."""
    return Operand("input", x, b.reads(x, x.shape))


def quantize(
    b: Builder,
    result: Meta,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    dtype: str,
    axis: int,
    block_size: int,
    is_multiplier: bool,
) -> Tensor:
    """Lower `llmos::quantize`; frontend/quantized.py gives shapes and dtypes."""
    role: Role = "multiplier" if is_multiplier else "scale"
    operands = [whole(b, x), parameter(b, role, scale, x, axis, block_size)]
    if zero_point is not None:
        operands.append(parameter(b, "zero_point", zero_point, x, axis, block_size))
    factor = _as_broadcast(operands[1], x)
    wide = result_type([x, factor], KIND.DEFAULT if is_multiplier else KIND.INT_TO_FLOAT)
    low, high = RANGES[dtype]

    def body(v: Scalar, factor: Scalar, zero: Scalar | None = None) -> Scalar:
        v, factor = (each.to(wide).to(compute_dtype(wide)) for each in (v, factor))
        scaled = v * factor if is_multiplier else v / factor
        rounded = s.round_even(scaled.to(wide).to(torch.float32))
        if zero is not None:
            rounded = rounded + zero.to(torch.float32)
        clamped = rounded.max(rounded.like(low)).min(rounded.like(high))
        return s.truncate(clamped) if high < 1 << 24 else clamped.to(torch.int32)

    return emit(b, result, "quantize", operands, body, Numbers(dtype, (low, high)))


def _as_broadcast(operand: Operand, x: Tensor) -> Tensor:
    """Return the parameter with the rank that torch's type promotion sees."""
    rank = x.rank if operand.tensor.rank else 0
    return Tensor(operand.tensor.value, (1,) * rank, operand.tensor.dtype, ())


def dequantize(
    b: Builder,
    result: Meta,
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    dtype: str,
    axis: int,
    block_size: int,
    to: torch.dtype,
) -> Tensor:
    """Lower `llmos::dequantize`; frontend/quantized.py gives shapes and dtypes."""
    operands = [whole(b, x)]
    if scale is not None:
        operands.append(parameter(b, "scale", scale, x, axis, block_size))
    if zero_point is not None:
        operands.append(parameter(b, "zero_point", zero_point, x, axis, block_size))
    inner = result.dtype if scale is None else torch.float32

    def body(v: Scalar, *given: Scalar) -> Scalar:
        by_role = dict(zip([each.role for each in operands[1:]], given, strict=True))
        value = _decoded_float8(v).to(inner) if dtype == FLOAT8 else v.to(inner)
        if "zero_point" in by_role:
            value = value - by_role["zero_point"].to(inner)
        return value * by_role["scale"].to(inner) if "scale" in by_role else value

    return emit(b, result, "dequantize", operands, body, Numbers(dtype, range_of(dtype)))


def _decoded_float8(code: Scalar) -> Scalar:
    """The float32 number of an E4M3 code (uint8); 2^-9 m below 2^-6, where the exponent's bits are 0."""
    bits = code.to(torch.int32)
    magnitude = bits & 0x7F
    normal = s.bitcast((magnitude << 20) + (120 << 23), torch.float32)
    value = s.select(magnitude < 8, magnitude.to(torch.float32) * 2.0**-9, normal)
    value = s.select(magnitude.equals(0x7F), float("nan"), value)
    return s.select(bits < 0x80, value, -value)


__all__ = ["Operand", "dequantize", "emit", "parameter", "quantize", "whole"]
