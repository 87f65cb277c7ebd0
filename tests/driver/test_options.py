"""Options, targets and environment: what is refused, and how it is said."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import llmos
from llmos.compiler.backends.cpu.target import TARGETS, CpuTarget, code_targets, resolve
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.support.environment import read_environment
from llmos.runtime.errors import UserError
from tests.processors import PROCESSORS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "precision has no 'fp16'; did you mean"),
        ({"dynamic": ("batch", "2x")}, "dynamic dimension '2x' is not a name"),
        ({"dynamic": ("batch", "batch")}, "named twice"),
        ({"jobs": -1}, "jobs must be 0 or more"),
    ],
)
def test_wrong_options_are_refused_when_they_are_made(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CompileOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("x86-64-v5", "'x86-64-v5' is no target; .*did you mean x86-64-v4"),
        ("x86-64-v3,toaster", "'toaster' is no target; there are"),
    ],
)
def test_wrong_targets_are_refused_before_anything_is_read(target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        llmos.compile("no-such-model.onnx", target=target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_after": "fused"}, "--stop-after has no 'fused'; did you mean fused.mlir"),
        ({"from_stage": "o", "stop_after": "ll"}, "--stop-after ll comes before"),
        ({"backend": "null", "stop_after": "o"}, "--stop-after has no 'o'; choose from linalg.mlir, fused.mlir, text, null, llmos"),
        ({"backend": "cup"}, "--backend has no 'cup'; did you mean cpu"),
        ({"backend": "toaster"}, "--backend has no 'toaster'; choose from cpu, cuda, tvm, null"),
        ({"backend": "null", "target": "x86-64-v4"}, "'x86-64-v4' is no target; there are null, null-2"),
    ],
)
def test_stages_and_targets_are_those_of_the_backend(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        llmos.compile("no-such-model.onnx", options=CompileOptions(**options))  # type: ignore[arg-type]


def test_portable_holds_all_variants_of_one_architecture_best_first() -> None:
    found = resolve("portable")
    assert len({target.arch for target in found}) == 1
    assert found == [target for target in TARGETS if target.arch == found[0].arch]


@pytest.mark.parametrize(
    ("multiplied", "names"),
    [
        ((), ["x86-64-v4", "x86-64-v3"]),
        (("bf16",), ["x86-64-v4-amx", "x86-64-v4-bf16", "x86-64-v4", "x86-64-v3"]),
        (("int8",), ["x86-64-v4-amx", "x86-64-v4-vnni", "x86-64-v4", "x86-64-v3-vnni", "x86-64-v3"]),
        (("bf16", "int8"), [target.name for target in TARGETS if target.arch == "x86_64"]),
    ],
)
def test_code_is_made_for_the_plainest_of_the_targets_that_share_it(
    multiplied: tuple[str, ...], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    PROCESSORS["sapphirerapids"].pretend(monkeypatch)
    assert [target.name for target in code_targets("portable", resolve("portable"), multiplied)] == names
    (native,) = code_targets("native", resolve("native"), multiplied)
    assert (native.name, native.l2_bytes) == (names[0], PROCESSORS["sapphirerapids"].l2_bytes)


def test_a_target_that_is_named_stays() -> None:
    named = resolve("x86-64-v4-amx,x86-64-v4")
    assert code_targets("x86-64-v4-amx,x86-64-v4", named, ()) == named


NATIVE = {
    "haswell": "x86-64-v3",
    "zen3": "x86-64-v3",
    "skylake-avx512": "x86-64-v4",
    "icelake-server": "x86-64-v4-vnni",
    "zen4": "x86-64-v4-bf16",
    "sapphirerapids": "x86-64-v4-amx",
    "neoverse-n1": "aarch64",
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_native_is_the_best_portable_variant_with_the_caches_of_the_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = PROCESSORS[name]
    processor.pretend(monkeypatch)
    (found,) = resolve("native")
    assert found.name == NATIVE[name]
    (portable,) = [target for target in resolve("portable") if target.name == found.name]
    assert found == replace(portable, l2_bytes=processor.l2_bytes)
    assert resolve("native")[0].name in {target.name for target in resolve("portable")}


def test_named_targets_come_best_first_whatever_their_order() -> None:
    assert [target.name for target in resolve("x86-64-v3, x86-64-v4")] == ["x86-64-v4", "x86-64-v3"]


def test_llvm_knows_every_target_and_what_each_requires_is_what_its_code_may_use() -> None:
    from llmos.compiler.codegen.llvm import compile_object

    for target in TARGETS:
        assert compile_object("define i32 @__llmos_f() {\n ret i32 0\n}", target).startswith(b"\x7fELF")
    v3, v4, bf16 = (CpuTarget.parse(name) for name in ("x86-64-v3", "x86-64-v4", "x86-64-v4-bf16"))
    assert set(v3.required) < set(v4.required) < set(bf16.required)
    assert bf16.has("avx512bf16") and not v4.has("avx512bf16")


def test_full_width_vectors_are_kept() -> None:
    from llmos.compiler.codegen.llvm import emit_assembly

    add = """define void @__llmos_f(ptr %p) {
      %a = load <16 x float>, ptr %p
      %b = fadd <16 x float> %a, %a
      store <16 x float> %b, ptr %p
      ret void
    }"""
    assert "zmm" in emit_assembly(add, CpuTarget.parse("x86-64-v4"))
    assert "zmm" not in emit_assembly(add, CpuTarget.parse("x86-64-v3"))


def test_the_environment_is_typed() -> None:
    environment = read_environment({"LLMOS_CACHE": "/some/where", "LLMOS_JOBS": "3"})
    assert (environment.cache, environment.jobs) == (Path("/some/where"), 3)
    assert read_environment({"XDG_CACHE_HOME": "/x"}).cache == Path("/x/llmos")
    assert read_environment({}).jobs >= 1


@pytest.mark.parametrize("value", ["0", "many", "-2"])
def test_a_bad_variable_is_named(value: str) -> None:
    with pytest.raises(UserError, match=f"LLMOS_JOBS={value}: expected an integer"):
        read_environment({"LLMOS_JOBS": value})


_TILES_LENT = """
import ctypes
from llmos.compiler.backends.cpu.target import CpuTarget
assert CpuTarget.parse("x86-64-v4-amx").runs_here()
lent = ctypes.c_uint64()
assert ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(lent)) == 0  # arch_prctl(ARCH_GET_XCOMP_PERM)
assert lent.value >> 18 & 1, "the system lends no tile registers"
"""


def test_a_process_that_finds_matrix_tiles_may_use_them() -> None:
    """The compiler runs the code it made, for the accuracy report: without asking, the first tile instruction ends the process."""
    if platform.system() != "Linux" or not CpuTarget.parse("x86-64-v4-amx").runs_here():
        pytest.skip("this machine has no AMX")
    subprocess.run([sys.executable, "-c", _TILES_LENT], check=True)
