"""The lattice Uniform < Rows < Mixed of a tensor's elements, and its transfer functions for views.

n is the batch symbol under test; a size is free if it depends neither on n nor on data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import sympy

from llmos.compiler.ir.sizes import Expr, Shape


@dataclass(frozen=True)
class Uniform:
    """No element depends on rows, nor on n; along an axis whose size is not free all elements are equal."""


@dataclass(frozen=True)
class Rows:
    """Axis `axis` has size `outer * n * block`; position (o * n + i) * block + b depends on row i only; all other sizes are free."""

    axis: int
    outer: Expr = sympy.S.One
    block: Expr = sympy.S.One


@dataclass(frozen=True)
class Mixed:
    """Not proven to be either, with the reason to report."""

    reason: str


State: TypeAlias = Uniform | Rows | Mixed


@dataclass(frozen=True)
class Batch:
    """The symbol under test, and the symbols that are independent of it."""

    symbol: Expr
    others: frozenset[Expr]

    def is_free(self, size: Expr | None) -> bool:
        """Whether a size is known and depends neither on n nor on data."""
        return size is not None and size.free_symbols <= self.others

    @property
    def name(self) -> str:
        """Return the name of the symbol under test, n."""
        return str(self.symbol)


def join(states: Sequence[State]) -> State:
    """Join the states of tensors of one shape: for a choice among them, or an elementwise function of them."""
    for state in states:
        if isinstance(state, Mixed):
            return state
    rows = {state for state in states if isinstance(state, Rows)}
    if len(rows) > 1:
        return Mixed("combines rows with others")
    return rows.pop() if rows else Uniform()


def collapse(batch: Batch, state: State, shape: Shape, groups: Sequence[Sequence[int]]) -> State:
    """Return the state of a tensor of `shape` after tensor.collapse_shape."""
    if isinstance(state, Mixed):
        return state
    merged = [_merge(batch, state, shape, group) for group in groups]
    if any(isinstance(each, Mixed) for each in merged):
        return next(each for each in merged if isinstance(each, Mixed))
    found = [Rows(axis, each.outer, each.block) for axis, each in enumerate(merged) if isinstance(each, Rows)]
    if not found:
        return Uniform()
    sizes = [sympy.expand(sympy.Mul(*[shape[dim] for dim in group])) for group in groups]
    return only_axis(batch, found[0], sizes) if len(found) == 1 else Mixed(f"has {batch.name} in two dimensions")


def only_axis(batch: Batch, rows: Rows, shape: Sequence[Expr]) -> State:
    """Return `rows`, or Mixed if the size of another axis of the tensor isn't free."""
    others = [size for axis, size in enumerate(shape) if axis != rows.axis]
    return rows if all(batch.is_free(size) for size in others) else Mixed(f"has {batch.name} in two dimensions")


def _merge(batch: Batch, state: Uniform | Rows, shape: Shape, group: Sequence[int]) -> State:
    """Merge one group of a collapse_shape; the axis of a Rows result is ignored."""
    bound = [dim for dim in group if not batch.is_free(shape[dim])]
    if not bound:
        return Uniform()
    if len(bound) > 1:
        return Mixed(f"has {batch.name} in two dimensions")
    at = group.index(bound[0])
    before, after = (sympy.Mul(*[shape[dim] for dim in dims]) for dims in (group[:at], group[at + 1 :]))
    if isinstance(state, Rows) and state.axis == bound[0]:
        return Rows(0, sympy.expand(before * state.outer), sympy.expand(state.block * after))
    if before == after == 1:
        return Uniform()
    # Equal along n, but not along the dims merged with it: rows are equal if the size is a multiple of n.
    factor = _quotient(shape[bound[0]], batch.symbol)
    if factor is None or not batch.is_free(factor):
        return Mixed(f"merges {batch.name} with another dimension")
    return Rows(0, before, sympy.expand(factor * after))


def expand(batch: Batch, state: State, shape: Shape, groups: Sequence[Sequence[int]]) -> State:
    """Return the state of a tensor after tensor.expand_shape to `shape`."""
    if not isinstance(state, Rows):
        return state
    group = groups[state.axis]
    bound = [dim for dim in group if not batch.is_free(shape[dim])]
    if len(bound) != 1:
        return Mixed(f"splits {batch.name} in two dimensions")
    at = list(group).index(bound[0])
    before, after = (sympy.Mul(*[shape[dim] for dim in dims]) for dims in (group[:at], group[at + 1 :]))
    outer, block = _quotient(state.outer, before), _quotient(state.block, after)
    whole = outer is not None and block is not None and sympy.expand(outer * batch.symbol * block - shape[bound[0]]) == 0
    if outer is None or block is None or not whole:
        return Mixed(f"splits {batch.name} across its rows")
    return Rows(bound[0], outer, block)


def _quotient(whole: Expr, part: Expr) -> Expr | None:
    """Return whole / part if it is a polynomial with integer coefficients, else None."""
    found = sympy.cancel(whole / part)
    numerator, denominator = sympy.fraction(sympy.together(found))
    return sympy.expand(numerator) if denominator == 1 and sympy.expand(numerator * part - whole) == 0 else None
