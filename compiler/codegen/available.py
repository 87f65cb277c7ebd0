"""Values that are available: already emitted, in a block that dominates the insertion point."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from llmos.compiler.codegen.builder import Value

Key: TypeAlias = tuple[object, ...]


class AvailableValues:
    """Emitted values by what they compute, in nested scopes, as LLVM's EarlyCSE keeps them."""

    def __init__(self) -> None:
        self._scopes: list[dict[Key, Value]] = [{}]

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Values added inside, in the body of a loop or a branch, are forgotten at its end."""
        self._scopes.append({})
        try:
            yield
        finally:
            self._scopes.pop()

    def find(self, key: Key) -> Value | None:
        """The value of `key` in the innermost scope that has one, or None."""
        return next((scope[key] for scope in reversed(self._scopes) if key in scope), None)

    def add(self, key: Key, value: Value) -> None:
        """Make `value` available until the end of the innermost scope."""
        self._scopes[-1][key] = value
