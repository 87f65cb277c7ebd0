"""Kinds of ops that several passes and analyzes tell apart by name."""

from __future__ import annotations

RESHAPES = frozenset({"tensor.expand_shape", "tensor.collapse_shape"})
VIEWS = RESHAPES | {"tensor.cast"}  # their result lies in the memory of their operand
REMATERIALIZABLE = frozenset({"tensor.empty", "tensor.splat", "arith.constant"})  # cloned into whatever uses them; fills are too

# By prefixes of names: what is not computed again at each use.
EXPENSIVE_FLOAT = ("math.", "arith.divf", "arith.remf")
EXPENSIVE = (*EXPENSIVE_FLOAT, "arith.divsi", "arith.remsi", "tensor.extract")
