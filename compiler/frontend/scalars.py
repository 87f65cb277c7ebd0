"""Scalar arithmetic in the body of a linalg op, written as Python expressions.

A `Scalar` carries its torch dtype, which keeps signedness and bool that MLIR's types lack.
"""

from __future__ import annotations

import math as pymath
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from llmos.compiler.ir.bindings import arith, ir, math
from llmos.runtime.errors import UnsupportedError

Number = bool | int | float

_MLIR_TYPES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "i8",
    torch.uint16: "i16",
    torch.uint32: "i32",
    torch.uint64: "i64",
    torch.bool: "i1",
}
NUMPY_NAMES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.uint16: "uint16",
    torch.uint32: "uint32",
    torch.uint64: "uint64",
    torch.bool: "bool",
}


UNSIGNED = frozenset({torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool})


def element_type(dtype: torch.dtype) -> ir.Type:
    """Return the (signless) MLIR type of one element. Raises UnsupportedError for an unsupported dtype."""
    if dtype not in _MLIR_TYPES:
        raise UnsupportedError(f"tensors of {dtype} aren't supported; supported are {', '.join(NUMPY_NAMES.values())}")
    return ir.Type.parse(_MLIR_TYPES[dtype])


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of arithmetic: half floats are computed in float32 and rounded once, as in torch."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def lowest(dtype: torch.dtype) -> Number:
    """Return the identity of max: -inf, the least integer or False."""
    return -pymath.inf if dtype.is_floating_point else False if dtype == torch.bool else torch.iinfo(dtype).min


def highest(dtype: torch.dtype) -> Number:
    """Return the identity of min: inf, the largest integer or True."""
    return pymath.inf if dtype.is_floating_point else True if dtype == torch.bool else torch.iinfo(dtype).max


def constant(value: Number | Deferred, dtype: torch.dtype) -> Scalar:
    """Emit a number of `dtype`; an integer wraps to its width. Raises UnsupportedError for an unsupported dtype."""
    if isinstance(value, Deferred):
        return cast(value.scalar(), dtype)
    kind = element_type(dtype)
    if dtype.is_floating_point:
        return Scalar(arith.ConstantOp(kind, ir.FloatAttr.get(kind, float(value))).result, dtype)
    bits = int(bool(value)) if dtype == torch.bool else _wrapped(int(value), ir.IntegerType(kind).width)
    return Scalar(arith.ConstantOp(kind, ir.IntegerAttr.get(kind, bits)).result, dtype)


def _wrapped(value: int, width: int) -> int:
    """Return the value modulo 2^width as a signed number, as a signless attribute stores it."""
    half = 1 << (width - 1)
    return (value + half) % (2 * half) - half


class Deferred:
    """A number known only at run time (symbolic_scalars.py)."""

    dtype: torch.dtype  # int64, float64 or bool

    def scalar(self) -> Scalar:
        """Emit the number at the current insertion point."""
        raise NotImplementedError


