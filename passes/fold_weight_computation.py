"""fold-weight-computation: move what depends on weights alone out of the program, to be computed once, at compile time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmos.compiler.analysis.casts import WIDEN
from llmos.compiler.analysis.contraction import float_contraction_of
from llmos.compiler.analysis.generic import is_fill, pure_source
from llmos.compiler.ir.attributes import argument_attributes
from llmos.compiler.ir.bindings import ir
from llmos.passes._graph import captured, erase_dead, is_tensor, owner_of
from llmos.passes._pass import Pass

FOLD = "llmos.fold"
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

    A plain rearrangement of a weight that a contraction multiplies by stays: it is packed in its own order.
    """

    def run(self, module: ir.Module) -> None:
        for op in list(module.body.operations):
            func = op.operation
            if func.name == "func.func" and "sym_visibility" not in func.attributes:
                _fold(func, module)


def _fold(func: ir.Operation, module: ir.Module) -> None:
    block = func.regions[0].blocks[0]
    attributes = argument_attributes(func)
    weights = {
        a
        for a, attrs in zip(block.arguments, attributes, strict=True)
        if "llmos.kind" in attrs and ir.StringAttr(attrs["llmos.kind"]).value == "weight"
    }
    folded = _weight_only(block, weights)
    results = [r for op in folded for r in op.results if is_tensor(r) and _leaves(r, folded) and _is_worth(r, weights)]
    if not results:
        return
    needed = _cone(results, folded)
    inputs = list(dict.fromkeys(v for op in needed for v in captured(op) if v in weights))
    by_argument = dict(zip(block.arguments, attributes, strict=True))
    names = _names(len(results), by_argument)
    _outline(func, module, needed, inputs, results, by_argument, names)
    _replace(func, results, names)
    erase_dead(func)


def _weight_only(block: ir.Block, weights: set[ir.Value]) -> list[ir.Operation]:
    """Ops that need nothing but weights and constants, static in shape, in program order."""
    found: list[ir.Operation] = []
    known: set[ir.Value] = set(weights)
    for op in list(block.operations)[:-1]:
        operation = op.operation
        static = all(not is_tensor(r) or ir.RankedTensorType(r.type).has_static_shape for r in operation.results)
        if static and all(v in known for v in captured(operation)) and operation.name != "func.call":
            found.append(operation)
            known.update(operation.results)
    return found


def _leaves(value: ir.Value, folded: list[ir.Operation]) -> bool:
    """Whether something outside uses a value."""
    members = set(folded)
    return any(_top(use.owner.operation, value) not in members for use in value.uses)


def _top(op: ir.Operation, value: ir.Value) -> ir.Operation:
    """The op beside `value`'s own that holds a use of it."""
    while op.block != value.owner.operation.block and op.parent is not None:
        op = op.parent.operation
    return op


def _is_worth(value: ir.Value, weights: set[ir.Value]) -> bool:
    """Real arithmetic on a weight, not a fill, not a rearrangement, and no blow-up."""
    owner = owner_of(value)
    if owner is None or is_fill(owner) or owner.name in ("tensor.empty", "arith.constant", "tensor.cast", "tensor.splat"):
        return False
    sources = _weight_sources(value, weights, set())
    if not sources:
        return False
    plain = pure_source(value, [{i: 1} for i in range(len(value.type.shape))])
    if plain is not None and plain[0] in weights:
        return _is_permuted(plain[0], value) and not any(_is_read_in_any_order(use.owner.operation, value) for use in value.uses)
    wide = pure_source(value, [{i: 1} for i in range(len(value.type.shape))], through=(WIDEN,))
    if wide is not None and wide[0] in weights and isinstance(wide[0].type.element_type, ir.BF16Type):
        return False  # bfloat16 stays so in memory: contractions read it in pairs
    elements = int(math.prod(value.type.shape))
    return elements <= LARGE or elements <= 2 * sum(math.prod(s.type.shape) for s in sources)


def _is_permuted(source: ir.Value, value: ir.Value) -> bool:
    """Whether a rearrangement keeps every element, once."""
    return bool(math.prod(source.type.shape) == math.prod(value.type.shape))


def _is_read_in_any_order(user: ir.Operation, value: ir.Value) -> bool:
    """Whether a use is the factor of a contraction, which is packed, or no kernel's."""
    contraction = float_contraction_of(user)
    return user.name != "linalg.generic" or (contraction is not None and value in contraction.generic.inputs)


