"""From a saved stage to an artifact, with code written by hand: no front end and no backend take part."""

from __future__ import annotations

import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest

from llmos.compiler.backends.base import CompiledModel
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile_to_file
from llmos.compiler.driver.saved import SavedStage, Sidecar, read_sidecar, write_sidecar, write_stage
from llmos.compiler.ir.weights import Weight
from llmos.compiler.support.progress import Progress
from llmos.runtime.artifact.manifest import EntrySpec, KernelSpec, Manifest, RowSpec, Symbol, TensorSpec
from llmos.runtime.errors import LlmosError, UserError

# An entry that does nothing, and its shapes: out = [batch].
CODE = """
define i32 @__tvm_ffi_main(ptr %handle, ptr %args, i32 %num_args, ptr %result) {
  ret i32 0
}
define void @__llmos_shapes_main(ptr %symbols, ptr %dims) {
  %batch = load i64, ptr %symbols
  store i64 %batch, ptr %dims
  ret void
}
"""
TARGETS = ("x86-64-v4", "x86-64-v3")
RECORD = CompiledModel(
    entries=(
        EntrySpec(
            "main",
            "__tvm_ffi_main",
            "__llmos_shapes_main",
            (TensorSpec("x", "float32", ("batch",)),),
            (TensorSpec("y", "float32", ("batch",)),),
            rows=RowSpec("batch"),
        ),
    ),
    symbols=(Symbol("batch", 1, 8),),
    weights={"w": Weight.of(np.arange(3, dtype=np.float32)), "b": Weight("bfloat16", (2,), lambda: np.array([1, 2], np.uint16))},
    kernels=(KernelSpec("k0", "elementwise", {"flops": "batch"}),),
    passes=("canonicalize",),
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def saved(tmp_path: Path) -> SavedStage:
    """A saved `ll` stage for two targets."""
    for target in TARGETS:
        last = SavedStage(tmp_path / "tiny", "ll", target)
        write_stage(last, CODE)
    write_sidecar(last, Sidecar("tiny", RECORD.weights, {"task": "test"}, {"notes.txt": b"\x00\xff"}, RECORD))
    return last


def run(source: Path, out: Path, **options: object) -> tuple[tuple[Path, ...], Manifest | None]:
    result = compile_to_file(source, out, CompileOptions(**options), Progress())  # type: ignore[arg-type]
    return result.written, result.manifest


def test_llvm_text_becomes_a_whole_artifact(saved: SavedStage, tmp_path: Path) -> None:
    out = tmp_path / "tiny.llmos"
    written, manifest = run(saved.path, out, target=",".join(TARGETS))
    assert written == (out,) and manifest is not None
    assert [code.target for code in manifest.code] == list(TARGETS)
    assert manifest.code[1].features == ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.2")
    assert [weight.name for weight in manifest.weights] == ["w", "b"]
    assert manifest.metadata == {"task": "test"}
    with zipfile.ZipFile(out) as archive:
        assert archive.read("assets/notes.txt") == b"\x00\xff"
        assert archive.read("code/x86-64-v4.so").startswith(b"\x7fELF")


def test_the_same_input_gives_the_same_bytes(saved: SavedStage, tmp_path: Path) -> None:
    outputs = [tmp_path / f"{index}.llmos" for index in range(3)]
    for out, cache in zip(outputs, (False, True, True), strict=True):
        run(saved.path, out, target="x86-64-v3", cache=cache)
    assert len({out.read_bytes() for out in outputs}) == 1


def test_every_later_stage_can_be_saved_and_be_the_input(saved: SavedStage, tmp_path: Path) -> None:
    straight, stepped = tmp_path / "straight.llmos", tmp_path / "stepped.llmos"
    run(saved.path, straight, target="x86-64-v3")
    source = saved.path
    for stage in ("o", "so"):
        run(source, tmp_path / "step.llmos", target="x86-64-v3", stop_after=stage)
        source = tmp_path / f"step.x86-64-v3.{stage}"
        assert source.is_file()
    run(source, stepped, target="x86-64-v3")
    assert stepped.read_bytes() == straight.read_bytes()
    assert not (tmp_path / "step.llmos").exists()


def test_a_hand_edited_stage_is_taken_as_it_is(saved: SavedStage, tmp_path: Path) -> None:
    before, after = tmp_path / "before.llmos", tmp_path / "after.llmos"
    run(saved.path, before, target="x86-64-v3")
    edited = SavedStage(saved.stem, "ll", "x86-64-v3").path
    edited.write_text(CODE.replace("ret i32 0", "ret i32 4"))
    run(edited, after, target="x86-64-v3")
    assert before.read_bytes() != after.read_bytes()


def test_broken_code_leaves_nothing_behind(saved: SavedStage, tmp_path: Path) -> None:
    SavedStage(saved.stem, "ll", "x86-64-v3").path.write_text("define i32 @f( {")
    before = set(tmp_path.iterdir())
    with pytest.raises(LlmosError, match="LLVM refuses the generated code"):
        run(saved.path, tmp_path / "tiny.llmos", target=",".join(TARGETS))
    with pytest.raises(LlmosError, match="LLVM refuses the generated code"):
        run(saved.path, tmp_path / "tiny.llmos", target=",".join(TARGETS), stop_after="o")
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "cache"}


def test_a_full_disk_leaves_nothing_behind(saved: SavedStage, tmp_path: Path) -> None:
    run(saved.path, tmp_path / "step.llmos", target="x86-64-v3", stop_after="so")
    before = set(tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files fails a write as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(UserError, match=r"can't write .*tiny\.llmos"):
            run(tmp_path / "step.x86-64-v3.so", tmp_path / "tiny.llmos", target="x86-64-v3")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "home"}


def test_a_folder_that_is_not_there_is_said_first(saved: SavedStage, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        run(saved.path, tmp_path / "missing" / "tiny.llmos", target="x86-64-v3")


def test_a_missing_record_says_what_is_missing(saved: SavedStage, tmp_path: Path) -> None:
    saved.sidecar.unlink()
    with pytest.raises(UserError, match=r"tiny\.ll\.json is missing"):
        run(saved.path, tmp_path / "tiny.llmos")


def test_code_of_another_target_is_not_found(saved: SavedStage, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        run(saved.path, tmp_path / "tiny.llmos", target="aarch64")


def test_a_sidecar_reads_back_what_was_written(saved: SavedStage) -> None:
    sidecar = read_sidecar(saved)
    assert sidecar.record is not None and sidecar.record.entries == RECORD.entries
    assert sidecar.record.kernels == RECORD.kernels
    assert list(sidecar.weights) == ["w", "b"]
    assert sidecar.weights["b"].dtype == "bfloat16"
    np.testing.assert_array_equal(sidecar.weights["w"].array, [0, 1, 2])


def test_a_truncated_weights_file_is_refused(saved: SavedStage, tmp_path: Path) -> None:
    saved.weights.write_bytes(saved.weights.read_bytes()[:-61])
    with pytest.raises(UserError, match="cut short or damaged at b"):
        run(saved.path, tmp_path / "tiny.llmos")


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]"])
def test_weights_that_are_no_safetensors_file(saved: SavedStage, tmp_path: Path, damage: bytes) -> None:
    saved.weights.write_bytes(damage)
    with pytest.raises(UserError, match="is not a safetensors file"):
        run(saved.path, tmp_path / "tiny.llmos")
