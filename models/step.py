"""A causal language model of transformers as one step function: attention over a paged cache in place of its own.

The families' own code runs, whatever they are. Attention and experts are replaced through transformers' interfaces, and what changes
with the data (rotary frequencies that follow the longest position) is decided once, for the longest context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import llmos.compiler.frontend.grouped_linear
import llmos.compiler.frontend.paged_attention  # noqa: F401  registers the ops
from llmos.compiler.analysis.paged_attention import BlockLayout
from llmos.models.float_weights import traced_as_float32
from llmos.runtime.errors import UnsupportedError

_NAME = "llmos"  # of our implementations in transformers' interfaces


@dataclass(frozen=True)
class CacheSpec:
    """The cache of one layer: key-value heads, elements of a head, how many positions a token attends to at most (None: all), and whether
    it is one of int8, with scales.
    """

    name: str
    num_kv_heads: int
    head_dim: int
    window: int | None
    has_scales: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Return the dims behind the number of blocks."""
        return self.num_kv_heads, BlockLayout(self.head_dim, self.has_scales).num_elements


@dataclass
class StepState:
    """What attention needs beside query, key and value; `caches` is replaced layer by layer."""

    slots: torch.Tensor
    positions: torch.Tensor
    token_requests: torch.Tensor
    block_tables: torch.Tensor
    caches: list[torch.Tensor]


_STATE: ContextVar[StepState] = ContextVar("state")  # of the step that runs: not every family hands arguments down to its attention


class Step(nn.Module):
    """(tokens, positions, slots, token_requests, block_tables, logit_rows, caches) to logits [rows, vocabulary]; caches change in place.

    interface: what `uses_interface` says of the model.
    """

    def __init__(self, model: Any, interface: bool) -> None:
        super().__init__()
        self.model = model
        self.interface = interface

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        token_requests: torch.Tensor,
        block_tables: torch.Tensor,
        logit_rows: torch.Tensor,
        caches: list[torch.Tensor],
    ) -> torch.Tensor:
        """Run one step; shapes and meaning of the arguments are those of models/causal_lm.py."""
        state = StepState(slots, positions, token_requests, block_tables, list(caches))
        token = _STATE.set(state)
        try:
            with nullcontext() if self.interface else _InSdpa(lambda layer, q, k, v: _attend(layer, q, k, v, None)):
                output = self.model(input_ids=tokens[None], position_ids=positions[None], use_cache=False, logits_to_keep=logit_rows.long())
        finally:
            _STATE.reset(token)
        for cache, new in zip(caches, state.caches, strict=True):
            cache.copy_(new)
        logits: torch.Tensor = output.logits[0]
        return logits.float()


@dataclass(frozen=True)
class _Layer:
    """What attention asks of a module, for a model that doesn't hand it over."""

    layer_idx: int


class _InSdpa(TorchFunctionMode):
    """Inside, each call of scaled_dot_product_attention is that of the next layer: `attend(layer, query, key, value)`."""

    def __init__(self, attend: Callable[..., tuple[torch.Tensor, None]]) -> None:
        super().__init__()
        self._attend = attend
        self._num_calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self._num_calls += 1
        made, _ = self._attend(_Layer(self._num_calls - 1), *args[:3])
        return made.transpose(1, 2)


def uses_interface(model: Any) -> bool:
    """Whether a model's attention goes through transformers' AttentionInterface, seen at a run of one token; else it calls
    scaled_dot_product_attention itself.
    """
    calls: list[Any] = []

    def look(module: Any, query: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, None]:
        calls.append(module)
        return query.transpose(1, 2), None

    before = model.config._attn_implementation
    _register(look, _no_mask)
    model.set_attn_implementation(_NAME)
    try:
        _run_one_token(model)
    finally:
        model.set_attn_implementation(before)
        _register(_attend, _no_mask)
    return bool(calls)


def _register(attention: Callable[..., Any], mask: Callable[..., Any]) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, attention)
    AttentionMaskInterface.register(_NAME, mask)


def _run_one_token(model: Any) -> None:
    """Run in float32 whatever the types of weights, without their values."""
    one = torch.zeros(1, 1, dtype=torch.int64)
    with torch.no_grad(), traced_as_float32(model):
        model(input_ids=one, position_ids=one, use_cache=False)


@contextmanager
def adapted(model: Any, max_length: int, interface: bool) -> Iterator[None]:
    """Inside, a model runs as a step: traceable, and with attention over a paged cache.

    interface: as of Step. Raises UnsupportedError for a model whose scores have other terms than attention's own.
    """
    _register(_attend, _no_mask)
    before = model.config._attn_implementation
    if getattr(model.config, "alibi", False):
        raise UnsupportedError(f"{type(model).__name__}: ALiBi isn't supported")
    with traceable(model, max_length):
        model.set_attn_implementation(_NAME if interface else "sdpa")
        try:
            yield
        finally:
            model.set_attn_implementation(before)


