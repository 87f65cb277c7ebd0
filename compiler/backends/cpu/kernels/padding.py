"""Padding under a sliding window: where windows meet none of it, and how much of one lies inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from llmos.compiler.analysis.generic import Generic, compose
from llmos.compiler.analysis.windows import adds_nothing
from llmos.compiler.codegen.builder import Builder, Sizes, Value
from llmos.compiler.codegen.coordinates import Coord, IndexEmitter
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import pad_parameters
from llmos.compiler.ir.sizes import Expr


@dataclass(frozen=True)
class PaddedAxis:
    """An axis that is read at out * stride + tap * dilation - before, where [0, size) is inside."""

    out: int  # loop dims
    tap: int
    stride: int
    dilation: int
    before: Expr
    size: Expr
    num_taps: Expr

    @property
    def whole_windows(self) -> tuple[Expr, Expr]:
        """Return [begin, end) of the output coordinates whose windows lie inside; may be empty, or end before it begins."""
        begin = sympy.floor((self.before + self.stride - 1) / self.stride)
        end = sympy.floor((self.size - 1 + self.before - (self.num_taps - 1) * self.dilation) / self.stride) + 1
        return sympy.expand(begin), sympy.expand(end)

    def taps_inside(self, b: Builder, size: Sizes, out: Value) -> tuple[Value, Value]:
        """Emit [begin, end) of the taps that lie inside, at an output coordinate; end may come before begin."""
        start = b.sub(size(self.before), b.mul(out, b.index(self.stride)))  # the first tap inside is at start / dilation, rounded up
        past = b.add(start, size(self.size))
        begin, end = (self._rounded_up(b, value) for value in (start, past))
        return b.binary("arith.maxsi", begin, b.index(0)), b.minimum(end, size(self.num_taps))

    @property
    def is_known(self) -> bool:
        """Whether sizes and padding are numbers."""
        return all(bool(size.is_Integer) for size in (self.before, self.size, self.num_taps))

    def known_taps_inside(self, out: int) -> range:
        """Return `taps_inside` of an axis whose sizes are known, at an output coordinate."""
        start = int(self.before) - out * self.stride
        begin, end = (-(-value // self.dilation) for value in (start, start + int(self.size)))
        return range(max(0, begin), max(0, begin, min(end, int(self.num_taps))))

    def _rounded_up(self, b: Builder, value: Value) -> Value:
        if self.dilation == 1:
            return value
        return b.binary("arith.floordivsi", b.add(value, b.index(self.dilation - 1)), b.index(self.dilation))


@dataclass(frozen=True)
class Padding:
    """A padded operand of a windowed reduction, whose padding adds nothing to it."""

    value: Value  # the tensor.pad's result
    source: Value
    axes: tuple[PaddedAxis, ...]
    before: tuple[Expr, ...]  # of every axis

    def shifted(self, index: IndexEmitter, coords: Sequence[Coord]) -> list[Coord]:
        """Emit coordinates of the source from those of the padded tensor."""
        return [index.add(coord, index.sizes(-before)) for coord, before in zip(coords, self.before, strict=True)]


def padding_of(dispatch: Dispatch, root: Generic, lane: int) -> Padding | None:
    """The padding that a reduction's windows slide over, if it is one whose taps may be left out; `lane` is the loop dim of the lanes."""
    pads = [i for i, v in enumerate(root.inputs) if not isinstance(v.owner, ir.Block) and v.owner.name == "tensor.pad"]
    if len(pads) != 1 or not adds_nothing(root, pads[0]):
        return None
    op = root.inputs[pads[0]].owner.operation
    low, high = pad_parameters(dispatch.shapes, op)
    source = dispatch.shapes.shape(op.operands[0])
    sizes = root.loop_sizes(dispatch.shapes)
    axes: list[PaddedAxis] = []
    for expr, before, after, size in zip(root.maps[pads[0]].results, low, high, source, strict=True):
        if before == 0 and after == 0:
            continue
        form = compose(expr, [{dim: 1} for dim in range(root.rank)]) or {}
        outs, taps = ([dim for dim in form if root.iterators[dim] == kind] for kind in ("parallel", "reduction"))
        if len(outs) != 1 or len(taps) != 1 or outs[0] == lane or min(form.values()) < 1:
            return None
        axes.append(PaddedAxis(outs[0], taps[0], form[outs[0]], form[taps[0]], before, size, sizes[taps[0]]))
    if len({axis.tap for axis in axes}) != len(axes):
        return None
    return Padding(op.results[0], op.operands[0], tuple(axes), tuple(low))
