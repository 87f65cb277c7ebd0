"""The bodies of linalg.generic ops as expressions of TIR: one scalar op, one expression, with the same bits.

TVM simplifies floats as if they were reals: x - x is 0, (x + 1) - x is 1, x != x is false, not (x < 1) is 1 <= x. Sums, differences and
products are therefore written as `fma`, of which it knows nothing: fma(x, 1, y), fma(y, -1, x) and fma(x, y, -0) round once, as the plain
operation does, and LLVM makes that operation of them. Comparisons are negated by a select. Integers that wrap are passed through the bits
of a float, behind which TVM doesn't look: to it, x + 1 > x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from tvm import tirx

from llmos.compiler.ir.bindings import ir
from llmos.runtime.errors import UnsupportedError

Expr: TypeAlias = Any  # of tvm.ir: TVM has no stubs

_FLOATS = {"f32": "float32", "f64": "float64"}
_INTEGERS = {"i1": "bool", "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64", "index": "int64"}
_BITS = {"float32": ("int32", 31), "float64": ("int64", 63)}


def dtype_of(kind: ir.Type) -> str:
    """Return TVM's name of an element type. Raises UnsupportedError for types whose arithmetic TVM rounds in its own way."""
    text = str(kind)
    found = _FLOATS.get(text) or _INTEGERS.get(text)
    if found is None:
        raise UnsupportedError(f"elements of {text}")
    return found


def constant(attribute: ir.Attribute, kind: ir.Type) -> Expr:
    """Return the number of an arith.constant."""
    dtype = dtype_of(kind)
    if dtype in _BITS:
        return tirx.FloatImm(dtype, ir.FloatAttr(attribute).value)
    if dtype == "bool":
        return tirx.const(bool(ir.IntegerAttr(attribute).value), dtype)
    return tirx.const(ir.IntegerAttr(attribute).value, dtype)


def multiply_add(a: Expr, b: Expr, c: Expr, dtype: str) -> Expr:
    """Return a * b + c, rounded once."""
    return tirx.call_intrin(dtype, "tirx.fma", a, b, c)


def select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """Return a choice between two values that are both computed."""
    return tirx.Select(condition, yes, no)


def negated(condition: Expr) -> Expr:
    """Return the opposite of a condition, in a form in which TVM doesn't turn a comparison of floats around."""
    return select(condition, _false(), _true())


def as_bits(value: Expr) -> Expr:
    """Return an integer of 32 or 64 bits as the float of the same bits, whose value TVM doesn't look at; others as they are."""
    float_type = {"int32": "float32", "int64": "float64"}.get(str(value.ty.dtype))
    return tirx.reinterpret(float_type, value) if float_type else value


def _of_bits(value: Expr, dtype: str) -> Expr:
    return value if str(value.ty.dtype) == dtype else tirx.reinterpret(dtype, value)


def operation(op: ir.Operation, operands: Sequence[Expr]) -> Expr:
    """Return what a scalar op computes. Raises UnsupportedError for one that has no expression of the same bits."""
    rule = _RULES.get(op.name)
    if rule is None:
        raise UnsupportedError(f"{op.name} in an element")
    return rule(op, dtype_of(op.results[0].type), list(operands))


def combined(name: str, a: Expr, b: Expr, dtype: str) -> Expr:
    """Return two partial results of a reduction by the op `name` as one. Raises UnsupportedError for other ops."""
    if dtype in _BITS and name in _COMBINED:
        return _COMBINED[name](a, b, dtype)
    raise UnsupportedError(f"a reduction by {name} of {dtype}")


def _true() -> Expr:
    return tirx.const(True, "bool")


def _false() -> Expr:
    return tirx.const(False, "bool")


def number(value: float, dtype: str) -> Expr:
    """Return a constant of a type."""
    if dtype in _BITS:
        return tirx.FloatImm(dtype, value)
    return tirx.const(bool(value) if dtype == "bool" else value, dtype)


def _number(dtype: str, value: float) -> Expr:
    return tirx.FloatImm(dtype, value)


def _add(a: Expr, b: Expr, dtype: str) -> Expr:
    return multiply_add(a, _number(dtype, 1.0), b, dtype)


def _multiply(a: Expr, b: Expr, dtype: str) -> Expr:
    return multiply_add(a, b, _number(dtype, -0.0), dtype)


def _ordered(a: Expr) -> Expr:
    """Whether a float is no NaN."""
    return tirx.LE(a, a)


def _extremum(better: Callable[[Expr, Expr], Expr]) -> Callable[[Expr, Expr, str], Expr]:
    """As passes/_math/extremum.py: a NaN on either side is the result."""
    return lambda a, b, _: select(_ordered(a), select(better(a, b), a, b), a)


