"""A transformers model from a directory: its weights mapped from their file, each of them there and of the size that its config says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llmos.models.directory import ModelDirectory
from llmos.runtime.errors import UserError

_NUM_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")


def load_transformer(source: ModelDirectory, loader: str) -> tuple[Any, frozenset[str]]:
    """The model, no parameter of which is copied, and the names of the parameters that its files lack. Raises UserError."""
    import transformers

    _check_layers(source)
    with quiet_transformers():
        try:
            model, report = getattr(transformers, loader).from_pretrained(
                source.path, local_files_only=True, use_safetensors=True, dtype="auto", output_loading_info=True
            )
        except Exception as error:
            raise UserError(f"{source.path}: {_reason(source, loader, error)}") from error
    return model.eval(), frozenset(report["missing_keys"])


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


def _reason(source: ModelDirectory, loader: str, error: Exception) -> str:
    if "ignore_mismatched_sizes" in str(error):
        return f"the weights don't fit config.json ({_misfit(source, loader)}); are they of another model?"
    if isinstance(error, KeyError):
        return f"config.json names {error}, which transformers doesn't know"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"transformers can't load this model ({text[:300]})"


def _misfit(source: ModelDirectory, loader: str) -> str:
    """The first weight whose shape is not the one that the model of the config has."""
    import transformers

    shapes = source.weight_shapes()
    with torch.device("meta"), quiet_transformers():
        model = getattr(transformers, loader).from_config(transformers.AutoConfig.from_pretrained(source.path, local_files_only=True))
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
