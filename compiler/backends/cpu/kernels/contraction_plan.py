"""What is known of a contraction before anything is emitted: extents, what is packed or read in place, which dims are walked as one."""

from __future__ import annotations

import sympy

from llmos.compiler.analysis.casts import EXTEND, extended
from llmos.compiler.analysis.generic import compose, dim_positions, trace_to_buffer
from llmos.compiler.analysis.quantized_weights import QuantizedWeight, quantized_weight_of
from llmos.compiler.backends.cpu.arithmetic.base import Operands
from llmos.compiler.backends.cpu.arithmetic.select import arithmetic_of
from llmos.compiler.backends.cpu.kernels.implicit_gemm import windows_of
from llmos.compiler.backends.cpu.packing import PANEL, number_width, panel_width
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.access import Accesses, group_dims
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.contraction_shape import ContractionShape
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import ceil_div, product
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc
from llmos.compiler.ir.sizes import Expr


class ContractionPlan(ContractionShape):
    """What is known of a contraction on a target before anything is emitted."""

    def __init__(self, dispatch: Dispatch, target: CpuTarget) -> None:
        super().__init__(dispatch)
        self.quantized = self._quantized_weight()
        self.weight = self._packed_weight()
        self.packed = self.weight is not None
        self.arithmetic = arithmetic_of(self._operands(), target)
        self.left = self._left()
        self.left_groups = group_dims(self._trace_left(), self.sizes, self.root.m)
        self.right_groups = group_dims(self._trace_right(), self.sizes, self.root.n)
        self.in_place = self._lhs_in_place()
        by_windows = self.arithmetic.reads_windows and not self.in_place
        self.windows = windows_of(self.dispatch, self.root, self.left, self.sizes, self.arithmetic) if by_windows else None

    def _packed_weight(self) -> Value | None:
        """The argument behind the right side, if it is a weight that the compiler packed into panels."""
        if self.quantized is not None:
            return self.quantized.numbers
        source = trace_to_buffer(self.root.rhs, [{}] * len(self.root.rhs_map.results), through=(EXTEND,))
        return source[0] if source is not None and self._is_packed(source[0]) else None

    def _quantized_weight(self) -> QuantizedWeight | None:
        """The right side as numbers with scales, if the compiler packed them into panels."""
        found = quantized_weight_of(self.root)
        return found if found is not None and self._is_packed(found.numbers) else None

    def _is_packed(self, value: Value) -> bool:
        argument = DispatchFunc(self.dispatch.func).arguments.of(value)
        return argument is not None and argument.packed is not None

    def _operands(self) -> Operands:
        """Element types in memory: of the left side before it is extended and of a packed weight. A tile copies panels as float32."""
        left = self.root.lhs if (source := extended(self.root.lhs)) is None else source
        right = self.weight.type.element_type if self.weight is not None else ir.F32Type.get()
        numbers = self.quantized.format if self.quantized is not None else None
        return Operands(left.type.element_type, right, int(self.k) if self.k.is_Integer else None, numbers)

    def _left(self) -> Value:
        """The left side as the inner loop reads it: before it is extended, where that is what the arithmetic multiplies."""
        source = extended(self.root.lhs)
        return source if source is not None and source.type.element_type == self.arithmetic.left_type else self.root.lhs

    @property
    def width(self) -> int:
        """Return the columns of a panel."""
        if self.dispatch.tiling.columns is not None:
            return self.dispatch.tiling.columns
        if self.quantized is not None:
            return number_width(int(self.n))
        return panel_width(int(self.n), int(self.k)) if self.n.is_Integer and self.k.is_Integer else PANEL

    @property
    def row_elements(self) -> Expr:
        """What a row adds to the memory that a tile reads: windows share theirs with their neighbors."""
        if self.windows is None:
            return self.k
        share = sympy.together(product(self.dispatch.shapes.shape(self.windows.source)) / (self.m * product(self.batch)))
        return sympy.ceiling(share) if share.is_number else self.k

    @property
    def panel_rows(self) -> Expr:
        """Return how many rows of 32-bit words a panel has."""
        return ceil_div(self.k, self.arithmetic.k_per_word)

    def _trace_right(self) -> Accesses:
        accesses = Accesses(self.dispatch)
        if not self.packed:
            accesses.trace_map(self.root.rhs, self.root.rhs_map)
        return accesses

    def _trace_left(self) -> Accesses:
        accesses = Accesses(self.dispatch)
        accesses.trace_map(self.root.lhs, self.root.lhs_map)
        return accesses

    def _lhs_in_place(self) -> bool:
        """Rows are read where they are when the left side is a buffer whose last axes are the k dims in order, its m dims one index."""
        operand = self.left
        if not isinstance(operand.owner, ir.Block) or operand.type.element_type != self.arithmetic.left_type or len(self.left_groups) > 1:
            return False
        if any(compose(expr, [{dim: 1} for dim in range(len(self.sizes))]) is None for expr in self.root.lhs_map.results):
            return False
        shape = self.dispatch.shapes.shape(operand)
        axes = [p for p, size in zip(dim_positions(self.root.lhs_map), shape, strict=True) if size != 1]
        k = self.real(self.root.k)
        sizes = [size for size in shape if size != 1]
        return bool(k) and axes[len(axes) - len(k) :] == k and sizes[len(axes) - len(k) :] == [self.sizes[d] for d in k]
