"""Named facts about a module that passes ask for and promise; the manager checks both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llmos.compiler.ir.bindings import ir

Check = Callable[[ir.Module], str | None]


@dataclass(frozen=True)
class Property:
    """`check` gives None where the property holds, else one line on the first place where it doesn't."""

    name: str
    check: Check

    def __str__(self) -> str:
        return self.name


def operations(module: ir.Module) -> Iterator[ir.Operation]:
    """Yield every operation from the module down, outer ones first."""
    pending = [module.operation]
    while pending:
        op = pending.pop()
        yield op
        inner = [nested.operation for region in op.regions for block in region.blocks for nested in block.operations]
        pending.extend(reversed(inner))


def first_operation(module: ir.Module, is_wrong: Callable[[ir.Operation], bool]) -> str | None:
    """Return one line that names the first operation for which `is_wrong` is true, or None."""
    for op in operations(module):
        if is_wrong(op):
            return f"{op.name} at {op.location}"
    return None


def _is_named_linalg(op: ir.Operation) -> bool:
    return op.name.startswith("linalg.") and op.name not in _STRUCTURE_OF_LINALG


def _is_above_linalg(op: ir.Operation) -> bool:
    return op.name.partition(".")[0] in {"torch", "torch_c", "tosa", "stablehlo", "shape"}


def _has_memref(op: ir.Operation) -> bool:
    return any(isinstance(value.type, (ir.MemRefType, ir.UnrankedMemRefType)) for value in (*op.operands, *op.results))


# generic carries its meaning in its body; these are its parts or have no body to speak of.
_STRUCTURE_OF_LINALG = frozenset({"linalg.generic", "linalg.yield", "linalg.index"})

ONLY_LINALG_GENERICS = Property("only-linalg-generics", lambda module: first_operation(module, _is_named_linalg))
NO_FRONTEND_OPS = Property("no-frontend-ops", lambda module: first_operation(module, _is_above_linalg))
TENSORS_ONLY = Property("tensors-only", lambda module: first_operation(module, _has_memref))
