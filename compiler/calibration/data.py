"""Calibration inputs: from a file of texts or arrays, from values in memory, or the examples that a model brings."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.calibration.text import encoded
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.verify.samples import InputSpec, Signature, candidate_sizes, made_up
from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.errors import UserError

Call = tuple[np.ndarray, ...]  # the inputs of one call, in the model's order


def calibration_inputs(imported: ImportedModel, options: CompileOptions) -> list[Call]:
    """Return the inputs of each calibration call, one or more, that fit the model.

    options.calibrate: a text file of one text a line, a .npz file of arrays by input name or a .npy file for a model of one input, in
    which a further first axis counts calls; or in memory a sequence of texts, or of calls: arrays in the model's order, or by name. None:
    the model's examples, or made-up inputs where it has none.
    Raises UserError, one line, for what can't be read or doesn't fit.
    """
    signature = Signature.of(imported.module)
    given = options.calibrate
    if given is None:
        return _examples(imported, signature)
    source = f"--calibrate {given}" if isinstance(given, Path) else "calibrate"
    values = _read(given, source, signature) if isinstance(given, Path) else list(given)
    if not values:
        raise UserError(f"{source} is empty: give at least one text or one set of inputs")
    if all(isinstance(each, str) for each in values):
        values = encoded(values, imported, signature.inputs, source)
    return [_Fitting(signature, source, f" of call {number}" if len(values) > 1 else "").of(each) for number, each in enumerate(values)]


def _examples(imported: ImportedModel, signature: Signature) -> list[Call]:
    if imported.examples:
        return [tuple(each) for each in imported.examples]
    symbols = signature.table.symbols
    return [tuple(made_up(signature, (), sizes)) for sizes in list(candidate_sizes(symbols, {s.name: s.min for s in symbols}, 0))[:1]]


def _read(path: Path, source: str, signature: Signature) -> list[Any]:
    """Texts, or calls by name."""
    if not path.is_file():
        raise UserError(f"{source}: no such file")
    if path.suffix not in (".npz", ".npy"):
        try:
            return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise UserError(f"{source} is neither text in UTF-8, .npz nor .npy") from None
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {name: loaded[name] for name in loaded.files} if path.suffix == ".npz" else loaded
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(f"{source} can't be read as arrays ({str(error).splitlines()[0] if str(error) else 'cut short'})") from None
    if isinstance(arrays, np.ndarray):
        _require_one_input(signature, source)
        arrays = {signature.inputs[0].name: arrays}
    return _calls(arrays, signature, source)


def _require_one_input(signature: Signature, source: str) -> None:
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise UserError(f"{source} is one array, and the model has the inputs {names}: give a .npz file with an array for each")


def _calls(arrays: Mapping[str, np.ndarray], signature: Signature, source: str) -> list[Mapping[str, np.ndarray]]:
    """One call, or as many as the first axis of all arrays counts."""
    ranks = {spec.name: len(spec.dims) for spec in signature.inputs}
    if not arrays or any(name not in ranks or array.ndim != ranks[name] + 1 for name, array in arrays.items()):
        return [arrays] if arrays else []
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise UserError(f"{source} has {shown}: give as many of each")
    return [{name: array[number] for name, array in arrays.items()} for number in range(next(iter(counts.values())))]


class _Fitting:
    """The checks of one call. where: which call it is, for messages."""

    def __init__(self, signature: Signature, source: str, where: str) -> None:
        self._signature, self._source, self._where = signature, source, where

    def of(self, call: Any) -> Call:
        """Returns the arrays in the model's order and dtypes. Raises UserError."""
        specs = self._signature.inputs
        arrays = [self._array(*pair) for pair in zip(self._ordered(call), specs, strict=True)]
        sizes = self._signature.sizes_of(arrays)
        for symbol in self._signature.table.symbols:
            if symbol.name in sizes and not symbol.min <= sizes[symbol.name] <= symbol.max:
                raise self._error(f"{symbol.name}={sizes[symbol.name]} where the model takes {symbol.min} to {symbol.max}")
        for array, spec in zip(arrays, specs, strict=True):
            if array.shape != self._signature.shape(spec, sizes):
                with_sizes = "".join(f", {name}={size}" for name, size in sizes.items())
                raise self._error(f"{spec.name} has the shape {list(array.shape)} where the model takes {_shape(spec)}{with_sizes}")
        broken = next((guard.text for guard in self._signature.guards if not guard.holds(sizes)), None)
        if broken is not None:
            raise self._error(f"its sizes break the model's condition {broken}")
        return tuple(arrays)

    def _ordered(self, call: Any) -> list[Any]:
        names = [spec.name for spec in self._signature.inputs]
        if isinstance(call, Mapping):
            if set(call) != set(names):
                raise self._error(f"has the inputs {', '.join(map(str, call)) or 'none'} where the model has {', '.join(names)}")
            return [call[name] for name in names]
        values = list(call) if isinstance(call, list | tuple) else [call]
        if len(values) != len(names):
            raise self._error(f"has {len(values)} arrays where the model has {len(names)} inputs: {', '.join(names)}")
        return values

    def _array(self, value: Any, spec: InputSpec) -> np.ndarray:
        array = np.asarray(value.detach() if hasattr(value, "detach") else value)
        if array.ndim != len(spec.dims):
            raise self._error(f"{spec.name} has the shape {list(array.shape)} where the model takes {_shape(spec)}")
        storage = np.dtype(DTYPES[spec.dtype].storage)
        if not np.can_cast(array.dtype, storage, "same_kind"):
            raise self._error(f"{spec.name} is {array.dtype.name} where the model takes {spec.dtype}")
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            raise self._error(f"{spec.name} has NaN or infinite elements")
        return np.ascontiguousarray(array, storage)

    def _error(self, what: str) -> UserError:
        return UserError(f"{self._source}{self._where}: {what}")


def _shape(spec: InputSpec) -> str:
    return "[" + ", ".join(map(str, spec.dims)) + "]"


def as_calibration(given: Any) -> Path | Sequence[Any] | None:
    """Return what `llmos.compile(calibrate=...)` takes as options hold it: text and paths are a file, one array is one call."""
    if given is None or isinstance(given, Path):
        return given
    if isinstance(given, str):
        return Path(given)
    return [given] if isinstance(given, Mapping) or hasattr(given, "shape") else list(given)
