"""Which indices of reads and writes are in range by construction; every other is checked when it is used."""

from __future__ import annotations

from llmos.compiler.codegen.builder import Value
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr, SymbolTable

_LINEAR = frozenset({"arith.addi", "arith.subi", "arith.muli", "affine.apply"})
_KNOWN = frozenset({"arith.constant", "linalg.index", "memref.dim", "tensor.dim"})


def is_in_range(index: Value, size: Expr, table: SymbolTable) -> bool:
    """Whether an index of a body needs no check: a constant below `size`, or a loop dim with a known offset.

    The lowering that writes such an index bounds its loop by the size. One that an operand gives may be anything.
    """
    owner = index.owner
    if isinstance(owner, ir.Block):
        return not depends_on_data(index)
    if owner.name == "arith.constant":
        return bool(0 <= ir.IntegerAttr(owner.attributes["value"]).value < table.bounds(size)[0])
    return (owner.name == "linalg.index" or owner.name in _LINEAR) and not depends_on_data(index)


def depends_on_data(value: Value) -> bool:
    """Whether a value of a function or of a body in it is computed from elements of tensors or memrefs, or counts to a bound that is."""
    pending, seen = [value], set()
    while pending:
        each = pending.pop()
        if each in seen:
            continue
        seen.add(each)
        sources = _sources(each)
        if sources is None:
            return True
        pending += sources
    return False


def _sources(value: Value) -> list[Value] | None:
    """What a value is computed from; None where it is data."""
    owner = value.owner
    if isinstance(owner, ir.Block):
        return _sources_of_argument(value, owner)
    op = owner.operation
    if op.name in _KNOWN:
        return []
    is_opaque = len(list(op.regions)) > 0 or not op.name.startswith(("arith.", "affine.", "index."))
    return None if is_opaque else list(op.operands)


def _sources_of_argument(value: Value, block: ir.Block) -> list[Value] | None:
    """A size that a function takes, or the counter of a loop; any other argument of a block is data."""
    parent = block.owner.operation
    if parent.name == "func.func":
        return [] if isinstance(value.type, ir.IndexType) else None
    number = ir.BlockArgument(value).arg_number
    if parent.name == "scf.for" and number == 0:
        return list(parent.operands)[:3]
    return None
