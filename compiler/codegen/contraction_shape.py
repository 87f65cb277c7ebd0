"""What is known of a contraction dispatch on any target: its extents, and which dims its epilogue walks as one."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.analysis.contraction import Contraction, root_contraction
from llmos.compiler.analysis.generic import Generic, depends_on, fill_value, is_fill
from llmos.compiler.codegen.access import Accesses, group_dims
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import product
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr


def contraction_in(dispatch: Dispatch) -> Contraction:
    """Return the root of a contraction dispatch."""
    return root_contraction(dispatch.ops)


class ContractionShape:
    """The loops of a contraction by their roles. m_groups, n_groups: dims of rows and columns, those that are walked as one together."""

    def __init__(self, dispatch: Dispatch) -> None:
        self.dispatch = dispatch
        self.root = contraction_in(self.dispatch)
        self.generic = self.root.generic
        self.value = self.generic.op.results[0]
        self.sizes = self.generic.loop_sizes(self.dispatch.shapes)
        self.m, self.n, self.k = (self.extent(dims) for dims in (self.root.m, self.root.n, self.root.k))
        self.batch = [self.sizes[d] for d in self.root.batch]
        outputs = self._trace_outputs()
        self.m_groups = group_dims(outputs, self.sizes, self.root.m)
        self.n_groups = group_dims(outputs, self.sizes, self.root.n)

    def extent(self, dims: Sequence[int]) -> Expr:
        """Return the product of the sizes of some loop dims."""
        return product([self.sizes[dim] for dim in dims])

    def real(self, dims: Sequence[int]) -> list[int]:
        """Return the dims that are not of size 1."""
        return [dim for dim in dims if self.sizes[dim] != 1]

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

    def _exprs_of(self, value: ir.Value, root_exprs: list[dict[int, int]]) -> list[dict[int, int]]:
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
