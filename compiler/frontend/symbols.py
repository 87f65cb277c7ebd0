"""The symbols of an exported program: names from the user's `Dim`s, ranges from export's constraints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram

from llmos.compiler.frontend.dims import INT64_MAX, MAX_SIZE, DataSize, InputSymbol, Sizes
from llmos.runtime.errors import UnsupportedError


def find_symbols(program: ExportedProgram, inputs: Sequence[fx.Node], dynamic_shapes: Any, num_states: int = 0) -> Sizes:
    """Find the symbols of the inputs' shapes in input order.

    `dynamic_shapes` doesn't name the last `num_states` inputs. Raises UnsupportedError for a symbol that is no input dimension by itself.
    """
    named = _dim_names(inputs[: len(inputs) - num_states], dynamic_shapes)
    found: dict[sympy.Symbol, InputSymbol] = {}
    derived: set[sympy.Symbol] = set()
    for argument, node in enumerate(inputs):
        for axis, size in enumerate(node.meta["val"].shape):
            if not isinstance(size, torch.SymInt):
                continue
            expr = size.node.expr
            if expr in found:
                continue
            if not isinstance(expr, sympy.Symbol):
                derived |= expr.free_symbols
                continue
            name = _unique(named.get((argument, axis)), [s.name for s in found.values()])
            found[expr] = InputSymbol(name, *_range(program, expr), argument, axis)
    if derived - set(found):
        raise UnsupportedError(
            "a dimension is given only as part of an expression (such as 2*n); every symbol must stand alone in some input dimension"
        )
    return Sizes(list(found.values()), found, _data_sizes(program, [s.name for s in found.values()]))


def _data_sizes(program: ExportedProgram, taken: Sequence[str]) -> dict[sympy.Symbol, DataSize]:
    """Return export's unbacked symbols: numbers that ops read from data."""
    symbols = [symbol for node in program.graph.nodes for symbol in node.meta.get("unbacked_bindings") or ()]
    limits = _asserted(program)
    found: dict[sympy.Symbol, DataSize] = {}
    for symbol in dict.fromkeys(symbols):
        name = _unique(str(symbol), [*taken, *[size.name for size in found.values()]])
        known = program.range_constraints.get(symbol)
        low, high = (known.lower, known.upper) if known is not None else (-INT64_MAX, INT64_MAX)
        ends = [int(end) if sympy.sympify(end).is_Integer else None for end in (low, high)]
        low, high = (ends[0] if ends[0] is not None else -INT64_MAX), (ends[1] if ends[1] is not None else INT64_MAX)
        found[symbol] = DataSize(name, low, high, tuple(limits.get(symbol, ())))
    return found


def _asserted(program: ExportedProgram) -> dict[sympy.Symbol, list[sympy.Expr]]:
    """Return the upper bounds of unbacked symbols that the model asserts with torch._check."""
    found: dict[sympy.Symbol, list[sympy.Expr]] = {}
    for node in program.graph.nodes:
        if str(node.target) != "aten._assert_scalar.default" or not isinstance(node.args[0], fx.Node):
            continue
        condition = node.args[0].meta.get("val")
        relation = condition.node.expr if isinstance(condition, torch.SymBool) else None
        if isinstance(relation, sympy.Ge | sympy.Gt):
            relation = relation.reversed
        if isinstance(relation, sympy.Le | sympy.Lt) and isinstance(relation.lhs, sympy.Symbol):
            found.setdefault(relation.lhs, []).append(relation.rhs - (1 if isinstance(relation, sympy.Lt) else 0))
    return found


def _unique(name: str | None, taken: Sequence[str]) -> str:
    if name is not None and name not in taken:
        return name
    number = len(taken)
    while f"s{number}" in taken:
        number += 1
    return f"s{number}"


def _range(program: ExportedProgram, symbol: sympy.Symbol) -> tuple[int, int]:
    known = program.range_constraints.get(symbol)
    if known is None:
        return 1, MAX_SIZE
    low, high = known.lower, known.upper
    return max(int(low), 1), min(int(high), MAX_SIZE) if sympy.sympify(high).is_Integer else MAX_SIZE


def _dim_names(inputs: Sequence[fx.Node], dynamic_shapes: Any) -> dict[tuple[int, int], str]:
    """Map (input, axis) to the name of the Dim that the user gave."""
    if dynamic_shapes is None:
        return {}
    specs = _per_input(dynamic_shapes, len(inputs))
    names = {}
    for argument, spec in enumerate(specs):
        items = spec.items() if isinstance(spec, dict) else enumerate(spec) if isinstance(spec, list | tuple) else ()
        for axis, dim in items:
            if hasattr(dim, "__name__") and type(dim).__name__ not in ("_DimHint",):
                names[argument, axis] = dim.__name__
    return names


def _per_input(dynamic_shapes: Any, count: int) -> list[Any]:
    """Return the shape specification of each tensor input, flattened out of its containers."""
    leaves: list[Any] = []

    def visit(spec: Any) -> None:
        if spec is None or _is_shape(spec):
            leaves.append(spec)
        else:
            for each in spec.values() if isinstance(spec, dict) else spec:
                visit(each)

    for each in dynamic_shapes.values() if isinstance(dynamic_shapes, dict) else dynamic_shapes:
        visit(each)
    return leaves if len(leaves) == count else []


def _is_shape(spec: Any) -> bool:
    """Whether a specification is {axis: Dim} or a list with one entry a dimension, not a container of those."""
    if isinstance(spec, dict):
        return all(isinstance(axis, int) for axis in spec)
    return isinstance(spec, list | tuple) and all(
        each is None or isinstance(each, int) or hasattr(each, "__name__") or "Dim" in type(each).__name__ for each in spec
    )
