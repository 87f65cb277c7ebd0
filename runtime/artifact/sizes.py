"""Dims of manifests as numbers: integers, symbols and expressions in Python's grammar, as the C core reads them (native/expression.c)."""

from __future__ import annotations

import ast
import functools
import math
import struct
from collections.abc import Callable, Mapping

from llmos.runtime.errors import InputError

_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}


def _floor_mul_f32(n: int, p: int, q: int) -> int:
    """Return floor(n * (p / q)) with n, the quotient and the product rounded to float32."""
    return math.floor(_f32(_f32(n) * _f32(p / q)))


def _f32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


_FUNCTIONS: Mapping[str, Callable[..., int]] = {
    "min": min,
    "max": max,
    "floor_mul": lambda n, p, q: math.floor(n * (p / q)),
    "floor_mul_f32": _floor_mul_f32,
}


def evaluate(dim: int | str, sizes: Mapping[str, int]) -> int:
    """Evaluate a dim. Raises InputError for an unknown symbol, a division by zero, or an invalid expression."""
    if isinstance(dim, int):
        return dim
    if dim in sizes:
        return sizes[dim]
    try:
        return _value(_parsed(dim), sizes)
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{dim!r} has no value for these sizes") from error


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, sizes)
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _FUNCTIONS[node.func.id](*[_value(each, sizes) for each in node.args])
    raise TypeError(node)
