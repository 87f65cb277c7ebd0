"""What quantize-contractions and quantize-weights take: contractions of an activation and a weight, each with its number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from llmos.compiler.analysis.casts import EXTEND
from llmos.compiler.analysis.contraction import Contraction, contraction_of
from llmos.compiler.analysis.generic import Generic
from llmos.compiler.analysis.quantization import quantization_of
from llmos.compiler.analysis.quantized_weights import BITS, NIBBLE
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.passes._context import CostModel
from llmos.passes._graph import owner_of
from llmos.passes._weight_only import weight_only_values, weight_sources
from llmos.passes.quant._products import is_matrix_product, summed_axes
from llmos.passes.quant._rounding import LARGEST, STEPS

MAX_K = (1 << 31) // (STEPS * LARGEST)  # the sum of so many products fits in int32
MIN_K, MIN_N = 64, 32  # below, a row costs more to quantize than its products save


@dataclass(frozen=True)
class Product:
    """A contraction that can run in integers.

    number: its place in the program, from 0. activation: the place of its left side among the distinct left sides of all products;
    weight: of its right side among the distinct right sides. label: names of the weights that its right side is made of.
    """

    number: int
    activation: int
    weight: int
    contraction: Contraction
    label: str

    @property
    def work(self) -> int:
        """Return the multiplications for one row of the left side."""
        return math.prod(self.contraction.static_size(self.contraction.right, dims) for dims in (self.contraction.k, self.contraction.n))

    @property
    def channel_axes(self) -> tuple[int, int] | None:
        """Return the axes of the left and the right side along which products are summed; None where that is more than one."""
        left, right = (summed_axes(self.contraction, side) for side in (self.contraction.left, self.contraction.right))
        return (left[0], right[0]) if len(left) == len(right) == 1 else None


def products_of(entry: EntryFunc, costs: CostModel, min_k: int = MIN_K, min_n: int = MIN_N) -> list[Product]:
    """Return the contractions of an entry that quantize-contractions takes with these options, in program order.

    The module is at the stage of that pass; its numbers are those of the option `keep`.
    """
    return _products(entry, lambda each: _applies(each, costs, min_k, min_n))


def weight_products_of(entry: EntryFunc, costs: CostModel, group: int, min_n: int = MIN_N) -> list[Product]:
    """Return the contractions of an entry whose weights quantize-weights takes, in program order. group: of 4 bits; 0 for 8 bits."""
    return _products(entry, lambda each: _has_weight_for_kernels(each, costs, group, min_n))


def _products(entry: EntryFunc, applies: Callable[[Contraction], bool]) -> list[Product]:
    weights = {each.value: each.name for each in entry.arguments.weights}
    known = weight_only_values(entry.block, set(weights))
    activations: dict[tuple[ir.Value, tuple[int, ...]], int] = {}
    rights: dict[tuple[ir.Value, tuple[int, ...]], int] = {}
    found: list[Product] = []
    for op in entry.ops:
        each = contraction_of(op)
        if each is None or each.rhs not in known or each.lhs in known or not applies(each):
            continue
        sources = weight_sources(each.rhs, set(weights))
        if sources:
            activation = activations.setdefault((each.lhs, summed_axes(each, each.left)), len(activations))
            weight = rights.setdefault((each.rhs, summed_axes(each, each.right)), len(rights))
            found.append(Product(len(found), activation, weight, each, ", ".join(sorted(weights[source] for source in sources))))
    return found


def _has_weight_for_kernels(contraction: Contraction, costs: CostModel, group: int, min_n: int) -> bool:
    """Whether a kernel multiplies by the weight's numbers."""
    depth, columns = (contraction.static_size(contraction.right, dims) for dims in (contraction.k, contraction.n))
    return (
        is_matrix_product(contraction)
        and all(isinstance(kind, ir.F32Type) for kind in contraction.types)
        and (len(contraction.n), len(contraction.k), contraction.rhs.type.rank) == (1, 1, 2)
        and columns >= min_n
        and (depth % group == 0 if group else depth >= min_n)
        and costs.pays_as_contraction(contraction)
        and not _has_few_bits(contraction.rhs, NIBBLE if group else 8)
    )


def _has_few_bits(value: ir.Value, most: int) -> bool:
    """Whether a tensor is made of integers of at most so many bits, extended behind their dequantization or not."""
    owner = owner_of(value)
    marked = quantization_of(owner) if owner is not None else None
    if owner is None or marked is not None:
        return marked is not None and marked.kind == "dequantize" and BITS.get(marked.dtype, most + 1) <= most
    extends = owner.name == "linalg.generic" and [op.name for op in Generic(owner).body.operations] == [EXTEND, "linalg.yield"]
    return extends and _has_few_bits(Generic(owner).inputs[0], most)


def _applies(contraction: Contraction, costs: CostModel, min_k: int, min_n: int) -> bool:
    sizes = [contraction.static_size(contraction.right, dims) for dims in (contraction.k, contraction.n)]
    return (
        is_matrix_product(contraction)
        and all(isinstance(kind, ir.F32Type) for kind in contraction.types)
        and min_k <= sizes[0] <= MAX_K
        and sizes[1] >= min_n
        and costs.pays_as_contraction(contraction)
    )
