"""Hugging Face directories of causal language models, compiled as one step function over a paged cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from llmos.compiler.analysis.paged_attention import BLOCK_SIZE
from llmos.compiler.frontend.exporting import export
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.torch import import_torch
from llmos.models.directory import TOKENIZER, ModelDirectory, read_object
from llmos.models.float_weights import run_in_float32, traced_as_float32
from llmos.models.loading import load_transformer
from llmos.models.repeated_layers import NotRepeatedError, find_layers, with_copies
from llmos.models.step import CacheSpec, Step, adapted, cache_specs, uses_interface
from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.errors import InputError, UserError
from llmos.runtime.text.tokenizer import misfit

TASK = "text-generation"
INPUTS = ("tokens", "positions", "slots", "token_requests", "block_tables", "logit_rows")
KV_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
_EXAMPLES = ((18, 23), (1, 40), (3, 2))  # prompt lengths of two requests in each recorded step; traced at the first


@dataclass(frozen=True)
class CausalLMOptions:
    """kv: of cached keys and values. The most tokens of a step, requests in it, blocks of a cache, and positions of a request."""

    kv: str = "bf16"
    max_tokens: int = 8192
    max_requests: int = 1024
    max_blocks: int = 1 << 20
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.kv not in KV_DTYPES:
            raise InputError(f"keys and values can't be cached as {self.kv!r}: use {', '.join(KV_DTYPES)}")

    @property
    def kv_dtype(self) -> str:
        """Return the dtype of the caches, as the manifest has it."""
        return KV_DTYPES[self.kv]


@dataclass(frozen=True)
class CausalLM:
    """A causal language model of transformers in eval mode, and what belongs to it.

    assets: its tokenizer's files and chat template. generation: what metadata["generation"] holds beside what the model says. max_length:
    tokens that its tokenizer keeps of a text; None: as many as the model takes.
    """

    model: Any
    name: str
    assets: Mapping[str, bytes] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    max_length: int | None = None


def open_causal_lm(directory: str | Path, *, name: str | None = None) -> CausalLM:
    """The model of a directory with config.json, *.safetensors and tokenizer.json. Raises UserError."""
    source = ModelDirectory.open(directory)
    model = load_transformer(source, "AutoModelForCausalLM").model
    assets, limit = _assets(source, int(model.config.vocab_size)), longest_context(model.config, CausalLMOptions())
    return CausalLM(model, name or source.path.resolve().name, assets, _generation(source), source.max_length(limit))


def import_model(
    model: Any,
    options: CausalLMOptions = CausalLMOptions(),
    *,
    name: str,
    assets: Mapping[str, bytes] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> ImportedModel:
    """A model of transformers in eval mode as the linalg stage: one entry `main`, a step. assets, generation: as of CausalLM.

    Inputs, int32: tokens, positions, slots, token_requests [tokens]; block_tables [requests, max_blocks]; logit_rows [rows]; then for each
    layer cache.<n> [blocks, key-value heads, elements of a block], updated in place. Output: logits float32 [rows, vocabulary].
    Weights of half types are read one by one, as float32. Raises UserError, UnsupportedError.
    """
    max_length, interface = longest_context(model.config, options), uses_interface(model)
    with adapted(model, max_length, interface):
        caches = cache_specs(model, interface, options.kv == "int8")
    with adapted(model, max_length, interface), traced_as_float32(model) as weights:
        step = Step(model, interface).eval()
        examples = tuple(_example(seed, lengths, model.config, caches, options) for seed, lengths in enumerate(_EXAMPLES))
        imported = import_torch(
            _program(step, caches, examples[0], options),
            _torch_arguments(examples[0]),
            _dynamic_shapes(options, caches),
            input_names=(*INPUTS, *(each.name for each in caches)),
            output_names=("logits",),
            name=name,
            assets=assets,
            metadata={"task": TASK, "generation": {**_facts(model.config, caches, options), **(generation or {})}},
            weights={f"model.{name}": weight for name, weight in weights.items()},
            reference=_StepReference(model, step, max_length),
        )
    return replace(imported, examples=examples)


def traced_step(model: Any, options: CausalLMOptions = CausalLMOptions()) -> ExportedProgram:
    """The step of a model of transformers as torch exports it, for reports on its ops; of equal layers there may be one."""
    max_length, interface = longest_context(model.config, options), uses_interface(model)
    with adapted(model, max_length, interface):
        caches = cache_specs(model, interface, options.kv == "int8")
    with adapted(model, max_length, interface), traced_as_float32(model):
        step = Step(model, interface).eval()
        example = _example(0, _EXAMPLES[0], model.config, caches, options)
        found = _program(step, caches, example, options)
        if isinstance(found, ExportedProgram):
            return found
        return export(found, _torch_arguments(example), _dynamic_shapes(options, caches))


def _program(step: Step, caches: Sequence[CacheSpec], example: Sequence[np.ndarray], options: CausalLMOptions) -> Any:
    """What is imported: the step, or a program of which only the layers that differ were traced."""
    layers = find_layers(step, len(caches))
    templates = layers.templates() if layers is not None else []
    traced = max(templates, default=0) + 1
    if layers is None or traced == len(caches):
        return step
    with layers.cut(traced):
        arguments = _torch_arguments(example[: len(INPUTS) + traced])
        program = export(step, arguments, _dynamic_shapes(options, caches[:traced]))
    try:
        return with_copies(program, layers, templates, traced, len(INPUTS))
    except NotRepeatedError:
        return step


@dataclass(frozen=True)
class _StepReference:
    """The eager step: numpy inputs to logits, then the new values of the caches. bfloat16 is uint16."""

    model: Any
    step: Step
    max_length: int

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        arguments = _torch_arguments(inputs)
        with adapted(self.model, self.max_length, self.step.interface), run_in_float32(self.model), torch.no_grad():
            logits = self.step(*arguments)
        return [logits.numpy(), *(_numpy(each) for each in arguments[-1])]


# -- facts of the model


def longest_context(config: Any, options: CausalLMOptions) -> int:
    """Return how many positions a request may have."""
    limit = int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 20)
    return min(limit, options.max_length or limit)


def _facts(config: Any, caches: Sequence[CacheSpec], options: CausalLMOptions) -> dict[str, Any]:
    """What the runtime must know of the model (docs/llm.md)."""
    return {
        "block_size": BLOCK_SIZE,
        "vocab_size": int(config.vocab_size),
        "num_layers": len(caches),
        "num_kv_heads": caches[0].num_kv_heads,
        "head_dim": caches[0].head_dim,
        "kv_dtype": options.kv_dtype,
        "max_length": longest_context(config, options),
        "caches": [{"name": each.name, "window": each.window} for each in caches],
        "eos_token_ids": _ids(config.eos_token_id),
        "bos_token_id": config.bos_token_id,
        "defaults": {},
    }


def _ids(given: Any) -> list[int]:
    return [] if given is None else [int(each) for each in (given if isinstance(given, list) else [given])]


def _generation(source: ModelDirectory) -> dict[str, Any]:
    """What generation_config.json says: ids of ends, and defaults of sampling."""
    path = source.path / "generation_config.json"
    if not path.is_file():
        return {}
    config = read_object(path)
    found: dict[str, Any] = {"defaults": {key: config[key] for key in _SAMPLING if config.get(key) is not None}}
    return found | ({"eos_token_ids": _ids(config["eos_token_id"])} if config.get("eos_token_id") is not None else {})


def _assets(source: ModelDirectory, vocab_size: int) -> dict[str, bytes]:
    """The files of text. Raises UserError for a tokenizer that no engine would take for a model of vocab_size tokens."""
    template = source.path / "chat_template.jinja"
    assets = source.assets()
    if source.vocabulary and (reason := misfit(source.vocabulary, vocab_size)):
        raise UserError(f"{source.path / TOKENIZER}: it is that of another model: {reason}; copy it from where the weights are from")
    return {**assets, **({template.name: template.read_bytes()} if template.is_file() else {})}


# -- shapes and examples


def _dynamic_shapes(options: CausalLMOptions, caches: Sequence[CacheSpec]) -> tuple[Any, ...]:
    tokens, requests = Dim("tokens", min=1, max=options.max_tokens), Dim("requests", min=1, max=options.max_requests)
    max_blocks, rows = Dim("max_blocks", min=1, max=1 << 16), Dim("rows", min=1, max=options.max_tokens)
    blocks = Dim("blocks", min=1, max=options.max_blocks)
    each = {0: tokens}
    return (each, dict(each), dict(each), dict(each), {0: requests, 1: max_blocks}, {0: rows}, [{0: blocks} for _ in caches])


def _example(
    seed: int, lengths: Sequence[int], config: Any, caches: Sequence[CacheSpec], options: CausalLMOptions
) -> tuple[np.ndarray, ...]:
    """A first step of two prompts into scattered blocks of a cache of zeros, all logits of the last one and the last of the first."""
    rng = np.random.default_rng(seed)
    tables = _block_tables(lengths, rng)
    tokens = rng.integers(0, config.vocab_size, sum(lengths))
    storage = np.dtype(DTYPES[options.kv_dtype].storage)
    return first_step(tokens, lengths, tables, lengths[0] - 1, [(each.shape, storage) for each in caches])


def first_step(
    tokens: np.ndarray, lengths: Sequence[int], tables: np.ndarray, first_row: int, caches: Sequence[tuple[Sequence[int], Any]]
) -> tuple[np.ndarray, ...]:
    """The inputs of a step over whole prompts, in caches of zeros.

    tokens: of all prompts, one after the other; lengths: of each; tables: their blocks [requests, most blocks]. first_row: the first token
    whose logits are wanted; all behind it are. caches: shape of a block and dtype of each.
    """
    positions = np.concatenate([np.arange(length) for length in lengths])
    requests = np.repeat(np.arange(len(lengths)), lengths)
    slots = tables[requests, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    numbers = (tokens, positions, slots, requests, tables, np.arange(first_row, len(positions)))
    num_blocks = int(tables.max()) + 1
    return (*(each.astype(np.int32) for each in numbers), *(np.zeros((num_blocks, *shape), dtype) for shape, dtype in caches))


def _block_tables(lengths: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    numbers = rng.permutation(sum(counts)) + 1
    tables = np.zeros((len(lengths), max(counts)), np.int64)
    for row, (count, end) in enumerate(zip(counts, np.cumsum(counts), strict=True)):
        tables[row, :count] = numbers[end - count : end]
    return tables


def _torch_arguments(arrays: Sequence[np.ndarray]) -> tuple[Any, ...]:
    """Copies as the step takes them; uint16 as bfloat16."""
    values = [torch.from_numpy(np.array(array)) for array in arrays]
    caches = [value.view(torch.bfloat16) if value.dtype == torch.uint16 else value for value in values[len(INPUTS) :]]
    return (*values[: len(INPUTS)], caches)


def _numpy(value: torch.Tensor) -> np.ndarray:
    array: np.ndarray = (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy()
    return array
