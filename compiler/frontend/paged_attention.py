"""Attention over a paged cache as two ops of a torch program: `llmos::write_kv_cache` and `llmos::paged_attention`.

A cache is [blocks, key-value heads, elements of a block] (compiler/analysis/paged_attention.py has the layout of a block). Their torch
implementations are the reference of compiled models; the compiler lowers the ops in frontend/ops/paged_attention.py.
"""

from __future__ import annotations

import torch

from llmos.compiler.analysis.paged_attention import BLOCK_SIZE, SCALE_BYTES, SCALE_OF_LARGEST, BlockLayout


@torch.library.custom_op("llmos::write_kv_cache", mutates_args=())
def write_kv_cache(cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Return the cache with key and value [tokens, key-value heads, head_dim] written at slots [tokens].

    A slot is block * BLOCK_SIZE + offset. A cache of bfloat16 takes them rounded, one of int8 as integers and scales.
    """
    layout, num_heads = BlockLayout(key.shape[-1], cache.dtype == torch.int8), key.shape[1]
    block, offset = (each.long()[:, None, None] for each in (slots // BLOCK_SIZE, slots % BLOCK_SIZE))
    heads, dims = torch.arange(num_heads)[None, :, None], torch.arange(layout.head_dim)[None, None, :]
    written = cache.clone()
    if layout.has_scales:
        (key, key_scales), (value, value_scales) = _quantized(key), _quantized(value)
        scales = torch.stack([key_scales, value_scales], -1)
        kinds, numbers = torch.arange(2)[None, None, :, None], torch.arange(SCALE_BYTES)[None, None, None, :]
        place = layout.scales + (kinds * BLOCK_SIZE + offset[..., None]) * SCALE_BYTES + numbers
        written[block[..., None], heads[..., None], place] = scales[..., None].view(torch.int8)
    written[block, heads, dims * BLOCK_SIZE + offset] = key.to(cache.dtype)
    written[block, heads, layout.values + offset * layout.padded + dims] = value.to(cache.dtype)
    return written


def _quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers, as floats, of x [tokens, heads, head_dim], and their scales [tokens, heads], bfloat16."""
    scales = (x.float().abs().amax(-1) * SCALE_OF_LARGEST).bfloat16()
    divisors = torch.where(scales == 0, 1.0, scales.float())[..., None]
    return (x.float() / divisors).round().nan_to_num(-127.0).clamp(-127.0, 127.0), scales


@torch.library.custom_op("llmos::paged_attention", mutates_args=())
def paged_attention(
    query: torch.Tensor,
    cache: torch.Tensor,
    block_tables: torch.Tensor,
    positions: torch.Tensor,
    token_requests: torch.Tensor,
    sinks: torch.Tensor | None,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """Return attention of query [tokens, heads, head_dim] over the cached positions of each token's request, of the same shape.

    block_tables [requests, max_blocks]: the blocks of a request, in order of position. positions, token_requests [tokens]. window: only
    the last so many positions count, the token's own among them; 0 for all. softcap: scores are softcap * tanh(score / softcap); 0 for
    none. sinks [heads]: a score of each head that takes part in the softmax, and has no value.
    """
    made, first = torch.empty_like(query, memory_format=torch.contiguous_format), 0
    for request, count in zip(*torch.unique_consecutive(token_requests, return_counts=True), strict=True):
        own = slice(first, first + int(count))
        made[own] = _attend(query[own], cache, block_tables[int(request)], positions[own].long(), sinks, scale, window, softcap)
        first = own.stop
    return made


def _attend(
    query: torch.Tensor,
    cache: torch.Tensor,
    table: torch.Tensor,
    positions: torch.Tensor,
    sinks: torch.Tensor | None,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """Tokens of one request: query [tokens, heads, head_dim], positions [tokens]."""
    lowest, highest = int(positions.min()), int(positions.max())
    at = torch.arange(max(0, lowest - window + 1) if window else 0, highest + 1)
    keys, values = _read(cache, table[at // BLOCK_SIZE].long(), at % BLOCK_SIZE, query.shape[-1])
    grouped = query.reshape(len(query), cache.shape[1], -1, query.shape[-1])
    scores = torch.einsum("thgd,phd->thgp", grouped, keys) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    ahead = at[None, :] - positions[:, None]
    attends = (ahead <= 0) & (ahead > -window) if window else ahead <= 0
    scores = torch.where(attends[:, None, None, :], scores, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().reshape(1, *grouped.shape[1:3], 1).expand(len(query), -1, -1, -1)], -1)
    weights = scores.softmax(-1)[..., : len(at)]
    return torch.einsum("thgp,phd->thgd", weights, values).reshape(query.shape)


def _read(cache: torch.Tensor, blocks: torch.Tensor, offsets: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [positions, key-value heads, head_dim], in float32."""
    layout = BlockLayout(head_dim, cache.dtype == torch.int8)
    dims, heads = torch.arange(head_dim)[None, None, :], torch.arange(cache.shape[1])[None, :, None]
    block, offset = blocks[:, None, None], offsets[:, None, None]
    keys = cache[block, heads, dims * BLOCK_SIZE + offset]
    values = cache[block, heads, layout.values + offset * layout.padded + dims]
    if not layout.has_scales:
        return keys.float(), values.float()
    scales = cache[..., layout.scales :].contiguous().view(torch.bfloat16).float().reshape(*cache.shape[:2], 2, BLOCK_SIZE)
    return keys.float() * scales[block, heads, 0, offset], values.float() * scales[block, heads, 1, offset]


@write_kv_cache.register_fake
def _(cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(cache)


@paged_attention.register_fake
def _(
    query: torch.Tensor,
    cache: torch.Tensor,
    block_tables: torch.Tensor,
    positions: torch.Tensor,
    token_requests: torch.Tensor,
    sinks: torch.Tensor | None,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)
