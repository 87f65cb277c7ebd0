"""A dispatch function read back: its operands, its ops as stages, and where values live.

A dispatch is `func.func private @name(tensors, index sizes) -> tensors` with linalg.generic ops, fills, constants and slices inside
(docs/architecture.md, "The dispatch stage").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from llmos.compiler.ir.attributes import TILING, text_of
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc, name_of
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import SymbolTable
from llmos.compiler.ir.tiling import Tiling


@dataclass(frozen=True)
class Dispatch:
    """A dispatch function, or a part of one: what is computed from `sources`, which lie in memory by then, up to `ends`."""

    func: ir.Operation
    table: SymbolTable
    sources: tuple[ir.Value, ...] = ()
    ends: tuple[ir.Value, ...] | None = None

    @cached_property
    def name(self) -> str:
        """Return the function's symbol, which is also its kernel's."""
        return name_of(self.func)

    @cached_property
    def kind(self) -> str:
        """Return which kernel it gets, such as "row_reduction"."""
        return DispatchFunc(self.func).kind

    @cached_property
    def tiling(self) -> Tiling:
        """Return the tiling that a measured search chose for it; empty where there was none."""
        return Tiling.parse(text_of(self.func.attributes, TILING))

    @property
    def block(self) -> ir.Block:
        """Return the function's body."""
        return self.func.regions[0].blocks[0]

    @cached_property
    def shapes(self) -> Shapes:
        """Return the sizes of its tensors as expressions of the symbols."""
        return Shapes.of(self.func, self.table)

    @property
    def tensors(self) -> list[ir.Value]:
        """Return the tensor arguments, in the order of the kernel's buffers; the results follow them."""
        return [argument for argument in self.block.arguments if isinstance(argument.type, ir.RankedTensorType)]

    @property
    def results(self) -> list[ir.Value]:
        """Return what it writes, in the order of the kernel's buffers."""
        return list(self.ends) if self.ends is not None else list(list(self.block.operations)[-1].operands)

    @cached_property
    def ops(self) -> list[ir.Operation]:
        """Return the ops that the results are computed by, in order."""
        every = [op.operation for op in self.block.operations][:-1]
        if self.ends is None and not self.sources:
            return every
        needed: set[ir.Value] = set(self.results)
        for op in reversed(every):
            if any(result in needed for result in op.results):
                needed.update(operand for operand in op.operands if operand not in self.sources)
        return [op for op in every if any(result in needed for result in op.results)]

    def part(self, sources: Sequence[ir.Value], ends: Sequence[ir.Value]) -> Dispatch:
        """Return the part that computes `ends` from `sources`."""
        return Dispatch(self.func, self.table, tuple(sources), tuple(ends))
