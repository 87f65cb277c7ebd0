"""Weights of matrix products that stay integers up to the kernel: a contraction by a dequantized constant, in groups or by channel.

    w[n, k] = (numbers[n, k] - zero_point[n, k / group]) * scale[n, k / group]

Doesn't change IR. What kernels make of it is in backends/cpu/arithmetic: weight_only.py beside rows of float32, int4.py beside those of
int8.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmos.compiler.analysis.contraction import Contraction
from llmos.compiler.analysis.generic import has_windows, is_identity
from llmos.compiler.analysis.quantization import FLOAT8, Quantization, Role, quantization_of
from llmos.compiler.ir.bindings import ir

LONGEST_RUN = 256  # products of one chain where a channel has one scale
NIBBLE = 4  # bits of numbers that rows of int8 are multiplied by
LONGEST_SUM = 1 << 15  # products of rows of int8 with numbers less any zero point of 8 bits: their sum fits in int32
GROUP_STEP = 8  # a group has a multiple of so many numbers: those of 4 bits in a word
BITS = {"int2": 4, "uint2": 4, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8, FLOAT8: 8}  # of a number in memory


@dataclass(frozen=True)
class NumberFormat:
    """How numbers are stored and scaled.

    bits: of a number, 4 or 8. is_signed: two's complement. run: neighboring k that are summed before they are scaled. grouped: whether
    each run has a scale of its own, otherwise a channel has one. zero_point: the constant one; None where each scale has one.
    zero_is_signed: how a stored zero point is read. is_float: codes of float8 E4M3, none of them NaN, without zero points.
    """

    bits: int
    is_signed: bool
    run: int
    grouped: bool
    zero_point: int | None = 0
    zero_is_signed: bool = False
    is_float: bool = False


@dataclass(frozen=True)
class QuantizedWeight:
    """The right side of a contraction. numbers: i8 [n, k] or [k, n]; scale: f32, zero_point: i8, of the axes of n and of groups.

    n_axis, k_axis: of the numbers. parameter_axes: the axis of n and, if there is one, that of groups of scale and zero point.
    """

    numbers: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None
    n_axis: int
    k_axis: int
    parameter_axes: tuple[int, ...]
    format: NumberFormat

    @property
    def num_scales(self) -> int:
        """Return the number of scales of a channel."""
        return int(self.scale.type.shape[self.parameter_axes[1]]) if len(self.parameter_axes) > 1 else 1


def quantized_weight_of(contraction: Contraction) -> QuantizedWeight | None:
    """Match the right side of a contraction of one dim of n and one of k, of rows of float32, or of int8 by numbers of 4 bits.

    None where no kernel multiplies it as integers.
    """
    owner = contraction.rhs.owner
    is_float = all(isinstance(kind, ir.F32Type) for kind in contraction.types)
    if isinstance(owner, ir.Block) or not (is_float or contraction.has_byte_rows):
        return None
    marked = quantization_of(owner.operation)
    axes = _axes(contraction)
    if marked is None or axes is None or not _is_in_order(marked):
        return None
    n_axis, k_axis = axes
    found, scale = _parameter_axes(marked, "scale", n_axis, k_axis), marked.scale
    if found is None or not isinstance(scale, ir.Value) or not isinstance(scale.type.element_type, ir.F32Type):
        return None
    parameter_axes, group = found
    zero = marked.zero_point
    if isinstance(zero, ir.Value) and (not _is_i8(zero) or _parameter_axes(marked, "zero_point", n_axis, k_axis) != found):
        return None
    depth, is_code = int(marked.input.type.shape[k_axis]), marked.dtype == FLOAT8
    if is_code and zero:
        return None
    if contraction.has_byte_rows and (BITS[marked.dtype] != NIBBLE or (group or 0) > LONGEST_SUM):
        return None
    shape = NumberFormat(
        BITS[marked.dtype],
        not marked.dtype.startswith("u") and not is_code,
        group or min(LONGEST_RUN, depth),
        group is not None,
        None if isinstance(zero, ir.Value) else zero or 0,
        isinstance(zero, ir.Value) and _is_signed(marked),
        is_code,
    )
    return QuantizedWeight(marked.input, scale, zero if isinstance(zero, ir.Value) else None, n_axis, k_axis, parameter_axes, shape)


def _axes(contraction: Contraction) -> tuple[int, int] | None:
    """The axes of n and k of a right side that is a matrix, where the left side has no windows."""
    exprs = list(contraction.rhs_map.results)
    if len(exprs) != 2 or len(contraction.n) != 1 or len(contraction.k) != 1 or has_windows(contraction.lhs_map):
        return None
    dims = [expr.position if isinstance(expr, ir.AffineDimExpr) else None for expr in exprs]
    if {*dims} != {contraction.n[0], contraction.k[0]}:
        return None
    return dims.index(contraction.n[0]), dims.index(contraction.k[0])


def _is_in_order(marked: Quantization) -> bool:
    """Whether numbers of a known format are dequantized where they lie, with a plain scale."""
    maps = [marked.generic.maps[marked.numbers.operands.index("input")], marked.generic.output_map(marked.result)]
    return (
        marked.kind == "dequantize"
        and marked.dtype in BITS
        and marked.multiplier is None
        and _is_i8(marked.input)
        and ir.RankedTensorType(marked.input.type).has_static_shape
        and all(map(is_identity, maps))
    )


def _parameter_axes(marked: Quantization, role: Role, n_axis: int, k_axis: int) -> tuple[tuple[int, ...], int | None] | None:
    """The axes of n and of groups of a scale or a zero point, and the size of a group; None for another form."""
    if role not in marked.numbers.operands:
        return None
    exprs = list(marked.generic.maps[marked.numbers.operands.index(role)].results)
    n_expr = ir.AffineExpr.get_dim(n_axis)
    if exprs == [n_expr]:
        return (0,), None
    if len(exprs) != 2 or n_expr not in exprs:
        return None
    at = exprs.index(n_expr)
    other = exprs[1 - at]
    if not isinstance(other, ir.AffineFloorDivExpr) or other.lhs != ir.AffineExpr.get_dim(k_axis):
        return None
    group = int(ir.AffineConstantExpr(other.rhs).value)
    return ((at, 1 - at), group) if group % GROUP_STEP == 0 else None


def _is_signed(marked: Quantization) -> bool:
    """How the region extends the zero point."""
    argument = marked.generic.body.arguments[marked.numbers.operands.index("zero_point")]
    return any(use.owner.operation.name in ("arith.sitofp", "arith.extsi") for use in argument.uses)


def _is_i8(value: ir.Value) -> bool:
    element = value.type.element_type if isinstance(value.type, ir.RankedTensorType) else None
    return isinstance(element, ir.IntegerType) and bool(element.width == 8)
