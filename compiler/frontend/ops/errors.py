"""What a lowering says when it doesn't take a case, and what becomes of one that fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos.runtime.errors import PassError

if TYPE_CHECKING:
    from torch import fx


class NotLowered(Exception):
    """This form of the op isn't ours: torch-mlir may take it."""


class LoweringError(PassError):
    """A lowering raised what it should not: an error of the compiler. `node` is the call of the exported graph."""

    def __init__(self, message: str, node: fx.Node) -> None:
        super().__init__(message)
        self.node = node
