"""Arithmetic of a model: the manifest's counts of operations, which are expressions of its symbols."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from llmos.compiler.bench.peak import Limits
from llmos.runtime.artifact.manifest import Manifest
from llmos.runtime.errors import ArtifactError

_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "Min": min,
    "Max": max,
    "Mod": operator.mod,
    "floor": math.floor,
    "ceiling": math.ceil,
}
_MAX_POWER = 8


def total_flops(manifest: Manifest, symbols: Mapping[str, int]) -> float | None:
    """FLOPs of one call at these sizes, over all kernels; None where the artifact doesn't say."""
    counts = [kernel.details["flops"] for kernel in manifest.kernels if "flops" in kernel.details]
    return sum(float(evaluate(str(count), symbols)) for count in counts) if counts else None


def arithmetic_s(manifest: Manifest, symbols: Mapping[str, int], limits: Limits) -> float | None:
    """Seconds that the operations of one call take at the machine's peaks; None where the artifact doesn't say."""
    counts = [
        float(evaluate(str(kernel.details["flops"]), symbols)) / limits.ops_per_s(str(kernel.details.get("arithmetic", "")))
        for kernel in manifest.kernels
        if "flops" in kernel.details
    ]
    return sum(counts) if counts else None


def evaluate(expression: str, symbols: Mapping[str, int]) -> float:
    """The value of an arithmetic expression; nothing in it is run as code. Raises ArtifactError for anything else than arithmetic."""
    try:
        return float(_value(ast.parse(expression, mode="eval").body, symbols))
    except (SyntaxError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
        raise ArtifactError(f"{expression[:80]!r} is no size of this model") from None


def _value(node: ast.AST, symbols: Mapping[str, int]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name):
            return symbols[name]
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_value(operand, symbols))
        case ast.BinOp(op=op, left=left, right=right):
            values = _value(left, symbols), _value(right, symbols)
            if isinstance(op, ast.Pow) and abs(values[1]) > _MAX_POWER:
                raise ValueError("power")
            return _OPERATORS[type(op)](*values)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name](*(_value(argument, symbols) for argument in arguments))
    raise ValueError("not arithmetic")
