"""The LLVM back half: text of LLVM 24 for LLVM 22, objects for three processors, and shared objects that load and run."""

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from llmos.compiler.codegen import elf
from llmos.compiler.codegen.link import find_linker, link_shared
from llmos.compiler.codegen.llvm import compile_object, emit_assembly
from llmos.compiler.codegen.llvm_text import for_llvm_22
from llmos.compiler.codegen.lowering import lower_to_llvm_dialect, to_llvm_ir
from llmos.compiler.ir.bindings import context, ir
from llmos.runtime.errors import PassError, UserError


@dataclass(frozen=True)
class Target:
    triple: str
    cpu: str
    features: str = ""


X86_V3 = Target("x86_64-unknown-linux-gnu", "x86-64-v3")
X86_V4 = Target("x86_64-unknown-linux-gnu", "x86-64-v4", "-prefer-256-bit")
AARCH64 = Target("aarch64-unknown-linux-gnu", "generic")

SUM_KERNEL = """
func.func @__llmos_axpy(%x: !llvm.ptr, %y: !llvm.ptr, %n: i64) {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %half = arith.constant 0.1 : f32
  %end = arith.index_cast %n : i64 to index
  scf.for %i = %c0 to %end step %c1 {
    %k = arith.index_cast %i : index to i64
    %px = llvm.getelementptr %x[%k] : (!llvm.ptr, i64) -> !llvm.ptr, f32
    %py = llvm.getelementptr %y[%k] : (!llvm.ptr, i64) -> !llvm.ptr, f32
    %vx = llvm.load %px : !llvm.ptr -> f32
    %vy = llvm.load %py : !llvm.ptr -> f32
    %p = arith.mulf %vx, %half : f32
    %s = arith.addf %p, %vy : f32
    llvm.store %s, %py : f32, !llvm.ptr
  }
  return
}
"""


def llvm_text(source: str) -> str:
    with context(), ir.Location.unknown():
        module = ir.Module.parse(source)
        lower_to_llvm_dialect(module)
        return to_llvm_ir(module)


def load(data: bytes, folder: Path, symbol: str) -> Callable[..., object]:
    path = folder / "code.so"
    path.write_bytes(data)
    function: Callable[..., object] = getattr(ctypes.CDLL(str(path)), symbol)
    return function


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def double_bits(value: float) -> str:
    return "0x" + struct.pack(">d", value).hex().upper()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fadd float %x, 1.000000e-01", f"fadd float %x, {double_bits(float(np.float32(0.1)))}"),
        ("fadd double %x, 1.000000e-01", f"fadd double %x, {double_bits(0.1)}"),
        ("store float -0.000000e+00, ptr %0", "store float 0x8000000000000000, ptr %0"),
        ("store float 1.401300e-45, ptr %0", f"store float {double_bits(2.0**-149)}, ptr %0"),
        ("store float f0x4B800000, ptr %0", f"store float {double_bits(16777216.0)}, ptr %0"),
        ("store float +inf, ptr %0", "store float 0x7FF0000000000000, ptr %0"),
        ("store float -qnan, ptr %0", "store float 0xFFF8000000000000, ptr %0"),
        ("store float +snan(0x1), ptr %0", "store float 0x7FF0000020000000, ptr %0"),
        ("store half 9.997550e-02, ptr %0", "store half 0xH2E66, ptr %0"),
        ("store bfloat 1.000980e-01, ptr %0", "store bfloat 0xR3DCD, ptr %0"),
        ("store bfloat -inf, ptr %0", "store bfloat 0xRFF80, ptr %0"),
        ("%d = fadd <2 x half> %c, <half 1.0, half +nan(0x1)>", "%d = fadd <2 x half> %c, <half 0xH3C00, half 0xH7E01>"),
        ("%float.1 = getelementptr float, ptr %p, i64 1", "%float.1 = getelementptr float, ptr %p, i64 1"),
        ('@s = constant [14 x i8] c"float 1.0e-1 \\22\\00"', '@s = constant [14 x i8] c"float 1.0e-1 \\22\\00"'),
    ],
)
def test_float_literals_are_rewritten_for_llvm_22(line: str, expected: str) -> None:
    assert for_llvm_22(line) == expected + "\n"


def test_every_float_survives_the_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bits = np.concatenate(
        [rng.integers(0, 2**32, 500, dtype=np.uint32), np.array([0, 1, 1 << 31, 0x7F800000, 0x7F7FFFFF, 0x00800000], np.uint32)]
    )
    bits = bits[~np.isnan(bits.view(np.float32))]
    stores = "".join(
        f"%c{i} = arith.constant 0x{b:08X} : f32\n%p{i} = llvm.getelementptr %p[{i}] : (!llvm.ptr) -> !llvm.ptr, f32\n"
        f"llvm.store volatile %c{i}, %p{i} : f32, !llvm.ptr\n"
        for i, b in enumerate(bits)
    )
    source = f"func.func @__llmos_constants(%p: !llvm.ptr) {{\n{stores}return\n}}"
    out = np.zeros(len(bits), np.uint32)
    load(link_shared([compile_object(llvm_text(source), X86_V3)]), tmp_path, "__llmos_constants")(pointer(out))
    np.testing.assert_array_equal(out, bits)


