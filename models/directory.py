"""What a Hugging Face directory holds: its configuration, tokenizer and, for sentence encoders, what comes after the transformer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmos.runtime.errors import UnsupportedError, UserError

POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
_NO_NAMES = ("model", "models", "snapshot", "checkpoint")
_REVISION = re.compile(r"[0-9a-f]{40}")  # a snapshot in the Hugging Face cache
TOKENIZER = "tokenizer.json"
ASSETS = (TOKENIZER, "tokenizer_config.json")


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


def read_object(path: Path) -> dict[str, Any]:
    """As `read_json`, for a file that holds a JSON object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; copy the file again")
    return content


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
        config = read_object(folder / "config.json")
        if "model_type" not in config:
            raise UserError(f"{folder / 'config.json'}: has no model_type; is this a Hugging Face model?")
        if not any(folder.glob("*.safetensors")):
            raise UserError(f"{folder}: has no .safetensors file; save the model with save_pretrained(safe_serialization=True)")
        directory = cls(folder, config)
        directory._check_shards()
        return directory

    def _check_shards(self) -> None:
        """That the files which an index of weights names lie in the directory."""
        index = self.path / "model.safetensors.index.json"
        if not index.is_file() or (self.path / "model.safetensors").is_file():
            return
        shards = read_object(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{index}: names no files of weights; copy it again")
        for name in sorted(set(map(str, shards.values()))):
            if Path(name).name != name or not (self.path / name).is_file():
                raise UserError(f"{index}: names {name!r}, which is not in the directory; copy it there")

    def weight_files(self) -> tuple[Path, ...]:
        """The files that transformers takes the weights from: one, or the shards that an index names."""
        whole, index = self.path / "model.safetensors", self.path / "model.safetensors.index.json"
        if whole.is_file():
            return (whole,)
        if index.is_file():
            return tuple(self.path / name for name in sorted(set(map(str, read_object(index)["weight_map"].values()))))
        return tuple(sorted(self.path.glob("*.safetensors")))

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights, from the headers of their files. Raises UserError for a damaged one."""
        return {name: shape for path in sorted(self.path.glob("*.safetensors")) for name, shape in _shapes(path).items()}

    @property
    def architecture(self) -> str:
        listed = self.config.get("architectures") or ""
        return str(listed[0]) if isinstance(listed, list) else str(listed)

    def sentence_modules(self) -> SentenceModules | None:
        """Pooling and normalization as configured, or None for a plain transformer."""
        listing = self.path / "modules.json"
        if not listing.is_file():
            return None
        modules = read_json(listing)
        if not isinstance(modules, list) or not all(isinstance(each, dict) and {"type", "path"} <= set(each) for each in modules):
            raise UserError(f"{listing}: not a list of modules with type and path, as sentence-transformers writes it; copy it again")
        kinds = {str(module["type"]).rsplit(".", 1)[-1]: module for module in modules}
        foreign = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
        if foreign:
            raise UnsupportedError(f"{listing}: the modules {', '.join(foreign)} aren't supported; Transformer, Pooling and Normalize are")
        if "Pooling" not in kinds:
            return None
        return SentenceModules(self._pooling(self.path / str(kinds["Pooling"]["path"]) / "config.json"), "Normalize" in kinds)

    @staticmethod
    def _pooling(path: Path) -> str:
        config = read_object(path)
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
        found = (read_object(sentence).get("max_seq_length") if sentence.is_file() else None) or (
            read_object(tokenizer).get("model_max_length") if tokenizer.is_file() else None
        )
        if found and not isinstance(found, int | float):
            raise UserError(f"{self.path}: the tokenizer's longest input is {found!r}, not a number: correct it in tokenizer_config.json")
        return int(min(found, limit)) if found else limit

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """The ids of the tokenizer's tokens, added ones too; empty without one. Raises UserError for one that can't be read as such."""
        from tokenizers import Tokenizer

        path = self.path / TOKENIZER
        if not path.is_file():
            return {}
        try:
            vocabulary: dict[str, int] = Tokenizer.from_buffer(path.read_bytes()).get_vocab(with_added_tokens=True)
        except Exception as error:  # the tokenizers package raises plain Exception
            raise UserError(f"{path}: not a tokenizer that tokenizers can read ({error}); copy it again") from None
        return vocabulary

    def assets(self) -> dict[str, bytes]:
        """The tokenizer's files. Raises UserError for one that can't be read as such."""
        _ = self.vocabulary
        return {name: (self.path / name).read_bytes() for name in ASSETS if (self.path / name).is_file()}


def is_causal_lm(source: ModelDirectory) -> bool:
    """Whether a directory holds a decoder that generates text."""
    return source.architecture.endswith(("ForCausalLM", "LMHeadModel")) and not source.config.get("is_encoder_decoder")


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); copy it again") from None
