"""Windows over few channels as runs of whole words: kernels multiply four neighboring bytes of a row at once."""

from __future__ import annotations

import sympy

from llmos.compiler.analysis.contraction import Contraction
from llmos.compiler.analysis.generic import compose, dim_positions, padding_number
from llmos.compiler.ir.bindings import ir
from llmos.passes._context import CostModel
from llmos.passes._graph import owner_of
from llmos.passes.quant._generics import after, constant
from llmos.passes.quant._sides import padded_like

WORD = 4  # bytes


def with_whole_words(contraction: Contraction, u: ir.Value, s: ir.Value, costs: CostModel) -> tuple[ir.Value, ir.Value]:
    """Return both sides of a convolution with columns of zeros added to its kernel until a row of it is whole words.

    The pixels of a row of an image [n, ..., w, c] and of a kernel lie one after the other. The image gets as many columns as the kernel,
    of anything: what is in them is multiplied by 0. u: of bytes, a tensor.pad of pixels so small that the image is copied with its padding;
    other values stay as they are, and so do kernels whose columns are apart.
    """
    pad, column = owner_of(u), _column(contraction)
    if pad is None or pad.name != "tensor.pad" or column is None or (number := padding_number(pad)) is None:
        return u, s
    positions = dim_positions(contraction.rhs_map)
    if u.type.shape[-1] < 0 or costs.pays_to_read_around_padding(sympy.Integer(u.type.shape[-1])):
        return u, s
    columns, channels = s.type.shape[positions.index(column)], u.type.shape[-1]
    extra = next(more for more in range(WORD) if (columns + more) * channels % WORD == 0)
    if not extra:
        return u, s
    with ir.InsertionPoint.after(pad), pad.location:
        wide = padded_like(pad, pad.operands[0], int(number), (u.type.rank - 2, extra))
    return wide, _padded_weight(s, positions.index(column), extra)


def _column(contraction: Contraction) -> int | None:
    """The loop dim over a kernel's columns, if the image's last axes are they, next to each other, and channels."""
    forms = [compose(expr, [{dim: 1} for dim in range(contraction.generic.rank)]) for expr in contraction.lhs_map.results]
    if len(forms) < 3 or forms[-1] not in [{dim: 1} for dim in contraction.k]:
        return None
    steps = [dim for dim, by in (forms[-2] or {}).items() if dim in contraction.k and by == 1]
    return steps[0] if len(steps) == 1 and steps[0] in dim_positions(contraction.rhs_map) else None


def _padded_weight(s: ir.Value, axis: int, extra: int) -> ir.Value:
    """A weight with zeros behind its last element along an axis."""
    shape, rank = list(s.type.shape), s.type.rank
    shape[axis] += extra
    with after(s):
        zero = constant(0, s.type.element_type)
        made = ir.Operation.create(
            "tensor.pad",
            results=[ir.RankedTensorType.get(shape, s.type.element_type)],
            operands=[s],
            attributes={
                "static_low": ir.DenseI64ArrayAttr.get([0] * rank),
                "static_high": ir.DenseI64ArrayAttr.get([extra if each == axis else 0 for each in range(rank)]),
                "operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, 0, 0]),
            },
            regions=1,
        )
        block = made.regions[0].blocks.append(*[ir.IndexType.get()] * rank)
        with ir.InsertionPoint(block):
            ir.Operation.create("tensor.yield", operands=[zero])
    return made.results[0]
