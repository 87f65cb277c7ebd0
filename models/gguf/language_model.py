"""GGUF files of causal language models."""

from __future__ import annotations

from pathlib import Path

from llmos.models.causal_lm import CausalLM
from llmos.models.gguf.file import GgufFile
from llmos.models.gguf.tokenizer import tokenizer_assets
from llmos.models.gguf.weights import load_model
from llmos.runtime.errors import UserError


def open_gguf(path: str | Path, *, keep_blocks: bool, name: str | None = None) -> CausalLM:
    """The model of a .gguf file.

    keep_blocks: whether quantized layers compute with the file's integers; otherwise they have float weights, which `--quant` rounds.
    Raises UserError, UnsupportedError.
    """
    file = GgufFile.open(path)
    try:
        assets = tokenizer_assets(file)
        return CausalLM(load_model(file, keep_blocks=keep_blocks), name or Path(path).stem, assets)
    except UserError as error:
        raise type(error)(f"{file.path}: {error}") from None
