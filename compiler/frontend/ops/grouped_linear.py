"""`llmos::grouped_linear` as a product by all groups' matrices, of which each row takes its own group's columns."""

from __future__ import annotations

from collections.abc import Callable

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor, affine_dim
from llmos.compiler.frontend.ops.contractions import linear
from llmos.compiler.frontend.scalars import Scalar, to_index
from llmos.compiler.ir.attributes import GROUPED_ROWS
from llmos.compiler.ir.bindings import arith, ir, linalg


def grouped_linear(b: Builder, result: Meta, x: Tensor, weight: Tensor, bias: Tensor | None, begins: Tensor, ends: Tensor) -> Tensor:
    """Lower the op of frontend/grouped_linear.py; compiler/analysis/grouped_rows.py has the form of the IR."""
    columns, groups = result.shape[1], ends.shape[0]
    assert isinstance(columns, int) and isinstance(groups, int)
    image = linear(b, Meta((x.shape[0], groups * columns), result.dtype), x, weight, bias)
    row, column, group = (affine_dim(i) for i in range(3))
    of_group = group * columns + column

    def body(value: Scalar, begin: Scalar, end: Scalar, taken: Scalar) -> list[Scalar]:
        number = linalg.IndexOp(ir.IntegerAttr.get(ir.IntegerType.get_signless(64), 0)).result
        behind = arith.cmpi(arith.CmpIPredicate.sge, number, to_index(begin))
        before = arith.cmpi(arith.CmpIPredicate.slt, number, to_index(end))
        return [s.select(Scalar(arith.andi(behind, before), torch.bool), value, taken)]

    (value,) = b.generic(
        [(b.dense(image), [row, of_group]), (b.dense(begins), [group]), (b.dense(ends), [group])],
        [(b.fill(result.shape, result.dtype, 0), result.dtype, [row, column])],
        ["parallel", "parallel", "reduction"],
        body,
    )
    value.owner.operation.attributes[GROUPED_ROWS] = ir.UnitAttr.get()
    return b.dense_tensor(value, result.shape, result.dtype)


def table() -> dict[str, Callable[..., Tensor]]:
    """Return the lowerings by overload name."""
    return {"llmos.grouped_linear.default": grouped_linear}
