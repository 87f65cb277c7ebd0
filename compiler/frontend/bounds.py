"""Check that outputs can be allocated: a data-dependent size needs a bound by the sizes of the inputs."""

from __future__ import annotations

from collections.abc import Iterable

from llmos.compiler.frontend.dims import Dim, Sizes, plain_text
from llmos.compiler.ir.sizes import ComputedSymbol, SymbolTable


def require_bounds(sizes: Sizes, dims: Iterable[Dim]) -> None:
    """Raise UnsupportedError for an output size without a bound."""
    if not sizes.computed:
        return
    computed = tuple(
        ComputedSymbol(each.size.name, each.size.min, each.size.max, plain_text(each.bound), plain_text(each.equals or 0))
        for each in sizes.computed
    )
    table = SymbolTable(tuple(sizes.symbols), (), computed)
    for dim in dims:
        if sizes.is_computed(dim):
            table.upper_bound(table.parse(plain_text(dim)))