_COMBINED: Mapping[str, Callable[[Expr, Expr, str], Expr]] = {
    "arith.addf": _add,
    "arith.mulf": _multiply,
    "arith.maximumf": _extremum(lambda a, b: tirx.LT(b, a)),
    "arith.minimumf": _extremum(lambda a, b: tirx.LT(a, b)),
}


def _equal(a: Expr, b: Expr) -> Expr:
    return tirx.And(tirx.LE(a, b), tirx.LE(b, a))


def _both_ordered(a: Expr, b: Expr) -> Expr:
    return tirx.And(_ordered(a), _ordered(b))


def _either(a: Expr, b: Expr) -> Expr:
    """Return a or b; of two comparisons of floats TVM would make one that NaN passes."""
    return select(a, _true(), b)


_CMPF: Mapping[int, Callable[[Expr, Expr], Expr]] = {
    0: lambda a, b: _false(),
    1: _equal,
    2: lambda a, b: tirx.LT(b, a),
    3: lambda a, b: tirx.LE(b, a),
    4: lambda a, b: tirx.LT(a, b),
    5: lambda a, b: tirx.LE(a, b),
    6: lambda a, b: _either(tirx.LT(a, b), tirx.LT(b, a)),
    7: _both_ordered,
    8: lambda a, b: negated(_either(tirx.LT(a, b), tirx.LT(b, a))),
    9: lambda a, b: negated(tirx.LE(a, b)),
    10: lambda a, b: negated(tirx.LT(a, b)),
    11: lambda a, b: negated(tirx.LE(b, a)),
    12: lambda a, b: negated(tirx.LT(b, a)),
    13: lambda a, b: negated(_equal(a, b)),
    14: lambda a, b: negated(_both_ordered(a, b)),
    15: lambda a, b: _true(),
}  # by the number of the predicate

_CMPI = (tirx.EQ, tirx.NE, tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.LT, tirx.LE, tirx.GT, tirx.GE)
_FIRST_UNSIGNED = 6


def _compare_floats(op: ir.Operation, _: str, operands: list[Expr]) -> Expr:
    return _CMPF[ir.IntegerAttr(op.attributes["predicate"]).value](*operands)


def _compare_integers(op: ir.Operation, _: str, operands: list[Expr]) -> Expr:
    predicate, dtype = ir.IntegerAttr(op.attributes["predicate"]).value, dtype_of(op.operands[0].type)
    if dtype == "bool":
        operands, dtype = [tirx.Cast("int8", each) for each in operands], "int8"
        if 2 <= predicate < _FIRST_UNSIGNED:
            raise UnsupportedError("a signed order of i1")
    if predicate >= _FIRST_UNSIGNED:
        operands = [tirx.Cast(f"u{dtype}", each) for each in operands]
    return _CMPI[predicate](*operands)


def _masked(keep_sign: bool) -> Callable[[Expr, str], Expr]:
    def bits(value: Expr, dtype: str) -> Expr:
        integer, place = _BITS[dtype]
        mask = -(1 << place) if keep_sign else (1 << place) - 1
        return tirx.bitwise_and(tirx.reinterpret(integer, value), tirx.const(mask, integer))

    return bits


_sign, _magnitude = _masked(True), _masked(False)


def _absolute(_: ir.Operation, dtype: str, operands: list[Expr]) -> Expr:
    return tirx.reinterpret(dtype, _magnitude(operands[0], dtype))


def _copysign(_: ir.Operation, dtype: str, operands: list[Expr]) -> Expr:
    return tirx.reinterpret(dtype, tirx.bitwise_or(_magnitude(operands[0], dtype), _sign(operands[1], dtype)))


def _is_nan(_: ir.Operation, __: str, operands: list[Expr]) -> Expr:
    return negated(_ordered(operands[0]))


def _divide(_: ir.Operation, __: str, operands: list[Expr]) -> Expr:
    if isinstance(operands[0], tirx.FloatImm) and operands[0].value == 0:
        raise UnsupportedError("a division of 0, which TVM takes for 0")
    return tirx.Div(*operands)


def _integers(plain: Callable[[Expr, Expr], Expr], of_bool: Callable[[Expr, Expr], Expr] | None = None) -> _Rule:
    def rule(_: ir.Operation, dtype: str, operands: list[Expr]) -> Expr:
        if dtype != "bool":
            return plain(*operands)
        if of_bool is None:
            raise UnsupportedError("arithmetic of i1")
        return of_bool(*operands)

    return rule


def _wrapping(plain: Callable[[Expr, Expr], Expr]) -> _Rule:
    """As `_integers`, for operations that may overflow; indices don't."""
    rule = _integers(plain)

    def wrapping(op: ir.Operation, dtype: str, operands: list[Expr]) -> Expr:
        made = rule(op, dtype, operands)
        return made if isinstance(op.results[0].type, ir.IndexType) else _of_bits(as_bits(made), dtype)

    return wrapping


