"""The records of `manifest.json` (docs/architecture.md, "The artifact"): an artifact's content and calling convention."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from llmos.runtime.artifact.fields import Fields, fail, parse_json
from llmos.runtime.native.abi import FORMAT, OLDEST_FORMAT

INT64_MAX = 2**63 - 1

MANIFEST_MEMBER = "manifest.json"
WEIGHTS_MEMBER = "weights.safetensors"
SIGNATURE_MEMBER = "signature"
ENTRIES = "entries"  # metadata key: the metadata of entries by name, where it is not that of the default entry
QUANT = "quant"  # metadata key: the scheme that a compile quantized by
QUANT_PLAN = "quant_plan"  # metadata key: what a plan of quantization does with each product, and why
QUANTIZATION = "quantization"  # metadata key: a one-line summary of the model's quantization

_DATA_SIZES_FORMAT = 2  # the first with sizes that data decides, and with guards
_ROUNDED_SIZES_FORMAT = 3  # that with floor_mul and updated inputs
_FLOAT_SIZES_FORMAT = 4  # that with floor_mul_f32; FORMAT is that with modules of a device

Dim = int | str


@dataclass(frozen=True)
class Symbol:
    """A named dynamic dimension and its range of sizes, both ends included."""

    name: str
    min: int
    max: int


@dataclass(frozen=True)
class ComputedSymbol:
    """A number in [min, max] that an entry computes from data: output dims that use it are known after a call.

    bound: its upper bound, a number or an expression of the inputs' symbols.
    """

    name: str
    min: int
    max: int
    bound: Dim


@dataclass(frozen=True)
class TensorSpec:
    """An input or output. A dim is a size, a symbol's name, or an expression of symbols such as "2*tokens + 1"; in outputs also of
    computed symbols. updated: a call writes the input's new value in place."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    updated: bool = False


@dataclass(frozen=True)
class RowSpec:
    """The result of the row independence analysis of an entry.

    independent: the first dimension's symbol of every input and output, if row i of each output depends only on row i of the inputs and
    not on the dimension's size, so that requests may be batched along it. reason: why there is none.
    """

    independent: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class GuardSpec:
    """Conditions on the sizes of a call beyond their ranges: their text, and the function that checks them."""

    symbol: str
    conditions: tuple[str, ...]


@dataclass(frozen=True)
class EntrySpec:
    """A callable function. `symbol` and `shapes` name the two functions that every code member exports for it.

    states: names of tensors that persist between calls. They are the last inputs and the last outputs, in this order, and the weights of
    these names initialize them.
    rows: None if the compiler did not run the analysis. guards: None if ranges suffice.
    """

    name: str
    symbol: str
    shapes: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[str, ...] = ()
    rows: RowSpec | None = None
    guards: GuardSpec | None = None

    @property
    def num_inputs(self) -> int:
        """Return the number of inputs that a caller passes."""
        return len(self.inputs) - len(self.states)

    @property
    def num_outputs(self) -> int:
        """Return the number of outputs that a caller receives."""
        return len(self.outputs) - len(self.states)

    @property
    def updated(self) -> tuple[int, ...]:
        """Return the positions of the inputs that a call updates in place."""
        return tuple(position for position, spec in enumerate(self.inputs) if spec.updated)


