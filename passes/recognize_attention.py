"""recognize-attention: tag softmax(f(Q K^T)) V as one group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llmos.compiler.analysis.attention import describe
from llmos.compiler.analysis.contraction import Contraction, float_contraction_of, unit_dims
from llmos.compiler.analysis.generic import Generic, combiner_of, dim_positions, dims_of, is_fill, is_identity
from llmos.compiler.ir.attributes import ATTENTION, integer
from llmos.compiler.ir.bindings import ir
from llmos.passes._context import PassContext
from llmos.passes._pass import Pass


@dataclass(frozen=True)
class RecognizeAttention(Pass):
    """Gives every op of an attention the same `llmos.attention` number; form-dispatches makes one dispatch of each group.

    Before:
        %s = linalg.generic {Q K^T}                 // (b, h, i, j) over d
        %l = linalg.generic {mulf scale, addf mask} ins(%s, %mask)
        %m = linalg.generic {maximumf over j} ins(%l)
        %e = linalg.generic {exp(%l - %m)}
        %t = linalg.generic {addf over j} ins(%e)
        %p = linalg.generic {divf} ins(%e, %t)
        %o = linalg.generic {P V} ins(%p, %v)
    After: the same ops, each with {llmos.attention = 0}

    The sum may be held at 1 or more (as torch does it, so that a row with every key masked gives 0). Only where no
    value inside is used elsewhere, everything is f32, and each role has one loop dim.
    """

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Set ATTENTION of the ops of each attention in every function, numbered in program order."""
        number = 0
        for func in module.body.operations:
            for op in func.regions[0].blocks[0].operations:
                group = match_attention(op.operation)
                if group is None:
                    continue
                for member in group:
                    member.attributes[ATTENTION] = integer(number)
                number += 1


def match_attention(op: ir.Operation) -> list[ir.Operation] | None:
    """Return the ops of the attention whose P V is `op`, or None."""
    values = float_contraction_of(op)
    if values is None or len(values.k) != 1 or not _is_f32(op.results[0]):
        return None
    for weights in (0, 1):
        softmax = _match_softmax(values, weights)
        if softmax is None:
            continue
        chain = _logits_chain(softmax.logits)
        if chain is None:
            continue
        scores, between = chain
        group = [scores.generic.op, *between, *softmax.ops, op]
        if _closed(group, op) and _roles_fit(scores, values, softmax.logits, weights) and not _is_empty(scores) and not _is_empty(values):
            return group
    return None


def _is_empty(contraction: Contraction) -> bool:
    """Whether an operand has no elements: a `tensor.empty` by now, which is no memory to read keys from."""
    return any(0 in ir.RankedTensorType(value.type).shape for value in contraction.generic.inputs)


@dataclass
class _Softmax:
    logits: ir.Value
    ops: list[ir.Operation] = field(default_factory=list)


def _elementwise(value: ir.Value) -> Generic | None:
    owner = value.owner
    if isinstance(owner, ir.Block) or owner.name != "linalg.generic" or is_fill(owner.operation):
        return None
    generic = Generic(owner.operation)
    return generic if generic.is_elementwise else None


def _reduction(value: ir.Value, combiner: str, axis: int) -> Generic | None:
    """The reduction by `combiner` over `axis` alone that produced a value."""
    owner = value.owner
    if isinstance(owner, ir.Block) or owner.name != "linalg.generic":
        return None
    generic = Generic(owner.operation)
    found = combiner_of(generic, 0) if generic.reduction_dims == [axis] and len(generic.inits) == 1 else None
    if found is None or not found.name.startswith(combiner) or not is_identity(generic.maps[0]):
        return None
    return generic if found.value == generic.body.arguments[0] else None


def _match_softmax(values: Contraction, weights: int) -> _Softmax | None:
    """exp(l - max(l)) / sum of it, over the axis that P V sums over."""
    affine = values.generic.maps[weights]
    positions = dim_positions(affine)
    if values.k[0] not in positions:
        return None
    axis = positions.index(values.k[0])
    quotient = _elementwise(values.generic.inputs[weights])
    if quotient is None:
        return None
    names = [op.name for op in quotient.body.operations]
    if names not in (["arith.divf", "linalg.yield"], ["arith.maximumf", "arith.divf", "linalg.yield"]):
        return None
    floored = len(names) == 3 and _is_one(next(iter(quotient.body.operations)).operands[1])
    exponential, total = _operand_of(quotient, len(names) - 2, 0), _operand_of(quotient, 0, 0 if floored else 1)
    if exponential is None or total is None:
        return None
    summed = _reduction(total, "arith.addf", axis)
    if summed is None or summed.inputs[0] != exponential:
        return None
    found = _match_exponential(exponential, axis)
    if found is None:
        return None
    logits, ops = found
    return _Softmax(logits, [*ops, summed.op, quotient.op])


