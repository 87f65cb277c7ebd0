"""What the engines are run on: sizes from the command line, values made up where no file is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llmos.compiler.bench.work import evaluate
from llmos.compiler.tuning.default_sizes import default_size
from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.manifest import EntrySpec, Manifest, TensorSpec
from llmos.runtime.errors import InputError, UserError

# Made-up integers stay below this, which every vocabulary holds.
_MAX_INTEGER = 100


def parse_shape(text: str, manifest: Manifest) -> dict[str, int]:
    """Sizes of all symbols from "batch=1,tokens=128"; the others get a usual size. Raises InputError for unknown names and bad sizes."""
    known = {symbol.name: symbol for symbol in manifest.symbols}
    sizes = {symbol.name: default_size(symbol) for symbol in manifest.symbols}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = item.partition("=")
        if name not in known:
            raise InputError(f"no dimension is called {name!r}; this model has {', '.join(known) or 'static sizes only'}")
        if not value.isdecimal() or not known[name].min <= int(value) <= known[name].max:
            raise InputError(f"{item}: expected a size from {known[name].min} to {known[name].max}")
        sizes[name] = int(value)
    return sizes


def make_inputs(entry: EntrySpec, sizes: Mapping[str, int], files: Mapping[str, Path], seed: int = 0) -> list[np.ndarray]:
    """One array for each input, in order: from its file, else made up (ones for masks, zeros for types, small integers, normal floats)."""
    unknown = set(files) - {spec.name for spec in entry.inputs}
    if unknown:
        raise InputError(f"no input is called {sorted(unknown)[0]!r}; the model takes {', '.join(spec.name for spec in entry.inputs)}")
    random = np.random.default_rng(seed)
    return [_load(files[spec.name]) if spec.name in files else _made_up(spec, sizes, random) for spec in entry.inputs]


def shape_text(sizes: Mapping[str, int]) -> str:
    """As `parse_shape` reads it."""
    return ",".join(f"{name}={size}" for name, size in sizes.items()) or "static"


def parse_files(items: Sequence[str]) -> dict[str, Path]:
    """{"x": x.npy} from "x=x.npy". Raises UserError where that isn't the form."""
    files = {}
    for item in items:
        name, separator, path = item.partition("=")
        if not separator:
            raise UserError(f"--input {item}: expected name=file.npy")
        files[name] = Path(path)
    return files


def _made_up(spec: TensorSpec, sizes: Mapping[str, int], random: np.random.Generator) -> np.ndarray:
    shape = tuple(int(evaluate(str(dim), sizes)) for dim in spec.shape)
    dtype = np.dtype(DTYPES[spec.dtype].storage)
    if dtype.kind in "iub":
        return _integers(spec.name, shape, random).astype(dtype)
    if spec.dtype == "bfloat16":
        return (random.standard_normal(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return random.standard_normal(shape).astype(dtype)


def _integers(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if "mask" in name:
        return np.ones(shape, np.int64)
    if "type" in name:
        return np.zeros(shape, np.int64)
    return random.integers(0, _MAX_INTEGER, shape)


def _load(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {path} as .npy: {error}") from None
