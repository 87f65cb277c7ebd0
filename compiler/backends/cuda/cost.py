"""What pays on a GPU, of what analyzes say is legal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmos.compiler.analysis.contraction import Contraction
from llmos.compiler.analysis.conv3x3 import Conv3x3
from llmos.compiler.analysis.generic import has_windows
from llmos.compiler.analysis.grouped_rows import GroupedRows
from llmos.compiler.analysis.windows import WindowReduction
from llmos.compiler.ir.ops import EXPENSIVE
from llmos.compiler.ir.sizes import Expr


@dataclass(frozen=True)
class CudaCosts:
    """The cost model of the CUDA backend.

    max_inlined_ops: of an elementwise op that is evaluated at each use. min_columns: of a convolution that fills a tile of tensor cores.
    """

    max_inlined_ops: int = 5
    min_columns: int = 8

    def pays_as_contraction(self, contraction: Contraction) -> bool:
        """Whether a tile of tensor cores is filled: a depthwise convolution has one column for each window."""
        windowed = any(has_windows(affine) for affine in contraction.generic.maps[:2])
        return not windowed or contraction.static_size(contraction.right, contraction.n) >= self.min_columns

    def pays_to_recompute(self, body: Sequence[str], num_tensors: int) -> bool:
        """Return whether a body (names of its ops) is cheap enough to be evaluated at each use: short, over one tensor."""
        return len(body) <= self.max_inlined_ops and num_tensors <= 1 and not any(name.startswith(EXPENSIVE) for name in body)

    def pays_to_read_around_padding(self, channels: Expr) -> bool:
        """Return True: threads compute where each pixel lies."""
        return True

    def pays_to_fuse_windows(self, windows: WindowReduction) -> bool:
        """Return False: no kernel keeps a band of an image."""
        return False

    def columns_of_groups(self, rows: GroupedRows) -> int | None:
        """Return None: no kernel multiplies the rows of a group alone."""
        return None

    def winograd_tile(self, convolution: Conv3x3, batches: Sequence[int]) -> int:
        """Return 0: tensor cores take the direct sum."""
        return 0

    def fits_winograd(self, convolution: Conv3x3) -> bool:
        """Return False: no kernel computes it."""
        return False


COSTS = CudaCosts()