def _weight_sources(value: ir.Value, weights: set[ir.Value], seen: set[ir.Value]) -> set[ir.Value]:
    if value in weights:
        return {value}
    owner = owner_of(value)
    if owner is None or value in seen:
        return set()
    seen.add(value)
    return {source for operand in captured(owner) for source in _weight_sources(operand, weights, seen)}


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


def _outline(
    func: ir.Operation,
    module: ir.Module,
    ops: list[ir.Operation],
    inputs: list[ir.Value],
    results: list[ir.Value],
    attributes: dict[ir.Value, dict[str, ir.Attribute]],
    names: list[str],
) -> None:
    kinds = [v.type for v in inputs]
    shapes = [ir.ArrayAttr.get([ir.IntegerAttr.get(ir.IntegerType.get_signless(64), size) for size in v.type.shape]) for v in inputs]
    arguments = [
        ir.DictAttr.get({**attributes[v], "llmos.kind": ir.StringAttr.get("input"), "llmos.shape": s})
        for v, s in zip(inputs, shapes, strict=True)
    ]
    with ir.InsertionPoint(module.body):
        made = ir.Operation.create(
            "func.func",
            regions=1,
            attributes={
                "sym_name": ir.StringAttr.get("fold"),
                "sym_visibility": ir.StringAttr.get("private"),
                "function_type": ir.TypeAttr.get(ir.FunctionType.get(kinds, [r.type for r in results])),
                "arg_attrs": ir.ArrayAttr.get(arguments),
                "res_attrs": ir.ArrayAttr.get([ir.DictAttr.get(_name_and_dtype(*each)) for each in zip(names, results, strict=True)]),
                FOLD: ir.UnitAttr.get(),
            },
        )
    block = made.regions[0].blocks.append(*kinds)
    mapping = dict(zip(inputs, block.arguments, strict=True))
    with ir.InsertionPoint(block):
        for op in ops:
            copy = op.clone()
            _remap(copy, mapping)
            mapping.update(zip(op.results, copy.results, strict=True))
        ir.Operation.create("func.return", operands=[mapping[r] for r in results])


def _names(count: int, attributes: dict[ir.Value, dict[str, ir.Attribute]]) -> list[str]:
    """fold.0, fold.1, ..., or another word where a weight of the model is called so."""
    taken = {ir.StringAttr(each[key]).value for each in attributes.values() for key in ("llmos.name", "llmos.state") if key in each}
    word = "fold"
    while any(name.startswith(f"{word}.") for name in taken):
        word += "_"
    return [f"{word}.{number}" for number in range(count)]


def _name_and_dtype(name: str, value: ir.Value) -> dict[str, ir.Attribute]:
    return {"llmos.name": ir.StringAttr.get(name), "llmos.dtype": ir.StringAttr.get(dtype_name(value))}


def _remap(op: ir.Operation, mapping: dict[ir.Value, ir.Value]) -> None:
    for i, operand in enumerate(op.operands):
        if operand in mapping:
            op.operands[i] = mapping[operand]
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                _remap(inner.operation, mapping)


def _replace(func: ir.Operation, results: list[ir.Value], names: list[str]) -> None:
    """Read the folded values from new weight arguments."""
    block = func.regions[0].blocks[0]
    kind = ir.FunctionType(ir.TypeAttr(func.attributes["function_type"]).value)
    attributes = list(ir.ArrayAttr(func.attributes["arg_attrs"]))
    inputs = list(kind.inputs)
    for name, result in zip(names, results, strict=True):
        argument = block.add_argument(result.type, ir.Location.unknown())
        result.replace_all_uses_with(argument)
        inputs.append(result.type)
        attributes.append(ir.DictAttr.get({"llmos.kind": ir.StringAttr.get("weight"), **_name_and_dtype(name, result)}))
    func.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, list(kind.results)))
    func.attributes["arg_attrs"] = ir.ArrayAttr.get(attributes)


def dtype_name(value: ir.Value) -> str:
    """numpy's name of a tensor's element type; integers as signed."""
    kind = ir.RankedTensorType(value.type).element_type
    names = {"f16": "float16", "f32": "float32", "f64": "float64", "bf16": "bfloat16", "i1": "bool"}
    return names.get(str(kind), f"int{getattr(kind, 'width', 64)}")
