"""fold-weight-computation: move what depends on weights alone out of the program, to be computed once, at compile time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.analysis.casts import EXTEND
from llmos.compiler.analysis.contraction import kernel_contraction_of
from llmos.compiler.analysis.generic import is_fill, trace_to_buffer
from llmos.compiler.analysis.quantization import quantization_of
from llmos.compiler.analysis.quantized_weights import quantized_weight_of
from llmos.compiler.ir.attributes import DEQUANTIZE, FOLD, INPUT, KIND, SHAPE, WEIGHT, items, tensor_attributes, write_shape
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.cloning import clone_ops
from llmos.compiler.ir.functions import Argument, Arguments, EntryFunc, create_private, public_functions
from llmos.compiler.ir.ops import REMATERIALIZABLE
from llmos.passes._context import CostModel, PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._graph import captured, erase_dead, is_tensor, owner_of
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes._weight_only import weight_only_ops, weight_sources

LARGE = 1 << 16  # elements: a larger result must not be much larger than what it is made of


@dataclass(frozen=True)
class FoldWeightComputation(Pass):
    """Ops whose tensors are weights and constants become a private function that the backend runs at compile time; its results are weights.

    Before:
        func.func @main(%x, %gamma {llmos.kind = "weight"}, %var {llmos.kind = "weight"}) {
          %s = linalg.generic {gamma * rsqrt(var + eps)} ins(%gamma, %var)
          %y = linalg.generic {x * s} ins(%x, %s)
    After:
        func.func private @fold(%gamma, %var) -> (tensor<64xf32> {llmos.name = "fold.0"}) attributes {llmos.fold} { ... }
        func.func @main(%x, %s {llmos.kind = "weight", llmos.name = "fold.0"}) {
          %y = linalg.generic {x * s} ins(%x, %s)

    A plain rearrangement of a weight that a contraction multiplies by stays: it is packed in its own order. So does the dequantization of
    a weight that its one use multiplies as integers (compiler/analysis/quantized_weights.py). Of constants alone, only scales and zero
    points are computed.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({WEIGHTS_BEHIND_INPUTS})

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Move what depends on weights alone out of every public function; `context.costs` says which weights contractions pack."""
        for func in public_functions(module):
            _fold(func, module, context.costs)


def _fold(func: ir.Operation, module: ir.Module, costs: CostModel) -> None:
    arguments = EntryFunc(func).arguments
    weights = {each.value for each in arguments.weights}
    folded = [op for op in weight_only_ops(func.regions[0].blocks[0], weights) if not _stays_quantized(op, costs)]
    results = [r for op in folded for r in op.results if is_tensor(r) and _leaves(r, folded) and _is_worth(r, weights, costs)]
    if not results:
        return
    needed = _cone(results, folded)
    inputs = list(dict.fromkeys(v for op in needed for v in captured(op) if v in weights))
    names = _names(len(results), arguments)
    _outline(module, needed, [arguments[ir.BlockArgument(v).arg_number] for v in inputs], results, names)
    _replace(func, results, names)
    erase_dead(func)


def _stays_quantized(op: ir.Operation, costs: CostModel) -> bool:
    """Whether an op dequantizes the right side of one contraction beside it, whose kernel multiplies integers."""
    users = [use.owner.operation for result in op.results for use in result.uses]
    if DEQUANTIZE not in op.attributes or len(users) != 1 or users[0].block != op.block:
        return False
    found = kernel_contraction_of(users[0])
    is_right = found is not None and found.rhs == op.results[0] and quantized_weight_of(found) is not None
    return is_right and found is not None and costs.pays_as_contraction(found)


def _leaves(value: ir.Value, folded: list[ir.Operation]) -> bool:
    """Whether something outside uses a value."""
    members = set(folded)
    return any(_top(use.owner.operation, value) not in members for use in value.uses)


def _top(op: ir.Operation, value: ir.Value) -> ir.Operation:
    """The op beside `value`'s own that holds a use of it."""
    while op.block != value.owner.operation.block and op.parent is not None:
        op = op.parent.operation
    return op


def _is_worth(value: ir.Value, weights: set[ir.Value], costs: CostModel) -> bool:
    """Real arithmetic on a weight, not a fill, not a rearrangement, and no blow-up."""
    owner = owner_of(value)
    if owner is None or is_fill(owner) or owner.name in REMATERIALIZABLE | {"tensor.cast"}:
        return False
    sources = weight_sources(value, weights)
    if not sources:
        return _is_parameter(value)
    plain = trace_to_buffer(value, [{i: 1} for i in range(len(value.type.shape))])
    if plain is not None and plain[0] in weights:
        return _is_permuted(plain[0], value) and not any(_is_read_in_any_order(use.owner.operation, value, costs) for use in value.uses)
    wide = trace_to_buffer(value, [{i: 1} for i in range(len(value.type.shape))], through=(EXTEND,))
    if wide is not None and wide[0] in weights and isinstance(wide[0].type.element_type, ir.BF16Type):
        return False  # bfloat16 stays so in memory: contractions read it in pairs
    elements = int(math.prod(value.type.shape))
    return elements <= LARGE or elements <= 2 * sum(math.prod(s.type.shape) for s in sources)


def _is_parameter(value: ir.Value) -> bool:
    """Whether constants are a scale or a zero point that some op reads: those of channels that are concatenated, say."""
    found = [quantization_of(use.owner.operation) for use in value.uses]
    return any(each is not None and each.input != value for each in found) and math.prod(value.type.shape) <= LARGE


def _is_permuted(source: ir.Value, value: ir.Value) -> bool:
    """Whether a rearrangement keeps every element, once."""
    return bool(math.prod(source.type.shape) == math.prod(value.type.shape))


def _is_read_in_any_order(user: ir.Operation, value: ir.Value, costs: CostModel) -> bool:
    """Whether a use is the factor of a contraction, which is packed, or no kernel's."""
    contraction = kernel_contraction_of(user)
    if contraction is None or value not in contraction.generic.inputs:
        return bool(user.name != "linalg.generic")
    return costs.pays_as_contraction(contraction)


def _cone(results: list[ir.Value], folded: list[ir.Operation]) -> list[ir.Operation]:
    needed: set[ir.Operation] = set()
    pending = [owner for r in results if (owner := owner_of(r)) is not None]
    while pending:
        op = pending.pop()
        if op in needed:
            continue
        needed.add(op)
        pending += [owner for v in captured(op) if (owner := owner_of(v)) is not None and owner in folded]
    return [op for op in folded if op in needed]


def _outline(module: ir.Module, ops: list[ir.Operation], inputs: list[Argument], results: list[ir.Value], names: list[str]) -> None:
    kinds = [each.value.type for each in inputs]
    arguments = [
        ir.DictAttr.get({**each.attributes, KIND: ir.StringAttr.get(INPUT), SHAPE: write_shape(each.value.type.shape)}) for each in inputs
    ]
    named = ir.ArrayAttr.get([tensor_attributes(n, dtype_name(r)) for n, r in zip(names, results, strict=True)])
    function_type = ir.FunctionType.get(kinds, [r.type for r in results])
    made = create_private(module, "fold", function_type, arguments, {"res_attrs": named, FOLD: ir.UnitAttr.get()})
    block = made.regions[0].blocks[0]
    mapping = dict(zip([each.value for each in inputs], block.arguments, strict=True))
    with ir.InsertionPoint(block):
        clone_ops(ops, mapping)
        ir.Operation.create("func.return", operands=[mapping[r] for r in results])


def _names(count: int, arguments: Arguments) -> list[str]:
    """fold.0, fold.1, ..., or another word where a weight of the model is called so."""
    taken = {name for each in arguments for name in (each.name, each.state)}
    word = "fold"
    while any(name.startswith(f"{word}.") for name in taken):
        word += "_"
    return [f"{word}.{number}" for number in range(count)]


def _replace(func: ir.Operation, results: list[ir.Value], names: list[str]) -> None:
    """Read the folded values from new weight arguments."""
    entry = EntryFunc(func)
    for name, result in zip(names, results, strict=True):
        weight = entry.add_argument(result.type, items(tensor_attributes(name, dtype_name(result), kind=WEIGHT)))
        result.replace_all_uses_with(weight)


def dtype_name(value: ir.Value) -> str:
    """Return numpy's name of a tensor's element type; integers as signed."""
    kind = ir.RankedTensorType(value.type).element_type
    names = {"f16": "float16", "f32": "float32", "f64": "float64", "bf16": "bfloat16", "i1": "bool"}
    return names.get(str(kind), f"int{getattr(kind, 'width', 64)}")
