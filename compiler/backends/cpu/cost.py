"""What pays on a CPU, of what analyzes say is legal. Figures are of one core of the processors that the targets stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from llmos.compiler.analysis.contraction import Contraction
from llmos.compiler.analysis.conv3x3 import Conv3x3
from llmos.compiler.analysis.generic import has_windows
from llmos.compiler.analysis.grouped_rows import GroupedRows
from llmos.compiler.analysis.windows import WindowReduction
from llmos.compiler.analysis.winograd import POINTS, TAPS, transform_operations
from llmos.compiler.ir.ops import EXPENSIVE
from llmos.compiler.ir.sizes import Expr

# Kinds of dispatches whose arithmetic runs from registers.
BY_PANELS = ("contraction", "contraction_window", "grouped_contraction", "winograd")


@dataclass(frozen=True)
class CpuCosts:
    """The cost model of the CPU backend.

    lanes: float32 of the widest vector register. min_columns, min_channels: of a convolution that is faster by panels than window by
    window. min_pixel_channels: of pixels so large that computing where each lies costs less than a copy of the image with its zeros.
    max_inlined_ops: of an elementwise op that is evaluated at each use.
    band_bytes: of an image's rows that stay in a level-2 cache, beside what else is read meanwhile. widest_panel: channels of a pixel in
    such a band. max_overlap: part of a band's rows that the next one needs too.
    products_per_cycle: multiply-adds that a core does, of 32 with 512-bit vectors. operations_per_cycle: vector operations of a
    transform, what they load and store included. weight_bytes_per_cycle: of a weight, read from far. min_gain: what is less than that
    many times faster isn't worth a larger weight.
    panel_flops_per_ns, other_flops_per_ns, bytes_per_ns: about what a dispatch does on one thread.
    """

    lanes: int = 16
    min_columns: int = 8
    min_channels: int = 4
    min_pixel_channels: int = 8
    max_inlined_ops: int = 5
    band_bytes: int = 1 << 19
    widest_panel: int = 64
    max_overlap: float = 0.25
    products_per_cycle: float = 26.0
    operations_per_cycle: float = 1.0
    weight_bytes_per_cycle: float = 8.0
    min_gain: float = 1.15
    panel_flops_per_ns: int = 100
    other_flops_per_ns: int = 10
    bytes_per_ns: int = 40

    def pays_as_contraction(self, contraction: Contraction) -> bool:
        """Whether windows are read often enough to gain from a panel: a depthwise convolution reads each once."""
        windowed = [side for side, affine in enumerate(contraction.generic.maps[:2]) if has_windows(affine)]
        if not windowed:
            return True
        if windowed == [contraction.left]:
            columns = contraction.static_size(contraction.right, contraction.n)
            return columns >= self.min_columns or contraction.static_size(contraction.left, contraction.k) >= self.min_channels
        return contraction.static_size(contraction.left, contraction.m) > 1

    def pays_to_recompute(self, body: Sequence[str], num_tensors: int) -> bool:
        """Return whether a body (names of its ops) is cheap enough to be evaluated at each use: short, over one tensor."""
        return len(body) <= self.max_inlined_ops and num_tensors <= 1 and not any(name.startswith(EXPENSIVE) for name in body)

    def pays_to_read_around_padding(self, channels: Expr) -> bool:
        """Return whether pixels are so large that computing where each lies costs less than a copy of the image with its zeros."""
        return not (channels.is_Integer and channels < self.min_pixel_channels)

    def pays_to_fuse_windows(self, windows: WindowReduction) -> bool:
        """Whether bands of a panel of channels overlap by little, if there is more than one."""
        rows, band = windows.rows, windows.band(self.widest_panel, self.band_bytes)
        return band == rows.out or rows.overlap <= self.max_overlap * band * rows.stride

    def columns_of_groups(self, rows: GroupedRows) -> int | None:
        """Return the columns of panels that divide a group's."""
        return rows.panel_columns

    def fits_winograd(self, convolution: Conv3x3) -> bool:
        """Whether channels fill vectors of every target."""
        return convolution.channels % self.lanes == 0

    def winograd_tile(self, convolution: Conv3x3, batches: Sequence[int]) -> int:
        """Return m of the tiles that are fastest on average over batch sizes, or 0 for the direct sum."""
        costs = {m: sum(self._cycles(convolution, m, batch) / batch for batch in batches) for m in (0, *POINTS)}
        m = min(costs, key=lambda each: costs[each])
        return m if costs[m] * self.min_gain < costs[0] else 0

    def _cycles(self, convolution: Conv3x3, m: int, batch: int) -> float:
        """About what a core takes for tiles of m by m outputs; m = 0: the direct sum. What a weight takes to arrive is hidden in part."""
        weights = convolution.channels * convolution.columns
        positions = (m + TAPS - 1) ** 2 if m else TAPS**2
        down, across = convolution.tiles(m or 1)
        tiles = batch * down * across
        products, arrival = tiles * positions * weights / self.products_per_cycle, 4 * positions * weights / self.weight_bytes_per_cycle
        inputs, outputs = transform_operations(m) if m else (0, 0)
        transforms = tiles * (inputs * convolution.channels + outputs * convolution.columns) / self.lanes
        return max(products, arrival) + min(products, arrival) / 2 + transforms / self.operations_per_cycle

    def duration_ns(self, kind: str, flops: Expr, num_bytes: Expr) -> Expr:
        """Return about what a dispatch takes on one thread, in ns over the symbols."""
        rate = self.panel_flops_per_ns if kind in BY_PANELS else self.other_flops_per_ns
        return sympy.expand(sympy.floor(sympy.together(flops / rate + num_bytes / self.bytes_per_ns)))


COSTS = CpuCosts()
