"""What the manifest says of an entry, whatever the backend: its inputs, outputs, states, conditions and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import sympy

from llmos.compiler.analysis.independence import Function, row_independence
from llmos.compiler.ir.attributes import callers_shape
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.ir.guards import guards_of
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.size_text import size_text
from llmos.compiler.ir.sizes import SymbolTable
from llmos.runtime.artifact.manifest import ComputedSymbol, EntrySpec, GuardSpec, Symbol, TensorSpec


def describe_entry(main: ir.Operation, table: SymbolTable, functions: Mapping[str, Function]) -> EntrySpec:
    """The entry of a module. main: its public function. functions: those that it calls, by name."""
    shapes = Shapes.of(main, table)
    func = EntryFunc(main)
    name, inputs, updated = func.name, func.arguments.inputs, func.updated.values()
    outputs = tuple(
        _spec(each.name or f"output{each.number}", each.dtype, [manifest_dim(d) for d in shapes.shape(each.value)]) for each in func.outputs
    )
    given = tuple(replace(_spec(each.name, each.dtype, each.shape), updated=each.position in updated) for each in inputs)
    guards = guards_of(main.parent.operation, table)
    return EntrySpec(
        name,
        f"__tvm_ffi_{name}",
        f"__llmos_shapes_{name}",
        given,
        outputs,
        tuple(each.state for each in inputs if each.state),
        row_independence(Function(main, shapes), functions, given, outputs, guards),
        GuardSpec(f"__llmos_guards_{name}", tuple(guard.text for guard in guards)) if guards else None,
    )


def symbols_of(table: SymbolTable) -> tuple[Symbol, ...]:
    """The symbols that a caller's inputs show."""
    return tuple(Symbol(s.name, s.min, s.max) for s in table.symbols)


def computed_by_outputs(main: ir.Operation, table: SymbolTable) -> tuple[ComputedSymbol, ...]:
    """What the manifest says of sizes that the entry computes: those that an output shows."""
    shapes = Shapes.of(main, table)
    named = {symbol.name: symbol for value in EntryFunc(main).returned for dim in shapes.shape(value) for symbol in table.computed_in(dim)}
    return tuple(ComputedSymbol(s.name, s.min, s.max, manifest_dim(table.upper_bound(s.expr))) for s in named.values())


def manifest_dim(dim: sympy.Expr) -> int | str:
    """A size as the manifest writes it: a number, or an expression of symbols."""
    return int(dim) if dim.is_Integer else size_text(dim)


def _spec(name: str, dtype: str, dims: Sequence[int | str]) -> TensorSpec:
    return TensorSpec(name, dtype or "float32", callers_shape(dtype, dims))