@dataclass(frozen=True)
class Scalar:
    """A scalar SSA value and its dtype."""

    value: ir.Value
    dtype: torch.dtype

    @property
    def is_float(self) -> bool:
        """Whether the dtype is a float."""
        return self.dtype.is_floating_point

    @property
    def is_unsigned(self) -> bool:
        """Whether the dtype is an unsigned integer."""
        return self.dtype in UNSIGNED

    def like(self, other: Scalar | Number | Deferred) -> Scalar:
        """Return a number as a scalar of this dtype; a Scalar as it is."""
        return other if isinstance(other, Scalar) else constant(other, self.dtype)

    def _binary(self, other: Scalar | Number | Deferred, floats: Any, signed: Any, unsigned: Any = None, swap: bool = False) -> Scalar:
        a, b = self, self.like(other)
        if swap:
            a, b = b, a
        build = floats if self.is_float else unsigned if unsigned and self.is_unsigned else signed
        return Scalar(build(a.value, b.value), self.dtype)

    def __add__(self, other: Scalar | Number | Deferred) -> Scalar:
        return self._binary(other, arith.addf, arith.addi if self.dtype != torch.bool else arith.ori)

    def __radd__(self, other: Number | Deferred) -> Scalar:
        return self.like(other) + self

    def __sub__(self, other: Scalar | Number | Deferred) -> Scalar:
        return self._binary(other, arith.subf, arith.subi)

    def __rsub__(self, other: Number | Deferred) -> Scalar:
        return self.like(other) - self

    def __mul__(self, other: Scalar | Number | Deferred) -> Scalar:
        return self._binary(other, arith.mulf, arith.muli if self.dtype != torch.bool else arith.andi)

    def __rmul__(self, other: Number | Deferred) -> Scalar:
        return self.like(other) * self

    def __truediv__(self, other: Scalar | Number | Deferred) -> Scalar:
        return self._binary(other, arith.divf, arith.divsi, arith.divui)

    def __rtruediv__(self, other: Number | Deferred) -> Scalar:
        return self.like(other) / self

    def __neg__(self) -> Scalar:
        return Scalar(arith.negf(self.value), self.dtype) if self.is_float else self.like(0) - self

    def __and__(self, other: Scalar | Number | Deferred) -> Scalar:
        return self._binary(other, None, arith.andi)

    def __or__(self, other: Scalar | Number | Deferred) -> Scalar:
        return self._binary(other, None, arith.ori)

    def __xor__(self, other: Scalar | Number | Deferred) -> Scalar:
        return self._binary(other, None, arith.xori)

    def __lshift__(self, other: Scalar | Number | Deferred) -> Scalar:
        return self._binary(other, None, arith.shli)

    def __rshift__(self, other: Scalar | Number | Deferred) -> Scalar:
        return self._binary(other, None, arith.shrsi, arith.shrui)

    def __invert__(self) -> Scalar:
        return self ^ (True if self.dtype == torch.bool else -1)

    def __lt__(self, other: Scalar | Number | Deferred) -> Scalar:
        return compare("lt", self, self.like(other))

    def __le__(self, other: Scalar | Number | Deferred) -> Scalar:
        return compare("le", self, self.like(other))

    def __gt__(self, other: Scalar | Number | Deferred) -> Scalar:
        return compare("gt", self, self.like(other))

    def __ge__(self, other: Scalar | Number | Deferred) -> Scalar:
        return compare("ge", self, self.like(other))

    def equals(self, other: Scalar | Number | Deferred) -> Scalar:
        """Return whether both are equal, as bool; false for NaN."""
        return compare("eq", self, self.like(other))

    def differs(self, other: Scalar | Number | Deferred) -> Scalar:
        """Return whether both differ, as bool; true for NaN."""
        return compare("ne", self, self.like(other))

    def max(self, other: Scalar | Number | Deferred) -> Scalar:
        """Return the larger; NaN if either is NaN."""
        return self._binary(other, arith.maximumf, arith.maxsi, arith.maxui)

    def min(self, other: Scalar | Number | Deferred) -> Scalar:
        """Return the smaller; NaN if either is NaN."""
        return self._binary(other, arith.minimumf, arith.minsi, arith.minui)

    def to(self, dtype: torch.dtype) -> Scalar:
        """Convert as torch's `Tensor.to`."""
        return cast(self, dtype)


_FLOAT_PREDICATES = {"eq": "OEQ", "ne": "UNE", "lt": "OLT", "le": "OLE", "gt": "OGT", "ge": "OGE"}


def compare(relation: str, a: Scalar, b: Scalar) -> Scalar:
    """Return `a relation b` ("eq", "ne", "lt", "le", "gt", "ge") as bool; for NaN only "ne" is true."""
    if a.is_float:
        return Scalar(arith.cmpf(getattr(arith.CmpFPredicate, _FLOAT_PREDICATES[relation]), a.value, b.value), torch.bool)
    name = relation if relation in ("eq", "ne") else ("u" if a.is_unsigned else "s") + relation
    return Scalar(arith.cmpi(getattr(arith.CmpIPredicate, name), a.value, b.value), torch.bool)


def select(condition: Scalar, a: Scalar | Number | Deferred, b: Scalar | Number | Deferred) -> Scalar:
    """Return `a` where the condition holds, else `b`; at least one of both is a Scalar, which gives the dtype."""
    kind = a if isinstance(a, Scalar) else b
    assert isinstance(kind, Scalar)
    return Scalar(arith.select(condition.value, kind.like(a).value, kind.like(b).value), kind.dtype)


def truncate(x: Scalar) -> Scalar:
    """Convert a float that int32 surely holds to int32, toward zero: half the registers of what `cast` makes for any float."""
    return Scalar(arith.fptosi(ir.IntegerType.get_signless(32), x.value), torch.int32)


