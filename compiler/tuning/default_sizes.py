"""Sizes at which a model is measured where nobody says others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

# One request of a usual length; by the names that front ends and people give to dims.
DEFAULT_SIZES: Mapping[str, int] = {"batch": 1, "tokens": 128, "sequence": 128, "sequence_length": 128, "seq_len": 128}


class SizedSymbol(Protocol):
    """A symbol of the compiler's or of a manifest."""

    @property
    def name(self) -> str: ...
    @property
    def min(self) -> int: ...
    @property
    def max(self) -> int: ...


def default_size(symbol: SizedSymbol, otherwise: int = 1) -> int:
    """Within the symbol's range."""
    return min(max(DEFAULT_SIZES.get(symbol.name, otherwise), symbol.min), symbol.max)


def default_sizes(symbols: Sequence[SizedSymbol], traced: Mapping[str, int]) -> list[dict[str, int]]:
    """The usual size, and one at a distance: a quarter of each length, or where there is none four times the batch."""
    default = {symbol.name: default_size(symbol, traced.get(symbol.name, 1)) for symbol in symbols}
    lengths = {name for name in default if DEFAULT_SIZES.get(name, 1) > 1}
    other = dict(default)
    for symbol in symbols:
        if symbol.name in lengths or (symbol.name in DEFAULT_SIZES and not lengths):
            wanted = default[symbol.name] // 4 if symbol.name in lengths else default[symbol.name] * 4
            other[symbol.name] = min(max(wanted, symbol.min), symbol.max)
    return [default] if other == default else [default, other]
