"""expand-math: elementary functions as our own sequences of fused multiply-adds, so that no code calls libm or a compiler runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmos.compiler.ir.bindings import ir
from llmos.passes._context import PassContext
from llmos.passes._math import double, error_function, exponential, extremum, logarithm, narrow, power, remainder, trigonometric
from llmos.passes._math.expr import Expr, f32, known_number, operation, sqrt
from llmos.passes._pass import Pass
from llmos.runtime.errors import UnsupportedError

Function = Callable[..., Expr]

# The operations of LLVM order the two zeros, which no model needs and x86 has no instruction for.
EXTREMA: Mapping[str, Function] = {"arith.maximumf": extremum.maximum, "arith.minimumf": extremum.minimum}

FLOAT32: Mapping[str, Function] = {
    "math.exp": exponential.exp,
    "math.exp2": exponential.exp2,
    "math.expm1": exponential.expm1,
    "math.sinh": exponential.sinh,
    "math.cosh": exponential.cosh,
    "math.tanh": exponential.tanh,
    "math.log": logarithm.log,
    "math.log2": logarithm.log2,
    "math.log10": logarithm.log10,
    "math.log1p": logarithm.log1p,
    "math.asinh": logarithm.asinh,
    "math.acosh": logarithm.acosh,
    "math.atanh": logarithm.atanh,
    "math.sin": trigonometric.sin,
    "math.cos": trigonometric.cos,
    "math.tan": trigonometric.tan,
    "math.asin": trigonometric.asin,
    "math.acos": trigonometric.acos,
    "math.atan": trigonometric.atan,
    "math.atan2": trigonometric.atan2,
    "math.erf": error_function.erf,
    "math.erfc": error_function.erfc,
    "math.powf": power.pow,
    "math.cbrt": power.cbrt,
    "math.rsqrt": power.rsqrt,
    "arith.remf": remainder.remainder,
    **EXTREMA,
}

FLOAT64: Mapping[str, Function] = {
    "math.exp": double.exp,
    "math.exp2": double.exp2,
    "math.expm1": double.expm1,
    "math.sinh": double.sinh,
    "math.cosh": double.cosh,
    "math.tanh": double.tanh,
    "math.log": double.log,
    "math.log2": double.log2,
    "math.log10": double.log10,
    "math.log1p": double.log1p,
    "math.asinh": double.asinh,
    "math.acosh": double.acosh,
    "math.atanh": double.atanh,
    "math.sin": double.sin,
    "math.cos": double.cos,
    "math.tan": double.tan,
    "math.asin": double.asin,
    "math.acos": double.acos,
    "math.atan": double.atan,
    "math.atan2": double.atan2,
    "math.erf": double.erf,
    "math.powf": double.pow,
    "math.rsqrt": power.rsqrt,
    "arith.remf": double.remainder,
    **EXTREMA,
}

# Left to the processor in float32 and float64; computed in float32 for the 16-bit types.
NATIVE = frozenset(
    {
        *("math.sqrt", "math.fma", "math.floor", "math.ceil", "math.round", "math.roundeven", "math.trunc"),
        *("arith.addf", "arith.subf", "arith.mulf", "arith.divf", "arith.maxnumf", "arith.minnumf"),
    }
)
# Bit operations on any float type and integer operations, which have instructions.
UNTOUCHED = frozenset({"math.absf", "math.copysign", "math.isfinite", "math.isnan", "math.absi", "math.ctlz", "math.cttz", "math.ctpop"})

# For these LLVM makes calls in the 16-bit types.
FLOAT16: Mapping[str, Function] = {"arith.maxnumf": narrow.larger_number, "arith.minnumf": narrow.smaller_number}

SMALLEST_NORMALS = {"f16": 2.0**-14, "bf16": 2.0**-126, "f32": 2.0**-126, "f64": 2.0**-1022}
# Questions about a value of any float type: the answer is an i1.
PREDICATES: Mapping[str, Function] = {
    "math.isinf": lambda x: abs(x).equals(math.inf),
    "math.isnormal": lambda x: (abs(x) >= SMALLEST_NORMALS[str(x.element)]) & (abs(x) < math.inf),
}

# Conversions that LLVM makes calls of a runtime library, at least for some of our processors.
CONVERSIONS = frozenset({"arith.truncf", "arith.extf", "arith.sitofp", "arith.uitofp", "arith.fptosi", "arith.fptoui"})

# Exact or better than the general power, and faster. As in torch and numpy, the root of -0 is -0 and that of -infinity NaN.
POWERS: Mapping[float, Function] = {
    -1.0: lambda x: 1.0 / x,
    -0.5: power.rsqrt,
    0.5: sqrt,
    1.0: lambda x: x,
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
}


@dataclass(frozen=True)
class ExpandMath(Pass):
    """Rewrite elementary functions of floats (scalars and vectors) into arith operations, math.fma and a few others that have instructions.

    Before:

        %y = math.exp %x : vector<16xf32>

    After:

        %low = arith.cmpf olt, %x, %c_87 : vector<16xf32>
        ...
        %z = math.fma %limited, %log2e, %round : vector<16xf32>
        %n = arith.subf %z, %round : vector<16xf32>
        ...
        %y = arith.mulf %polynomial, %scale : vector<16xf32>

    The operations don't depend on the vector's shape, and no fast-math flag is set, so each value has the same bits in a scalar and in
    every vector. The functions in passes/_math state their error bounds. float16 and bfloat16 are computed in float32 and rounded once.
    Conversions to the 16-bit types, arith.remf and whole powers of integers, for which LLVM would call a runtime library, are rewritten
    as well.

    Raises UnsupportedError for a function that has no expansion in its type.
    """

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Replace every op that has an expansion. Raises UnsupportedError for a function without one in its type."""
        for add, erf in _sums_of_one_and_erf(module):
            with ir.InsertionPoint(add), add.location:
                add.results[0].replace_all_uses_with(error_function.one_plus_erf(Expr(erf.operands[0])).value)
            add.erase()
            erf.erase()
        for op in _operations(module):
            _expand(op)


