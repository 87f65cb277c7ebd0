"""Writing of an artifact: deterministic, streamed and atomic."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from llmos.runtime.artifact import safetensors
from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.files import atomic_file
from llmos.runtime.artifact.manifest import (
    MANIFEST_MEMBER,
    SIGNATURE_MEMBER,
    WEIGHTS_MEMBER,
    CodeSpec,
    ComputedSymbol,
    EntrySpec,
    KernelSpec,
    Manifest,
    MemberSpec,
    Symbol,
    WeightSpec,
)
from llmos.runtime.artifact.signature import SigningKey, signature_member, user_key
from llmos.runtime.artifact.validation import validate
from llmos.runtime.artifact.zipformat import ZipMember, central_header, end_records, local_header
from llmos.runtime.errors import ArtifactError
from llmos.runtime.native.abi import CHUNK_BYTES


class WeightSource(Protocol):
    """A named constant that is loaded when it is written; the compiler's Weight implements it."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def load(self) -> Callable[[], np.ndarray]: ...


@dataclass(frozen=True)
class CodeVariant:
    """A shared object for one machine type. `arch` as in platform.machine(), `features` in LLVM's names.

    modules: what a device loads, by kind ("ptx", "cubin").
    """

    target: str
    arch: str
    features: tuple[str, ...]
    data: bytes
    modules: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class ArtifactContents:
    """The content of an artifact. Weights in the order of context.weights; code best first; asset names without a folder."""

    name: str
    entries: Sequence[EntrySpec]
    symbols: Sequence[Symbol] = ()
    computed: Sequence[ComputedSymbol] = ()
    weights: Mapping[str, WeightSource] = field(default_factory=dict)
    code: Sequence[CodeVariant] = ()
    kernels: Sequence[KernelSpec] = ()
    producer: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    passes: Sequence[Any] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    assets: Mapping[str, bytes] = field(default_factory=dict)
    extras: Mapping[str, bytes] = field(default_factory=dict)  # further members by full name, e.g. accuracy.json


def write_artifact(path: str | os.PathLike[str], contents: ArtifactContents, key: SigningKey | None = None) -> Manifest:
    """Write and sign `path` (by default with the user's own key) and return its manifest.

    The same contents and key give the same bytes. Weights are loaded one at a time. The file is renamed to its name when it is complete;
    after an error (ArtifactError, also for a full disk) no file is left.
    """
    signer = user_key() if key is None else key
    with atomic_file(Path(path)) as file:
        return _write(file, contents, signer)


def _write(file: BinaryIO, contents: ArtifactContents, signer: SigningKey) -> Manifest:
    draft, parts = _plan_members(contents)
    # Hashes have a fixed width, so the manifest's size is known in advance: its space is reserved and filled in last.
    place = ZipMember(MANIFEST_MEMBER, 0, len(draft.to_json()))
    file.write(bytes(place.end))
    members, hashes = [], {}
    end = place.end
    for name, num_bytes, chunks in parts:
        member, digest = _write_member(file, ZipMember(name, end, num_bytes), chunks)
        members.append(member)
        hashes[name] = digest
        end = member.end
    manifest = draft.with_members(hashes)
    validate(manifest)
    manifest_bytes = manifest.to_json()
    signature = signature_member(signer, manifest_bytes)
    signature_place, _ = _write_member(file, ZipMember(SIGNATURE_MEMBER, end, len(signature)), [signature])
    manifest_place = replace(place, crc=zlib.crc32(manifest_bytes))
    directory = b"".join(map(central_header, (manifest_place, *members, signature_place)))
    file.write(directory + end_records(len(members) + 2, signature_place.end, len(directory)))
    file.seek(0)
    file.write(local_header(manifest_place) + manifest_bytes)
    return manifest


_Part = tuple[str, int, Iterable[bytes | memoryview]]


