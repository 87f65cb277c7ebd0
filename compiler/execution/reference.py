"""Functions on tensors compiled by upstream MLIR's lowering to plain loops and its ExecutionEngine, called on numpy arrays.

The code is slow but shares nothing with our kernels, so it verifies them independently. compiler/execution/interpreter.py runs whole
programs with it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmos.compiler.ir.bindings import PassManager, execution_engine, ir
from llmos.runtime.errors import UnsupportedError

BUFFERIZE = (
    "func.func(convert-elementwise-to-linalg)",
    "func.func(linalg-generalize-named-ops)",
    "convert-shape-to-std",
    "func.func(refback-generalize-tensor-pad,refback-generalize-tensor-concat,tm-tensor-bufferize)",
    "one-shot-bufferize{%s allow-return-allocs-from-loops bufferize-function-boundaries "
    "function-boundary-type-conversion=identity-layout-map}",
    "refback-mlprogram-bufferize",
)
TO_LLVM = (
    "func.func(tm-tensor-to-loops,refback-munge-memref-copy,convert-linalg-to-loops,lower-affine)",
    "convert-scf-to-cf",
    # an integer to bfloat16 conversion would call the compiler's runtime library
    "func.func(arith-emulate-unsupported-floats{source-types=bf16 target-type=f32},arith-expand{include-bf16=true})",
    "convert-complex-to-standard",
    "func.func(convert-math-to-llvm)",
    "convert-math-to-libm",
    "expand-strided-metadata",
    "finalize-memref-to-llvm",
    "lower-affine",
    "convert-bufferization-to-memref",
    "func.func(convert-arith-to-llvm)",
    "convert-vector-to-llvm",
    "convert-func-to-llvm",
    "convert-cf-to-llvm",
    "convert-complex-to-llvm",
    "reconcile-unrealized-casts",
)
OPT_LEVEL = 1  # of LLVM; 0 compiles a model's ops six times as fast, and runs them slower


@dataclass(frozen=True)
class Result:
    """A result of a compiled function: its rank, and its dtype as numpy's name or "bfloat16" (returned as uint16)."""

    rank: int
    dtype: str


class CompiledFunctions:
    """Functions on tensors, compiled by the reference lowering; callable repeatedly, at any sizes.

    `module` is lowered in place; each function to call needs {llvm.emit_c_interface}. Raises UnsupportedError for a module that upstream
    can't lower.
    """

    def __init__(self, module: ir.Module, opt_level: int = OPT_LEVEL) -> None:
        self._module = module
        with module.context:
            _lower(module)
        self._engine = execution_engine(module, opt_level)

    def call(self, name: str, arrays: Sequence[np.ndarray], results: Sequence[Result]) -> list[np.ndarray]:
        """Call one function; arguments and results are dense arrays of its tensors."""
        entry = self._engine.raw_lookup(f"_mlir_ciface_{name}")
        kept = [np.ascontiguousarray(array) for array in arrays]
        descriptors = [_descriptor(array) for array in kept]
        found = [_empty_descriptor(each.rank) for each in results]
        returned: Any = found[0]
        if len(found) != 1:
            returned = type("Returned", (ctypes.Structure,), {"_fields_": [(f"r{i}", type(each)) for i, each in enumerate(found)]})()
        # The engine's entry takes one array with a pointer to each argument; the arguments are pointers to descriptors.
        pointers = [ctypes.c_void_p(ctypes.addressof(each)) for each in (returned, *descriptors)]
        packed = (ctypes.c_void_p * len(pointers))(*[ctypes.addressof(each) for each in pointers])
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(entry)(ctypes.addressof(packed))
        found = [returned] if len(found) == 1 else [getattr(returned, f"r{i}") for i in range(len(found))]
        return [_to_array(each, result.dtype) for each, result in zip(found, results, strict=True)]


def _lower(module: ir.Module) -> None:
    # Upstream's in-place analysis doesn't support tm_tensor ops.
    copies = "copy-before-write" if "tm_tensor." in str(module) else ""
    forbid_writes(module)
    try:
        PassManager.parse(f"builtin.module({','.join(BUFFERIZE)})" % copies).run(module.operation)
        PassManager.parse(f"builtin.module({','.join(TO_LLVM)})").run(module.operation)
    except ir.MLIRError as error:
        raise UnsupportedError(f"MLIR's reference lowering doesn't take this module: {' '.join(str(error).split())[:300]}") from error


def forbid_writes(module: ir.Module) -> None:
    """Mark tensor arguments as read-only: upstream's bufferization would write to them."""
    readable = {"bufferization.writable": ir.BoolAttr.get(False)}
    for op in module.body.operations:
        func = op.operation
        if func.name == "func.func" and func.regions[0].blocks:
            kinds = [argument.type for argument in func.regions[0].blocks[0].arguments]
            func.attributes["arg_attrs"] = ir.ArrayAttr.get(
                [ir.DictAttr.get(readable if isinstance(kind, ir.RankedTensorType) else {}) for kind in kinds]
            )


def element_dtype(kind: ir.Type) -> str:
    """Return numpy's name of a tensor's element type, with integers as signed, or "bfloat16"."""
    element = ir.RankedTensorType(kind).element_type
    known = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "i1": "bool", "index": "int64"}
    known |= {"complex<f32>": "complex64", "complex<f64>": "complex128"}
    return known.get(str(element)) or f"int{getattr(element, 'width', 64)}"


def _empty_descriptor(rank: int) -> ctypes.Structure:
    fields: list[tuple[str, Any]] = [("allocated", ctypes.c_void_p), ("aligned", ctypes.c_void_p), ("offset", ctypes.c_int64)]
    if rank:
        fields += [("sizes", ctypes.c_int64 * rank), ("strides", ctypes.c_int64 * rank)]
    made: ctypes.Structure = type(f"MemRef{rank}", (ctypes.Structure,), {"_fields_": fields})()
    return made


def _descriptor(array: np.ndarray) -> Any:
    """Make MLIR's memref descriptor of a dense array."""
    descriptor: Any = _empty_descriptor(array.ndim)
    descriptor.allocated = descriptor.aligned = array.ctypes.data
    for i in range(array.ndim):
        descriptor.sizes[i] = array.shape[i]
        descriptor.strides[i] = array.strides[i] // array.itemsize
    return descriptor


def _to_array(descriptor: Any, dtype: str) -> np.ndarray:
    """Copy a returned memref to an array; bfloat16 as uint16."""
    kind = np.dtype("uint16" if dtype == "bfloat16" else dtype)
    shape = tuple(getattr(descriptor, "sizes", ()))
    if 0 in shape:
        return np.zeros(shape, kind)
    strides = tuple(stride * kind.itemsize for stride in getattr(descriptor, "strides", ()))
    start = descriptor.aligned + descriptor.offset * kind.itemsize
    extent = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + kind.itemsize
    raw = (ctypes.c_char * extent).from_address(start)
    return np.array(np.ndarray(shape, kind, buffer=raw, strides=strides))