def _is_one(value: ir.Value) -> bool:
    owner = value.owner
    return not isinstance(owner, ir.Block) and owner.name == "arith.constant" and ir.FloatAttr(owner.attributes["value"]).value == 1.0


def _operand_of(generic: Generic, op_index: int, operand_index: int) -> ir.Value | None:
    """The tensor behind one operand of a body op."""
    operand = list(generic.body.operations)[op_index].operands[operand_index]
    return next((t for t, argument in zip(generic.op.operands, generic.body.arguments, strict=True) if argument == operand), None)


def _match_exponential(value: ir.Value, axis: int) -> tuple[ir.Value, list[ir.Operation]] | None:
    """exp(l - max l), in one generic or two."""
    outer = _elementwise(value)
    if outer is None:
        return None
    names = [op.name for op in outer.body.operations]
    ops = [outer.op]
    difference = outer
    if names == ["math.exp", "linalg.yield"]:
        inner = _elementwise(outer.inputs[0])
        if inner is None or not is_identity(outer.maps[0]):
            return None
        difference, ops = inner, [inner.op, outer.op]
        names = [op.name for op in inner.body.operations][:1] + names
    if names != ["arith.subf", "math.exp", "linalg.yield"]:
        return None
    logits, highest = (_operand_of(difference, 0, i) for i in (0, 1))
    if logits is None or highest is None:
        return None
    maximum = _reduction(highest, "arith.max", axis)
    if maximum is None or maximum.inputs[0] != logits:
        return None
    return logits, [maximum.op, *ops]


def _logits_chain(logits: ir.Value) -> tuple[Contraction, list[ir.Operation]] | None:
    """Back through elementwise ops to the contraction Q K^T."""
    chain: list[ir.Operation] = []
    value = logits
    for _ in range(8):
        owner = value.owner
        if isinstance(owner, ir.Block):
            return None
        scores = float_contraction_of(owner.operation)
        if scores is not None:
            return scores, chain
        generic = _elementwise(value)
        if generic is None:
            return None
        chain.insert(0, generic.op)
        following = [
            operand
            for operand, affine in zip(generic.inputs, generic.maps, strict=False)
            if is_identity(affine) and _leads_to_contraction(operand)
        ]
        if len(following) != 1:
            return None
        value = following[0]
    return None


def _leads_to_contraction(value: ir.Value, depth: int = 8) -> bool:
    owner = value.owner
    if isinstance(owner, ir.Block) or depth == 0:
        return False
    if float_contraction_of(owner.operation) is not None:
        return True
    generic = _elementwise(value)
    if generic is None:
        return False
    return any(
        _leads_to_contraction(o, depth - 1)
        for o, m in zip(generic.inputs, generic.maps, strict=False)
        if isinstance(o.type, ir.RankedTensorType) and is_identity(m)
    )


def _closed(group: list[ir.Operation], last: ir.Operation) -> bool:
    """Whether nothing inside is used outside, and everything is f32."""
    members = set(group)
    inside: Iterator[ir.Operation] = (op for op in group if op != last)
    for op in inside:
        if not all(_is_f32(result) for result in op.results):
            return False
        if any(use.owner.operation not in members for result in op.results for use in result.uses):
            return False
    return True


def _roles_fit(scores: Contraction, values: Contraction, logits: ir.Value, weights: int) -> bool:
    """Whether dims have the roles that the kernel needs: one i, one j, one depth."""
    rows = values.m if weights == 0 else values.n
    if scores.left != 0 or values.left != 0 or len(rows) != 1 or len(scores.k) != 1 or len(scores.m) != 1 or len(scores.n) != 1:
        return False
    if not is_identity(scores.out_map) and len(set(dim_positions(scores.out_map))) != scores.generic.rank - 1:
        return False
    columns = values.n if weights == 0 else values.m
    others = {*values.generic.parallel_dims} - unit_dims(values.generic) - {*columns}
    if len(columns) > 1 or not others <= dims_of(values.generic.maps[weights]):
        return False  # one softmax for many V: the grid is that of the scores
    parts = describe(scores, values, logits, weights)
    return all(_is_f32(value) for value in (scores.generic.inputs[1 - parts.query], values.generic.inputs[1 - weights]))


def _is_f32(value: ir.Value) -> bool:
    return isinstance(value.type, ir.RankedTensorType) and isinstance(value.type.element_type, ir.F32Type)
