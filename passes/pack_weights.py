"""pack-weights: mark constant right sides of contractions, whose bytes are then written in panels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.analysis.casts import EXTEND
from llmos.compiler.analysis.contraction import Contraction, root_contraction
from llmos.compiler.analysis.generic import dim_positions, dims_of, trace_to_buffer
from llmos.compiler.analysis.loops import is_loop
from llmos.compiler.analysis.quantized_weights import quantized_weight_of
from llmos.compiler.ir.attributes import PACKED, TILING, PackedLayout, text_of
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc, EntryFunc, Func, callee_of, functions_of, public_functions
from llmos.compiler.ir.tiling import Tiling
from llmos.passes._context import PassContext
from llmos.passes._contracts import DISPATCHED, PACKED_ALIKE, UNPACKED, WEIGHTS_BEHIND_INPUTS
from llmos.passes._pass import Pass
from llmos.passes._property import Property
from llmos.passes.drop_unused_weights import drop_unused_weights


@dataclass(frozen=True)
class PackWeights(Pass):
    """A weight that a contraction reads as its right side is kept as panels [n/w][k][w], which the kernel streams.

    Before:
        func.func @main(%w: tensor<256x1024xf32> {llmos.kind = "weight", ...})
        call @d0_contraction(%x, %w)
    After:
        func.func @main(..., %w: tensor<256x1024xf32> {llmos.kind = "weight", llmos.packed = [[0], [1]], ...})     // axes of n, axes of k
        call @d0_contraction(%x, %w)            // and its argument carries llmos.packed

    Where the dispatch's tiling says how many columns a panel has, that number follows the axes: [[0], [1], [64]]. Of a winograd dispatch
    the side of its tiles comes last, and the kernels are kept transformed (compiler/analysis/winograd.py): [[0], [2, 3, 1], [], [4]].
    A bfloat16 weight is kept as panels [n/w][k/2][w][2], pairs along k, an int8 one as [n/w][k/4][w][4]. Of a weight that the dispatch
    dequantizes, numbers, scales and zero points are packed alike; a fifth array says how many numbers a word has: [[0], [1], [], [], [8]]
    for those of 4 bits, [[0], [1], [], [], [1]] for their scales. A weight that is also read in
    another way (tied embeddings) keeps its plain argument and gets a packed one beside it.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({DISPATCHED, UNPACKED, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({PACKED_ALIKE, WEIGHTS_BEHIND_INPUTS})

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Set PACKED of the weights that contractions read as their right side, and of the dispatches' arguments."""
        functions = functions_of(module)
        for func in public_functions(module):
            _pack_calls(func, functions)


def _pack_calls(main: ir.Operation, functions: dict[str, ir.Operation]) -> None:
    packed: dict[tuple[int, PackedLayout], ir.Value] = {}
    entry = EntryFunc(main)
    arguments = entry.arguments
    found = [(call, f, at, _layout(f, *axes)) for call, f, at, axes in weighted_contractions(main, functions)]
    for call, dispatch, position, layout in [*found, *_quantized(entry, functions)]:
        weight = arguments[ir.BlockArgument(call.operands[position]).arg_number]
        key = (weight.position, layout)
        if key not in packed:
            packed[key] = entry.add_argument(weight.value.type, {**weight.attributes, PACKED: layout.attribute()})
        call.operands[position] = packed[key]
        Func(dispatch).mark_argument(position, packed=layout.attribute())
    drop_unused_weights(main)


def _quantized(entry: EntryFunc, functions: dict[str, ir.Operation]) -> Iterator[tuple[ir.Operation, ir.Operation, int, PackedLayout]]:
    """Yield (call, its dispatch, operand, layout) of the numbers, scales and zero points of weights that stay integers."""
    weights = [each.value for each in entry.arguments.weights]
    for call in _calls(entry.block):
        dispatch = functions[callee_of(call)]
        layouts = _number_layouts(dispatch)
        if all(call.operands[position] in weights for position in layouts):
            yield from ((call, dispatch, position, layout) for position, layout in layouts.items())


def _number_layouts(dispatch: ir.Operation) -> dict[int, PackedLayout]:
    """How each argument that belongs to a quantized right side is packed; empty where there is none."""
    if DispatchFunc(dispatch).kind not in ("contraction", "grouped_contraction"):
        return {}
    found = quantized_weight_of(root_contraction(DispatchFunc(dispatch).ops))
    values = [value for value in (found.numbers, found.scale, found.zero_point) if value is not None] if found is not None else []
    if found is None or not all(isinstance(value.owner, ir.Block) for value in values):
        return {}
    columns = Tiling.parse(text_of(dispatch.attributes, TILING)).columns
    n_axis, *groups = found.parameter_axes
    parameters = PackedLayout((n_axis,), tuple(groups), columns, k_per_word=1)
    numbers = PackedLayout((found.n_axis,), (found.k_axis,), columns, k_per_word=32 // found.format.bits)
    positions = [ir.BlockArgument(value).arg_number for value in values]
    return dict(zip(positions, [numbers, parameters, parameters], strict=False))


def weighted_contractions(
    main: ir.Operation, functions: dict[str, ir.Operation]
) -> Iterator[tuple[ir.Operation, ir.Operation, int, list[list[int]]]]:
    """Yield (call, its dispatch, operand, axes of n and k) of every contraction whose right side is one weight, however its axes are
    ordered.
    """
    entry = EntryFunc(main)
    weights = [each.value for each in entry.arguments.weights]
    for call in _calls(entry.block):
        dispatch = functions[callee_of(call)]
        found = _constant_side(dispatch)
        if found is None:
            continue
        if call.operands[found[0]] in weights:
            yield call, dispatch, *found


def _calls(block: ir.Block) -> Iterator[ir.Operation]:
    """Every dispatch of a function, those in its loops included."""
    for op in block.operations:
        if op.operation.name == "func.call":
            yield op.operation
        elif is_loop(op.operation):
            yield from _calls(op.operation.regions[0].blocks[0])


def _layout(dispatch: ir.Operation, n_axes: list[int], k_axes: list[int]) -> PackedLayout:
    columns = Tiling.parse(text_of(dispatch.attributes, TILING)).columns
    return PackedLayout(tuple(n_axes), tuple(k_axes), columns, DispatchFunc(dispatch).winograd_tile)


def _constant_side(dispatch: ir.Operation) -> tuple[int, list[list[int]]] | None:
    """(argument number, axes of n and k) of a right side that is one argument, however its axes are ordered."""
    if DispatchFunc(dispatch).kind not in ("contraction", "contraction_window", "grouped_contraction", "winograd"):
        return None
    root = root_contraction(DispatchFunc(dispatch).ops)
    if any(d in dims_of(root.rhs_map) for d in root.batch) or any(
        p is None and not isinstance(e, ir.AffineConstantExpr)
        for p, e in zip(dim_positions(root.rhs_map), root.rhs_map.results, strict=True)
    ):
        return None
    source = trace_to_buffer(root.rhs, [{p: 1} if p is not None else {} for p in dim_positions(root.rhs_map)], through=(EXTEND,))
    if source is None or not ir.RankedTensorType(source[0].type).has_static_shape:
        return None
    if any(not form and size != 1 for form, size in zip(source[1], source[0].type.shape, strict=True)):
        return None
    return _axes(root, ir.BlockArgument(source[0]).arg_number, source[1])


def _axes(root: Contraction, argument: int, forms: list[dict[int, int] | None]) -> tuple[int, list[list[int]]] | None:
    where = {dim: axis for axis, form in enumerate(forms) if form is not None and len(form) == 1 for dim in form}
    if any(form is None or len(form) > 1 for form in forms) or any(dim not in where for dim in (*root.n, *root.k)):
        return None
    return argument, [[where[dim] for dim in dims] for dims in (root.n, root.k)]
