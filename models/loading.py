"""A transformers model from a directory: its weights mapped from their file, each of them there and of the size that its config says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmos.models.directory import ModelDirectory
from llmos.models.quantized_checkpoints.checkpoint import CONFIGS, QuantizedCheckpoint, scheme_of
from llmos.models.quantized_checkpoints.scheme import Scheme
from llmos.models.quantized_checkpoints.tensors import TensorFiles
from llmos.runtime.errors import UserError

_NUM_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")


@dataclass(frozen=True)
class LoadedModel:
    """A transformers model in eval mode, the names of the parameters that its files lack, and what a user must know of it."""

    model: Any
    missing: frozenset[str]
    notes: tuple[str, ...] = ()


def load_transformer(source: ModelDirectory, loader: str) -> LoadedModel:
    """The model; no float parameter is copied, and quantized layers stay so (quantized_checkpoints). Raises UserError."""
    import transformers

    _check_layers(source)
    try:
        scheme = scheme_of(source.config)
    except UserError as error:
        raise type(error)(f"{source.path}: {error}") from None
    with quiet_transformers():
        if scheme is not None:
            return _load_quantized(source, loader, scheme)
        try:
            model, report = getattr(transformers, loader).from_pretrained(
                source.path, local_files_only=True, use_safetensors=True, dtype="auto", output_loading_info=True
            )
        except Exception as error:
            raise UserError(f"{source.path}: {_reason(source, loader, error, source.weight_shapes())}") from error
    return LoadedModel(model.eval(), frozenset(report["missing_keys"]))


def _load_quantized(source: ModelDirectory, loader: str, scheme: Scheme) -> LoadedModel:
    """As transformers does, without the libraries of the formats: quantized layers are put in after the others are loaded."""
    try:
        checkpoint = QuantizedCheckpoint.read(scheme, TensorFiles(source.weight_files()))
        config = _float_config(source)
        dtype = config.dtype or next((each.dtype for each in checkpoint.others.values() if each.is_floating_point()), torch.float32)
        placeholders = checkpoint.placeholders(dtype)
        state = {**checkpoint.others, **placeholders}
        model, report = _loaded_state(source, loader, config, state, dtype)
        checkpoint.replace_layers(model, placeholders, report["unexpected_keys"], dtype)
    except UserError as error:
        raise error if str(source.path) in str(error) else type(error)(f"{source.path}: {error}") from None
    return LoadedModel(model.eval(), frozenset(report["missing_keys"]), scheme.notes)


def _float_config(source: ModelDirectory) -> Any:
    """The directory's config without what would make transformers ask for a quantization library."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source.path, local_files_only=True)
    except Exception as error:
        raise UserError(_reason(source, "", error, {})) from error
    for name in CONFIGS:
        if hasattr(config, name):
            delattr(config, name)
    return config


def _loaded_state(source: ModelDirectory, loader: str, config: Any, state: dict[str, torch.Tensor], dtype: torch.dtype) -> tuple[Any, Any]:
    import transformers

    try:
        with torch.device("meta"):
            kind = type(getattr(transformers, loader).from_config(config))
        found: tuple[Any, Any] = kind.from_pretrained(None, config=config, state_dict=dict(state), dtype=dtype, output_loading_info=True)
    except Exception as error:
        raise UserError(_reason(source, loader, error, {name: tuple(value.shape) for name, value in state.items()})) from error
    return found


def require_weights(
    source: ModelDirectory,
    model: nn.Module,
    missing: Collection[str],
    run: Callable[..., torch.Tensor],
    example_args: Sequence[torch.Tensor],
) -> None:
    """Raises UserError where a parameter that no file has, and which transformers therefore made up, has a part in what `run` gives.

    A pooler that nothing reads may be missing, and often is.
    """
    for name, parameter in model.named_parameters():
        if name not in missing or not parameter.is_floating_point():
            continue
        with torch.no_grad():
            parameter.fill_(torch.nan)
            spoilt = bool(run(*example_args).isnan().any())
        if spoilt:
            raise UserError(f"{source.path}: the weights have no {name}, which the model of config.json needs; are they of another model?")


def _check_layers(source: ModelDirectory) -> None:
    """A model of more layers than there are weights would only be built in vain, and for minutes."""
    num_weights = len(source.weight_shapes())
    for key in _NUM_LAYERS:
        wanted = source.config.get(key)
        if isinstance(wanted, int) and wanted > num_weights:
            raise UserError(
                f"{source.path}: config.json says {key} {wanted:,}, and there are weights of {num_weights} tensors; is it another model's?"
            )


def _reason(source: ModelDirectory, loader: str, error: Exception, shapes: Mapping[str, tuple[int, ...]]) -> str:
    if "ignore_mismatched_sizes" in str(error):
        return f"the weights don't fit config.json ({_misfit(source, loader, shapes)}); are they of another model?"
    if isinstance(error, KeyError):
        return f"config.json names {error}, which transformers doesn't know"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"transformers can't load this model ({text[:300]})"


def _misfit(source: ModelDirectory, loader: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The first weight whose shape is not the one that the model of the config has."""
    import transformers

    with torch.device("meta"), quiet_transformers():
        model = getattr(transformers, loader).from_config(_float_config(source))
    prefix = f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters():
        for key in (name, prefix + name, name.removeprefix(prefix)):
            if key in shapes and shapes[key] != tuple(parameter.shape):
                return f"{key} is {list(shapes[key])}, not {list(parameter.shape)}"
    return "their shapes differ"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar and no advice while loading; the user's settings come back after."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
