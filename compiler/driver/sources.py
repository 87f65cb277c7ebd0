"""What a user may hand to a compile, and which front end takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmos.compiler.driver.renaming import rename_symbols
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.options import CompileOptions
from llmos.runtime.errors import UserError

ACCEPTED = ".pt2, .onnx, .mlir, a Hugging Face directory, a torch.nn.Module or an ExportedProgram"

# Files that people try, and what to do with them.
_ADVICE: Mapping[str, str] = {
    ".llmos": "is compiled already: run it with `llmos run`",
    ".pt": "is a pickle, which can run any code when it is read: save the model with torch.export.save as .pt2",
    ".pth": "is a pickle, which can run any code when it is read: save the model with torch.export.save as .pt2",
    ".bin": "holds weights without a model: give the directory with its config.json",
    ".safetensors": "holds weights without a model: give the directory with its config.json",
    ".gguf": "can't be compiled yet: give the model as a Hugging Face directory",
}


def import_source(source: Any, example_args: Sequence[Any] | None, dynamic_shapes: Any, options: CompileOptions) -> ImportedModel:
    """Brings `source` in through its front end. Raises UserError for what can't be read, UnsupportedError for unknown ops."""
    is_path = isinstance(source, (str, Path))
    imported = _import_path(Path(source), options) if is_path else _import_torch(source, example_args, dynamic_shapes, options)
    if options.dynamic:
        rename_symbols(imported.module, options.dynamic)
    return imported


def _import_torch(source: Any, example_args: Sequence[Any] | None, dynamic_shapes: Any, options: CompileOptions) -> ImportedModel:
    from llmos.compiler.frontend.torch import import_torch

    name = options.name or (source.stem if isinstance(source, Path) else "model")
    return import_torch(source, example_args, dynamic_shapes, name=name)


def _import_path(path: Path, options: CompileOptions) -> ImportedModel:
    if not path.exists():
        raise UserError(f"no such file or directory: {path}")
    if path.is_dir():
        return _import_directory(path, options)
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: copy it again")
    if path.suffix == ".pt2":
        return _import_torch(path, None, None, options)
    if path.suffix == ".onnx":
        from llmos.compiler.frontend.onnx import import_onnx

        return import_onnx(path, name=options.name or path.stem)
    if path.suffix == ".mlir":
        from llmos.compiler.frontend.mlir import import_mlir

        return import_mlir(path, name=options.name or path.stem)
    advice = _ADVICE.get(path.suffix)
    raise UserError(f"{path} {advice}" if advice else f"{path} is not a model that llmos knows; it takes {ACCEPTED}")


def _import_directory(path: Path, options: CompileOptions) -> ImportedModel:
    from llmos.models.directory import is_huggingface_directory
    from llmos.models.encoder import import_encoder

    if not is_huggingface_directory(path):
        raise UserError(f"{path} is not a model directory: it needs config.json and *.safetensors")
    return import_encoder(path, name=options.name or path.resolve().name)
