"""Scaled dot-product attention as contraction, scale, mask, softmax, contraction: the pattern that the attention pass recognizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops.contractions import contract
from llmos.compiler.frontend.ops.reductions import number, softmax_over
from llmos.compiler.frontend.scalars import Scalar, select
from llmos.compiler.ir.bindings import ir, linalg
from llmos.runtime.errors import UnsupportedError

_BATCH = "abcd"


def scaled_dot_product_attention(
    b: Builder,
    result: Meta,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention of query [..., i, k], key [..., j, k] and value [..., j, d]; return [..., i, d].

    The result is stored as [batch, i, heads, d], because models merge the heads next. Raises UnsupportedError for dropout.
    """
    if dropout_p > 0:
        raise UnsupportedError("attention with dropout: call model.eval() before compiling, and pass dropout_p=0")
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        return _grouped(b, result, query, key, value, attn_mask, is_causal, scale)
    batch = _BATCH[: query.rank - 2]
    rows = (batch[:-1] + "i" + batch[-1:] + "v") if batch else "iv"
    return _attend(b, result, (query, batch + "ik"), (key, batch + "jk"), (value, batch + "jv"), attn_mask, is_causal, scale, rows)


def _grouped(
    b: Builder, result: Meta, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> Tensor:
    """Grouped-query attention: the group of query heads is an extra batch dimension over which keys and values broadcast."""
    heads, shared = query.shape[-3], key.shape[-3]
    assert isinstance(heads, int) and isinstance(shared, int)
    lead, tail = query.shape[:-3], query.shape[-2:]
    grouped = b.reshape(query, (*lead, shared, heads // shared, *tail))
    if mask is not None and mask.rank >= 3:
        mask = _group_mask(b, mask, shared, heads // shared)
    letters = "a"[: len(lead)]
    meta = Meta((*grouped.shape[:-1], value.shape[-1]), result.dtype)
    answer = _attend(
        b, meta, (grouped, letters + "hgik"), (key, letters + "hjk"), (value, letters + "hjv"), mask, is_causal, scale, letters + "ihgv"
    )
    return b.reshape(answer, result.shape)


def _group_mask(b: Builder, mask: Tensor, shared: int, group: int) -> Tensor:
    axis = mask.rank - 3
    if mask.shape[axis] == 1:
        return b.unsqueeze(mask, axis)
    return b.reshape(mask, (*mask.shape[:axis], shared, group, *mask.shape[axis + 1 :]))


def _attend(
    b: Builder,
    result: Meta,
    query: tuple[Tensor, str],
    key: tuple[Tensor, str],
    value: tuple[Tensor, str],
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    rows: str,
) -> Tensor:
    width = query[0].shape[-1]
    scores = contract(b, [query, key], query[1][:-1] + "j")
    scores = b.elementwise(lambda v: v * _factor(b, width, scale, v.dtype), [scores], scores.dtype)
    if is_causal:
        scores = _causal(b, scores)
    if mask is not None:
        scores = _masked(b, scores, mask)
    weights = softmax_over(b, scores, scores.rank - 1, fully_masked_rows=mask is not None)
    if result.dtype != weights.dtype:  # the second contraction takes operands of the model's dtype
        weights = b.cast(weights, result.dtype)
    answer = contract(b, [(weights, query[1][:-1] + "j"), value], query[1][:-1] + "v", stored=rows)
    return b.cast(answer, result.dtype)


def _factor(b: Builder, width: Dim, scale: float | None, dtype: torch.dtype) -> Scalar:
    """Return `scale`, by default 1 / sqrt(width); scores of heads of width 0 are 0."""
    if scale is not None:
        return s.constant(scale, dtype)
    if isinstance(width, int):
        return s.constant(1 / math.sqrt(width) if width else 1.0, dtype)
    return s.rsqrt(number(b, width, dtype))


def _masked(b: Builder, scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return b.elementwise(lambda v, m: select(m, v, -math.inf), [scores, mask], scores.dtype, scores.shape)
    return b.elementwise(lambda v, m: v + m.to(v.dtype), [scores, mask], scores.dtype, scores.shape)


def _causal(b: Builder, scores: Tensor) -> Tensor:
    """Set scores to -inf where the key comes after the query. Loop indices are compared, so no mask tensor is stored."""

    def body(v: Scalar) -> Scalar:
        row, column = (s.from_index(_loop(scores.rank - back), torch.int64) for back in (2, 1))
        return select(column <= row, v, -math.inf)

    return b.elementwise(body, [scores], scores.dtype)


def _loop(dim: int) -> ir.Value:
    return linalg.IndexOp(ir.IntegerAttr.get(ir.IntegerType.get_signless(64), dim)).result


def attention_with_statistics(b: Builder, result: Sequence[Meta], *args: Any, **kwargs: Any) -> list[Tensor]:
    """Lower aten._scaled_dot_product_flash_attention_for_cpu and its variants: (output, zeros).

    The log-sum-exp is used in training only. Raises UnsupportedError for dropout.
    """
    query, key, value, *rest = args
    dropout, causal = (*rest, 0.0, False)[:2] if len(rest) < 2 else rest[:2]
    mask, scale = kwargs.get("attn_mask"), kwargs.get("scale")
    output = scaled_dot_product_attention(b, result[0], query, key, value, mask, dropout, causal, scale=scale)
    return [output, *(b.full(meta.shape, meta.dtype, 0) for meta in result[1:])]
