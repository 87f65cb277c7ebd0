"""Ed25519 signatures of manifests: the user's own key, and the keys that the user trusts.

$LLMOS_HOME (default ~/.config/llmos) holds `signing-key.pem`, made on first use and readable by its owner alone, and the folder
`trusted/` with one PEM public key a file, named by the user. A key is shown and compared as its 32 bytes in hex.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmos.runtime.artifact.fields import Fields, parse_json
from llmos.runtime.errors import ArtifactError, UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_ALGORITHM = "ed25519"
# The DER prefix of the 32 key bytes. A constant, because cryptography's serialization is slow to import.
_PUBLIC_PREFIX = bytes.fromhex("302a300506032b6570032100")
_PRIVATE_PREFIX = bytes.fromhex("302e020100300506032b657004220420")
_KEY_HEX = re.compile(r"[0-9a-f]{64}")
_SIGNATURE_HEX = re.compile(r"[0-9a-f]{128}")
_NAME = re.compile(r"[\w][\w.@+-]*")


@dataclass(frozen=True)
class SigningKey:
    """A private key. Signatures are deterministic (RFC 8032)."""

    private: Ed25519PrivateKey

    @property
    def public_hex(self) -> str:
        return self.private.public_key().public_bytes_raw().hex()

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data)


@dataclass(frozen=True)
class TrustedKey:
    """A public key the user trusts; the user's own has the name "(own)"."""

    name: str
    public_hex: str


OWN = "(own)"


def home() -> Path:
    return Path(os.environ.get("LLMOS_HOME") or Path.home() / ".config" / "llmos")


def user_key() -> SigningKey:
    """Return the user's own key, created if missing. Raises UserError if it can't be read or created."""
    path = _key_path()
    try:
        if not path.exists():
            _make_key(path)
        return _read_private(path)
    except OSError as error:
        raise UserError(f"can't make or read the signing key {path}: {error.strerror}; set LLMOS_HOME to a folder of yours") from error


def signature_member(key: SigningKey, manifest: bytes) -> bytes:
    """Return the content of the member `signature`; its size does not depend on the key."""
    record = {"algorithm": _ALGORITHM, "public_key": key.public_hex, "signature": key.sign(manifest).hex()}
    return json.dumps(record, separators=(",", ":")).encode()


def signer_of(manifest: bytes, signature: bytes) -> str:
    """Return the public key (hex) that signed these bytes. Raises ArtifactError for an invalid signature."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    fields = Fields("signature", parse_json(signature, "signature"))
    key, value = fields.string("public_key"), fields.string("signature")
    if fields.string("algorithm") != _ALGORITHM or not _KEY_HEX.fullmatch(key) or not _SIGNATURE_HEX.fullmatch(value):
        raise ArtifactError("its signature is malformed: the file was changed")
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(value), manifest)
    except (InvalidSignature, ValueError) as error:
        raise ArtifactError("its signature does not match: the file was changed") from error
    return key


def is_trusted(public_hex: str) -> bool:
    return any(key.public_hex == public_hex for key in trusted_keys())


def trusted_keys() -> list[TrustedKey]:
    """Return the user's own key, if there is one, then those of the trust folder by name."""
    own = [TrustedKey(OWN, _read_private(_key_path()).public_hex)] if _key_path().exists() else []
    folder = home() / "trusted"
    files = sorted(folder.glob("*.pem")) if folder.is_dir() else []
    return own + [TrustedKey(path.stem, _read_public(path.read_bytes(), str(path))) for path in files]


def add_trusted(key: str, name: str | None = None) -> TrustedKey:
    """Trust a public key, given in hex or as the path of a PEM file. Raises UserError for anything else and for a name in use."""
    text = key.strip().lower()
    public_hex = text if _KEY_HEX.fullmatch(text) else _read_public(_read_key_file(key), key)
    chosen = name or public_hex[:16]
    if not _NAME.fullmatch(chosen):
        raise UserError(f"{chosen!r} can't name a key: use letters, digits and . _ - + @")
    path = home() / "trusted" / f"{chosen}.pem"
    if path.exists() and _read_public(path.read_bytes(), str(path)) != public_hex:
        raise UserError(f"another trusted key has the name {chosen!r}: give --name, or remove that one first")
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, public_pem(public_hex), 0o644)
    return TrustedKey(chosen, public_hex)


def remove_trusted(name: str) -> TrustedKey:
    """Remove a trusted key by name or hex. Raises UserError if no added key matches."""
    added = [key for key in trusted_keys() if key.name != OWN]
    for key in added:
        if name in (key.name, key.public_hex):
            (home() / "trusted" / f"{key.name}.pem").unlink()
            return key
    names = ", ".join(key.name for key in added) or "none"
    raise UserError(f"no trusted key is called {name!r}; there are: {names}")


def public_pem(public_hex: str) -> bytes:
    """Return the PEM form of a public key (RFC 8410), as openssl reads and writes it."""
    return _pem("PUBLIC KEY", _PUBLIC_PREFIX + bytes.fromhex(public_hex))


def new_key() -> SigningKey:
    """Generate a key that is not stored."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return SigningKey(Ed25519PrivateKey.generate())


def _key_path() -> Path:
    return home() / "signing-key.pem"


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = _write_beside(path, _pem("PRIVATE KEY", _PRIVATE_PREFIX + new_key().private.private_bytes_raw()), 0o600)
    try:
        # The link fails if another process has just created the key: use that one.
        path.hardlink_to(temporary)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def _read_private(path: Path) -> SigningKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    seed = _key_of_pem(path.read_bytes(), "PRIVATE KEY", _PRIVATE_PREFIX)
    if seed is None:
        raise UserError(f"{path} is no unencrypted Ed25519 private key: move it away and a new one will be made")
    return SigningKey(Ed25519PrivateKey.from_private_bytes(seed))


def _read_key_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: neither 64 hex digits nor a readable file of a public key ({error.strerror})") from error


def _read_public(pem: bytes, source: str) -> str:
    key = _key_of_pem(pem, "PUBLIC KEY", _PUBLIC_PREFIX)
    if key is None:
        raise UserError(f"{source}: not an Ed25519 public key in PEM form")
    return key.hex()


def _pem(label: str, der: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n{base64.b64encode(der).decode()}\n-----END {label}-----\n".encode()


def _key_of_pem(pem: bytes, label: str, prefix: bytes) -> bytes | None:
    """Return the 32 bytes of a key; None for anything else, such as another key type."""
    match = re.search(rf"-----BEGIN {label}-----\s+([A-Za-z0-9+/=\s]+)-----END {label}-----".encode(), pem)
    try:
        der = base64.b64decode(match[1]) if match else b""
    except ValueError:
        return None
    return der[len(prefix) :] if der.startswith(prefix) and len(der) == len(prefix) + 32 else None


def _replace(path: Path, data: bytes, mode: int) -> None:
    _write_beside(path, data, mode).replace(path)


def _write_beside(path: Path, data: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    return temporary
