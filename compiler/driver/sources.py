"""What a user may hand to a compile, and which front end takes it."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver.renaming import rename_symbols
from llmos.compiler.frontend.model import ImportedModel
from llmos.runtime.errors import UserError

if TYPE_CHECKING:
    from llmos.models.causal_lm import CausalLM

ACCEPTED = ".pt2, .onnx, .mlir, .gguf, a Hugging Face directory, a torch.nn.Module or an ExportedProgram"

GGUF = ".gguf"

# Files that people try, and what to do with them.
_ADVICE: Mapping[str, str] = {
    ".llmos": "is compiled already: run it with `llmos run`",
    ".pt": "is a pickle, which can run any code when it is read: save the model with torch.export.save as .pt2",
    ".pth": "is a pickle, which can run any code when it is read: save the model with torch.export.save as .pt2",
    ".bin": "holds weights without a model: give the directory with its config.json",
    ".safetensors": "holds weights without a model: give the directory with its config.json",
}


def import_source(source: Any, example_args: Sequence[Any] | None, dynamic_shapes: Any, options: CompileOptions) -> ImportedModel:
    """Brings `source` in through its front end. Raises UserError for what can't be read, UnsupportedError for unknown ops."""
    if isinstance(source, ImportedModel):
        return source
    if type(source).__module__.partition(".")[0] == "tvm":
        raise UserError("a module of TVM is no source: give the ExportedProgram or the .onnx file that it was made from")
    if isinstance(source, (str, Path)) and Path(source).suffix == ".onnx":
        return _import_onnx(Path(source), options)
    _require_fit(source, options)
    is_path = isinstance(source, (str, Path))
    imported = _import_path(Path(source), options) if is_path else _import_torch(source, example_args, dynamic_shapes, options)
    if options.dynamic:
        rename_symbols(imported.module, options.dynamic)
    return imported


def import_entries(source: Any, options: CompileOptions) -> dict[str, ImportedModel]:
    """Brings a causal language model in that generates and embeds, as its entries `main` and `embed`. Raises as `import_source`."""
    _require_fit(source, options)
    require_model(Path(source))
    if options.dynamic:
        raise UserError("--dynamic names the dimensions of one entry: compile a language model that generates and embeds without it")
    return _import_language_model(Path(source), options)


def _import_language_model(path: Path, options: CompileOptions) -> dict[str, ImportedModel]:
    """What a causal language model, a Hugging Face directory or a .gguf file, is compiled to, of one load: `main`, its step, and `embed`,
    embeddings of texts; one of them or both, as the options say.
    """
    from llmos.models.causal_lm import CausalLMOptions, import_model
    from llmos.models.embeddings import import_embeddings

    opened, chosen = _open_language_model(path, options), CausalLMOptions(options.kv or "bf16")
    entries: dict[str, ImportedModel] = {}
    if options.generate:
        entries["main"] = import_model(opened.model, chosen, name=opened.name, assets=opened.assets, generation=opened.generation)
    if options.embeddings:
        entries["embed"] = import_embeddings(opened, options.embeddings, chosen)
    return entries


def _require_fit(source: Any, options: CompileOptions) -> None:
    """Raises UserError for options that are of other sources."""
    if options.sizes or options.bind:
        raise UserError("sizes of dimensions and bound inputs are for .onnx models: other models say them when they are exported")
    if (options.kv or options.embeddings) and not _is_language_model(source):
        option = "--kv" if options.kv else "--embeddings"
        raise UserError(f"{option} is for causal language models, given as a Hugging Face directory or a .gguf file")


def _is_language_model(source: Any) -> bool:
    """Whether a source may be a causal language model, and is one if it is a directory that can be read."""
    from llmos.models.directory import ModelDirectory, is_causal_lm

    if not isinstance(source, (str, Path)):
        return False
    path = Path(source)
    return path.suffix == GGUF or not path.exists() or (path.is_dir() and is_causal_lm(ModelDirectory.open(path)))


