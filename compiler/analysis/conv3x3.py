"""3x3 convolutions of stride 1, channels last, which can be computed by tiles of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from llmos.compiler.analysis.contraction import Contraction
from llmos.compiler.analysis.generic import padded_source
from llmos.compiler.analysis.winograd import TAPS
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import Shapes, pad_parameters
from llmos.compiler.ir.sizes import Expr


@dataclass(frozen=True)
class Conv3x3:
    """out[n, i, j, f] = sum over u, v, c of x[n, i + u - top, j + v - left, c] * weight[u, v, c, f], zeros around x [n, h, w, c]."""

    source: ir.Value
    batch: Expr
    corner: tuple[int, int]  # top, left: rows and columns of zeros before the image
    image: tuple[int, int]  # h, w
    out: tuple[int, int]  # rows and columns of the output
    channels: int
    columns: int

    def tiles(self, m: int) -> tuple[int, int]:
        """Return the number of m by m output tiles, vertically and horizontally."""
        return -(-self.out[0] // m), -(-self.out[1] // m)


def conv3x3_of(root: Contraction, shapes: Shapes) -> Conv3x3 | None:
    """Match a 3x3 convolution; None for anything else, or if a size other than the batch is dynamic."""
    source, pad = padded_source(root.lhs)
    sizes = root.generic.loop_sizes(shapes)
    dims = _dims(root, sizes)
    if dims is None or not isinstance(source.owner, ir.Block):
        return None
    rows, across, channels, columns = dims
    whole = shapes.shape(source)
    low, high = pad_parameters(shapes, pad) if pad is not None else ([sympy.S.Zero] * 4,) * 2
    known = (*low, *high, *whole[1:], *(sizes[dim] for dim in dims))
    if not all(each.is_Integer for each in known) or any((low[axis], high[axis]) != (0, 0) for axis in (0, 3)):
        return None
    corner, image = (int(low[1]), int(low[2])), (int(whole[1]), int(whole[2]))
    out = (int(sizes[rows]), int(sizes[across]))
    return Conv3x3(source, whole[0], corner, image, out, int(sizes[channels]), int(sizes[columns]))


def _dims(root: Contraction, sizes: Sequence[Expr]) -> tuple[int, int, int, int] | None:
    """Return the loop dims of output rows, output columns, channels and filters."""
    left, out = list(root.lhs_map.results), list(root.out_map.results)
    if len(left) != 4 or len(out) != 4 or len(root.n) != 1 or len(root.k) != 3:
        return None
    down, across = _slides(left[1]), _slides(left[2])
    plain = [e.position if isinstance(e, ir.AffineDimExpr) else None for e in (left[3], out[1], out[2], out[3])]
    if down is None or across is None or (down[0], across[0]) != (plain[1], plain[2]) or plain[3] != root.n[0]:
        return None
    taps = (down[1], across[1])
    if any(sizes[tap] != TAPS for tap in taps) or root.k != (*taps, plain[0]) or str(left[0]) != str(out[0]):
        return None
    return down[0], across[0], root.k[2], root.n[0]


def _slides(expr: ir.AffineExpr) -> tuple[int, int] | None:
    """Match a sum of two dims; return (output dim, kernel dim). The kernel dim has the higher number."""
    if not isinstance(expr, ir.AffineAddExpr) or not all(isinstance(side, ir.AffineDimExpr) for side in (expr.lhs, expr.rhs)):
        return None
    first, second = sorted((ir.AffineDimExpr(expr.lhs).position, ir.AffineDimExpr(expr.rhs).position))
    return first, second