@dataclass(frozen=True)
class WeightSpec:
    """One constant tensor; `offset` is in bytes from the start of the data of weights.safetensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class CodeSpec:
    """One code variant: its target machine (LLVM's feature names) and its member.

    modules: members of what a device loads, by kind: "ptx", and "cubin" beside it. Then `member` holds the host's functions, and a
    feature is the chip that the modules are for.
    """

    target: str
    arch: str
    features: tuple[str, ...]
    member: str
    modules: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class KernelSpec:
    """One dispatch, for profiles and `inspect`; `details` are further JSON fields chosen by the compiler."""

    name: str
    kind: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MemberSpec:
    """Size of a member and the SHA-256 (hex) of each of its 1 MiB chunks."""

    num_bytes: int
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json; `parse` inverts `to_json`."""

    name: str
    entries: tuple[EntrySpec, ...]
    symbols: tuple[Symbol, ...] = ()
    computed: tuple[ComputedSymbol, ...] = ()
    weights: tuple[WeightSpec, ...] = ()
    code: tuple[CodeSpec, ...] = ()
    kernels: tuple[KernelSpec, ...] = ()
    producer: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    passes: tuple[Any, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    assets: tuple[str, ...] = ()
    members: Mapping[str, MemberSpec] = field(default_factory=dict)

    @property
    def format(self) -> int:
        """Return the oldest format version with all features that this manifest uses."""
        if any(code.modules for code in self.code):
            return FORMAT
        if self._calls("floor_mul_f32"):
            return _FLOAT_SIZES_FORMAT
        if any(entry.updated for entry in self.entries) or self._calls("floor_mul"):
            return _ROUNDED_SIZES_FORMAT
        return _DATA_SIZES_FORMAT if self.computed or any(entry.guards for entry in self.entries) else OLDEST_FORMAT

    def _calls(self, function: str) -> bool:
        """Whether a size is computed by a function of the grammar."""
        dims = [str(dim) for entry in self.entries for tensor in (*entry.inputs, *entry.outputs) for dim in tensor.shape]
        return any(f"{function}(" in text for text in (*dims, *[str(symbol.bound) for symbol in self.computed]))

    @property
    def computed_names(self) -> frozenset[str]:
        return frozenset(symbol.name for symbol in self.computed)

    def metadata_of(self, entry: str) -> Mapping[str, Any]:
        """Return the metadata of an entry: its own, or those of the artifact. Raises ArtifactError if they are malformed."""
        own = self.metadata.get(ENTRIES, {})
        found = own.get(entry, self.metadata) if isinstance(own, dict) else None
        if not isinstance(found, Mapping):
            raise fail("its metadata of entries must be mappings by their names")
        return found

    def with_members(self, members: Mapping[str, MemberSpec]) -> Manifest:
        return replace(self, members=members)

    def to_json(self) -> bytes:
        """Return compact UTF-8 JSON in a fixed order. Raises ValueError for metadata without a JSON form (a NaN, an object)."""
        return json.dumps(_to_dict(self), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Parse a manifest's bytes. Raises ArtifactError that names the invalid field."""
        fields = Fields("manifest", parse_json(data, "manifest"))
        check_format(fields.integer("format"))
        manifest = _parse_fields(fields)
        from llmos.runtime.artifact.validation import validate  # it knows the records

        validate(manifest)
        return manifest


def check_format(version: int) -> None:
    if version > FORMAT:
        raise fail(f"it has format {version} and this llmos reads up to {FORMAT}: install a newer llmos")
    if version < OLDEST_FORMAT:
        raise fail(f"it has format {version} and this llmos reads from {OLDEST_FORMAT} on: compile the model again")


def _to_dict(manifest: Manifest) -> dict[str, Any]:
    def tensor(spec: TensorSpec) -> dict[str, Any]:
        named = {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
        return {**named, "updated": True} if spec.updated else named

    return {
        "format": manifest.format,
        "name": manifest.name,
        "producer": dict(manifest.producer),
        "symbols": [{"name": symbol.name, "min": symbol.min, "max": symbol.max} for symbol in manifest.symbols],
        **({"computed": [asdict(symbol) for symbol in manifest.computed]} if manifest.computed else {}),
        "entries": [
            {
                "name": entry.name,
                "symbol": entry.symbol,
                "shapes": entry.shapes,
                "inputs": [tensor(spec) for spec in entry.inputs],
                "outputs": [tensor(spec) for spec in entry.outputs],
                **({"states": list(entry.states)} if entry.states else {}),
                **({"rows": _rows_to_dict(entry.rows)} if entry.rows else {}),
                **({"guards": {"symbol": entry.guards.symbol, "conditions": list(entry.guards.conditions)}} if entry.guards else {}),
            }
            for entry in manifest.entries
        ],
        "weights": [
            {
                "name": weight.name,
                "dtype": weight.dtype,
                "shape": list(weight.shape),
                "offset": weight.offset,
                "num_bytes": weight.num_bytes,
            }
            for weight in manifest.weights
        ],
        "code": [
            {
                "target": code.target,
                "arch": code.arch,
                "features": list(code.features),
                "member": code.member,
                **({"modules": dict(code.modules)} if code.modules else {}),
            }
            for code in manifest.code
        ],
        "kernels": [{"name": kernel.name, "kind": kernel.kind, **kernel.details} for kernel in manifest.kernels],
        "plan": dict(manifest.plan),
        "passes": list(manifest.passes),
        "metadata": dict(manifest.metadata),
        "assets": list(manifest.assets),
        "members": {name: {"num_bytes": member.num_bytes, "sha256": list(member.sha256)} for name, member in manifest.members.items()},
    }


def _rows_to_dict(rows: RowSpec) -> dict[str, str]:
    return {"independent": rows.independent} if rows.independent else {"dependent": rows.reason}


def _parse_fields(fields: Fields) -> Manifest:
    return Manifest(
        name=fields.string("name"),
        producer=fields.mapping("producer"),
        symbols=tuple(Symbol(item.string("name"), item.integer("min"), item.integer("max")) for item in fields.records("symbols")),
        computed=tuple(_parse_computed(item) for item in fields.records("computed")) if "computed" in fields.value else (),
        entries=tuple(_parse_entry(item) for item in fields.records("entries")),
        weights=tuple(_parse_weight(item) for item in fields.records("weights")),
        code=tuple(
            CodeSpec(item.string("target"), item.string("arch"), item.strings("features"), item.string("member"), _parse_modules(item))
            for item in fields.records("code")
        ),
        kernels=tuple(
            KernelSpec(item.string("name"), item.string("kind"), item.rest("name", "kind")) for item in fields.records("kernels")
        ),
        plan=fields.mapping("plan"),
        passes=tuple(fields.array("passes")),
        metadata=fields.mapping("metadata"),
        assets=fields.strings("assets"),
        members={
            name: MemberSpec(item.integer("num_bytes"), item.strings("sha256")) for name, item in fields.named_records("members").items()
        },
    )


def _parse_entry(item: Fields) -> EntrySpec:
    def tensors(key: str) -> tuple[TensorSpec, ...]:
        return tuple(_parse_tensor(spec) for spec in item.records(key))

    states = item.strings("states") if "states" in item.value else ()
    rows = _parse_rows(item.record("rows")) if "rows" in item.value else None
    guards = _parse_guards(item.record("guards")) if "guards" in item.value else None
    names = (item.string("name"), item.string("symbol"), item.string("shapes"))
    return EntrySpec(*names, tensors("inputs"), tensors("outputs"), states, rows, guards)


def _parse_tensor(item: Fields) -> TensorSpec:
    updated = "updated" in item.value and bool(item.get("updated", bool, "true or false"))
    return TensorSpec(item.string("name"), item.string("dtype"), item.dims("shape"), updated)


def _parse_modules(item: Fields) -> dict[str, str]:
    found = item.record("modules") if "modules" in item.value else None
    return {kind: found.string(kind) for kind in found.value} if found else {}


def _parse_guards(item: Fields) -> GuardSpec:
    return GuardSpec(item.string("symbol"), item.strings("conditions"))


def _parse_rows(item: Fields) -> RowSpec:
    return RowSpec(item.string("independent")) if "independent" in item.value else RowSpec(reason=item.string("dependent"))


def _parse_computed(item: Fields) -> ComputedSymbol:
    bound = item.string("bound") if isinstance(item.value.get("bound"), str) else item.integer("bound")
    return ComputedSymbol(item.string("name"), item.integer("min"), item.integer("max"), bound)


def _parse_weight(item: Fields) -> WeightSpec:
    return WeightSpec(item.string("name"), item.string("dtype"), item.integers("shape"), item.integer("offset"), item.integer("num_bytes"))
