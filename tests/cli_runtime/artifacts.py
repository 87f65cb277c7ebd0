"""Real artifacts for tests of the command line, their code written in C."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

from llmos.runtime.artifact.manifest import EntrySpec, KernelSpec, RowSpec, Symbol, TensorSpec
from llmos.runtime.artifact.signature import SigningKey
from llmos.runtime.artifact.writer import ArtifactContents, CodeVariant, write_artifact

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "tests" / "server" / "tokenizer.json"
NO_SUCH_CPU = "x86-64-v9"
BY_BATCH = RowSpec("batch")

AFFINE = """
#include <llmos/abi.h>
static int64_t size(const DLTensor* t) { int64_t n = 1; for (int i = 0; i < t->ndim; ++i) n *= t->shape[i]; return n; }
int __tvm_ffi_main(void* handle, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result) {
  const DLTensor *x = args[0].v_ptr, *y = args[1].v_ptr;
  for (int64_t i = 0; i < size(x); ++i) ((float*)y->data)[i] = 2 * ((float*)x->data)[i] + 1;
  return 0;
}
void __llmos_shapes_main(const int64_t* symbols, int64_t* dims) { dims[0] = symbols[0]; dims[1] = 3; }
"""

# Column t of an embedding is how often token t stands in the text, normalized; tokens from 40 on are an error of the call.
COUNTS = """
#include <llmos/abi.h>
int __tvm_ffi_main(void* handle, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result) {
  const DLTensor *ids = args[0].v_ptr, *mask = args[1].v_ptr, *out = args[2].v_ptr;
  for (int64_t b = 0; b < ids->shape[0]; ++b) {
    float* row = (float*)out->data + b * 40;
    for (int t = 0; t < 40; ++t) row[t] = 0;
    for (int64_t t = 0; t < ids->shape[1]; ++t) {
      int64_t at = b * ids->shape[1] + t, id = ((int64_t*)ids->data)[at];
      if (id < 0 || id >= 40) return LLMOS_INDEX_OUT_OF_RANGE;
      row[id] += (float)((int64_t*)mask->data)[at];
    }
    float squares = 0;
    for (int t = 0; t < 40; ++t) squares += row[t] * row[t];
    for (int t = 0; t < 40; ++t) row[t] /= __builtin_sqrtf(squares);
  }
  return 0;
}
void __llmos_shapes_main(const int64_t* symbols, int64_t* dims) { dims[0] = symbols[0]; dims[1] = 40; }
"""


def shared_object(source: str, folder: Path) -> bytes:
    """A shared object without undefined symbols."""
    (folder / "code.c").write_text(source)
    include = ROOT / "runtime" / "native" / "include"
    flags = ["-O1", "-shared", "-fPIC", "-nostdlib", "-fno-math-errno", f"-I{include}"]
    subprocess.run(["cc", *flags, "code.c", "-o", "code.so"], cwd=folder, check=True)
    return (folder / "code.so").read_bytes()


def save(
    path: Path,
    source: str,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    key: SigningKey | None,
    rows: RowSpec | None = None,
    **contents: Any,
) -> Path:
    code = shared_object(source, path.parent)
    arch = platform.machine()
    variants = [CodeVariant(NO_SUCH_CPU, arch, ("teleport",), code), CodeVariant("baseline", arch, (), code)]
    entry = EntrySpec("main", "__tvm_ffi_main", "__llmos_shapes_main", tuple(inputs), tuple(outputs), rows=rows)
    write_artifact(path, ArtifactContents(name=path.stem, entries=[entry], code=variants, **contents), key)
    return path


def affine_artifact(path: Path, key: SigningKey | None = None, rows: RowSpec | None = BY_BATCH, factor: int = 2, **contents: Any) -> Path:
    """y = factor x + 1 over [batch, 3]."""
    x, y = TensorSpec("x", "float32", ("batch", 3)), TensorSpec("y", "float32", ("batch", 3))
    kernels = [KernelSpec("scale", "elementwise", {"num_ops": 2})]
    source = AFFINE.replace("2 * (", f"{factor} * (")
    return save(path, source, [x], [y], key, rows, symbols=[Symbol("batch", 1, 64)], kernels=kernels, **contents)


def crashing_artifact(path: Path) -> Path:
    """y = 2 x + 1 over [batch, 3], a crash where the first element of a row is 666, and no return at 667."""
    x, y = TensorSpec("x", "float32", ("batch", 3)), TensorSpec("y", "float32", ("batch", 3))
    checks = """  for (int64_t i = 0; i < size(x); i += 3) {
    if (((float*)x->data)[i] == 666) __builtin_trap();
    while (((volatile float*)x->data)[i] == 667) {}
  }
"""
    source = AFFINE.replace("  return 0;", checks + "  return 0;")
    return save(path, source, [x], [y], None, BY_BATCH, symbols=[Symbol("batch", 1, 64)])


def counts_artifact(path: Path, key: SigningKey | None = None) -> Path:
    """A sentence encoder with a tokenizer."""
    ids, mask = (TensorSpec(name, "int64", ("batch", "tokens")) for name in ("input_ids", "attention_mask"))
    symbols = [Symbol("batch", 1, 64), Symbol("tokens", 1, 32)]
    metadata = {"task": "sentence-embedding", "max_length": 16}
    assets = {"tokenizer.json": TOKENIZER.read_bytes()}
    output = TensorSpec("embeddings", "float32", ("batch", 40))
    return save(path, COUNTS, [ids, mask], [output], key, symbols=symbols, metadata=metadata, assets=assets)
