"""The kernel of scans: a running sum, product or extreme along one dimension.

Lanes run along the dimensions behind the scanned one; where there is none, a tile is one row, element by element. Each element is combined
with the running value in order, so the bits depend on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmos.compiler.analysis.scans import Scan, is_scan
from llmos.compiler.codegen.builder import Value, is_vector
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import LANES, Frame, Launch, ceil_div, kernel, product, split_index
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr


def emit_scan(module: ir.Module, dispatch: Dispatch) -> Launch:
    """Append the kernel of a `scan` dispatch."""
    scan = Scan(next(op for op in dispatch.ops if is_scan(op)), dispatch.shapes)
    outer, inner = scan.shape[: scan.axis], scan.shape[scan.axis + 1 :]
    num_inner = product(inner)
    strips = ceil_div(num_inner, LANES)
    with kernel(module, dispatch) as frame, frame.tiles() as tile:
        b, size = frame.b, frame.emitter.sizes
        *before, strip = split_index(b, size, tile, [*outer, strips])
        walk = _Walk(frame, scan, before)
        if num_inner == 1:
            walk.emit([b.index(0)] * len(inner))
        else:
            low = b.mul(strip, b.index(LANES))
            # The strip's lanes are neighbors in memory: they go by one flat index, which stands at the last dimension.
            flat = len(inner) == 1
            with frame.emitter.memory.masked(b.tail_mask(b.sub(size(num_inner), low))):
                walk.emit([Lane(low)] if flat else _unflattened(frame, low, inner))
    return Launch(product([*outer, strips]))


def _unflattened(frame: Frame, low: Value, extents: Sequence[Expr]) -> list[Coord]:
    """Coordinates of LANES neighbors from `low` on."""
    b = frame.b
    flat = b.binary("arith.addi", b.iota(), b.splat(low))
    coords: list[Coord] = []
    for extent in reversed(list(extents)[1:]):
        size = b.splat(frame.emitter.sizes(extent))
        coords.insert(0, b.binary("arith.remsi", flat, size))
        flat = b.binary("arith.divsi", flat, size)
    return [flat, *coords]


@dataclass
class _Walk:
    """Emits the walk along the scanned dimension at some places of the others."""

    frame: Frame
    scan: Scan
    before: list[Value]

    def emit(self, behind: Sequence[Coord]) -> None:
        b, ev = self.frame.b, self.frame.emitter
        length = ev.sizes(self.scan.shape[self.scan.axis])
        with b.when(b.compare("sgt", length, b.index(0))), ev.scope():
            first = self._step(b.index(0), behind, None)
            with b.loop(b.index(1), length, b.index(1), [first]) as loop, ev.scope():
                loop.yield_([self._step(loop.iv, behind, loop.args[0])])

    def _step(self, at: Value, behind: Sequence[Coord], running: Value | None) -> Value:
        """One element; `running`: the value before it."""
        b, ev, scan = self.frame.b, self.frame.emitter, self.scan
        coords: list[Coord] = [*self.before, at, *behind]
        value = ev.value(scan.source, coords)
        if any(isinstance(coord, Lane) or is_vector(coord) for coord in behind):
            value = b.splat(value)
        if running is not None:
            [value] = ev.run_block(scan.body, dict(zip(scan.body.arguments, (running, value), strict=True)))
        with ev.binding(scan.result, as_=value):
            for result, buffer in zip(ev.dispatch.results, self.frame.outputs, strict=True):
                place = ev.result_coords(result, scan.result, coords)
                ev.memory.store(ev.value(result, place), buffer, place)
        return value
