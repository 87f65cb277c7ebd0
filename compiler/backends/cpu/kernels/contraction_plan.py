"""What is known of a contraction before anything is emitted: extents, what is packed or read in place, which dims are walked as one."""

from __future__ import annotations

from collections.abc import Sequence

import sympy

from llmos.compiler.analysis.casts import EXTEND, extended
from llmos.compiler.analysis.contraction import Contraction, root_contraction
from llmos.compiler.analysis.generic import Generic, compose, depends_on, dim_positions, fill_value, is_fill, trace_to_buffer
from llmos.compiler.analysis.quantized_weights import QuantizedWeight, quantized_weight_of
from llmos.compiler.backends.cpu.arithmetic.base import Operands
from llmos.compiler.backends.cpu.arithmetic.select import arithmetic_of
from llmos.compiler.backends.cpu.kernels.implicit_gemm import windows_of
from llmos.compiler.backends.cpu.packing import PANEL, number_width, panel_width
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.access import Accesses, group_dims
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import ceil_div, product
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc
from llmos.compiler.ir.sizes import Expr


def contraction_in(dispatch: Dispatch) -> Contraction:
    """Return the root of a contraction dispatch."""
    return root_contraction(dispatch.ops)


class ContractionPlan:
    """What is known of a contraction on a target before anything is emitted."""

    def __init__(self, dispatch: Dispatch, target: CpuTarget) -> None:
        self.dispatch = dispatch
        self.root = contraction_in(self.dispatch)
        self.generic = self.root.generic
        self.value = self.generic.op.results[0]
        self.sizes = self.generic.loop_sizes(self.dispatch.shapes)
        self.m, self.n, self.k = (self.extent(dims) for dims in (self.root.m, self.root.n, self.root.k))
        self.batch = [self.sizes[d] for d in self.root.batch]
        self.quantized = self._quantized_weight()
        self.weight = self._packed_weight()
        self.packed = self.weight is not None
        self.arithmetic = arithmetic_of(self._operands(), target)
        self.left = self._left()
        self.left_groups = group_dims(self._trace_left(), self.sizes, self.root.m)
        outputs = self._trace_outputs()
        self.m_groups = group_dims(outputs, self.sizes, self.root.m)
        self.n_groups = group_dims(outputs, self.sizes, self.root.n)
        self.right_groups = group_dims(self._trace_right(), self.sizes, self.root.n)
        self.in_place = self._lhs_in_place()
        by_windows = self.arithmetic.reads_windows and not self.in_place
        self.windows = windows_of(self.dispatch, self.root, self.left, self.sizes, self.arithmetic) if by_windows else None

    def extent(self, dims: Sequence[int]) -> Expr:
        """Return the product of the sizes of some loop dims."""
        return product([self.sizes[dim] for dim in dims])

    def real(self, dims: Sequence[int]) -> list[int]:
        """Return the dims that are not of size 1."""
        return [dim for dim in dims if self.sizes[dim] != 1]

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

    def _trace_outputs(self) -> Accesses:
        """Memory accesses of the epilogue, by loop dims of the root."""
        accesses = Accesses(self.dispatch)
        forms = [{e.position: 1} if isinstance(e, ir.AffineDimExpr) else {} for e in self.root.out_map.results]
        accesses.ignore(self.value, forms)
        for value in self.dispatch.results:
            own = self._exprs_of(value, forms)
            accesses.leaves.append((self.dispatch.shapes.shape(value), list(own)))
            accesses.trace(value, own)
        return accesses

    def _exprs_of(self, value: Value, root_exprs: list[dict[int, int]]) -> list[dict[int, int]]:
        """Index forms of an epilogue's output in terms of the root's dims, following the maps between."""
        if value == self.value:
            return root_exprs
        generic = Generic(value.owner.operation)
        for operand, affine in zip(generic.inputs, generic.maps, strict=False):
            if not depends_on(operand, self.value):
                continue
            inner = self._exprs_of(operand, root_exprs)
            loop: list[dict[int, int]] = [{} for _ in range(generic.rank)]
            for expr, form in zip(affine.results, inner, strict=True):
                if isinstance(expr, ir.AffineDimExpr):
                    loop[expr.position] = form
            return [loop[e.position] if isinstance(e, ir.AffineDimExpr) else {} for e in generic.output_map(value).results]
        raise AssertionError("an epilogue that doesn't use the contraction")

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

    @property
    def starts_at_zero(self) -> bool:
        """Whether the accumulator's initial value is a constant 0."""
        owner = self.generic.inits[0].owner
        scalar = fill_value(owner.operation) if not isinstance(owner, ir.Block) and is_fill(owner.operation) else None
        source = scalar.owner if scalar is not None else None
        if source is None or isinstance(source, ir.Block) or source.name != "arith.constant":
            return False
        value = source.attributes["value"]
        return bool((ir.FloatAttr(value).value if self.root.is_float else ir.IntegerAttr(value).value) == 0)