def _unsigned_shift(_: ir.Operation, dtype: str, operands: list[Expr]) -> Expr:
    return tirx.Cast(dtype, tirx.shift_right(*[tirx.Cast(f"u{dtype}", each) for each in operands]))


def _sign_extended(op: ir.Operation, dtype: str, operands: list[Expr]) -> Expr:
    if str(op.operands[0].type) == "i1":
        return select(operands[0], tirx.const(-1, dtype), tirx.const(0, dtype))
    return tirx.Cast(dtype, operands[0])


def _zero_extended(op: ir.Operation, dtype: str, operands: list[Expr]) -> Expr:
    return tirx.Cast(dtype, _unsigned(op, operands[0]))


def _truncated(_: ir.Operation, dtype: str, operands: list[Expr]) -> Expr:
    if dtype == "bool":
        raise UnsupportedError("the lowest bit of an integer")
    return tirx.Cast(dtype, operands[0])


def _unsigned(op: ir.Operation, operand: Expr) -> Expr:
    dtype = dtype_of(op.operands[0].type)
    return operand if dtype == "bool" else tirx.Cast(f"u{dtype}", operand)


def _signed_to_float(op: ir.Operation, dtype: str, operands: list[Expr]) -> Expr:
    if str(op.operands[0].type) == "i1":
        return select(operands[0], _number(dtype, -1.0), _number(dtype, 0.0))
    return tirx.Cast(dtype, operands[0])


def _unsigned_to_float(op: ir.Operation, dtype: str, operands: list[Expr]) -> Expr:
    if str(op.operands[0].type) == "i1":
        return select(operands[0], _number(dtype, 1.0), _number(dtype, 0.0))
    return tirx.Cast(dtype, _unsigned(op, operands[0]))


def _float_to_signed(_: ir.Operation, dtype: str, operands: list[Expr]) -> Expr:
    if dtype == "bool":
        raise UnsupportedError("a float as i1")
    return tirx.Cast(dtype, operands[0])


def _function(made: Callable[[Expr], Expr]) -> _Rule:
    return lambda _, __, operands: made(operands[0])


_Rule: TypeAlias = Callable[[ir.Operation, str, list[Expr]], Expr]

_RULES: Mapping[str, _Rule] = {
    "arith.addf": lambda _, dtype, x: _add(x[0], x[1], dtype),
    "arith.subf": lambda _, dtype, x: multiply_add(x[1], _number(dtype, -1.0), x[0], dtype),
    "arith.mulf": lambda _, dtype, x: _multiply(x[0], x[1], dtype),
    "arith.divf": _divide,
    "arith.negf": lambda _, dtype, x: _multiply(x[0], _number(dtype, -1.0), dtype),
    "arith.cmpf": _compare_floats,
    "arith.cmpi": _compare_integers,
    "arith.select": lambda _, __, x: select(*x),
    "arith.addi": _wrapping(tirx.Add),
    "arith.subi": _wrapping(tirx.Sub),
    "arith.muli": _wrapping(tirx.Mul),
    "arith.andi": _integers(tirx.bitwise_and, lambda a, b: select(a, b, _false())),
    "arith.ori": _integers(tirx.bitwise_or, _either),
    "arith.xori": _integers(tirx.bitwise_xor, lambda a, b: select(a, negated(b), b)),
    "arith.shli": _integers(tirx.shift_left),
    "arith.shrsi": _integers(tirx.shift_right),
    "arith.shrui": _unsigned_shift,
    "arith.maxsi": _integers(tirx.Max),
    "arith.minsi": _integers(tirx.Min),
    "arith.extsi": _sign_extended,
    "arith.extui": _zero_extended,
    "arith.trunci": _truncated,
    "arith.index_cast": lambda _, dtype, x: tirx.Cast(dtype, x[0]),
    "arith.sitofp": _signed_to_float,
    "arith.uitofp": _unsigned_to_float,
    "arith.fptosi": _float_to_signed,
    "arith.extf": lambda _, dtype, x: tirx.Cast(dtype, x[0]),
    "arith.truncf": lambda _, dtype, x: tirx.Cast(dtype, x[0]),
    "arith.bitcast": lambda _, dtype, x: tirx.reinterpret(dtype, x[0]),
    "math.fma": lambda _, dtype, x: multiply_add(x[0], x[1], x[2], dtype),
    "math.absf": _absolute,
    "math.copysign": _copysign,
    "math.isnan": _is_nan,
    "math.sqrt": _function(tirx.sqrt),
    "math.floor": _function(tirx.floor),
    "math.ceil": _function(tirx.ceil),
    "math.trunc": _function(tirx.trunc),
    "math.roundeven": _function(tirx.nearbyint),
}
