"""pack-weights: mark constant right sides of contractions, whose bytes are then written in panels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmos.compiler.analysis.casts import WIDEN
from llmos.compiler.analysis.contraction import Contraction, float_contraction_of
from llmos.compiler.analysis.generic import dim_positions, dims_of, pure_source
from llmos.compiler.analysis.loops import is_loop
from llmos.compiler.ir.attributes import argument_attributes
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.tiling import TILING, Tiling
from llmos.passes._pass import Pass

PACKED = "llmos.packed"
WINOGRAD = "llmos.winograd"  # of a dispatch: outputs on a side of a tile


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
    A bfloat16 weight is kept as panels [n/w][k/2][w][2], pairs along k. A weight that is also read in another way (tied
    embeddings) keeps its plain argument and gets a packed one beside it.
    """

    def run(self, module: ir.Module) -> None:
        functions = {ir.StringAttr(op.operation.attributes["sym_name"]).value: op.operation for op in module.body.operations}
        for func in functions.values():
            if "sym_visibility" not in func.attributes:
                _pack_calls(func, functions)


def _pack_calls(main: ir.Operation, functions: dict[str, ir.Operation]) -> None:
    arguments: dict[tuple[int, str], ir.Value] = {}
    attributes = argument_attributes(main)
    for call, dispatch, position, axes in list(weighted_contractions(main, functions)):
        spec, number = _specification(dispatch, axes), ir.BlockArgument(call.operands[position]).arg_number
        key = (number, str(spec))
        if key not in arguments:
            arguments[key] = _add_argument(main, call.operands[position], attributes[number], spec)
        call.operands[position] = arguments[key]
        _mark(dispatch, position, spec)
    drop_unused_weights(main)


def weighted_contractions(
    main: ir.Operation, functions: dict[str, ir.Operation]
) -> Iterator[tuple[ir.Operation, ir.Operation, int, list[list[int]]]]:
    """(call, its dispatch, operand, axes of n and k) of every contraction whose right side is one weight, however its axes are ordered."""
    block, attributes = main.regions[0].blocks[0], argument_attributes(main)
    for call in _calls(block):
        dispatch = functions[ir.FlatSymbolRefAttr(call.attributes["callee"]).value]
        found = _constant_side(dispatch)
        if found is None:
            continue
        operand = call.operands[found[0]]
        if operand in block.arguments and _is_weight(attributes[operand.arg_number]):
            yield call, dispatch, *found


def _calls(block: ir.Block) -> Iterator[ir.Operation]:
    """Every dispatch of a function, those in its loops included."""
    for op in block.operations:
        if op.operation.name == "func.call":
            yield op.operation
        elif is_loop(op.operation):
            yield from _calls(op.operation.regions[0].blocks[0])


def _specification(dispatch: ir.Operation, axes: list[list[int]]) -> ir.Attribute:
    """What `llmos.packed` says."""
    columns = Tiling.parse(ir.StringAttr(dispatch.attributes[TILING]).value).columns if TILING in dispatch.attributes else None
    tile = [[ir.IntegerAttr(dispatch.attributes[WINOGRAD]).value]] if WINOGRAD in dispatch.attributes else []
    width = [[columns]] if columns is not None else [[]] if tile else []
    parts = [*axes, *width, *tile]
    return ir.ArrayAttr.get([ir.DenseI64ArrayAttr.get(part) for part in parts])


def _is_weight(attributes: dict[str, ir.Attribute]) -> bool:
    return "llmos.kind" in attributes and ir.StringAttr(attributes["llmos.kind"]).value == "weight"


def _constant_side(dispatch: ir.Operation) -> tuple[int, list[list[int]]] | None:
    """(argument number, axes of n and k) of a right side that is one argument, however its axes are ordered."""
    if ir.StringAttr(dispatch.attributes["llmos.dispatch"]).value not in ("contraction", "windowed", "winograd"):
        return None
    block = dispatch.regions[0].blocks[0]
    root = next(c for c in (float_contraction_of(op.operation) for op in block.operations) if c is not None)
    if any(d in dims_of(root.rhs_map) for d in root.batch) or any(
        p is None and not isinstance(e, ir.AffineConstantExpr)
        for p, e in zip(dim_positions(root.rhs_map), root.rhs_map.results, strict=True)
    ):
        return None
    source = pure_source(root.rhs, [{p: 1} if p is not None else {} for p in dim_positions(root.rhs_map)], through=(WIDEN,))
    if source is None or not ir.RankedTensorType(source[0].type).has_static_shape:
        return None
    if any(not form and size != 1 for form, size in zip(source[1], source[0].type.shape, strict=True)):
        return None
    return _axes(root, list(block.arguments).index(source[0]), source[1])


def _axes(root: Contraction, argument: int, forms: list[dict[int, int] | None]) -> tuple[int, list[list[int]]] | None:
    where = {dim: axis for axis, form in enumerate(forms) if form is not None and len(form) == 1 for dim in form}
    if any(form is None or len(form) > 1 for form in forms) or any(dim not in where for dim in (*root.n, *root.k)):
        return None
    return argument, [[where[dim] for dim in dims] for dims in (root.n, root.k)]


def _add_argument(main: ir.Operation, weight: ir.Value, attributes: dict[str, ir.Attribute], spec: ir.Attribute) -> ir.Value:
    block = main.regions[0].blocks[0]
    added = block.add_argument(weight.type, ir.Location.unknown())
    kind = ir.FunctionType(ir.TypeAttr(main.attributes["function_type"]).value)
    main.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get([*kind.inputs, weight.type], kind.results))
    main.attributes["arg_attrs"] = ir.ArrayAttr.get(
        [*ir.ArrayAttr(main.attributes["arg_attrs"]), ir.DictAttr.get({**attributes, PACKED: spec})]
    )
    return added


def _mark(dispatch: ir.Operation, position: int, spec: ir.Attribute) -> None:
    attributes = argument_attributes(dispatch)
    attributes[position][PACKED] = spec
    dispatch.attributes["arg_attrs"] = ir.ArrayAttr.get([ir.DictAttr.get(a) for a in attributes])


def drop_unused_weights(main: ir.Operation) -> None:
    """Remove weight arguments that nothing reads any more."""
    block = main.regions[0].blocks[0]
    attributes = argument_attributes(main)
    unused = [i for i, argument in enumerate(block.arguments) if _is_weight(attributes[i]) and not any(True for _ in argument.uses)]
    for position in reversed(unused):
        block.erase_argument(position)
    kept = [i for i in range(len(attributes)) if i not in unused]
    kind = ir.FunctionType(ir.TypeAttr(main.attributes["function_type"]).value)
    main.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get([kind.inputs[i] for i in kept], kind.results))
    main.attributes["arg_attrs"] = ir.ArrayAttr.get([ir.DictAttr.get(attributes[i]) for i in kept])
