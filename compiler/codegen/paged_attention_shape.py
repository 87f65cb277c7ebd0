"""What is known of a paged attention dispatch on any target: its op, parameters, operands and their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from llmos.compiler.analysis.generic import Generic
from llmos.compiler.analysis.paged_attention import OPERANDS, PagedAttention, is_paged_attention
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

LOWEST = -3.4028234663852886e38  # the start of a maximum: finite, so that exp(masked - maximum) is exp(-inf) = 0 and never exp(nan)


@dataclass(frozen=True)
class PagedAttentionShape:
    """The attention of a dispatch over a paged cache."""

    dispatch: Dispatch

    @cached_property
    def op(self) -> ir.Operation:
        """Return the op of the dispatch."""
        return next(op for op in self.dispatch.ops if is_paged_attention(op))

    @cached_property
    def parameters(self) -> PagedAttention:
        """Return its parameters."""
        return PagedAttention.of(self.op)

    def operand(self, name: str) -> Value:
        """Return one of its operands, by its name in OPERANDS."""
        return self.op.operands[OPERANDS.index(name)]

    @property
    def has_sinks(self) -> bool:
        """Whether each head has a score without a value."""
        return Generic(self.op).num_inputs == len(OPERANDS)

    def size(self, name: str, axis: int) -> Expr:
        """Return a size of an operand."""
        return self.dispatch.shapes.shape(self.operand(name))[axis]