def _sums_of_one_and_erf(module: ir.Module) -> list[tuple[ir.Operation, ir.Operation]]:
    """1 + erf(x) in float32, of which GELU is made, where nothing else reads the erf: its absolute error is all that counts."""
    found: list[tuple[ir.Operation, ir.Operation]] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name == "math.erf" and Expr(op.results[0]).element == f32() and len(uses := list(op.results[0].uses)) == 1:
            user = uses[0].owner.operation
            if user.name == "arith.addf" and 1.0 in [known_number(operand) for operand in user.operands]:
                found.append((user, op))
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


def _operations(module: ir.Module) -> list[ir.Operation]:
    """What may need an expansion, as a list because expanding changes the module."""
    found: list[ir.Operation] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name.startswith("math.") or op.name in NATIVE or op.name in CONVERSIONS or op.name in EXTREMA or op.name == "arith.remf":
            found.append(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


def _expand(op: ir.Operation) -> None:
    if op.name in UNTOUCHED:
        return
    with ir.InsertionPoint(op), op.location:
        results = _replacement(op, [Expr(operand) for operand in op.operands])
    if results is None:
        return
    for old, new in zip(op.results, results, strict=True):
        old.replace_all_uses_with(new.value)
    op.operation.erase()


def _replacement(op: ir.Operation, operands: list[Expr]) -> list[Expr] | None:
    """The values that take the place of the operation's results, or None where it stays."""
    if op.name in CONVERSIONS:
        return _converted(op, operands[0])
    if op.name in ("math.ipowi", "math.fpowi", "math.sincos"):
        return _special(op, operands)
    if op.name in PREDICATES:
        return [PREDICATES[op.name](*operands)]
    if _is_16_bit(operands[0].element):
        wide = [narrow.extend_float(operand) for operand in operands]
        return [narrow.truncate_float(_compute_wide(op, wide), operands[0].element)]
    result = _compute(op, operands)
    return None if result is None else [result]


def _compute(op: ir.Operation, operands: list[Expr]) -> Expr | None:
    """The result in float32 or float64, or None for what the processor does."""
    if op.name in NATIVE:
        return None
    if op.name == "math.powf" and (short := POWERS.get(known_number(op.operands[1]))):
        return short(operands[0])
    table = FLOAT32 if operands[0].element == f32() else FLOAT64
    function = table.get(op.name)
    if function is None:
        raise UnsupportedError(
            f"{op.name} on {operands[0].type} can't be compiled; compute it in float32 or express it with other functions"
        )
    return function(*operands)


def _compute_wide(op: ir.Operation, operands: list[Expr]) -> Expr:
    """An operation of a 16-bit type on its operands in float32."""
    if function := FLOAT16.get(op.name):
        return function(*operands)
    result = _compute(op, operands)
    return operation(op.name, operands[0].type, *operands) if result is None else result


def _special(op: ir.Operation, operands: list[Expr]) -> list[Expr]:
    if op.name == "math.ipowi":
        return [power.ipow(*operands)]
    kind = operands[0].element
    wide = narrow.extend_float(operands[0]) if _is_16_bit(kind) else operands[0]
    if wide.element != f32():
        raise UnsupportedError(f"{op.name} on {operands[0].type} can't be compiled; compute it in float32")
    if op.name == "math.sincos":
        return [narrow.truncate_float(value, kind) for value in trigonometric.sincos(wide)]
    return [narrow.truncate_float(power.integer_exponent_pow(wide, operands[1]), kind)]


def _converted(op: ir.Operation, operand: Expr) -> list[Expr] | None:
    """Conversions from or to a 16-bit type, by way of float32."""
    result = op.results[0].type
    target = result.element_type if isinstance(result, ir.VectorType) else result
    if op.name == "arith.truncf":
        needs_help = isinstance(target, ir.BF16Type) or (isinstance(target, ir.F16Type) and operand.element != f32())
        return [narrow.truncate_float(operand, target)] if needs_help else None
    if _is_16_bit(operand.element):
        wide = narrow.extend_float(operand)
        return [wide if target == f32() else operation(op.name, result, wide)]
    if _is_16_bit(target):
        return [narrow.truncate_float(operation(op.name, operand.with_element(ir.F64Type.get()), operand), target)]
    return None


def _is_16_bit(element: ir.Type) -> bool:
    return isinstance(element, (ir.F16Type, ir.BF16Type))
