"""Files of the gguf package's writer, and files that are damaged: at worst one line."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from llmos.models.gguf.file import GgufFile
from llmos.models.gguf.types import OTHERS, TYPES
from llmos.runtime.errors import UserError

from .files import File, Tensor, array, entry, sample, text
from .test_blocks import KINDS, random_blocks


def opened(content: bytes, folder: Path) -> GgufFile:
    path = folder / "m.gguf"
    path.write_bytes(content)
    return GgufFile.open(path)


@pytest.mark.parametrize("alignment", [None, 64, 4096])
def test_what_the_package_writes(alignment: int | None, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_name("model")
    writer.add_uint8("u8", 255), writer.add_int8("i8", -128), writer.add_uint16("u16", 65535), writer.add_int16("i16", -5)
    writer.add_uint32("u32", 2**32 - 1), writer.add_int32("i32", -(2**31)), writer.add_uint64("u64", 2**64 - 1), writer.add_int64("i64", -9)
    writer.add_float32("f32", 0.5), writer.add_float64("f64", 1e300), writer.add_bool("yes", True), writer.add_bool("no", False)
    writer.add_array("tokens", ["a", "", "\n", "日本"]), writer.add_array("ids", [1, 2, -3]), writer.add_array("scores", [0.5, -1.0])
    blocks = {kind.name: random_blocks(kind, 6).reshape(3, -1) for kind in TYPES.values() if kind.is_quantized}
    rows = np.random.default_rng(0).standard_normal((3, 2, 5)).astype(np.float32)
    writer.add_tensor("rows", rows)
    writer.add_tensor("halves", rows[0].astype(np.float16))
    for code, kind in KINDS.items():
        if kind.is_quantized:
            writer.add_tensor(kind.name, blocks[kind.name], raw_dtype=code)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()

    file = GgufFile.open(path)
    expected = {"u8": 255, "i8": -128, "u16": 65535, "i16": -5, "u32": 2**32 - 1, "i32": -(2**31), "u64": 2**64 - 1, "i64": -9, "f32": 0.5,
                "f64": 1e300, "yes": True, "no": False, "tokens": ["a", "", "\n", "日本"], "general.architecture": "llama"}  # fmt: skip
    assert {key: file.metadata[key] for key in expected} == expected and file.metadata["yes"] is True
    assert [list(file.metadata[key]) for key in ("ids", "scores")] == [[1, 2, -3], [0.5, -1.0]]
    reader = {each.name: each for each in gguf.GGUFReader(path).tensors}
    assert list(file.tensors) == list(reader)
    np.testing.assert_array_equal(file.tensors["rows"].dequantized(), rows)
    for name, tensor in file.tensors.items():
        assert tensor.shape == tuple(map(int, reversed(reader[name].shape)))
        wanted = gguf.dequantize(reader[name].data, reader[name].tensor_type)
        np.testing.assert_array_equal(tensor.dequantized(), wanted.reshape(tensor.shape))
        assert (tensor.unpacked() is None) == (name in ("rows", "halves"))


def test_tensors_stay_in_the_file(tmp_path: Path) -> None:
    file = opened(sample().bytes(), tmp_path)
    assert not any(each.data.flags.owndata or each.data.flags.writeable for each in file.tensors.values())
    assert file.metadata["tokenizer.ggml.tokens"] == ["a", "ü", "\udcff"]
    np.testing.assert_array_equal(file.tensors["rope"].dequantized(), np.arange(4))


def test_a_large_vocabulary_is_read_at_once(tmp_path: Path) -> None:
    """150,000 tokens and merges, as current models have."""
    tokens = b"".join(text(f"token{i}") for i in range(150_000))
    content = File([entry("tokens", 9, array(8, 150_000, tokens)), entry("merges", 9, array(8, 150_000, tokens))]).bytes()
    start = time.perf_counter()
    assert len(opened(content, tmp_path).metadata["merges"]) == 150_000  # type: ignore[arg-type]
    assert time.perf_counter() - start < 5


F32 = Tensor("a", (4,), 0, b"\0" * 16)
LONG = "x" * 100_000
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "can't be read"),
    "another-format": (b"PK\3\4" + b"\0" * 100, "not a GGUF file"),
    "three-bytes": (b"GGU", "not a GGUF file"),
    "magic-alone": (b"GGUF", "cut short or damaged, at byte 4"),
    "version-1": (File(version=1).bytes(), "version 1 isn't supported; 2 and 3 are"),
    "version-of-the-future": (File(version=4).bytes(), "version 4"),
    "big-endian": (File(version=3 << 24).bytes(), "big-endian"),
    "entries-of-all-memory": (File(num_entries=2**64 - 1).bytes(), "18,446,744,073,709,551,615 entries"),
    "tensors-of-all-memory": (File(num_tensors=2**63).bytes(), "9,223,372,036,854,775,808 tensors"),
    "a-string-of-all-memory": (File([struct.pack("<Q", 2**62) + b"\0" * 9]).bytes(), "cut short"),
    "an-array-of-all-memory": (File([entry("k", 9, array(12, 2**61, b""))]).bytes(), "cut short"),
    "strings-of-all-memory": (File([entry("k", 9, array(8, 2**61, b""))]).bytes(), "strings of 'k'"),
    "arrays-of-arrays": (File([entry("k", 9, array(9, 1, array(4, 0, b"")))]).bytes(), "arrays of arrays"),
    "an-unknown-type-of-entry": (File([entry("k", 13, b"\0" * 8)]).bytes(), "'k' is of the unknown type 13"),
    "a-bool-of-2": (File([entry("k", 7, b"\2")]).bytes(), "a bool of the value 2"),
    "a-key-twice": (File([entry("k", 7, b"\1")] * 2).bytes(), "'k' twice"),
    "a-key-of-other-bytes": (File([text(b"\xff") + b"\0" * 20]).bytes(), "no UTF-8"),
    "a-long-key-of-lines": (File([entry("\n" + LONG, 13, b"\0" * 8)]).bytes(), "unknown type 13"),
    "an-alignment-of-0": (File([entry("general.alignment", 4, struct.pack("<I", 0))]).bytes(), "not a power of two"),
    "an-alignment-of-24": (File([entry("general.alignment", 4, struct.pack("<I", 24))]).bytes(), "general.alignment is 24"),
    "an-alignment-of-text": (File([entry("general.alignment", 8, text(LONG))]).bytes(), "not a power of two"),
    "an-alignment-beyond-the-file": (File([entry("general.alignment", 4, struct.pack("<I", 1 << 31))], [F32]).bytes(), "ends at byte"),
    "no-dimensions": (File(tensors=[Tensor("a", (), 0, b"")]).bytes() + b"\0" * 64, "has 0 dimensions"),
    "five-dimensions": (File(tensors=[Tensor("a", (1,) * 5, 0, b"\0" * 4)]).bytes(), "has 5 dimensions"),
    "a-dimension-of-0": (File(tensors=[Tensor("a", (4, 0), 0, b"\0" * 32)]).bytes(), "without elements"),
    "sizes-that-overflow": (File(tensors=[Tensor("a", (2**32, 2**32), 0, b"\0" * 32)]).bytes(), "ends at byte 73,786,976,294,838,206,"),
    "sizes-that-overflow-to-few": (File(tensors=[Tensor("a", (2**63, 2**63, 4), 0, b"\0" * 32)]).bytes(), "ends at byte"),
    "an-offset-beyond-the-file": (File(tensors=[Tensor("a", (4,), 0, b"\0" * 16, 64)]).bytes(), "ends at byte"),
    "an-offset-that-overflows": (File(tensors=[Tensor("a", (4,), 0, b"\0" * 16, 2**64 - 32)]).bytes(), "ends at byte"),
    "an-offset-between": (File(tensors=[Tensor("a", (4,), 0, b"\0" * 64, 4)]).bytes(), "lies at 4, no multiple of 32"),
    "tensors-that-overlap": (File(tensors=[Tensor("a", (16,), 0, b"\0" * 64), Tensor("b", (4,), 0, b"", 32)]).bytes(), "'a' and 'b'"),
    "tensors-in-one-place": (File(tensors=[F32, Tensor("b", (4,), 0, b"", 0)]).bytes(), "overlap"),
    "a-name-twice": (File(tensors=[F32, F32]).bytes(), "'a' is there twice"),
    "a-name-of-other-bytes": (File(tensors=[Tensor(b"\xfe", (4,), 0, b"\0" * 16)]).bytes(), "no UTF-8"),
    "a-long-name-of-lines": (File(tensors=[Tensor("\n" + LONG, (4,), 99, b"\0" * 16)]).bytes(), "unknown type 99"),
    "an-unknown-type": (File(tensors=[Tensor("a", (4,), 5, b"\0" * 16)]).bytes(), "of the unknown type 5; supported are F32, F16"),
    "a-type-that-is-not-read": (File(tensors=[Tensor("a", (256,), 10, b"\0" * 84)]).bytes(), "'a' is Q2_K; supported are"),
    "rows-of-no-blocks": (File(tensors=[Tensor("a", (48, 2), 8, b"\0" * 128)]).bytes(), "rows of 48, which blocks of 32 don't divide"),
    "k-rows-of-no-blocks": (File(tensors=[Tensor("a", (128, 2), 12, b"\0" * 144)]).bytes(), "blocks of 256"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_damaged_files(case: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    with pytest.raises(UserError) as refusal:
        opened(content, tmp_path)
    line = str(refusal.value)
    assert message in line and "\n" not in line and len(line) < 400 and line.startswith(str(tmp_path)), line


def test_no_file_and_a_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(UserError, match="can't be read"):
            GgufFile.open(path)


def test_types_are_those_of_ggml() -> None:
    for code, kind in TYPES.items():
        known = gguf.GGMLQuantizationType(code)
        assert known.name == kind.name and gguf.GGML_QUANT_SIZES[known] == (kind.elements, kind.num_bytes)
    assert {code: each.name for code, each in ((e.value, e) for e in gguf.GGMLQuantizationType)} == {
        **OTHERS, **{code: kind.name for code, kind in TYPES.items()}
    }  # fmt: skip


def test_files_cut_anywhere(tmp_path: Path) -> None:
    whole = sample().bytes()
    for size in range(len(whole)):
        _read_all(whole[:size], tmp_path, must_fail=size <= len(whole) - 32)


def test_mutated_files(tmp_path: Path) -> None:
    """Random bytes, numbers and cuts in the header: a file is read, or refused in a line; it never takes long."""
    whole, header = sample().bytes(), len(sample().header())
    extremes = [struct.pack("<Q", value) for value in (0, 1, 31, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)]
    start = time.perf_counter()
    num_read = 0
    for seed in range(1500):
        rng = np.random.default_rng(seed)
        content = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(0, header))
            if rng.random() < 0.5:
                content[place] = int(rng.integers(0, 256))
            else:
                content[place : place + 8] = extremes[int(rng.integers(len(extremes)))]
        num_read += _read_all(bytes(content), tmp_path)
    assert 50 < num_read < 1450  # both happen
    assert time.perf_counter() - start < 60


def _read_all(content: bytes, folder: Path, must_fail: bool = False) -> bool:
    """Whether the file was read; otherwise it was refused in a line."""
    try:
        for tensor in opened(content, folder).tensors.values():
            tensor.dequantized(), tensor.unpacked()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return False
    assert not must_fail
    return True
