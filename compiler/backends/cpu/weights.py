"""The weights of the code: in the order of its arguments, in the layouts that kernels read."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from llmos.compiler.backends.cpu.packing import (
    number_width,
    pack_nibbles,
    pack_panels,
    pack_winograd,
    pack_words,
    packed_shape,
    packed_winograd_shape,
    packed_words_shape,
)
from llmos.compiler.ir.attributes import PackedLayout
from llmos.compiler.ir.functions import Argument
from llmos.compiler.ir.weights import BoundWeight, Weight
from llmos.runtime.artifact.bfloat16 import to_bfloat16
from llmos.runtime.artifact.safetensors import is_reserved

NIBBLES = 8  # numbers of 4 bits in a word
K_PER_WORD = {"bfloat16": 2, "int8": 4, "uint8": 4}  # elements of a 32-bit word of a panel, of dtypes that are packed so


def bound_weights(arguments: Sequence[Argument], weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the weights of the code, in the order of its arguments, packed where a kernel wants that."""
    bound: dict[str, Weight] = {}
    for argument in arguments:
        name = source = argument.name
        weight, layout = weights[source], argument.packed
        if argument.dtype == "bfloat16" != weight.dtype:
            name, weight = f"{name}#bfloat16", _narrowed(weight)
        if layout is not None:
            name, weight = f"{name}#packed{layout}", _packed(weight, layout)
        bound[_stored_name(name, bound)] = BoundWeight(weight.dtype, weight.shape, weight.load, source, layout)
    return bound


def _stored_name(name: str, taken: Collection[str]) -> str:
    """The name itself, or a free one where the file needs it or another weight has it: the code goes by the order."""
    while name in taken or is_reserved(name):
        name = f"{name}_" if name in taken else f"weight.{name}"
    return name


def _packed(weight: Weight, layout: PackedLayout) -> Weight:
    n_axes, k_axes, columns, tile = layout.n_axes, layout.k_axes, layout.columns, layout.tile
    if layout.k_per_word is not None:
        return _packed_numbers(weight, layout)
    if tile is not None:
        positions = packed_winograd_shape(weight.shape, n_axes, k_axes, tile, columns)
        return Weight(weight.dtype, positions, lambda: pack_winograd(weight.load(), n_axes, k_axes, tile, columns))
    if (per_word := K_PER_WORD.get(weight.dtype)) is not None:
        words = packed_words_shape(weight.shape, n_axes, k_axes, per_word, columns)
        return Weight(weight.dtype, words, lambda: pack_words(weight.load(), n_axes, k_axes, per_word, columns))
    shape = packed_shape(weight.shape, n_axes, k_axes, columns)
    return Weight(weight.dtype, shape, lambda: pack_panels(weight.load(), n_axes, k_axes, columns))


def _packed_numbers(weight: Weight, layout: PackedLayout) -> Weight:
    """Numbers, scales or zero points of a weight that stays integers."""
    n_axes, k_axes, per_word = layout.n_axes, layout.k_axes, layout.k_per_word
    width = layout.columns or number_width(math.prod(weight.shape[axis] for axis in n_axes))
    if per_word == 1:
        shape: tuple[int, ...] = packed_shape(weight.shape, n_axes, k_axes, width)
        return Weight(weight.dtype, shape, lambda: pack_panels(weight.load(), n_axes, k_axes, width))
    if per_word == NIBBLES:
        shape = (*packed_words_shape(weight.shape, n_axes, k_axes, NIBBLES, width)[:3], 4)
        return Weight("uint8", shape, lambda: pack_nibbles(weight.load(), n_axes, k_axes, width))
    shape = packed_words_shape(weight.shape, n_axes, k_axes, 4, width)
    return Weight(weight.dtype, shape, lambda: pack_words(weight.load(), n_axes, k_axes, 4, width))


def _narrowed(weight: Weight) -> Weight:
    return Weight("bfloat16", weight.shape, lambda: to_bfloat16(weight.load()))