def _plan_members(contents: ArtifactContents) -> tuple[Manifest, list[_Part]]:
    """Return the manifest with zero hashes, and all members but manifest and signature in file order."""
    weights = safetensors.layout((name, weight.dtype, tuple(weight.shape)) for name, weight in contents.weights.items())
    code = [_code_files(variant) for variant in contents.code]
    files = {name: data for members in code for name, data in members.items()}
    assets = {f"assets/{name}": data for name, data in sorted(contents.assets.items())}
    parts: list[_Part] = [(name, len(data), [data]) for name, data in {**files, **assets, **dict(sorted(contents.extras.items()))}.items()]
    if len(parts) != len(files) + len(assets) + len(contents.extras) or len(files) != sum(map(len, code)):
        raise ArtifactError("two members of the artifact have the same name")
    if weights:
        head = safetensors.header(weights)
        parts.append((WEIGHTS_MEMBER, len(head) + safetensors.data_bytes(weights), _weight_chunks(head, weights, contents.weights)))
    manifest = Manifest(
        name=contents.name,
        entries=tuple(contents.entries),
        symbols=tuple(contents.symbols),
        computed=tuple(contents.computed),
        weights=weights,
        code=tuple(map(_code_spec, contents.code)),
        kernels=tuple(contents.kernels),
        producer=contents.producer,
        plan=contents.plan,
        passes=tuple(contents.passes),
        metadata=contents.metadata,
        assets=tuple(assets),
        members={name: MemberSpec(num_bytes, ("0" * 64,) * -(-num_bytes // CHUNK_BYTES)) for name, num_bytes, _ in parts},
    )
    _check_names(manifest)
    validate(manifest)
    return manifest, parts


def _code_files(variant: CodeVariant) -> dict[str, bytes]:
    """The members of a code variant by their names."""
    return {f"code/{variant.target}.{kind}": data for kind, data in {"so": variant.data, **variant.modules}.items()}


def _code_spec(variant: CodeVariant) -> CodeSpec:
    member, *others = _code_files(variant)
    return CodeSpec(variant.target, variant.arch, tuple(variant.features), member, dict(zip(variant.modules, others, strict=True)))


def _check_names(manifest: Manifest) -> None:
    for name in manifest.members:
        if name in (MANIFEST_MEMBER, SIGNATURE_MEMBER) or not name or name.startswith("/") or ".." in name.split("/"):
            raise ArtifactError(f"{name!r} can't be the name of a member")


def _weight_chunks(head: bytes, specs: tuple[WeightSpec, ...], sources: Mapping[str, WeightSource]) -> Iterator[bytes | memoryview]:
    yield head
    for spec in specs:
        yield _dense_bytes(spec, sources[spec.name].load())
        yield bytes(safetensors.aligned(spec.num_bytes) - spec.num_bytes)


def _dense_bytes(spec: WeightSpec, array: np.ndarray) -> memoryview:
    expected = DTYPES[spec.dtype]
    if tuple(array.shape) != spec.shape or array.dtype.name not in (expected.name, expected.storage):
        raise ArtifactError(
            f"weight {spec.name!r}: declared {spec.dtype} {list(spec.shape)}, loaded {array.dtype.name} {list(array.shape)}"
        )
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write_member(file: BinaryIO, member: ZipMember, chunks: Iterable[bytes | memoryview]) -> tuple[ZipMember, MemberSpec]:
    """Stream the data, then write the header before it, which holds the data's CRC."""
    digest = _ChunkDigest()
    file.write(local_header(member))
    for chunk in chunks:
        file.write(chunk)
        digest.update(memoryview(chunk))
    if digest.num_bytes != member.num_bytes:
        raise ArtifactError(f"member {member.name!r}: {digest.num_bytes} bytes came where {member.num_bytes} were declared")
    written = replace(member, crc=digest.crc)
    file.seek(member.offset)
    file.write(local_header(written))
    file.seek(written.end)
    return written, MemberSpec(member.num_bytes, digest.sha256())


class _ChunkDigest:
    """CRC-32 of a stream, and the SHA-256 of each of its 1 MiB chunks."""

    def __init__(self) -> None:
        self.crc = 0
        self.num_bytes = 0
        self._hashes: list[Any] = []

    def update(self, data: memoryview) -> None:
        self.crc = zlib.crc32(data, self.crc)
        while len(data):
            room = CHUNK_BYTES - self.num_bytes % CHUNK_BYTES
            if room == CHUNK_BYTES:
                self._hashes.append(hashlib.sha256())
            self._hashes[-1].update(data[:room])
            self.num_bytes += min(room, len(data))
            data = data[room:]

    def sha256(self) -> tuple[str, ...]:
        return tuple(digest.hexdigest() for digest in self._hashes)