@pytest.mark.parametrize("target", [X86_V3, X86_V4, AARCH64])
def test_multiply_and_add_are_not_fused(target: Target) -> None:
    """One rounding instead of two would make vectorized and scalar variants differ."""
    text = emit_assembly(llvm_text(SUM_KERNEL), target)
    assert "mul" in text
    assert "fmadd" not in text and "fmla" not in text


def test_avx512_code_uses_full_registers() -> None:
    source = """
    func.func @__llmos_double(%p: !llvm.ptr) {
      %x = llvm.load %p : !llvm.ptr -> vector<16xf32>
      %y = arith.addf %x, %x : vector<16xf32>
      llvm.store %y, %p : vector<16xf32>, !llvm.ptr
      return
    }
    """
    assert "zmm" in emit_assembly(llvm_text(source), X86_V4)
    assert "zmm" not in emit_assembly(llvm_text(source), X86_V3)


def test_shared_object_runs_and_is_deterministic(tmp_path: Path) -> None:
    text = llvm_text(SUM_KERNEL)
    first, second = (link_shared([compile_object(text, X86_V3)]) for _ in range(2))
    assert first == second
    x, y = np.arange(37, dtype=np.float32), np.ones(37, np.float32)
    expected = y + x * np.float32(0.1)
    load(first, tmp_path, "__llmos_axpy")(pointer(x), pointer(y), ctypes.c_int64(37))
    np.testing.assert_array_equal(y, expected)


def test_kernels_and_host_are_linked_and_only_the_abi_is_exported(tmp_path: Path) -> None:
    kernel = "func.func @kernel(%x: i32) -> i32 {\n%c = arith.constant 3 : i32\n%y = arith.muli %x, %c : i32\nreturn %y : i32\n}"
    host = (
        "func.func private @kernel(i32) -> i32\n"
        "func.func @__llmos_host(%x: i32) -> i32 {\n%y = func.call @kernel(%x) : (i32) -> i32\nreturn %y : i32\n}"
    )
    objects = [compile_object(llvm_text(source), X86_V3) for source in (host, kernel)]
    data = link_shared(objects)
    assert elf.dynamic_symbols(data) == {"__llmos_host"}
    assert load(data, tmp_path, "__llmos_host")(14) == 42
    with pytest.raises(PassError, match="kernel, which no object defines"):
        link_shared(objects[:1])


def test_fallback_with_memref_alloc_and_strided_copy_runs(tmp_path: Path) -> None:
    """A copy of a strided buffer, with a temporary from the heap: no function of MLIR's runtime is left."""
    source = """
    func.func @__llmos_column_sums(%out: !llvm.ptr, %n: i64) {
      %c0 = arith.constant 0 : index
      %c1 = arith.constant 1 : index
      %c2 = arith.constant 2 : index
      %size = arith.index_cast %n : i64 to index
      %a = memref.alloc(%size) {alignment = 64 : i64} : memref<?x4xf32>
      affine.for %i = 0 to %size {
        affine.for %j = 0 to 4 {
          %s = affine.apply affine_map<(d0, d1) -> (d0 * 4 + d1)>(%i, %j)
          %k = arith.index_cast %s : index to i32
          %v = arith.sitofp %k : i32 to f32
          memref.store %v, %a[%i, %j] : memref<?x4xf32>
        }
      }
      %b = memref.alloc(%size) : memref<?x2xf32>
      %view = memref.subview %a[0, 1] [%size, 2] [1, 2] : memref<?x4xf32> to memref<?x2xf32, strided<[4, 2], offset: 1>>
      memref.copy %view, %b : memref<?x2xf32, strided<[4, 2], offset: 1>> to memref<?x2xf32>
      scf.for %j = %c0 to %c2 step %c1 {
        %zero = arith.constant 0.0 : f32
        %sum = scf.for %i = %c0 to %size step %c1 iter_args(%acc = %zero) -> f32 {
          %v = memref.load %b[%i, %j] : memref<?x2xf32>
          %next = arith.addf %acc, %v : f32
          scf.yield %next : f32
        }
        %k = arith.index_cast %j : index to i64
        %p = llvm.getelementptr %out[%k] : (!llvm.ptr, i64) -> !llvm.ptr, f32
        llvm.store %sum, %p : f32, !llvm.ptr
      }
      memref.dealloc %a : memref<?x4xf32>
      memref.dealloc %b : memref<?x2xf32>
      return
    }
    """
    out = np.zeros(2, np.float32)
    load(link_shared([compile_object(llvm_text(source), X86_V3)]), tmp_path, "__llmos_column_sums")(pointer(out), ctypes.c_int64(9))
    reference = np.arange(36, dtype=np.float32).reshape(9, 4)[:, 1::2].sum(0)
    np.testing.assert_array_equal(out, reference)


