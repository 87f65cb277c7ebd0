"""Detection of the nodes that make a dynamic dimension static, or narrow its range, during tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from llmos.compiler.frontend.onnx.graph import Node


class DimensionWatch:
    """`nodes`: the last node that changed the range of dimension (input, axis)."""

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        self.nodes: dict[tuple[int, int], str] = {}
        sizes = {(i, axis): size for i, x in enumerate(inputs) for axis, size in enumerate(x.shape)}
        self._sizes = {place: size for place, size in sizes.items() if isinstance(size, torch.SymInt)}
        self._known = {place: _known_of(size) for place, size in self._sizes.items()}

    def after(self, node: Node) -> None:
        """Record changes; call it after each node."""
        for place, size in self._sizes.items():
            known = _known_of(size)
            if known != self._known[place]:
                self._known[place] = known
                self.nodes[place] = str(node)


def _known_of(size: Any) -> tuple[Any, ...]:
    """The range of a symbol, whichever stands for the dimension: two that are equal become one; else what the dimension is."""
    expr, environment = size.node.expr, size.node.shape_env
    limits = environment.var_to_range.get(expr)
    return (expr,) if limits is None else (limits.lower, limits.upper)
