"""Non-maximum suppression (frontend/suppression.py): boxes by descending score, each compared with those selected before."""

from __future__ import annotations

import sympy
import torch

from llmos.compiler.frontend.builder import Builder, Meta, Splat, Tensor
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops import shapes
from llmos.compiler.frontend.ops.loops import Loops
from llmos.compiler.frontend.ops.orders import stable_sort
from llmos.compiler.frontend.scalars import Scalar, select

INT, FLOAT = torch.int64, torch.float32


def non_max_suppression(
    b: Builder, result: Meta, boxes: Tensor, scores: Tensor, most: Tensor, overlap: Tensor, least: Tensor, is_centered: bool
) -> Tensor:
    """Lower `llmos::non_max_suppression`; frontend/suppression.py gives shapes, dtypes and order."""
    batches, classes, n = scores.shape
    rows = b.sizes.product([batches, classes])
    ranked = b.reshape(scores, (rows, n))
    _, order = stable_sort(b, [Meta(ranked.shape, FLOAT), Meta(ranked.shape, INT)], ranked, dim=1, descending=True)
    limit: Dim = b.sizes.simplify(sympy.Min(n, max(0, int(most.fact.value)))) if isinstance(most.fact, Splat) else n
    total = b.sizes.product([rows, limit])
    inputs = {"boxes": boxes, "scores": ranked, "order": order, "most": most, "overlap": overlap, "least": least}
    state = {
        "chosen": ((total, 3), INT, 0),
        "kept": ((limit, 4), FLOAT, 0),  # corners of the selected boxes of a class
        "box": ((4,), FLOAT, 0),
        "num": ((4,), INT, 0),  # selected in total; of this class; candidates; whether this box is kept
    }
    loops = Loops(b, inputs, state)
    loops.loop(0, rows, lambda row: _choose(loops, row, classes, n, limit, is_centered))
    size = b.computed_size(result.shape[0], b.reshape(shapes.extract(b, loops.result("num"), 0, 0, 1), ()), total)
    return b.renamed(shapes.extract(b, loops.result("chosen"), 0, 0, size), result.shape)


def _choose(loops: Loops, row: Scalar, classes: Dim, n: Dim, limit: Dim, is_centered: bool) -> None:
    """Select boxes for one class of one batch element."""
    batch = row / loops.number(classes)
    loops.set("num", [1], 0)
    loops.set("num", [2], 0)
    loops.loop(0, n, lambda i: loops.add("num", [2], (loops.get("scores", row, i) > loops.get("least")).to(INT)))
    room = loops.get("most").min(loops.number(limit))

    def consider(place: Scalar) -> None:
        box = loops.get("order", row, place)

        def look() -> None:
            _read_box(loops, batch, box, is_centered)
            loops.set("num", [3], 1)
            loops.loop(0, loops.get("num", 1), lambda other: _compare(loops, other))
            loops.when(loops.get("num", 3) > 0, lambda: _keep(loops, row - batch * loops.number(classes), batch, box))

        loops.when(loops.get("num", 1) < room, look)

    loops.loop(0, loops.get("num", 2), consider)


def _keep(loops: Loops, kind: Scalar, batch: Scalar, box: Scalar) -> None:
    at, mine = loops.get("num", 0), loops.get("num", 1)
    for column, value in enumerate((batch, kind, box)):
        loops.set("chosen", [at, column], value)
    for i in range(4):
        loops.set("kept", [mine, i], loops.get("box", i))
    loops.set("num", [0], at + 1)
    loops.set("num", [1], mine + 1)


def _read_box(loops: Loops, batch: Scalar, box: Scalar, is_centered: bool) -> None:
    """Read the corners of a box: low y and x, high y and x."""
    a = [loops.get("boxes", batch, box, i) for i in range(4)]
    if is_centered:
        halves = [a[3] / 2, a[2] / 2]
        corners = [a[1] - halves[0], a[0] - halves[1], a[1] + halves[0], a[0] + halves[1]]
    else:
        corners = [a[0].min(a[2]), a[1].min(a[3]), a[0].max(a[2]), a[1].max(a[3])]
    for i, value in enumerate(corners):
        loops.set("box", [i], value)


def _compare(loops: Loops, other: Scalar) -> None:
    """Drop the box if its overlap with a selected one exceeds the threshold."""
    a, c = [loops.get("box", i) for i in range(4)], [loops.get("kept", other, i) for i in range(4)]
    shared = (a[2].min(c[2]) - a[0].max(c[0])).max(0) * (a[3].min(c[3]) - a[1].max(c[1])).max(0)
    whole = (a[2] - a[0]) * (a[3] - a[1]) + (c[2] - c[0]) * (c[3] - c[1]) - shared
    ratio = select(whole > 0, shared / whole, 0.0)
    loops.set("num", [3], select(ratio > loops.get("overlap"), loops.get("num", 3).like(0), loops.get("num", 3)))
