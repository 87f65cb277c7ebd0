"""The weights of the code: in the order of its arguments, in the layouts that kernels read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from llmos.compiler.backends.cpu.packing import (
    pack_pairs,
    pack_panels,
    pack_winograd,
    packed_pairs_shape,
    packed_shape,
    packed_winograd_shape,
    to_bfloat16,
)
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.weights import Weight
from llmos.runtime.artifact.safetensors import is_reserved


def bound_weights(arguments: Sequence[Mapping[str, ir.Attribute]], weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The weights of the code, in the order of its arguments, packed where a kernel wants that."""
    bound: dict[str, Weight] = {}
    for attributes in arguments:
        if ir.StringAttr(attributes["llmos.kind"]).value != "weight":
            continue
        name = ir.StringAttr(attributes["llmos.name"]).value
        weight = weights[name]
        if _dtype(attributes, weight.dtype) == "bfloat16" != weight.dtype:
            name, weight = f"{name}#bfloat16", _narrowed(weight)
        if "llmos.packed" in attributes:
            spec = [list(ir.DenseI64ArrayAttr(part)) for part in ir.ArrayAttr(attributes["llmos.packed"])]
            layout = "".join(map(str, spec)).replace(" ", "")
            name, weight = f"{name}#packed{layout}", _packed(weight, *spec)
        bound[_stored_name(name, bound)] = weight
    return bound


def _stored_name(name: str, taken: Collection[str]) -> str:
    """The name itself, or a free one where the file needs it or another weight has it: the code goes by the order."""
    while name in taken or is_reserved(name):
        name = f"{name}_" if name in taken else f"weight.{name}"
    return name


def _packed(weight: Weight, n_axes: list[int], k_axes: list[int], width: Sequence[int] = (), tile: Sequence[int] = ()) -> Weight:
    chosen = width[0] if width else None
    if tile:
        positions = packed_winograd_shape(weight.shape, n_axes, k_axes, tile[0], chosen)
        return Weight(weight.dtype, positions, lambda: pack_winograd(weight.array, n_axes, k_axes, tile[0], chosen))
    if weight.dtype == "bfloat16":
        pairs = packed_pairs_shape(weight.shape, n_axes, k_axes, chosen)
        return Weight(weight.dtype, pairs, lambda: pack_pairs(weight.array, n_axes, k_axes, chosen))
    shape = packed_shape(weight.shape, n_axes, k_axes, chosen)
    return Weight(weight.dtype, shape, lambda: pack_panels(weight.array, n_axes, k_axes, chosen))


def _narrowed(weight: Weight) -> Weight:
    return Weight("bfloat16", weight.shape, lambda: to_bfloat16(weight.array))


def _dtype(attributes: Mapping[str, ir.Attribute], default: str) -> str:
    return ir.StringAttr(attributes["llmos.dtype"]).value if "llmos.dtype" in attributes else default
