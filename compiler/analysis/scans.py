"""Analysis of scans: `tm_tensor.scan`, an inclusive sum, product, minimum or maximum along one dimension.

    %0:2 = tm_tensor.scan dimension(1) inclusive(true) ins(%x) outs(%out, %total) { ^bb0(%a, %b): yield %a + %b }

The combiner is commutative; the second result, the total, has no users.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import Expr

SCAN = "tm_tensor.scan"


def is_scan(op: ir.Operation) -> bool:
    """Whether an op is an inclusive scan of which only the running values are used."""
    if op.name != SCAN or not ir.BoolAttr(op.attributes["inclusive"]).value or any(True for _ in op.results[1].uses):
        return False
    kinds = [ir.RankedTensorType(value.type).element_type for value in (op.operands[0], op.results[0])]
    return kinds[0] == kinds[1] and not isinstance(kinds[0], ir.ComplexType)


@dataclass(frozen=True)
class Scan:
    """One scan."""

    op: ir.Operation
    shapes: Shapes

    @property
    def source(self) -> ir.Value:
        """Return the tensor whose elements are combined."""
        return self.op.operands[0]

    @property
    def result(self) -> ir.Value:
        """Return the running values, of the shape of `source`."""
        return self.op.results[0]

    @property
    def axis(self) -> int:
        """Return the dimension along which the scan runs."""
        return int(ir.IntegerAttr(self.op.attributes["dimension"]).value)

    @property
    def shape(self) -> tuple[Expr, ...]:
        """Return the sizes of the tensor. Raises UnsupportedError if they depend on data."""
        return self.shapes.shape(self.source)

    @property
    def body(self) -> ir.Block:
        """Return the block that combines two elements; its last op is the yield."""
        return self.op.regions[0].blocks[0]
