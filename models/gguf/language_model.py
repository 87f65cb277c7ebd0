"""GGUF files of causal language models, compiled as one step function over a paged cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmos.compiler.frontend.model import ImportedModel
from llmos.models.causal_lm import CausalLMOptions, import_model
from llmos.models.gguf.file import GgufFile
from llmos.models.gguf.tokenizer import tokenizer_assets
from llmos.models.gguf.weights import load_model
from llmos.runtime.errors import UserError


def import_gguf(path: str | Path, options: CausalLMOptions, *, keep_blocks: bool = True, name: str | None = None) -> ImportedModel:
    """A .gguf file as the linalg stage: one entry `main`, a step as in `models.causal_lm`.

    keep_blocks: whether quantized layers compute with the file's integers; otherwise they have float weights, which `--quant` rounds.
    Raises UserError, UnsupportedError.
    """
    model, assets = open_model(path, keep_blocks=keep_blocks)
    return import_model(model, options, name=name or Path(path).stem, assets=assets)


def open_model(path: str | Path, *, keep_blocks: bool) -> tuple[Any, dict[str, bytes]]:
    """The model of a .gguf file, as `load_model` gives it, and its tokenizer's files. Raises as `import_gguf`."""
    file = GgufFile.open(path)
    try:
        assets = tokenizer_assets(file)
        return load_model(file, keep_blocks=keep_blocks), assets
    except UserError as error:
        raise type(error)(f"{file.path}: {error}") from None
