"""Consistency checks between the parts of a manifest."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.fields import fail
from llmos.runtime.artifact.manifest import (
    INT64_MAX,
    WEIGHTS_MEMBER,
    ComputedSymbol,
    Dim,
    EntrySpec,
    Manifest,
    Symbol,
    TensorSpec,
    WeightSpec,
)
from llmos.runtime.native.abi import ALIGNMENT, CHUNK_BYTES, MAX_NDIM, MAX_SYMBOLS

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_FUNCTIONS = frozenset({"min", "max", "floor_mul", "floor_mul_f32"})  # in size expressions
_SHA256 = re.compile(r"[0-9a-f]{64}")


def validate(manifest: Manifest) -> None:
    """Raise ArtifactError if parts of a manifest are inconsistent."""
    _unique("symbols", [*[symbol.name for symbol in manifest.symbols], *[symbol.name for symbol in manifest.computed]])
    _unique("entries", [entry.name for entry in manifest.entries])
    _unique("weights", [weight.name for weight in manifest.weights])
    _unique("code members", _code_members(manifest))
    if not manifest.entries:
        raise fail("manifest: entries: there must be at least one")
    if len(manifest.symbols) > MAX_SYMBOLS:
        raise fail(f"manifest: symbols: {len(manifest.symbols)} are more than the {MAX_SYMBOLS} allowed")
    symbols = {symbol.name for symbol in manifest.symbols}
    for symbol in manifest.symbols:
        _check_symbol(symbol)
    for computed in manifest.computed:
        _check_computed(computed, symbols)
    for entry in manifest.entries:
        _check_entry(entry, symbols, symbols | manifest.computed_names)
        _check_states(entry, {weight.name: weight for weight in manifest.weights} if manifest.members else None)
    for weight in manifest.weights:
        _check_weight(weight)
    _check_members(manifest)


def _check_name(name: str) -> None:
    if not _IDENTIFIER.fullmatch(name) or name in _FUNCTIONS:
        raise fail(f"manifest: symbol {name!r}: not an identifier")


def _check_computed(symbol: ComputedSymbol, symbols: set[str]) -> None:
    _check_name(symbol.name)
    if symbol.min > symbol.max or abs(symbol.min) > INT64_MAX or symbol.max > INT64_MAX:
        raise fail(f"manifest: computed symbol {symbol.name!r}: {symbol.min} to {symbol.max} is no range")
    _check_dim(f"manifest: computed symbol {symbol.name!r}", symbol.bound, symbols)


def _check_symbol(symbol: Symbol) -> None:
    _check_name(symbol.name)
    if not 0 <= symbol.min <= symbol.max <= INT64_MAX:
        raise fail(f"manifest: symbol {symbol.name!r}: {symbol.min} to {symbol.max} is no range of sizes")


def _check_entry(entry: EntrySpec, symbols: set[str], known: set[str]) -> None:
    """Check one entry. `known`: symbols, and those that entries compute."""
    _unique(f"inputs of entry {entry.name!r}", [tensor.name for tensor in entry.inputs])
    _unique(f"outputs of entry {entry.name!r}", [tensor.name for tensor in entry.outputs])
    for tensor in entry.inputs:
        _check_tensor(tensor, symbols)
    for tensor in entry.outputs:
        _check_tensor(tensor, known)
    if any(tensor.updated for tensor in (*entry.outputs, *entry.inputs[entry.num_inputs :])):
        raise fail(f"manifest: entry {entry.name!r}: only inputs that a caller gives can be marked as updated")
    for tensor in (*entry.inputs, *entry.outputs):
        if entry.rows and entry.rows.independent and tensor.shape[:1] != (entry.rows.independent,):
            raise fail(f"manifest: entry {entry.name!r}: {entry.rows.independent!r} must stand first in {tensor.name!r}")


def _check_states(entry: EntrySpec, weights: Mapping[str, WeightSpec] | None) -> None:
    """Check the states of an entry. `weights` is None for a manifest that has no file yet."""
    if not entry.states:
        return
    count = len(entry.states)
    ends = (entry.inputs[-count:], entry.outputs[-count:])
    if any(len(end) != count for end in ends):
        raise fail(f"manifest: entry {entry.name!r}: it has more states than inputs or outputs")
    for name, before, after in zip(entry.states, *ends, strict=True):
        start = before if weights is None else weights.get(name)
        if start is None or not (start.dtype, start.shape) == (before.dtype, before.shape) == (after.dtype, after.shape):
            raise fail(f"manifest: state {name!r}: what it starts with, its input and its output must be alike")


def _check_tensor(tensor: TensorSpec, symbols: set[str]) -> None:
    where = f"manifest: tensor {tensor.name!r}"
    if tensor.dtype not in DTYPES:
        raise fail(f"{where}: unknown dtype {tensor.dtype!r}")
    if len(tensor.shape) > MAX_NDIM:
        raise fail(f"{where}: {len(tensor.shape)} dims are more than the {MAX_NDIM} allowed")
    for dim in tensor.shape:
        _check_dim(where, dim, symbols)


def _check_dim(where: str, dim: Dim, symbols: set[str]) -> None:
    if isinstance(dim, int) and not 0 <= dim <= INT64_MAX:
        raise fail(f"{where}: {dim} is no size")
    unknown = set(_IDENTIFIER.findall(dim)) - symbols - _FUNCTIONS if isinstance(dim, str) else set()
    if unknown:
        raise fail(f"{where}: dim {dim!r} names {sorted(unknown)[0]!r}, which is no symbol of the manifest")


def _check_weight(weight: WeightSpec) -> None:
    where = f"manifest: weight {weight.name!r}"
    if weight.dtype not in DTYPES:
        raise fail(f"{where}: unknown dtype {weight.dtype!r}")
    if weight.offset % ALIGNMENT or weight.offset < 0:
        raise fail(f"{where}: its offset is not a multiple of {ALIGNMENT}")
    if any(dim < 0 for dim in weight.shape) or weight.num_bytes != math.prod(weight.shape) * DTYPES[weight.dtype].num_bytes:
        raise fail(f"{where}: num_bytes is not what its shape takes")


def _check_members(manifest: Manifest) -> None:
    listed = [*_code_members(manifest), *manifest.assets, *([WEIGHTS_MEMBER] if manifest.weights else [])]
    for name in listed:
        if name not in manifest.members:
            raise fail(f"manifest: members: {name!r} is missing")
    for name, member in manifest.members.items():
        if len(member.sha256) != -(-member.num_bytes // CHUNK_BYTES) or not all(map(_SHA256.fullmatch, member.sha256)):
            raise fail(f"manifest: member {name!r}: there must be one sha256 per MiB")


def _code_members(manifest: Manifest) -> list[str]:
    return [member for code in manifest.code for member in (code.member, *code.modules.values())]


def _unique(what: str, names: list[str]) -> None:
    for name in names:
        if "\0" in name or name.encode(errors="replace").decode() != name:
            raise fail(f"manifest: {what}: {name!r} is no text that an artifact can hold")
    repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if repeated:
        raise fail(f"manifest: {what}: {sorted(repeated)[0]!r} appears twice")
