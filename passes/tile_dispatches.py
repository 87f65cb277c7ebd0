"""tile-dispatches: give kernels the shapes of tiles that a measured search found."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from llmos.compiler.ir.attributes import argument_attributes
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.tiling import NO_TILINGS, TILING, Tilings
from llmos.passes._pass import Pass
from llmos.passes.pack_weights import PACKED

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

    tilings: Tilings = NO_TILINGS

    def run(self, module: ir.Module) -> None:
        chosen = dict(self.tilings)
        for op in module.body.operations:
            if "llmos.dispatch" in op.operation.attributes and (key := tiling_key(op.operation)) in chosen:
                op.operation.attributes[TILING] = ir.StringAttr.get(str(chosen[key]))


def tiling_key(func: ir.Operation) -> str:
    """The hash of a dispatch's text: equal for dispatches that one kernel serves, before and after they are tiled and packed."""
    with func.context, ir.Location.unknown():
        copy = func.clone()
        try:
            _reduce(copy)
            return hashlib.sha256(str(copy).encode()).hexdigest()[:_KEY_DIGITS]
        finally:
            copy.erase()


def tiling_keys(module: ir.Module) -> set[str]:
    """Of all dispatches of a module."""
    with module.context:
        return {tiling_key(op.operation) for op in module.body.operations if "llmos.dispatch" in op.operation.attributes}


def _reduce(func: ir.Operation) -> None:
    """Leave of a dispatch what is the same in all that one kernel serves, whatever was chosen for it."""
    attributes = func.attributes
    for name in (TILING, "sym_visibility"):
        if name in attributes:
            del attributes[name]
    attributes["sym_name"] = ir.StringAttr.get("_")
    plain = [{name: value for name, value in each.items() if name != PACKED} for each in argument_attributes(func)]
    attributes["arg_attrs"] = ir.ArrayAttr.get([ir.DictAttr.get(each) for each in plain])
