"""winograd: compute convolutions over 3x3 pixels by fewer multiplications, where that is less work in all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmos.compiler.analysis.contraction import root_contraction
from llmos.compiler.analysis.conv3x3 import Conv3x3, conv3x3_of
from llmos.compiler.ir.attributes import DISPATCH, WINOGRAD, integer
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc, functions_of, public_functions
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import SymbolTable
from llmos.passes._context import CostModel, PassContext
from llmos.passes._contracts import DISPATCHED, UNPACKED, WINOGRAD_TILED
from llmos.passes._pass import Pass
from llmos.passes._property import Property
from llmos.passes.pack_weights import weighted_contractions

TYPICAL = 8  # a batch, beside the smallest, that the choice is for


@dataclass(frozen=True)
class Winograd(Pass):
    """A convolution of stride 1 with a constant 3x3 kernel is marked for Winograd's algorithm (compiler/analysis/winograd.py), in tiles of
    m by m outputs, m = 2 or 4.

    Before:
        func.func private @d4_contraction(...) attributes {llmos.dispatch = "contraction"} { conv, bias, relu }
    After:
        func.func private @d4_contraction(...) attributes {llmos.dispatch = "winograd", llmos.winograd = 4} { conv, bias, relu }

    What the function says stays the plain sum; only the kernel is another, and with pack-weights the weight's bytes, transformed.
    `tile`: m for all of them; auto takes for each what is the least work at the smallest batch and at a usual one.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({DISPATCHED, UNPACKED})
    ensures: ClassVar[frozenset[Property]] = frozenset({WINOGRAD_TILED})

    tile: Literal["auto", "2", "4"] = "auto"
    min_channels: int = 32

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Set WINOGRAD of the dispatches of convolutions that `context.costs` says are faster so, or of all that fit for a given `tile`."""
        functions = functions_of(module)
        table = SymbolTable.of(module)
        for main in public_functions(module):
            for call, dispatch, weight, _ in weighted_contractions(main, functions):
                direct = DispatchFunc(dispatch).kind == "contraction"
                if direct and isinstance(call.operands[weight].type.element_type, ir.F32Type):
                    self._mark(dispatch, table, context.costs)

    def _mark(self, dispatch: ir.Operation, table: SymbolTable, costs: CostModel) -> None:
        conv = conv3x3_of(root_contraction(DispatchFunc(dispatch).ops), Shapes.of(dispatch, table))
        if conv is None or not costs.fits_winograd(conv) or conv.channels < self.min_channels:
            return
        m = int(self.tile) if self.tile != "auto" else costs.winograd_tile(conv, _batches(conv, table))
        if m:
            dispatch.attributes[DISPATCH] = ir.StringAttr.get("winograd")
            dispatch.attributes[WINOGRAD] = integer(m)


def _batches(conv: Conv3x3, table: SymbolTable) -> list[int]:
    """The smallest batch and a usual one."""
    least, most = table.bounds(conv.batch)
    if not least.is_Integer:
        return [1, TYPICAL]
    default = TYPICAL * max(1, int(least))
    return [max(1, int(least)), min(default, int(most)) if most.is_Integer else default]
