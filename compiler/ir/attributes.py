"""The llmos attributes of modules, functions and ops: their names, and how they are read and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import sympy

from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.size_text import size_text

T = TypeVar("T")

COUNTERS = "llmos.counters"  # of a module: the counters of its loops, with their ranges
COUNTER = "llmos.counter"  # of a loop: the name of its counter
COMPUTED = "llmos.computed"  # of a module: the sizes that the program computes from data
COMPUTES = "llmos.computes"  # of a tensor.extract: the name of the size that it reads


def argument_attributes(func: ir.Operation) -> list[dict[str, ir.Attribute]]:
    """`arg_attrs` of a function, one dict an argument."""
    count = len(func.regions[0].blocks[0].arguments)
    if "arg_attrs" not in func.attributes:
        return [{} for _ in range(count)]
    return [{named.name: named.attr for named in _items(ir.DictAttr(attr))} for attr in ir.ArrayAttr(func.attributes["arg_attrs"])]


def result_attributes(func: ir.Operation) -> list[dict[str, ir.Attribute]]:
    """`res_attrs` of a function, one dict a result."""
    count = len(ir.FunctionType(ir.TypeAttr(func.attributes["function_type"]).value).results)
    if "res_attrs" not in func.attributes:
        return [{} for _ in range(count)]
    return [{named.name: named.attr for named in _items(ir.DictAttr(attr))} for attr in ir.ArrayAttr(func.attributes["res_attrs"])]


def _items(attr: ir.DictAttr) -> list[ir.NamedAttribute]:
    return [attr[i] for i in range(len(attr))]


def read_shape(attr: ir.Attribute) -> list[str | int]:
    """The entries of an `llmos.shape` attribute."""
    return [ir.StringAttr(dim).value if isinstance(dim, ir.StringAttr) else ir.IntegerAttr(dim).value for dim in ir.ArrayAttr(attr)]


def callers_shape(dtype: str, dims: Sequence[T]) -> tuple[T, ...]:
    """The dimensions that a caller sees: the last one of complex numbers holds their two parts, and is none."""
    return tuple(dims[:-1] if dtype.startswith("complex") else dims)


def shape_attribute(shape: Sequence[sympy.Expr]) -> ir.Attribute:
    """`llmos.shape` of symbolic sizes."""
    i64 = ir.IntegerType.get_signless(64)
    return ir.ArrayAttr.get([ir.IntegerAttr.get(i64, int(dim)) if dim.is_Integer else ir.StringAttr.get(size_text(dim)) for dim in shape])