def test_masked_tail_and_call_through_pointer(tmp_path: Path) -> None:
    source = """
    func.func @__llmos_tail(%p: !llvm.ptr, %n: i64, %f: !llvm.ptr) -> i32 {
      %size = arith.index_cast %n : i64 to index
      %mask = vector.create_mask %size : vector<16xi1>
      %zero = arith.constant dense<0.0> : vector<16xf32>
      %v = llvm.intr.masked.load %p, %mask, %zero {alignment = 4 : i32} : (!llvm.ptr, vector<16xi1>, vector<16xf32>) -> vector<16xf32>
      %w = arith.addf %v, %v : vector<16xf32>
      llvm.intr.masked.store %w, %p, %mask {alignment = 4 : i32} : vector<16xf32>, vector<16xi1> into !llvm.ptr
      %code = llvm.call %f(%n) : !llvm.ptr, (i64) -> i32
      return %code : i32
    }
    """
    x = np.arange(16, dtype=np.float32)
    callback = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64)(lambda n: n + 1)
    code = load(link_shared([compile_object(llvm_text(source), X86_V3)]), tmp_path, "__llmos_tail")(pointer(x), ctypes.c_int64(5), callback)
    assert code == 6
    np.testing.assert_array_equal(x, np.where(np.arange(16) < 5, 2, 1) * np.arange(16))


def test_a_libm_call_is_refused() -> None:
    source = "func.func @__llmos_f(%x: f32) -> f32 {\n%y = math.exp %x : f32\nreturn %y : f32\n}"
    with pytest.raises(PassError, match="expf; run expand-math"):
        compile_object(llvm_text(source), X86_V3)


def test_an_op_without_lowering_is_named() -> None:
    with pytest.raises(PassError, match=r"tensor\.empty"):
        llvm_text("func.func @f() -> tensor<4xf32> {\n%0 = tensor.empty() : tensor<4xf32>\nreturn %0 : tensor<4xf32>\n}")


def test_invalid_llvm_text_is_an_error_of_the_compiler() -> None:
    with pytest.raises(PassError, match="LLVM refuses"):
        compile_object("define void @f() { ret i32 0 }", X86_V3)


def test_aarch64_object_is_made_on_any_host() -> None:
    data = compile_object(llvm_text(SUM_KERNEL), AARCH64)
    assert elf.machine(data) == elf.EM_AARCH64
    assert elf.defined_symbols(data) == {"__llmos_axpy"}
    assert elf.undefined_symbols(data) == frozenset()
    try:
        find_linker(elf.EM_AARCH64)
    except UserError as error:
        assert "aarch64" in str(error)
    else:
        assert elf.machine(link_shared([data])) == elf.EM_AARCH64


def test_a_missing_compiler_is_said_clearly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = compile_object(llvm_text(SUM_KERNEL), X86_V3)
    with pytest.raises(UserError, match="can't run the C compiler"):
        link_shared([data], compiler=str(tmp_path / "no-such-cc"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no C compiler found"):
        link_shared([data])


def test_a_long_chain_of_maxima_compiles() -> None:
    """Each value is used three times by the next: LLVM's loop vectorizer follows every path through them."""
    steps = "\n".join(
        f"%q{i} = getelementptr float, ptr %p, i64 {i}\n%x{i} = load float, ptr %q{i}\n"
        f"%u{i} = fcmp une float %m{i}, %m{i}\n%g{i} = fcmp ogt float %m{i}, %x{i}\n"
        f"%s{i} = select i1 %g{i}, float %m{i}, float %x{i}\n%m{i + 1} = select i1 %u{i}, float %m{i}, float %s{i}"
        for i in range(40)
    )
    text = f"""
    define void @__llmos_largest(ptr %p, ptr %out, i64 %n) {{
    entry:
      br label %loop
    loop:
      %i = phi i64 [0, %entry], [%j, %loop]
      %m0 = load float, ptr %p
      {steps}
      store float %m40, ptr %out
      %j = add i64 %i, 1
      %e = icmp slt i64 %j, %n
      br i1 %e, label %loop, label %end
    end:
      ret void
    }}"""
    assert compile_object(text, X86_V4).startswith(elf.MAGIC)