def cast(x: Scalar, dtype: torch.dtype) -> Scalar:
    """Convert as torch's `Tensor.to`: floats truncate toward zero, integers wrap, nonzero is True.

    A float outside the range of an integer dtype gives any number. Raises UnsupportedError for an unsupported dtype.
    """
    if x.dtype == dtype:
        return x
    if dtype == torch.bool:
        return x.differs(0)
    target = element_type(dtype)
    if x.is_float and dtype.is_floating_point:
        return Scalar(_float_to_float(x, dtype, target), dtype)
    if x.is_float:
        # An out-of-range conversion is undefined in C and in torch; a wide integer keeps negative floats right for unsigned targets.
        convert = arith.fptoui if dtype == torch.uint64 else arith.fptosi
        wide = convert(ir.IntegerType.get_signless(64), x.value)
        return cast(Scalar(wide, torch.int64), dtype)
    if dtype.is_floating_point:
        return Scalar((arith.uitofp if x.is_unsigned else arith.sitofp)(target, x.value), dtype)
    return Scalar(_int_to_int(x, target), dtype)


def bitcast(x: Scalar, dtype: torch.dtype) -> Scalar:
    """Reinterpret the bits of `x` as another dtype of the same width; bool is cast instead."""
    if torch.bool in (x.dtype, dtype):
        return cast(x, dtype)
    target = element_type(dtype)
    return Scalar(x.value if x.value.type == target else arith.bitcast(target, x.value), dtype)


def _float_to_float(x: Scalar, dtype: torch.dtype, target: ir.Type) -> ir.Value:
    source_bits, target_bits = x.dtype.itemsize, dtype.itemsize
    if source_bits == 8 and target_bits == 2:  # rounded twice, as in torch's kernels
        return arith.truncf(target, arith.truncf(ir.F32Type.get(), x.value))
    if source_bits == target_bits:  # float16 and bfloat16
        return arith.truncf(target, arith.extf(ir.F32Type.get(), x.value))
    return arith.extf(target, x.value) if source_bits < target_bits else arith.truncf(target, x.value)


def _int_to_int(x: Scalar, target: ir.Type) -> ir.Value:
    source_width, target_width = ir.IntegerType(x.value.type).width, ir.IntegerType(target).width
    if source_width == target_width:
        return x.value
    if source_width > target_width:
        return arith.trunci(target, x.value)
    return (arith.extui if x.is_unsigned else arith.extsi)(target, x.value)


def from_index(value: ir.Value, dtype: torch.dtype) -> Scalar:
    """Convert an index value to a scalar of `dtype`."""
    wide = Scalar(arith.index_cast(ir.IntegerType.get_signless(64), value), torch.int64)
    return cast(wide, dtype)


def to_index(x: Scalar) -> ir.Value:
    """Convert an integer to an index value."""
    return (arith.index_castui if x.is_unsigned else arith.index_cast)(ir.IndexType.get(), x.value)


def unary(build: Callable[[ir.Value], ir.Value]) -> Callable[[Scalar], Scalar]:
    """Wrap an op of the math dialect as a function of a Scalar that keeps its dtype."""
    return lambda x: Scalar(build(x.value), x.dtype)


exp, exp2, expm1, log, log2, log10, log1p = map(unary, (math.exp, math.exp2, math.expm1, math.log, math.log2, math.log10, math.log1p))
sqrt, rsqrt, tanh, erf, erfc, sin, cos, tan = map(
    unary, (math.sqrt, math.rsqrt, math.tanh, math.erf, math.erfc, math.sin, math.cos, math.tan)
)
floor, ceil, trunc, round_even = map(unary, (math.floor, math.ceil, math.trunc, math.roundeven))
asin, acos, atan, sinh, cosh, asinh, acosh, atanh = map(
    unary, (math.asin, math.acos, math.atan, math.sinh, math.cosh, math.asinh, math.acosh, math.atanh)
)
float_abs = unary(math.absf)


def fma(x: Scalar, y: Scalar, z: Scalar) -> Scalar:
    """Return x * y + z with one rounding."""
    return Scalar(math.fma(x.value, y.value, z.value), x.dtype)


def power(x: Scalar, y: Scalar) -> Scalar:
    """Return x^y, of floats or of integers, in the dtype of x."""
    return Scalar((math.powf if x.is_float else math.ipowi)(x.value, y.value), x.dtype)


def arctan2(y: Scalar, x: Scalar) -> Scalar:
    """Return the angle of the point (x, y) in radians."""
    return Scalar(math.atan2(y.value, x.value), y.dtype)


def copysign(x: Scalar, sign: Scalar) -> Scalar:
    """Return the magnitude of x with the sign bit of `sign`."""
    return Scalar(math.copysign(x.value, sign.value), x.dtype)


def absolute(x: Scalar) -> Scalar:
    """Return |x|; of the least signed integer itself."""
    if x.is_float:
        return float_abs(x)
    return x if x.is_unsigned else Scalar(math.absi(x.value), x.dtype)


def sigmoid(x: Scalar) -> Scalar:
    """Return 1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + exp(-x))
