"""What the manifest says of an entry, whatever the backend: its inputs, outputs, states, conditions and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import sympy

from llmos.compiler.analysis.independence import Function, row_independence
from llmos.compiler.frontend.model import STATE
from llmos.compiler.ir.attributes import argument_attributes, callers_shape, read_shape, result_attributes
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.guards import guards_of
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.size_text import size_text
from llmos.compiler.ir.sizes import SymbolTable
from llmos.compiler.ir.updates import output_numbers, updated_arguments
from llmos.runtime.artifact.manifest import ComputedSymbol, EntrySpec, GuardSpec, Symbol, TensorSpec


def describe_entry(main: ir.Operation, table: SymbolTable, functions: Mapping[str, Function]) -> EntrySpec:
    """The entry of a module. main: its public function. functions: those that it calls, by name."""
    shapes = Shapes.of(main, table)
    results = result_attributes(main)
    inputs = [a for a in argument_attributes(main) if ir.StringAttr(a["llmos.kind"]).value == "input"]
    returned = _returned(main)
    name = ir.StringAttr(main.attributes["sym_name"]).value
    outputs = tuple(_spec(results[i], f"output{i}", [manifest_dim(d) for d in shapes.shape(returned[i])]) for i in output_numbers(main))
    updated = updated_arguments(main).values()
    given = tuple(replace(_spec(a, "", read_shape(a["llmos.shape"])), updated=position in updated) for position, a in enumerate(inputs))
    guards = guards_of(main.parent.operation, table)
    return EntrySpec(
        name,
        f"__tvm_ffi_{name}",
        f"__llmos_shapes_{name}",
        given,
        outputs,
        tuple(_text(a, STATE, "") for a in inputs if STATE in a),
        row_independence(Function(main, shapes), functions, given, outputs, guards),
        GuardSpec(f"__llmos_guards_{name}", tuple(guard.text for guard in guards)) if guards else None,
    )


def symbols_of(table: SymbolTable) -> tuple[Symbol, ...]:
    """The symbols that a caller's inputs show."""
    return tuple(Symbol(s.name, s.min, s.max) for s in table.symbols)


def computed_by_outputs(main: ir.Operation, table: SymbolTable) -> tuple[ComputedSymbol, ...]:
    """What the manifest says of sizes that the entry computes: those that an output shows."""
    shapes = Shapes.of(main, table)
    named = {symbol.name: symbol for value in _returned(main) for dim in shapes.shape(value) for symbol in table.computed_in(dim)}
    return tuple(ComputedSymbol(s.name, s.min, s.max, manifest_dim(table.upper_bound(s.expr))) for s in named.values())


def manifest_dim(dim: sympy.Expr) -> int | str:
    """A size as the manifest writes it: a number, or an expression of symbols."""
    return int(dim) if dim.is_Integer else size_text(dim)


def _returned(main: ir.Operation) -> list[ir.Value]:
    return list(list(main.regions[0].blocks[0].operations)[-1].operands)


def _spec(attributes: Mapping[str, ir.Attribute], name: str, dims: Sequence[int | str]) -> TensorSpec:
    dtype = _text(attributes, "llmos.dtype", "float32")
    return TensorSpec(_text(attributes, "llmos.name", name), dtype, callers_shape(dtype, dims))


def _text(attributes: Mapping[str, ir.Attribute], key: str, default: str) -> str:
    return ir.StringAttr(attributes[key]).value if key in attributes else default
