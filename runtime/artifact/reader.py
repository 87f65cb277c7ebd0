"""An open, validated artifact, read without copies."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.manifest import SIGNATURE_MEMBER, Manifest
from llmos.runtime.artifact.signature import is_trusted, signer_of
from llmos.runtime.errors import ArtifactError
from llmos.runtime.native.binding import Handle, core

if TYPE_CHECKING:
    import numpy as np


class Artifact:
    """A complete, unmodified artifact. Opening it doesn't run its code and doesn't check trust; `require_trust` does.

    Views of members and weights keep the mapping alive, also after the Artifact is deleted.
    """

    def __init__(self, path: Path, handle: Handle, manifest_bytes: bytes, manifest: Manifest) -> None:
        self.path = path
        self.handle = handle
        self.manifest_bytes = manifest_bytes
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, sealed: bool = False) -> Artifact:
        """Map and check a file. Raises ArtifactError, in one line, for anything that the writer doesn't produce.

        sealed: map a copy in memory that nothing can change, rather than the file: what happens to a mapped file happens to who maps it.
        """
        handle = _open_copy(path) if sealed and hasattr(os, "memfd_create") else core().open_artifact(path)
        manifest_bytes = bytes(core().manifest(handle))
        try:
            return cls(Path(path), handle, manifest_bytes, Manifest.parse(manifest_bytes))
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of the manifest, which holds that of every member."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()

    def member(self, name: str) -> memoryview:
        """Return a view of a member's bytes in the mapped file. Raises ArtifactError for an unknown name."""
        view = core().member(self.handle, name)
        if view is None:
            raise ArtifactError(f"{self.path}: there is no member {name!r}")
        return view

    def asset(self, name: str) -> bytes:
        """Return a copy of an asset, by its name ("tokenizer.json"). Raises ArtifactError for an unknown name."""
        return bytes(self.member(f"assets/{name}"))

    @cached_property
    def weights(self) -> Mapping[str, np.ndarray]:
        """Return read-only arrays over the mapped file, in manifest order; bfloat16 as uint16."""
        import numpy as np

        arrays = {}
        for index, spec in enumerate(self.manifest.weights):
            data = core().weight(self.handle, index)
            arrays[spec.name] = np.frombuffer(data, dtype=DTYPES[spec.dtype].storage).reshape(spec.shape)
        return arrays

    @cached_property
    def signer(self) -> str | None:
        """Return the public key (hex) of the signature; None without one. Raises ArtifactError for an invalid signature."""
        signature = core().member(self.handle, SIGNATURE_MEMBER)
        if signature is None:
            return None
        try:
            return signer_of(self.manifest_bytes, bytes(signature))
        except ArtifactError as error:
            raise ArtifactError(f"{self.path}: {error}") from error

    def require_trust(self) -> None:
        """Raise ArtifactError unless a key that the user trusts has signed this artifact."""
        signer = self.signer
        if signer is None:
            raise ArtifactError(f"{self.path}: it is not signed, so its code is not run; compile it with llmos, which signs it")
        if not is_trusted(signer):
            raise ArtifactError(
                f"{self.path}: it is signed by a key you do not trust, so its code is not run; "
                f"if you trust its maker, first run: llmos trust add {signer}"
            )

    def verify(self) -> None:
        """Hash every member again. Raises ArtifactError if the file or its memory changed since it was opened."""
        core().verify_artifact(self.handle)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Copy the file atomically. Raises ArtifactError on failure."""
        from llmos.runtime.artifact.files import atomic_file

        target = Path(path)
        if target.exists() and self.path.exists() and target.samefile(self.path):
            return target
        try:
            with self.path.open("rb") as source, atomic_file(target) as file:
                shutil.copyfileobj(source, file, 1 << 20)
        except OSError as error:
            raise ArtifactError(f"can't copy {self.path}: {error.strerror or error}") from error
        return target


def _open_copy(path: str | os.PathLike[str]) -> Handle:
    """Open a copy of a file, in memory and sealed."""
    copy = sealed_copy(path)
    try:
        return core().open_artifact(f"/proc/self/fd/{copy}", named=path)
    finally:
        os.close(copy)


def sealed_copy(path: str | os.PathLike[str]) -> int:
    """Copy a file to memory, where nothing can change it. Return the descriptor. Raises ArtifactError."""
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        core().open_artifact(path)  # which says what is wrong
        raise ArtifactError(f"{path}: can't open it ({error.strerror or error})") from error
    try:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            core().open_artifact(path)
            raise ArtifactError(f"{path}: it is no file")
        return _copied(source)
    except OSError as error:
        raise ArtifactError(f"{path}: can't copy it to memory ({error.strerror or error})") from error
    finally:
        os.close(source)


def _copied(source: int) -> int:
    copy = os.memfd_create("llmos", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        while os.sendfile(copy, source, None, 1 << 30):
            pass
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(copy)
        raise
    return copy
