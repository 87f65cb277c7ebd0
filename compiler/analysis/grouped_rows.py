"""Groups of rows in the IR: one linalg.generic that carries `llmos.grouped_rows` takes, of a product by the matrices of all groups, the
columns of each row's own group.

    %image = linalg.generic {x W} ins(%x : [rows, k], %w : [groups * n, k])                  // (r, c) over k, and what follows it
    %own = linalg.generic {begins[g] <= r < ends[g] ? image[r, g * n + c] : taken}           // (r, c) over g -> [rows, n]

It is a whole reference. Where both are one dispatch, only rows of a group are multiplied by its matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmos.compiler.analysis.generic import Generic
from llmos.compiler.ir.attributes import GROUPED_ROWS
from llmos.compiler.ir.bindings import ir

PANEL_COLUMNS = (64, 48, 32, 16)  # of a packed weight: a panel must lie in one group


@dataclass(frozen=True)
class GroupedRows:
    """The op that takes each row's own columns."""

    op: ir.Operation

    @property
    def image(self) -> ir.Value:
        """Return the product by all matrices, [rows, groups * n]."""
        return Generic(self.op).inputs[0]

    @property
    def bounds(self) -> tuple[ir.Value, ir.Value]:
        """Return the first row of each group, and the row behind its last, integers [groups]."""
        _, begins, ends = Generic(self.op).inputs
        return begins, ends

    @property
    def num_groups(self) -> int:
        """Return the number of groups."""
        return int(ir.RankedTensorType(self.bounds[0].type).shape[0])

    @property
    def num_columns(self) -> int:
        """Return the columns of a group."""
        return int(ir.RankedTensorType(self.op.results[0].type).shape[1])

    @property
    def panel_columns(self) -> int | None:
        """Return the columns of a panel, which divide those of a group; None where no panel does."""
        return next((width for width in PANEL_COLUMNS if self.num_columns % width == 0), None)


def is_grouped_rows(op: ir.Operation) -> bool:
    """Whether an op takes each row's own columns."""
    return GROUPED_ROWS in op.attributes
