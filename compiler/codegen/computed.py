"""Sizes that an entry computes while it runs: the host function reads each from the tensor that a dispatch wrote it to, and checks it.

From then on it is a symbol like those of the inputs: the dispatches behind it find it in their dims, and the slots whose sizes depend on it
are asked for as soon as it is known. A size outside its range or above its bound ends the call.
"""

from __future__ import annotations

import sympy

from llmos.compiler.codegen.builder import Builder, Sizes, Value
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import ComputedSymbol, Expr, SymbolTable

LESS = 4  # olt, as arith.cmpf numbers it
MAX_BYTES = 2.0**62  # more would overflow the arithmetic of sizes


def is_valid(b: Builder, sizes: Sizes, table: SymbolTable, symbol: ComputedSymbol, value: Value) -> Value:
    """Emit whether what data gave, an i64, is a size that the rest of the program was compiled for: an i1."""
    conditions = [b.compare("sge", value, b.index(symbol.min)), b.compare("sle", value, b.index(symbol.max))]
    bound = table.parse(symbol.bound)
    if bound != symbol.max:
        conditions.append(b.compare("sle", value, sizes(bound)))
    if symbol.equals:
        conditions.append(b.compare("eq", value, sizes(table.parse(symbol.equals))))
    valid = conditions[0]
    for each in conditions[1:]:
        valid = b.binary("arith.andi", valid, each)
    return valid


def is_allocatable(b: Builder, sizes: Sizes, num_bytes: Expr) -> Value:
    """Emit whether a number of bytes is one, not beyond what 64 bits hold: an i1, computed in float64."""
    limit = b.const(ir.F64Type.get(), MAX_BYTES)
    return b.op("arith.cmpf", [_real(b, sizes, num_bytes), limit], b.i1, predicate=ir.IntegerAttr.get(b.i64, LESS))


def _real(b: Builder, sizes: Sizes, expr: Expr) -> Value:
    """The size of an expression's parts, added and multiplied without wrapping around; differences count as sums."""
    if isinstance(expr, sympy.Pow) and expr.exp.is_Integer and expr.exp > 0:
        return _folded(b, sizes, "arith.mulf", [expr.base] * int(expr.exp))
    if isinstance(expr, sympy.Mul):
        return _folded(b, sizes, "arith.mulf", list(expr.args))
    if isinstance(expr, sympy.Add):
        return _folded(b, sizes, "arith.addf", list(expr.args))
    if expr.is_Number:
        return b.const(ir.F64Type.get(), abs(float(expr)))
    return b.op("math.absf", [b.op("arith.sitofp", [sizes(expr)], ir.F64Type.get())], ir.F64Type.get())


def _folded(b: Builder, sizes: Sizes, name: str, args: list[Expr]) -> Value:
    value = _real(b, sizes, args[0])
    for each in args[1:]:
        value = b.binary(name, value, _real(b, sizes, each))
    return value
