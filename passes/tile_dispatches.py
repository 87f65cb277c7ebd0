"""tile-dispatches: give kernels the shapes of tiles that a measured search found."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.ir.attributes import PACKED, TILING, argument_attributes, set_argument_attributes
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import dispatch_functions, make_public
from llmos.compiler.ir.tiling import NO_TILINGS, Tilings
from llmos.passes._context import PassContext
from llmos.passes._contracts import DISPATCHED, UNPACKED
from llmos.passes._pass import Pass
from llmos.passes._property import Property

_KEY_DIGITS = 16


@dataclass(frozen=True)
class TileDispatches(Pass):
    """A dispatch that is among `tilings` carries its choices from here on; the others are left to the analytic model.

    Before:
        func.func private @d3_contraction(...) attributes {llmos.dispatch = "contraction"}
    After, with tilings=0123456789abcdef:columns=64+rows=32:
        func.func private @d3_contraction(...) attributes {llmos.dispatch = "contraction", llmos.tiling = "columns=64+rows=32"}

    Comes before pack-weights, which packs a weight into panels of as many columns as its dispatch says.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({DISPATCHED, UNPACKED})

    tilings: Tilings = NO_TILINGS

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Set TILING of the dispatches that `tilings` holds, by their keys."""
        chosen = dict(self.tilings)
        for func in dispatch_functions(module):
            if (key := tiling_key(func)) in chosen:
                func.attributes[TILING] = ir.StringAttr.get(str(chosen[key]))


def tiling_key(func: ir.Operation) -> str:
    """Return the hash of a dispatch's text: equal for dispatches that one kernel serves, before and after they are tiled and packed."""
    with func.context, ir.Location.unknown():
        copy = func.clone()
        try:
            _reduce(copy)
            return hashlib.sha256(str(copy).encode()).hexdigest()[:_KEY_DIGITS]
        finally:
            copy.erase()


def tiling_keys(module: ir.Module) -> set[str]:
    """Return the keys of all dispatches of a module."""
    with module.context:
        return {tiling_key(func) for func in dispatch_functions(module)}


def _reduce(func: ir.Operation) -> None:
    """Leave of a dispatch what is the same in all that one kernel serves, whatever was chosen for it."""
    if TILING in func.attributes:
        del func.attributes[TILING]
    make_public(func)
    func.attributes["sym_name"] = ir.StringAttr.get("_")
    plain = [{name: value for name, value in each.items() if name != PACKED} for each in argument_attributes(func)]
    set_argument_attributes(func, plain)
