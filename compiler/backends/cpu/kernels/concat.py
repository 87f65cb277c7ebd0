"""The kernel of concatenations: piece by piece, each to its place in the result, so that work and code are those of the pieces.

A few pieces of short rows are left to the elementwise kernel, whose vectors reach over the ends of pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from llmos.compiler.analysis.generic import LinearExpr
from llmos.compiler.backends.cpu.kernels.walk import Walk
from llmos.compiler.codegen.access import Accesses, group_dims
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import LANES, Frame, Launch, kernel, product
from llmos.compiler.codegen.loop_space import RowPlan
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

FEW = 4  # pieces, which may as well be evaluated under masks
LONG_ROW = 4 * LANES  # elements in a row of a piece that are worth a loop of their own


@dataclass(frozen=True)
class Pieces:
    """A concatenation along `axis` at the root of an elementwise dispatch."""

    dispatch: Dispatch
    values: Sequence[Value]
    axis: int

    @property
    def shape(self) -> tuple[Expr, ...]:
        """Return the shape of the result."""
        return self.dispatch.shapes.shape(self.dispatch.results[0])

    def offset(self, number: int) -> Expr:
        """Return where a piece begins along the axis."""
        return sympy.expand(sympy.Add(*[self.dispatch.shapes.shape(value)[self.axis] for value in self.values[:number]]))

    def walk(self, value: Value) -> Walk:
        """Return the walk over a piece, its dims together as far as it and the result lie in order."""
        shape = self.dispatch.shapes.shape(value)
        forms: list[LinearExpr] = [{dim: 1} if size != 1 else {} for dim, size in enumerate(shape)]
        accesses = Accesses(self.dispatch)
        accesses.trace(value, forms)
        accesses.leaves.append((self.shape, forms))
        return Walk(RowPlan(self.dispatch, len(shape), shape), group_dims(accesses, shape, range(len(shape))))


def pieces_in(dispatch: Dispatch) -> Pieces | None:
    """The concatenation that an elementwise dispatch is, if it is worth writing piece by piece."""
    owner = dispatch.results[0].owner
    if len(dispatch.results) != 1 or isinstance(owner, ir.Block) or owner.name != "tensor.concat":
        return None
    pieces = Pieces(dispatch, list(owner.operands), ir.IntegerAttr(owner.attributes["dim"]).value)
    rows = [product(dispatch.shapes.shape(value)[pieces.axis :]) for value in pieces.values]
    is_long = all(row.is_Integer and row >= LONG_ROW for row in rows)
    return pieces if is_long or len(pieces.values) > FEW else None


def emit_pieces(module: ir.Module, pieces: Pieces) -> Launch:
    """Append the kernel; the tiles of each piece follow those of the one before."""
    start: Expr = sympy.S.Zero
    with kernel(module, pieces.dispatch) as frame:
        for number, value in enumerate(pieces.values):
            walk = pieces.walk(value)
            end = sympy.expand(start + walk.num_tiles)
            _emit_piece(frame, walk, value, _part(frame, pieces, number), (start, end))
            start = end
    return Launch(start)


def _emit_piece(frame: Frame, walk: Walk, value: Value, part: Buffer, tiles: tuple[Expr, Expr]) -> None:
    b, (start, end) = frame.b, (frame.emitter.sizes(each) for each in tiles)
    low, high = b.binary("arith.maxsi", frame.begin, start), b.minimum(frame.end, end)
    with b.loop(low, high, b.index(1)) as loop, frame.emitter.scope():
        walk.emit(frame, b.sub(loop.iv, start), [(value, part)])


def _part(frame: Frame, pieces: Pieces, number: int) -> Buffer:
    """Where a piece lies in the result."""
    whole, b = frame.outputs[0], frame.b
    offset = frame.emitter.sizes(sympy.expand(pieces.offset(number) * whole.strides[pieces.axis]))
    kind = b.i8 if isinstance(whole.kind, ir.IntegerType) and whole.kind.width == 1 else whole.kind
    return Buffer(b.address(whole.pointer, offset, kind), whole.kind, whole.shape, whole.strides)
