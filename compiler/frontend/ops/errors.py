"""The exceptions of lowerings: a case that is not handled, and an internal failure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos.runtime.errors import PassError

if TYPE_CHECKING:
    from torch import fx


class NotLowered(Exception):
    """The lowering doesn't handle this form of the op; torch-mlir is tried next."""


class LoweringError(PassError):
    """A lowering raised an unexpected exception: a compiler bug. `node` is the call in the exported graph."""

    def __init__(self, message: str, node: fx.Node) -> None:
        super().__init__(message)
        self.node = node
