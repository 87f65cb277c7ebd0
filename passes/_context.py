"""What a pass is told besides the module: what pays on the backend that the module is compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmos.compiler.analysis.contraction import Contraction
from llmos.compiler.analysis.conv3x3 import Conv3x3
from llmos.compiler.analysis.grouped_rows import GroupedRows
from llmos.compiler.analysis.windows import WindowReduction
from llmos.compiler.ir.sizes import Expr


class CostModel(Protocol):
    """What pays, of what analyzes say is legal. One answer for all targets of a backend: dispatches are formed once."""

    def pays_as_contraction(self, contraction: Contraction) -> bool:
        """Whether a contraction is faster by panels than element by element."""

    def pays_to_recompute(self, body: Sequence[str], num_tensors: int) -> bool:
        """Whether an elementwise op is evaluated at each use. body: names of its ops; num_tensors: how many tensors they read."""

    def pays_to_read_around_padding(self, channels: Expr) -> bool:
        """Whether kernels compute where pixels of so many channels lie, rather than copy the image with its zeros."""

    def pays_to_fuse_windows(self, windows: WindowReduction) -> bool:
        """Whether windows are reduced over bands of an image in the dispatch that makes it."""

    def columns_of_groups(self, rows: GroupedRows) -> int | None:
        """Columns of a panel of a group's matrix; None where no kernel multiplies the rows of a group alone."""

    def winograd_tile(self, convolution: Conv3x3, batches: Sequence[int]) -> int:
        """Side of the tiles, 2 or 4, that take the least time at each of some batches alike; 0 where the direct sum isn't much slower."""

    def fits_winograd(self, convolution: Conv3x3) -> bool:
        """Whether kernels compute a convolution by Winograd's algorithm at all."""


class LegalPays:
    """A cost model that takes all that is legal: for passes that run without a backend."""

    def pays_as_contraction(self, contraction: Contraction) -> bool:
        """Return True: every float contraction is one."""
        return True

    def pays_to_recompute(self, body: Sequence[str], num_tensors: int) -> bool:
        """Return True: elementwise ops are evaluated at each use."""
        return True

    def pays_to_read_around_padding(self, channels: Expr) -> bool:
        """Return True: no image is copied with its zeros."""
        return True

    def pays_to_fuse_windows(self, windows: WindowReduction) -> bool:
        """Return True: windows are reduced where the image is made."""
        return True

    def columns_of_groups(self, rows: GroupedRows) -> int | None:
        """Return the columns of panels that divide a group's."""
        return rows.panel_columns

    def winograd_tile(self, convolution: Conv3x3, batches: Sequence[int]) -> int:
        """Return 4, the larger tile, at every batch."""
        return 4

    def fits_winograd(self, convolution: Conv3x3) -> bool:
        """Return True for every 3x3 convolution of stride 1."""
        return True


@dataclass(frozen=True)
class PassContext:
    """costs: the backend's cost model. precision: arithmetic of contractions, "fp32" or "bf16"."""

    costs: CostModel = field(default_factory=LegalPays)
    precision: str = "fp32"