@contextmanager
def traceable(model: Any, max_length: int) -> Iterator[None]:
    """Inside, nothing but attention depends on data: experts are computed on rows sorted by expert, and rotary frequencies are fixed."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(_NAME, _experts)
    before = getattr(model.config, "_experts_implementation", None)
    kinds = _fix_frequencies(model, max_length)
    model.config._experts_implementation = _NAME
    try:
        yield
    finally:
        model.config._experts_implementation = before
        for module, kind in kinds:
            module.rope_type = kind


def cache_specs(model: Any, interface: bool, has_scales: bool) -> list[CacheSpec]:
    """The cache of each layer of an adapted model, seen at a run of one token. has_scales: whether they are to be int8.

    Raises UnsupportedError for attention that can't be replaced.
    """
    masks: list[Any] = []
    found: dict[int, CacheSpec] = {}

    def look(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **options: Any) -> tuple[Any, None]:
        if value.shape[-1] != key.shape[-1]:
            raise UnsupportedError(f"{type(model).__name__}: attention whose values have another width than its keys isn't supported")
        window = _window(module, options)
        found[module.layer_idx] = CacheSpec(f"cache.{module.layer_idx}", key.shape[1], key.shape[-1], window, has_scales)
        return query.transpose(1, 2), None

    _register(look, lambda *_, mask_function=None, **__: masks.append(mask_function))
    try:
        with nullcontext() if interface else _InSdpa(look):
            _run_one_token(model)
    finally:
        _register(_attend, _no_mask)
    windows = {None, *(each.window for each in found.values())}
    if not all(any(_is_causal(mask, window) for window in windows) for mask in masks if mask is not None):
        raise UnsupportedError(f"{type(model).__name__}: a mask that is neither causal nor a window isn't supported")
    if not found or sorted(found) != list(range(len(found))):
        raise UnsupportedError(f"{type(model).__name__}: its attention is neither transformers' AttentionInterface nor torch's function")
    return [found[layer] for layer in range(len(found))]


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float | None = None, **options: Any
) -> tuple[torch.Tensor, None]:
    """As transformers' attention interface: query [1, heads, tokens, head_dim]; key and value have the key-value heads alone."""
    state = _STATE.get()
    query, key, value = (each.transpose(1, 2)[0] for each in (query, key, value))
    if key.shape[1] != state.caches[module.layer_idx].shape[1]:
        raise UnsupportedError(f"layer {module.layer_idx} has {key.shape[1]} heads of keys here, and other ones for a single token")
    cache = torch.ops.llmos.write_kv_cache(state.caches[module.layer_idx], key, value, state.slots)
    state.caches[module.layer_idx] = cache
    scale = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
    softcap = float(options.get("softcap") or 0.0)
    window = _window(module, options) or 0
    places = state.block_tables, state.positions, state.token_requests
    out = torch.ops.llmos.paged_attention(query, cache, *places, options.get("s_aux"), scale, window, softcap)
    return out[None], None


def _window(module: Any, options: Mapping[str, Any]) -> int | None:
    given = options.get("sliding_window")
    window = given if given is not None else getattr(module, "sliding_window", None)
    return None if window is None else int(window)


def _is_causal(mask: Callable[..., Any], window: int | None) -> bool:
    """Whether a mask function of transformers lets positions attend to those before, `window` of them or all."""
    near = sorted({max(0, (1 << power) + shift) for power in range(18) for shift in (-1, 0, 1)})
    query, key = torch.tensor(near)[:, None], torch.tensor(near)[None, :]
    wanted = (key <= query) & (query - key < (window or 1 << 30))
    return bool((torch.as_tensor(mask(torch.tensor(0), torch.tensor(0), query, key)) == wanted).all())


def _no_mask(*_: Any, **__: Any) -> None:
    """Positions say what a token attends to."""


def _experts(module: Any, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """Each token [tokens, width] by the experts that its router chose: rows sorted by expert, and each expert's multiplied together."""
    num_chosen, chosen = top_k_index.shape[1], top_k_index.reshape(-1)
    experts = torch.arange(module.num_experts)[None, :]
    begins, ends = (each.sum(0, dtype=torch.int32) for each in (chosen[:, None] < experts, chosen[:, None] <= experts))
    is_of = (chosen[:, None] == experts).to(torch.int32)
    places = ((is_of.cumsum(0, dtype=torch.int32) - 1 + begins) * is_of).sum(1)  # a counting sort: where each row goes
    numbers = torch.arange(chosen.shape[0])
    order = torch.zeros_like(numbers).index_put((places,), numbers)
    made = _linear(module, "gate_up_proj" if module.has_gate else "up_proj", hidden[order // num_chosen], begins, ends)
    made = module._apply_gate(made) if module.has_gate else module.act_fn(made)
    made = _linear(module, "down_proj", made, begins, ends)[places]
    return (made.reshape(-1, num_chosen, made.shape[-1]) * top_k_weights[..., None].to(made.dtype)).sum(1)


def _linear(module: Any, name: str, x: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    weight = getattr(module, name)
    weight = (weight.transpose(1, 2) if module.is_transposed else weight).flatten(0, 1)
    bias = getattr(module, f"{name}_bias").flatten() if module.has_bias else None
    made: torch.Tensor = torch.ops.llmos.grouped_linear(x, weight, bias, begins, ends)
    return made


def _fix_frequencies(model: Any, max_length: int) -> Sequence[tuple[Any, Any]]:
    """Set rotary frequencies that would follow the longest position to those of the longest context; the modules and their kinds before.

    transformers chooses them anew in each call, which would leave cached keys with others.
    """
    changed = []
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        kinds = set(kind.values()) if isinstance(kind, dict) else {kind}
        if not any(isinstance(each, str) and ("dynamic" in each or each == "longrope") for each in kinds):
            continue
        position = torch.tensor([[max_length - 1]])
        with torch.no_grad():
            for layer in kind if isinstance(kind, dict) else (None,):
                module(torch.zeros(1), position, **({"layer_type": layer} if layer is not None else {}))
        changed.append((module, kind))
        module.rope_type = dict.fromkeys(kind, "default") if isinstance(kind, dict) else "default"
    return changed
