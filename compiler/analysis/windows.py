"""Window reductions over an image [n, h, w, c]: depthwise convolutions and pooling, with their padding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from llmos.compiler.analysis.generic import Generic, LinearExpr, combiner_of, compose, dim_positions
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import Shapes, pad_parameters
from llmos.compiler.ir.sizes import Expr

IDENTITY = {
    "arith.addf": -0.0, "arith.mulf": 1.0, "arith.maximumf": float("-inf"), "arith.maxnumf": float("-inf"), "arith.minimumf": float("inf"),
    "arith.minnumf": float("inf"), "arith.addi": 0, "arith.muli": 1, "arith.ori": 0, "arith.xori": 0, "arith.andi": -1,
    "arith.maxui": 0, "arith.minui": -1,
}  # fmt: skip


def identity_element(combiner: str, kind: ir.Type) -> float | int:
    """Return the identity element of a reduction by the op `combiner`."""
    if combiner in IDENTITY:
        return IDENTITY[combiner]
    width = int(ir.IntegerType(kind).width)
    if width == 1:  # signed order of one bit: true is -1
        return {"arith.maxsi": -1, "arith.minsi": 0}[combiner]
    highest = int(2 ** (width - 1)) - 1
    return {"arith.maxsi": -highest - 1, "arith.minsi": highest}[combiner]


def adds_nothing(root: Generic, operand: int) -> bool:
    """Whether a tap on padding doesn't change the sum or maximum. The operand is a tensor.pad."""
    combiner = combiner_of(root, 0) if len(root.inits) == 1 else None
    op = root.inputs[operand].owner.operation
    padded = list(op.regions[0].blocks[0].operations)[-1].operands[0]
    if combiner is None or isinstance(padded.owner, ir.Block) or padded.owner.name != "arith.constant":
        return False
    attribute = padded.owner.attributes["value"]
    number = ir.FloatAttr(attribute).value if isinstance(attribute, ir.FloatAttr) else ir.IntegerAttr(attribute).value
    argument = root.body.arguments[operand]
    if combiner.value == argument:
        return bool(number == identity_element(combiner.name, padded.type))
    owner = combiner.value.owner
    multiplies = not isinstance(owner, ir.Block) and owner.name in ("arith.mulf", "arith.muli") and argument in list(owner.operands)
    return multiplies and combiner.name in ("arith.addf", "arith.addi") and number == 0


@dataclass(frozen=True)
class RowAxis:
    """Row indexing of windows: output row i reads rows i * stride + tap * dilation - before."""

    stride: int
    dilation: int
    taps: int
    before: int
    rows: int  # of the image
    out: int  # rows of the output

    @property
    def overlap(self) -> int:
        """Return the number of rows that adjacent output rows share."""
        return max(0, (self.taps - 1) * self.dilation + 1 - self.stride)

    def band(self, rows: int) -> int:
        """Return the number of output rows computable from `rows` rows of an image."""
        return min(self.out, max(1, (rows - (self.taps - 1) * self.dilation - 1) // self.stride + 1))


@dataclass(frozen=True)
class WindowReduction:
    """A reduction over windows of an image whose sizes, except n, are static. `operand`: the image's operand number."""

    generic: Generic
    operand: int
    shapes: Shapes

    @property
    def pad(self) -> ir.Operation | None:
        """Return the tensor.pad that makes the image's border; None if the windows stay inside."""
        owner = self.generic.inputs[self.operand].owner
        return owner.operation if not isinstance(owner, ir.Block) and owner.name == "tensor.pad" else None

    @property
    def image(self) -> ir.Value:
        """Return the image [n, h, w, c] without padding."""
        return self.pad.operands[0] if self.pad is not None else self.generic.inputs[self.operand]

    @property
    def shape(self) -> tuple[Expr, ...]:
        """Return the image's shape, [n, h, w, c]."""
        return self.shapes.shape(self.image)

    @cached_property
    def rows(self) -> RowAxis:
        """Return how output rows read the image's rows."""
        form = _forms(self.generic, self.operand)[1]
        assert form is not None
        sizes, iterators = self.generic.loop_sizes(self.shapes), self.generic.iterators
        out = next(dim for dim in form if iterators[dim] == "parallel")
        tap = next(dim for dim in form if iterators[dim] == "reduction")
        before = pad_parameters(self.shapes, self.pad)[0][1] if self.pad is not None else 0
        return RowAxis(form[out], form[tap], int(sizes[tap]), int(before), int(self.shape[1]), int(sizes[out]))

    def band(self, columns: int, num_bytes: int) -> int:
        """Return the output rows of a band whose input rows, with `columns` float32 channels a pixel, take `num_bytes` at most."""
        return self.rows.band(num_bytes // (4 * int(self.shape[2]) * columns))


def _forms(generic: Generic, operand: int) -> list[LinearExpr]:
    identity: list[LinearExpr] = [{dim: 1} for dim in range(generic.rank)]
    return [compose(expr, identity) for expr in generic.maps[operand].results]


def window_reduction_over(generic: Generic, image: ir.Value, shapes: Shapes) -> WindowReduction | None:
    """Match a window reduction over `image`, whose rows and columns have static sizes; None for anything else."""
    if len(generic.op.results) != 1 or not _writes_images(generic):
        return None
    for operand, value in enumerate(generic.inputs):
        found = WindowReduction(generic, operand, shapes)
        if value.type.rank == 4 and found.image == image and _slides(found):
            return found
    return None


def _writes_images(generic: Generic) -> bool:
    """Whether the result's axes are the four parallel dims in order."""
    return dim_positions(generic.maps[generic.num_inputs]) == generic.parallel_dims == [0, 1, 2, 3]


def _slides(found: WindowReduction) -> bool:
    generic, forms = found.generic, _forms(found.generic, found.operand)
    shape, sizes = found.shape, generic.loop_sizes(found.shapes)
    if (forms[0] != {0: 1} and shape[0] != 1) or forms[3] != {3: 1} or list(generic.inputs).count(generic.inputs[found.operand]) != 1:
        return False
    for axis in (1, 2):
        form = forms[axis] or {}
        taps = [dim for dim in form if generic.iterators[dim] == "reduction"]
        if len(form) != 2 or len(taps) != 1 or axis not in form or min(form.values()) < 1:
            return False
    if not all(size.is_Integer for size in (*shape[1:], *sizes[1:])) or min(int(size) for size in sizes[1:4]) < 2:
        return False
    return found.pad is None or _pads_around(found)


def _pads_around(found: WindowReduction) -> bool:
    """Whether only rows and columns are padded, and the padding doesn't change the result."""
    assert found.pad is not None
    low, high = pad_parameters(found.shapes, found.pad)
    known = all(size.is_Integer and size >= 0 for size in (*low, *high))
    return known and all(low[axis] == high[axis] == 0 for axis in (0, 3)) and adds_nothing(found.generic, found.operand)
