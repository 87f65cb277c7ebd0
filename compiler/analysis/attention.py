"""Recognition of attention in linalg.generic ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llmos.compiler.analysis.contraction import Contraction, float_contraction_of
from llmos.compiler.analysis.generic import Generic, depends_on, is_fill
from llmos.compiler.ir.bindings import ir

Value: TypeAlias = ir.Value


@dataclass(frozen=True)
class AttentionParts:
    """The parts of softmax(f(Q K^T)) V, with the loop dims of each contraction by role."""

    scores: Contraction  # Q K^T
    values: Contraction  # P V
    logits: Value  # f(Q K^T): the input of the softmax
    probabilities: Value
    query: int  # operand index of Q in `scores`; K is the other
    weights: int  # operand index of P in `values`; V is the other
    query_axis: int  # axis of i in the score tensor
    key_axis: int  # axis of j
    floored: bool  # whether the sum of exponentials is clamped to at least 1


def describe(scores: Contraction, values: Contraction, logits: Value, weights: int) -> AttentionParts:
    """Return the parts of an attention with roles assigned to the dims; `weights` is the operand of P V that holds the probabilities."""
    probabilities = values.generic.inputs[weights]
    positions = [e.position if isinstance(e, ir.AffineDimExpr) else None for e in values.generic.maps[weights].results]
    key_axis = positions.index(values.k[0])
    rows = values.m if weights == 0 else values.n
    query_axis = positions.index(rows[0])
    out = scores.out_map.results
    i_dim = ir.AffineDimExpr(out[query_axis]).position
    query = 0 if i_dim in scores.m else 1
    quotient = list(Generic(probabilities.owner.operation).body.operations)
    return AttentionParts(scores, values, logits, probabilities, query, weights, query_axis, key_axis, quotient[0].name == "arith.maximumf")


def parts_of(ops: Sequence[ir.Operation]) -> AttentionParts:
    """Return the parts of an attention from its ops in program order, the group that recognize-attention tags."""
    found = [c for c in (float_contraction_of(op) for op in ops) if c is not None]
    scores, values = found[0], found[-1]
    generics = [Generic(op) for op in ops if op.name == "linalg.generic" and not is_fill(op)]
    maximum = next(g for g in generics if g.reduction_dims and float_contraction_of(g.op) is None)
    logits = next(i for i in maximum.inputs if isinstance(i.type, ir.RankedTensorType))
    weights = next(i for i, operand in enumerate(values.generic.inputs) if depends_on(operand, scores.generic.op.results[0]))
    return describe(scores, values, logits, weights)
