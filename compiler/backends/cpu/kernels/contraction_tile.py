"""One tile of a contraction: rows by a panel of columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmos.compiler.backends.cpu.kernels.contraction_rows import Rows
from llmos.compiler.backends.cpu.kernels.epilogue import Epilogue
from llmos.compiler.backends.cpu.kernels.implicit_gemm import WindowReader
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.kernel import Frame
from llmos.compiler.ir.sizes import Expr


@dataclass(frozen=True)
class PanelTile:
    """Rows [low, high) by the panel at `base`, whose first column is number `first`. `offset`: bytes into scratch for the arithmetic."""

    epilogue: Epilogue
    rows: Rows | WindowReader
    low: Value
    high: Value
    first: Value
    base: Value
    offset: Expr

    @property
    def frame(self) -> Frame:
        """Return the open kernel."""
        return self.epilogue.points.frame

    @property
    def b(self) -> Builder:
        """Return the builder of the kernel."""
        return self.frame.b

    @property
    def dense_rows(self) -> Rows:
        """Return the rows, for an arithmetic that reads no windows."""
        assert isinstance(self.rows, Rows)
        return self.rows

    def scratch(self) -> Value:
        """Emit the address of the arithmetic's scratch."""
        return self.b.address(self.frame.scratch, self.frame.emitter.sizes(self.offset), self.b.i8)

    def by_columns(self, multiply: Callable[[int], None], surplus: int = 0) -> None:
        """Emit `multiply(number of columns)` of the panel; the last panel may have fewer.

        surplus: columns past the end that are rather multiplied than told apart.
        """
        b, n, width = self.b, self.epilogue.points.plan.n, self.epilogue.points.plan.width
        remainder = int(n) % width if n.is_Integer else 0
        if remainder == 0 or width - remainder <= surplus:
            multiply(width)
        elif int(n) < width:
            multiply(remainder)
        else:
            end = b.add(self.first, b.index(width))
            with b.when(b.compare("sgt", end, b.index(int(n)))):
                multiply(remainder)
            with b.when(b.compare("sle", end, b.index(int(n)))):
                multiply(width)
