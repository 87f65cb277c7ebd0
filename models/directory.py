"""What a Hugging Face directory holds: its configuration, tokenizer and, for sentence encoders, what comes after the transformer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos.runtime.errors import UnsupportedError, UserError

POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
_NO_NAMES = ("model", "models", "snapshot", "checkpoint")
_REVISION = re.compile(r"[0-9a-f]{40}")  # a snapshot in the Hugging Face cache
ASSETS = ("tokenizer.json", "tokenizer_config.json")


def is_huggingface_directory(path: str | Path) -> bool:
    """Whether `path` is a folder with a config.json that names a model type."""
    config = Path(path) / "config.json"
    if not config.is_file():
        return False
    try:
        return "model_type" in json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return False


def directory_name(path: str | Path) -> str:
    """What to call the model in a directory: the directory's own name, or the one in its config where that says nothing of the model."""
    folder = Path(path).resolve()
    if folder.name not in _NO_NAMES and not _REVISION.fullmatch(folder.name):
        return folder.name
    named = read_json(folder / "config.json").get("_name_or_path")
    return (str(named or "").rstrip("/").rsplit("/", 1)[-1]) or folder.name


def read_json(path: Path) -> Any:
    """A JSON file's content; UserError if it isn't there or isn't JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a Hugging Face model directory needs it") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


@dataclass(frozen=True)
class SentenceModules:
    """The steps after the transformer that modules.json of sentence-transformers lists."""

    pooling: str
    normalize: bool


@dataclass(frozen=True)
class ModelDirectory:
    """A checked Hugging Face directory."""

    path: Path
    config: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> ModelDirectory:
        folder = Path(path)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such directory")
        config = read_json(folder / "config.json")
        if "model_type" not in config:
            raise UserError(f"{folder / 'config.json'}: has no model_type; is this a Hugging Face model?")
        if not any(folder.glob("*.safetensors")):
            raise UserError(f"{folder}: has no .safetensors file; save the model with save_pretrained(safe_serialization=True)")
        return cls(folder, config)

    @property
    def architecture(self) -> str:
        return str((self.config.get("architectures") or [""])[0])

    def sentence_modules(self) -> SentenceModules | None:
        """Pooling and normalisation as configured, or None for a plain transformer."""
        listing = self.path / "modules.json"
        if not listing.is_file():
            return None
        kinds = {str(module["type"]).rsplit(".", 1)[-1]: module for module in read_json(listing)}
        foreign = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
        if foreign:
            raise UnsupportedError(f"{listing}: the modules {', '.join(foreign)} aren't supported; Transformer, Pooling and Normalize are")
        if "Pooling" not in kinds:
            return None
        return SentenceModules(self._pooling(self.path / kinds["Pooling"]["path"] / "config.json"), "Normalize" in kinds)

    @staticmethod
    def _pooling(path: Path) -> str:
        config = read_json(path)
        chosen = [key for key, value in config.items() if key.startswith("pooling_mode") and value is True]
        if "pooling_mode" in config:  # newer releases write one word
            chosen = [f"pooling_mode_{config['pooling_mode']}_token{'' if config['pooling_mode'] == 'cls' else 's'}"]
        if len(chosen) != 1 or chosen[0] not in POOLINGS:
            raise UnsupportedError(f"{path}: pooling by {', '.join(chosen) or 'nothing'} isn't supported; mean, cls and max alone are")
        return POOLINGS[chosen[0]]

    def max_length(self, limit: int) -> int:
        """How many tokens tokenisation should keep: sentence-transformers' setting, else the tokenizer's, at most `limit`."""
        sentence = self.path / "sentence_bert_config.json"
        tokenizer = self.path / "tokenizer_config.json"
        found = (read_json(sentence).get("max_seq_length") if sentence.is_file() else None) or (
            read_json(tokenizer).get("model_max_length") if tokenizer.is_file() else None
        )
        return min(int(found), limit) if found else limit

    def assets(self) -> dict[str, bytes]:
        """The tokenizer's files."""
        return {name: (self.path / name).read_bytes() for name in ASSETS if (self.path / name).is_file()}
