"""What a reader refuses: every flipped byte, every truncation, other formats, machines and signers."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmos.runtime.artifact import signature
from llmos.runtime.artifact.manifest import Manifest
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.artifact.writer import ArtifactContents, CodeVariant, write_artifact
from llmos.runtime.artifact.zipformat import ZipMember, central_header, end_records, local_header
from llmos.runtime.device.cpu import choose, host, judge
from llmos.runtime.errors import ArtifactError, UserError
from llmos.runtime.native.abi import ABI_VERSION, FORMAT
from llmos.runtime.native.binding import core
from llmos.runtime.program import load

from .handwritten import SCALE, SHIFT, Constant, compile_c


def rezip(source: Path, target: Path, changes: dict[str, bytes | None], order: list[str] | None = None) -> Path:
    """The artifact with members replaced (None: left out), as a well-formed file."""
    with zipfile.ZipFile(source) as archive:
        data = {name: archive.read(name) for name in archive.namelist()} | changes
    members, body = [], b""
    for name in order or list(data):
        content = data[name]
        if content is None:
            continue
        member = ZipMember(name, len(body), len(content), zlib.crc32(content))
        members.append(member)
        body += local_header(member) + content
    directory = b"".join(map(central_header, members))
    target.write_bytes(body + directory + end_records(len(members), len(body), len(directory)))
    return target


def change_manifest(source: Path, target: Path, **fields: object) -> Path:
    with zipfile.ZipFile(source) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    return rezip(source, target, {"manifest.json": json.dumps({**manifest, **fields}).encode()})


def refused(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


def test_contents_come_back(artifact_path: Path, contents: ArtifactContents, code: bytes) -> None:
    artifact = Artifact.open(artifact_path)
    assert artifact.manifest.entries == contents.entries
    assert Manifest.parse(artifact.manifest_bytes) == artifact.manifest
    assert bytes(artifact.member("code/baseline.so")) == code
    assert artifact.asset("tokenizer.json") == b'{"a": 1}'
    np.testing.assert_array_equal(artifact.weights["scale"], SCALE)
    np.testing.assert_array_equal(artifact.weights["shift"], SHIFT)
    assert artifact.weights["shift"].ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        artifact.weights["scale"][0] = 1
    with pytest.raises(ArtifactError, match="no member 'nothing'"):
        artifact.member("nothing")
    artifact.verify()


def test_weights_outlive_the_artifact(artifact_path: Path) -> None:
    scale = Artifact.open(artifact_path).weights["scale"]
    np.testing.assert_array_equal(scale, SCALE)


def test_any_zip_tool_and_safetensors_read_it(artifact_path: Path) -> None:
    with zipfile.ZipFile(artifact_path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["manifest.json", "code/baseline.so", "assets/tokenizer.json", "weights.safetensors", "signature"]
        weights = archive.read("weights.safetensors")
    safetensors = pytest.importorskip("safetensors.numpy")
    np.testing.assert_array_equal(safetensors.load(weights)["scale"], SCALE)


def test_same_contents_same_bytes(contents: ArtifactContents, tmp_path: Path) -> None:
    digests = set()
    for name in ("a.llmos", "b.llmos"):
        write_artifact(tmp_path / name, contents)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.llmos", "b.llmos"]


def test_save_copies_whole(artifact_path: Path, tmp_path: Path) -> None:
    saved = Artifact.open(artifact_path).save(tmp_path / "copy.llmos")
    assert saved.read_bytes() == artifact_path.read_bytes()


def test_every_flipped_byte_is_refused(small_path: Path, tmp_path: Path) -> None:
    data = bytearray(small_path.read_bytes())
    path = tmp_path / "flipped.llmos"
    path.write_bytes(data)
    with path.open("r+b", buffering=0) as file:
        for position in range(len(data)):
            os.pwrite(file.fileno(), bytes([data[position] ^ (1 << position % 8)]), position)
            with pytest.raises(ArtifactError):
                Artifact.open(path).require_trust()
            os.pwrite(file.fileno(), bytes([data[position]]), position)
    Artifact.open(path).require_trust()


def test_every_truncation_is_refused(small_path: Path, tmp_path: Path) -> None:
    data = small_path.read_bytes()
    path = tmp_path / "short.llmos"
    for size in [*range(200), *range(200, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:size])
        assert "truncated" in refused(path) or "empty" in refused(path)
    path.write_bytes(data + b"\0")
    assert "does not end as an llmos file does" in refused(path)


def test_what_is_no_artifact(tmp_path: Path, artifact_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "missing.llmos")
    assert "no regular file" in refused(tmp_path)
    assert "no regular file" in refused(Path("/dev/zero"))
    plain = tmp_path / "plain.llmos"
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("manifest.json", artifact_path.read_bytes()[:1000])
    assert "not an artifact" in refused(plain)


def test_a_later_format(artifact_path: Path, tmp_path: Path) -> None:
    message = refused(change_manifest(artifact_path, tmp_path / "later.llmos", format=FORMAT + 1))
    assert f"format {FORMAT + 1}" in message and "install a newer llmos" in message
    assert "compile the model again" in refused(change_manifest(artifact_path, tmp_path / "early.llmos", format=0))


def test_members_must_be_those_of_the_manifest(artifact_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "members.llmos"
    names = ["manifest.json", "code/baseline.so", "assets/tokenizer.json", "weights.safetensors", "extra", "signature"]
    assert "not listed" in refused(rezip(artifact_path, path, {"extra": b"x"}, names))
    assert "not what the manifest lists" in refused(rezip(artifact_path, path, {"assets/tokenizer.json": None}))
    assert "is missing" in refused(rezip(artifact_path, path, {"weights.safetensors": None}))
    assert "does not have the hash" in refused(rezip(artifact_path, path, {"assets/tokenizer.json": b'{"a": 2}'}))
    assert "not what the manifest lists" in refused(rezip(artifact_path, path, {"assets/tokenizer.json": b"{}"}))
    names = ["code/baseline.so", "manifest.json", "assets/tokenizer.json", "weights.safetensors", "signature"]
    assert "first member is not manifest.json" in refused(rezip(artifact_path, path, {}, names))
    twice = ["manifest.json", "code/baseline.so", "code/baseline.so"]
    assert "not what the manifest lists" in refused(rezip(artifact_path, path, {}, twice))


AN_ENTRY = {
    "name": "main",
    "symbol": "__tvm_ffi_main",
    "shapes": "__llmos_shapes_main",
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 4]}],
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"entries": []}, "entries"),
        ({"entries": 3}, "entries"),
        ({"symbols": []}, "batch"),
        ({"symbols": [{"name": "batch", "min": 5, "max": 1}, {"name": "tokens", "min": 1, "max": 2}]}, "batch"),
        ({"weights": [{"name": "w", "dtype": "float32", "shape": [2**40], "offset": 0, "num_bytes": 2**42}]}, "reaches beyond"),
        ({"weights": [{"name": "w", "dtype": "float32", "shape": [4], "offset": 8, "num_bytes": 16}]}, "offset"),
        ({"weights": [{"name": "w", "dtype": "float7", "shape": [4], "offset": 0, "num_bytes": 16}]}, "float7"),
        ({"code": [{"target": "t", "arch": "x86_64", "features": [], "member": "code/none.so"}]}, "code/none.so"),
        ({"members": {}}, "member"),
        ({"name": 3}, "name"),
        ({"entries": [{**AN_ENTRY, "rows": {"independent": "tokens"}}]}, "must stand first"),
        ({"entries": [{**AN_ENTRY, "rows": {}}]}, "dependent"),
    ],
)
def test_a_manifest_that_makes_no_sense(artifact_path: Path, tmp_path: Path, fields: dict[str, object], message: str) -> None:
    text = refused(change_manifest(artifact_path, tmp_path / "odd.llmos", **fields))
    assert message in text


def test_other_machines(contents: ArtifactContents, code: bytes, tmp_path: Path) -> None:
    path = tmp_path / "foreign.llmos"
    variants = (CodeVariant("new", host().arch, ("avx2048f",), code), CodeVariant("other", "riscv64", (), code))
    write_artifact(path, replace(contents, code=variants))
    message = refused(path)
    assert f"no code for this machine ({host().arch})" in message
    assert "new needs avx2048f; other needs a riscv64 machine" in message
    handle = core().open_artifact(path)
    for index, reason in ((0, "it needs avx2048f"), (1, "it needs a riscv64 machine"), (-1, "no code for this machine")):
        with pytest.raises(ArtifactError, match=reason):
            core().open_program(handle, index)


def test_the_best_variant_is_chosen_and_says_why(contents: ArtifactContents, code: bytes, tmp_path: Path) -> None:
    own = tuple(sorted(host().features))
    needs = (("v4", ("avx2048f", *own, "avx2048bw")), ("v3", own[:2]), ("v1", ()))
    variants = [CodeVariant(name, host().arch, features, code) for name, features in needs]
    write_artifact(tmp_path / "fat.llmos", replace(contents, code=variants))
    artifact = Artifact.open(tmp_path / "fat.llmos")
    assert choose(artifact) == core().chosen_code(artifact.handle) == 1
    assert [verdict.reason for verdict in judge(artifact)] == [
        "needs avx2048f, avx2048bw",
        "chosen: the best variant that this machine can run",
        "can run, but a better variant comes first",
    ]
    assert choose(artifact, "v1") == 2
    with pytest.raises(ArtifactError, match="v4 needs avx2048f"):
        choose(artifact, "v4")
    with pytest.raises(ArtifactError, match="there is no variant 'v2', only v4, v3, v1"):
        choose(artifact, "v2")


@pytest.mark.parametrize(("version", "runs"), [(1, True), (2, True), (ABI_VERSION, True), (ABI_VERSION + 1, False), (0, False)])
def test_code_of_a_later_version_of_the_abi_is_refused(contents: ArtifactContents, tmp_path: Path, version: int, runs: bool) -> None:
    source = tmp_path / "versioned.c"
    source.write_text(
        (Path(__file__).parent / "kernels.c").read_text().replace("__llmos_abi_version = 2", f"__llmos_abi_version = {version}")
    )
    code = compile_c(tmp_path / "versioned.so", "-O2", "-fPIC", "-shared", "-nostdlib", source).read_bytes()
    path = tmp_path / "versioned.llmos"
    write_artifact(path, replace(contents, code=(CodeVariant("baseline", host().arch, (), code),)))
    if runs:
        load(path).check_integrity()
    else:
        assert f"needs version {version} of the ABI and this llmos has {ABI_VERSION}: install a newer llmos" in refused(path)


def test_code_that_does_not_load(small_path: Path) -> None:
    assert "can't be loaded" in refused(small_path)


def test_missing_functions_in_the_code(contents: ArtifactContents, tmp_path: Path) -> None:
    broken = replace(contents.entries[0], symbol="__tvm_ffi_absent")
    write_artifact(tmp_path / "absent.llmos", replace(contents, entries=(broken,)))
    assert 'has no function "__tvm_ffi_absent"' in refused(tmp_path / "absent.llmos")


# ---- Signatures ----


def test_a_foreign_signature_until_it_is_trusted(contents: ArtifactContents, tmp_path: Path) -> None:
    key = signature.new_key()
    path = tmp_path / "foreign.llmos"
    write_artifact(path, contents, key)
    message = refused(path)
    assert f"llmos trust add {key.public_hex}" in message
    added = signature.add_trusted(key.public_hex, "colleague")
    assert added in signature.trusted_keys()
    load(path)
    assert signature.remove_trusted("colleague") == added
    refused(path)
    pem = tmp_path / "colleague.pem"
    pem.write_bytes(signature.public_pem(key.public_hex))
    assert signature.add_trusted(str(pem)).public_hex == key.public_hex
    load(path)
    signature.remove_trusted(key.public_hex)


def test_unsigned_and_badly_signed(artifact_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "unsigned.llmos"
    assert "not signed" in refused(rezip(artifact_path, path, {"signature": None}))
    assert Artifact.open(path).signer is None
    other = signature.signature_member(signature.user_key(), b"another manifest")
    assert "does not match" in refused(rezip(artifact_path, path, {"signature": other}))
    assert "not valid JSON" in refused(rezip(artifact_path, path, {"signature": b"\xff"}))
    assert "malformed" in refused(rezip(artifact_path, path, {"signature": other.replace(b"ed25519", b"ed25518")}))


def test_the_users_key_is_private_and_kept(llmos_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert signature.user_key().public_hex == signature.user_key().public_hex
    assert (llmos_home / "signing-key.pem").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("LLMOS_HOME", str(tmp_path / "new" / "home"))
    assert signature.trusted_keys() == []
    own = signature.user_key().public_hex
    assert signature.trusted_keys() == [signature.TrustedKey(signature.OWN, own)]


def test_key_files_are_those_of_other_tools(llmos_home: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    own = signature.user_key()
    private = serialization.load_pem_private_key((llmos_home / "signing-key.pem").read_bytes(), password=None)
    raw = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    assert raw.hex() == own.public_hex
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert pem == signature.public_pem(own.public_hex)


@pytest.mark.parametrize("key", ["zz", "", "0" * 63, "/nonexistent/key.pem"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(UserError):
        signature.add_trusted(key)


def test_names_of_trusted_keys() -> None:
    with pytest.raises(UserError, match="can't name a key"):
        signature.add_trusted(signature.new_key().public_hex, "../../x")
    first = signature.add_trusted(signature.new_key().public_hex, "taken")
    with pytest.raises(UserError, match="another trusted key"):
        signature.add_trusted(signature.new_key().public_hex, "taken")
    signature.remove_trusted(first.name)
    with pytest.raises(UserError, match="no trusted key is called 'taken'"):
        signature.remove_trusted("taken")


# ---- Writing ----


def test_nothing_stays_after_a_weight_that_does_not_load(contents: ArtifactContents, tmp_path: Path) -> None:
    class Broken(Constant):
        @property
        def load(self):  # type: ignore[no-untyped-def]
            raise OSError(28, "No space left on device")

    weights = {"good": Constant(np.zeros(3 << 20, np.uint8)), "bad": Broken(np.zeros(4, np.float32))}
    with pytest.raises(ArtifactError, match="No space left on device"):
        write_artifact(tmp_path / "x.llmos", replace(contents, weights=weights))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(contents: ArtifactContents) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left"), Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
    with pytest.raises(ArtifactError, match="can't write"):
        write_artifact("/proc/x.llmos", contents)


def test_the_old_file_stays_when_the_new_one_fails(contents: ArtifactContents, tmp_path: Path) -> None:
    path = tmp_path / "x.llmos"
    path.write_bytes(b"old")
    with pytest.raises(ArtifactError, match="declared float32"):
        write_artifact(path, replace(contents, weights={"w": Lying(np.zeros(4))}))
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


class Lying(Constant):
    """Says float32 and loads float64."""

    @property
    def dtype(self) -> str:
        return "float32"


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"empty": Constant(np.zeros((0, 3), np.float32)), "scalar": Constant(np.float64(2.5) * np.ones(()))},
        {f"w{i}": Constant(np.arange(i, dtype=dtype)) for i, dtype in enumerate(["bool", "int8", "uint16", "complex64", "float16"])},
        {"strided": Constant(np.arange(24.0).reshape(4, 6)[::2, ::3]), "big endian": Constant(np.arange(3, dtype=">i4"))},
        {"ünïcode \u2713": Constant(np.arange(1 << 20, dtype=np.int64))},
    ],
)
def test_weights_of_every_kind(contents: ArtifactContents, tmp_path: Path, weights: dict[str, Constant]) -> None:
    path = tmp_path / "w.llmos"
    write_artifact(path, replace(contents, weights=weights))
    read = Artifact.open(path).weights
    assert list(read) == list(weights)
    for name, weight in weights.items():
        np.testing.assert_array_equal(read[name], weight.array)


@pytest.mark.parametrize("name", ["__metadata__", "__padding__.1"])
def test_reserved_weight_names(contents: ArtifactContents, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="reserved"):
        write_artifact(tmp_path / "w.llmos", replace(contents, weights={name: Constant(SCALE)}))


def test_a_changed_file_fails_the_integrity_check(artifact_path: Path, tmp_path: Path) -> None:
    path = Artifact.open(artifact_path).save(tmp_path / "changing.llmos")
    program = load(path)
    program.check_integrity()
    position = path.read_bytes().index(SCALE.tobytes())
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"\x01", position)
    with pytest.raises(ArtifactError, match="weights"):
        program.check_integrity()
