"""Conditions that the sizes of a call must satisfy beyond their ranges: the module attribute `llmos.guards`, texts such as "a*b == 8"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from llmos.compiler.ir.attributes import GUARDS
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr, SymbolTable
from llmos.runtime.errors import UserError

_PREDICATES: Mapping[str, str] = {"==": "eq", "!=": "ne", "<=": "sle", ">=": "sge", "<": "slt", ">": "sgt"}


@dataclass(frozen=True)
class Guard:
    """`left <predicate> right`, with arith.cmpi's name of the predicate; both sides are whole numbers of any sign."""

    text: str
    predicate: str
    left: Expr
    right: Expr

    @property
    def symbols(self) -> frozenset[Expr]:
        """Return the symbols of both sides."""
        return frozenset(self.left.free_symbols | self.right.free_symbols)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether the condition holds at the sizes of a call, by name. Raises KeyError for a symbol that `sizes` lacks."""
        values = {symbol: sizes[str(symbol)] for symbol in self.symbols}
        difference = sympy.expand(self.left - self.right).subs(values)
        verdicts = {"eq": difference == 0, "ne": difference != 0, "sle": difference <= 0, "sge": difference >= 0}
        return bool({**verdicts, "slt": difference < 0, "sgt": difference > 0}[self.predicate])


def guards_of(module: ir.Operation, table: SymbolTable) -> tuple[Guard, ...]:
    """Return the module's guards, in its order. Raises UserError for a text that is no comparison of two sizes over the table's symbols."""
    if GUARDS not in module.attributes:
        return ()
    return tuple(_parse(ir.StringAttr(text).value, table) for text in ir.ArrayAttr(module.attributes[GUARDS]))


def _parse(text: str, table: SymbolTable) -> Guard:
    parts = re.split(r"(==|!=|<=|>=|<|>)", text)
    if len(parts) != 3:
        raise UserError(f"{GUARDS}: {text!r} is no comparison of two sizes")
    left, relation, right = parts
    return Guard(text, _PREDICATES[relation], table.parse(left.strip()), table.parse(right.strip()))
