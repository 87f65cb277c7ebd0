"""Expressions over IR values: `fma(x, y, 1.0) * x` writes the operations at the current insertion point."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from llmos.compiler.ir.bindings import ir

Number = int | float

# Predicates of arith.cmpf (ordered: false for NaN, except `une`) and arith.cmpi (signed).
_CMPF = {"eq": 1, "gt": 2, "ge": 3, "lt": 4, "le": 5, "ne": 13}
_CMPI = {"eq": 0, "ne": 1, "lt": 2, "le": 3, "gt": 4, "ge": 5}


@dataclass(frozen=True, eq=False)
class Expr:
    """A float or signless integer, or a vector of them. A Python number as the other operand becomes a constant of the same type."""

    value: ir.Value

    @property
    def type(self) -> ir.Type:
        """Return the MLIR type of the value."""
        return self.value.type

    @property
    def element(self) -> ir.Type:
        """Return the type of one lane."""
        return self.type.element_type if isinstance(self.type, ir.VectorType) else self.type

    @property
    def is_float(self) -> bool:
        """Whether lanes are floats."""
        return isinstance(self.element, ir.FloatType)

    @property
    def bit_width(self) -> int:
        """Return the bits of one lane."""
        return int(self.element.width)

    def __add__(self, other: Expr | Number) -> Expr:
        return self._binary("arith.addf", "arith.addi", other)

    def __sub__(self, other: Expr | Number) -> Expr:
        return self._binary("arith.subf", "arith.subi", other)

    def __mul__(self, other: Expr | Number) -> Expr:
        return self._binary("arith.mulf", "arith.muli", other)

    def __truediv__(self, other: Expr | Number) -> Expr:
        return self._binary("arith.divf", None, other)

    def __radd__(self, other: Number) -> Expr:
        return self.constant(other) + self

    def __rsub__(self, other: Number) -> Expr:
        return self.constant(other) - self

    def __rmul__(self, other: Number) -> Expr:
        return self.constant(other) * self

    def __rtruediv__(self, other: Number) -> Expr:
        return self.constant(other) / self

    def __neg__(self) -> Expr:
        return operation("arith.negf", self.type, self) if self.is_float else 0 - self

    def __abs__(self) -> Expr:
        return operation("math.absf" if self.is_float else "math.absi", self.type, self)

    def __and__(self, other: Expr | int) -> Expr:
        return self._binary(None, "arith.andi", other)

    def __or__(self, other: Expr | int) -> Expr:
        return self._binary(None, "arith.ori", other)

    def __xor__(self, other: Expr | int) -> Expr:
        return self._binary(None, "arith.xori", other)

    def __invert__(self) -> Expr:
        return self ^ -1

    def __lshift__(self, other: Expr | int) -> Expr:
        return self._binary(None, "arith.shli", other)

    def __rshift__(self, other: Expr | int) -> Expr:
        """Arithmetic shift: the sign fills."""
        return self._binary(None, "arith.shrsi", other)

    def logical_shift_right(self, other: Expr | int) -> Expr:
        """Return the lanes shifted right, with zeros from the left; `>>` keeps the sign."""
        return self._binary(None, "arith.shrui", other)

    def __lt__(self, other: Expr | Number) -> Expr:
        return self._compare("lt", other)

    def __le__(self, other: Expr | Number) -> Expr:
        return self._compare("le", other)

    def __gt__(self, other: Expr | Number) -> Expr:
        return self._compare("gt", other)

    def __ge__(self, other: Expr | Number) -> Expr:
        return self._compare("ge", other)

    def equals(self, other: Expr | Number) -> Expr:
        """Return whether lanes are equal, i1; false for NaN."""
        return self._compare("eq", other)

    def differs(self, other: Expr | Number) -> Expr:
        """Return whether lanes differ, i1; true for NaN."""
        return self._compare("ne", other)

    def constant(self, number: Number) -> Expr:
        """Return `number` in every lane of this type."""
        return constant(number, self.type)

    def with_element(self, element: ir.Type) -> ir.Type:
        """Return the type with this shape and other lanes."""
        return ir.VectorType.get(self.type.shape, element) if isinstance(self.type, ir.VectorType) else element

    def _binary(self, float_op: str | None, int_op: str | None, other: Expr | Number) -> Expr:
        name = float_op if self.is_float else int_op
        assert name is not None, f"no such operation on {self.type}"
        return operation(name, self.type, self, self._operand(other))

    def _compare(self, predicate: str, other: Expr | Number) -> Expr:
        name, number = ("arith.cmpf", _CMPF[predicate]) if self.is_float else ("arith.cmpi", _CMPI[predicate])
        attribute = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), number)
        return operation(name, self.with_element(ir.IntegerType.get_signless(1)), self, self._operand(other), predicate=attribute)

    def _operand(self, other: Expr | Number) -> Expr:
        return other if isinstance(other, Expr) else self.constant(other)


def operation(name: str, result: ir.Type, *operands: Expr, **attributes: ir.Attribute) -> Expr:
    """Emit an op with one result of type `result`."""
    return Expr(ir.Operation.create(name, results=[result], operands=[o.value for o in operands], attributes=attributes).result)


def constant(number: Number, kind: ir.Type) -> Expr:
    """Emit `number` in every lane of type `kind`; an integer wraps to the width."""
    element = kind.element_type if isinstance(kind, ir.VectorType) else kind
    if isinstance(element, ir.FloatType):
        attribute: ir.Attribute = ir.FloatAttr.get(element, float(number))
    else:
        attribute = ir.IntegerAttr.get(element, _signed(int(number), element.width))
    if isinstance(kind, ir.VectorType):
        attribute = ir.DenseElementsAttr.get_splat(kind, attribute)
    return operation("arith.constant", kind, value=attribute)


def _signed(number: int, width: int) -> int:
    """The signed number of the same bits: 0x80000000 is -2**31 in 32 bits."""
    wrapped = number & ((1 << width) - 1)
    return wrapped - (1 << width) if wrapped >> (width - 1) else wrapped


def fma(a: Expr, b: Expr | Number, c: Expr | Number) -> Expr:
    """Return a * b + c with one rounding."""
    return operation("math.fma", a.type, a, a._operand(b), a._operand(c))


def select(condition: Expr, yes: Expr | Number, no: Expr | Number) -> Expr:
    """Return `yes` where the condition holds, else `no`; at least one of both is an expression."""
    like = yes if isinstance(yes, Expr) else no
    assert isinstance(like, Expr)
    return operation("arith.select", like.type, condition, like._operand(yes), like._operand(no))


def clamp_below(x: Expr, low: Expr | Number) -> Expr:
    """Return max(x, low) as one instruction; NaN stays NaN."""
    return select(x < low, low, x)


def clamp_above(x: Expr, high: Expr | Number) -> Expr:
    """Return min(x, high) as one instruction; NaN stays NaN."""
    return select(x > high, high, x)


def bits(x: Expr) -> Expr:
    """Return the bit pattern of a float as an integer of the same width."""
    return operation("arith.bitcast", x.with_element(ir.IntegerType.get_signless(x.bit_width)), x)


def float_of_bits(x: Expr) -> Expr:
    """Return the float32 or float64 of a bit pattern."""
    return operation("arith.bitcast", x.with_element(ir.F32Type.get() if x.bit_width == 32 else ir.F64Type.get()), x)


def convert(x: Expr, element: ir.Type) -> Expr:
    """Convert lanes to another width or kind; a float becomes a signed integer by cutting its fraction, integers are signed."""
    if x.element == element:
        return x
    if isinstance(element, ir.FloatType):
        name = ("arith.extf" if element.width > x.bit_width else "arith.truncf") if x.is_float else "arith.sitofp"
    else:
        name = "arith.fptosi" if x.is_float else ("arith.extsi" if element.width > x.bit_width else "arith.trunci")
    return operation(name, x.with_element(element), x)


def sqrt(x: Expr) -> Expr:
    """Return the square root, correctly rounded; NaN below zero."""
    return operation("math.sqrt", x.type, x)


def floor(x: Expr) -> Expr:
    """Return the largest whole number not above x, as a float."""
    return operation("math.floor", x.type, x)


def truncate(x: Expr) -> Expr:
    """Return x rounded towards zero, as a float."""
    return operation("math.trunc", x.type, x)


def copy_sign(magnitude: Expr, sign: Expr) -> Expr:
    """Return `magnitude` with the sign bit of `sign`."""
    return operation("math.copysign", magnitude.type, magnitude, sign)


def horner(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Return a polynomial's value, coefficients from the highest power: one fused multiply-add for each after the first."""
    total = fma(x, coefficients[0], coefficients[1])
    for coefficient in coefficients[2:]:
        total = fma(total, x, coefficient)
    return total


def float32(pattern: int) -> float:
    """Return the float32 with these bits."""
    [value] = struct.unpack("<f", struct.pack("<I", pattern))
    return float(value)


def f32() -> ir.Type:
    """Return the MLIR type f32."""
    return ir.F32Type.get()


def f64() -> ir.Type:
    """Return the MLIR type f64."""
    return ir.F64Type.get()


def i32() -> ir.Type:
    """Return the MLIR type i32, signless."""
    return ir.IntegerType.get_signless(32)


def i64() -> ir.Type:
    """Return the MLIR type i64, signless."""
    return ir.IntegerType.get_signless(64)


def known_number(value: ir.Value) -> float:
    """Return the number in a float constant (in every lane of a splat), or NaN where there is none."""
    owner = value.owner
    if not isinstance(owner, ir.Block) and owner.name == "vector.broadcast":
        owner = owner.operands[0].owner
    if isinstance(owner, ir.Block) or owner.name != "arith.constant":
        return math.nan
    attribute = owner.attributes["value"]
    if isinstance(attribute, ir.DenseElementsAttr):
        if not attribute.is_splat:
            return math.nan
        attribute = attribute.get_splat_value()
    return float(attribute.value) if isinstance(attribute, ir.FloatAttr) else math.nan