def _import_onnx(path: Path, options: CompileOptions) -> ImportedModel:
    from llmos.compiler.frontend.onnx import import_onnx

    require_model(path)
    if options.sizes and options.dynamic:
        raise UserError(f"give sizes for all of {', '.join((*options.dynamic, *options.sizes))} or for none: names alone rename dimensions")
    with warnings.catch_warnings():
        # What it has to say of the model is in the metadata too, from where the driver tells it.
        warnings.simplefilter("ignore", UserWarning)
        return import_onnx(
            path, dynamic=options.sizes or options.dynamic or None, bind=options.bind, name=options.name or path.stem, random=options.random
        )


def _import_torch(source: Any, example_args: Sequence[Any] | None, dynamic_shapes: Any, options: CompileOptions) -> ImportedModel:
    from llmos.compiler.frontend.torch import import_torch

    name = options.name or (source.stem if isinstance(source, Path) else "model")
    return import_torch(source, example_args, dynamic_shapes, name=name, random=options.random)


def _import_path(path: Path, options: CompileOptions) -> ImportedModel:
    require_model(path)
    if path.is_dir():
        return _import_directory(path, options)
    if path.suffix == GGUF:
        (imported,) = _import_language_model(path, options).values()
        return imported
    if path.suffix == ".pt2":
        return _import_torch(path, None, None, options)
    if path.suffix == ".mlir":
        return _import_mlir(path, options)
    raise UserError(f"{path} is not a model that llmos knows; it takes {ACCEPTED}")


def _import_directory(path: Path, options: CompileOptions) -> ImportedModel:
    from llmos.models.directory import ModelDirectory, directory_name, is_causal_lm
    from llmos.models.encoder import import_encoder

    if is_causal_lm(ModelDirectory.open(path)):
        (imported,) = _import_language_model(path, options).values()
        return imported
    return import_encoder(path, name=options.name or directory_name(path))


def _open_language_model(path: Path, options: CompileOptions) -> CausalLM:
    from llmos.models.causal_lm import open_causal_lm
    from llmos.models.directory import directory_name
    from llmos.models.gguf.language_model import open_gguf

    if path.suffix == GGUF:
        return open_gguf(path, keep_blocks=not options.quant, name=options.name)
    return open_causal_lm(path, name=options.name or directory_name(path))


def _import_mlir(path: Path, options: CompileOptions) -> ImportedModel:
    from llmos.compiler.frontend.mlir import import_mlir

    try:
        return import_mlir(path, name=options.name or path.stem)
    except UserError as error:
        raise error if str(path) in str(error) else type(error)(f"{path}: {error}") from error


def require_model(path: Path) -> None:
    """Raises UserError for a path that no front end can take: nothing there, an empty file, another kind of file or directory."""
    if not path.exists():
        raise UserError(f"no such file or directory: {path}")
    if path.is_dir():
        from llmos.models.directory import ModelDirectory

        ModelDirectory.open(path)
    elif path.suffix in _ADVICE:
        raise UserError(f"{path} {_ADVICE[path.suffix]}")
    elif path.stat().st_size == 0:
        raise UserError(f"{path} is empty: copy it again")
    elif path.suffix == ".pt2" and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no .pt2 file, or is cut short: copy it again, or save it again with torch.export.save")


def language_model_program(path: Path) -> Any:
    """The step of a causal language model, a Hugging Face directory or a .gguf file, as torch exports it; None for another directory."""
    from llmos.models.causal_lm import traced_step
    from llmos.models.directory import ModelDirectory, is_causal_lm

    if path.suffix != GGUF and not is_causal_lm(ModelDirectory.open(path)):
        return None
    return traced_step(_open_language_model(path, CompileOptions()).model)


def encoder_module(path: Path) -> tuple[Any, tuple[Any, ...], Any]:
    """The torch module of a Hugging Face encoder directory, example inputs for it, and torch.export's dynamic shapes."""
    from llmos.models.directory import ModelDirectory
    from llmos.models.encoder import open_encoder

    encoder = open_encoder(ModelDirectory.open(path))
    return encoder.module, encoder.example_args, encoder.dynamic_shapes
