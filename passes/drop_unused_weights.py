"""drop-unused-weights: remove weights that nothing reads any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.passes._context import PassContext
from llmos.passes._contracts import DISPATCHED, WEIGHTS_BEHIND_INPUTS
from llmos.passes._pass import Pass
from llmos.passes._property import Property


@dataclass(frozen=True)
class DropUnusedWeights(Pass):
    """A weight that was folded or quantized into another is no argument of the entry any more, and so in no artifact.

    Before:
        func.func @main(%x, %w {llmos.kind = "weight", llmos.name = "w"}, %q {llmos.kind = "weight", llmos.name = "fold.0"})
        call @d0_contraction(%x, %q)
    After:
        func.func @main(%x, %q {llmos.kind = "weight", llmos.name = "fold.0"})
        call @d0_contraction(%x, %q)
    """

    requires: ClassVar[frozenset[Property]] = frozenset({DISPATCHED, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({DISPATCHED, WEIGHTS_BEHIND_INPUTS})

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Remove unused weights of every entry."""
        for func in public_functions(module):
            drop_unused_weights(func)


def drop_unused_weights(main: ir.Operation) -> None:
    """Remove weight arguments that nothing reads any more."""
    entry = EntryFunc(main)
    entry.drop_arguments(each.position for each in entry.arguments.weights if not any(True for _ in each.value.uses))
