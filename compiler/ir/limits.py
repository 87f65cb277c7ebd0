"""How much memory a model asks for, as far as its static sizes say."""

from __future__ import annotations

import math
import os

from llmos.compiler.ir.bindings import ir
from llmos.runtime.errors import UnsupportedError

# What x86-64 and AArch64 can address with four levels of page tables.
ADDRESSABLE_BYTES = 1 << 47


def largest_value(module: ir.Module) -> tuple[int, str]:
    """Return the bytes and the type of the largest tensor of static shape in the module, arguments included; (0, "") without one."""
    found = (0, "")

    def visit(op: ir.Operation) -> ir.WalkResult:
        nonlocal found
        arguments = [argument for region in op.regions for block in region.blocks for argument in block.arguments]
        for value in [*op.results, *arguments]:
            if isinstance(value.type, ir.RankedTensorType) and value.type.has_static_shape:
                found = max(found, (_num_bytes(value.type), str(value.type)))
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


def require_addressable(module: ir.Module) -> None:
    """Raises UnsupportedError for a tensor that no machine holds: arithmetic on its size would overflow sooner or later."""
    num_bytes, kind = largest_value(module)
    if num_bytes >= ADDRESSABLE_BYTES:
        raise UnsupportedError(f"the model has a value of type {kind}, {num_bytes:,} bytes: is a size in it wrong?")


def machine_bytes() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _num_bytes(kind: ir.RankedTensorType) -> int:
    element = kind.element_type
    width = element.width if isinstance(element, ir.IntegerType | ir.FloatType) else 64
    return int(math.prod(kind.shape)) * -(-int(width) // 8)
