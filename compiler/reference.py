"""The reference executor: a linalg module run by MLIR's own reference lowering (plain loops) and its ExecutionEngine, on numpy arrays.

Slow code that shares nothing with our kernels, and so an independent judge of them and of our passes. Takes what docs/architecture.md
calls the linalg stage, and what any pass makes of it up to the planned dispatches: functions on tensors that call each other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmos.compiler.ir import PassManager, execution_engine, ir
from llmos.compiler.weights import Weight
from llmos.runtime.errors import UnsupportedError

BUFFERIZE = (
    "func.func(convert-elementwise-to-linalg)",
    "func.func(linalg-generalize-named-ops)",
    "convert-shape-to-std",
    "func.func(refback-generalize-tensor-pad,refback-generalize-tensor-concat,tm-tensor-bufferize)",
    "one-shot-bufferize{copy-before-write bufferize-function-boundaries function-boundary-type-conversion=identity-layout-map}",
    "refback-mlprogram-bufferize",
)
TO_LLVM = (
    "func.func(tm-tensor-to-loops,refback-munge-memref-copy,convert-linalg-to-loops,lower-affine)",
    "convert-scf-to-cf",
    "func.func(arith-expand{include-bf16=true})",
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
OPT_LEVEL = 1


class Executor:
    """One entry of a module compiled by the reference lowering; callable many times, at any sizes. The module itself is not changed.

    Raises UnsupportedError for a module that upstream can't lower.
    """

    def __init__(self, module: ir.Module, weights: Mapping[str, Weight | np.ndarray], entry: str = "main") -> None:
        self._module = ir.Module.parse(str(module), module.context)
        function = _function(self._module, entry)
        self._arguments = [dict(_items(attr)) for attr in _dicts(function, "arg_attrs")]
        self._results = [(r, dict(_items(attr))) for r, attr in zip(_result_types(function), _dicts(function, "res_attrs"), strict=False)]
        self._weights = {name: each.array if isinstance(each, Weight) else each for name, each in weights.items()}
        with self._module.context:
            function.attributes["llvm.emit_c_interface"] = ir.UnitAttr.get()
            _lower(self._module)
        self._engine = execution_engine(self._module, OPT_LEVEL)
        self._entry = self._engine.raw_lookup(f"_mlir_ciface_{entry}")

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for the inputs, in order."""
        queue = iter(inputs)
        arrays = [next(queue) if each["llmos.kind"] == "input" else self._weight(each) for each in self._arguments]
        kept = [np.ascontiguousarray(array) for array in arrays]
        descriptors = [_descriptor(array) for array in kept]
        results = [_empty_descriptor(len(kind.shape)) for kind, _ in self._results]
        if len(results) == 1:
            returned: Any = results[0]
        else:
            struct = type("Returned", (ctypes.Structure,), {"_fields_": [(f"r{i}", type(each)) for i, each in enumerate(results)]})
            returned = struct()
        # The engine's entry takes one array with a pointer to each argument; the arguments are pointers to descriptors.
        pointers = [ctypes.c_void_p(ctypes.addressof(each)) for each in (returned, *descriptors)]
        packed = (ctypes.c_void_p * len(pointers))(*[ctypes.addressof(each) for each in pointers])
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._entry)(ctypes.addressof(packed))
        found = [returned] if len(results) == 1 else [getattr(returned, f"r{i}") for i in range(len(results))]
        return [_to_array(each, attrs["llmos.dtype"]) for each, (_, attrs) in zip(found, self._results, strict=True)]

    def _weight(self, argument: Mapping[str, str]) -> np.ndarray:
        array = self._weights[argument["llmos.name"]]
        return rounded_to_bfloat16(array) if argument["llmos.dtype"] == "bfloat16" and array.dtype == np.float32 else array


def _lower(module: ir.Module) -> None:
    try:
        for pipeline in (BUFFERIZE, TO_LLVM):
            PassManager.parse(f"builtin.module({','.join(pipeline)})").run(module.operation)
    except ir.MLIRError as error:
        raise UnsupportedError(f"MLIR's reference lowering doesn't take this module: {' '.join(str(error).split())[:300]}") from error


def rounded_to_bfloat16(array: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16 as uint16, to nearest, ties to even; NaN stays one."""
    bits = array.view(np.uint32).astype(np.uint64)
    rounded = np.where(np.isnan(array), bits | 0x400000, bits + 0x7FFF + ((bits >> 16) & 1))
    return (rounded >> 16).astype(np.uint16)


def _function(module: ir.Module, entry: str) -> ir.Operation:
    return next(op.operation for op in module.body.operations if op.operation.name == "func.func" and op.name.value == entry)


def _result_types(function: ir.Operation) -> list[ir.RankedTensorType]:
    return list(ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value).results)


def _dicts(function: ir.Operation, name: str) -> list[ir.DictAttr]:
    return [ir.DictAttr(each) for each in ir.ArrayAttr(function.attributes[name])]


def _items(attr: ir.DictAttr) -> list[tuple[str, Any]]:
    return [(attr[i].name, ir.StringAttr(attr[i].attr).value) for i in range(len(attr)) if isinstance(attr[i].attr, ir.StringAttr)]


def _empty_descriptor(rank: int) -> ctypes.Structure:
    fields: list[tuple[str, Any]] = [("allocated", ctypes.c_void_p), ("aligned", ctypes.c_void_p), ("offset", ctypes.c_int64)]
    if rank:
        fields += [("sizes", ctypes.c_int64 * rank), ("strides", ctypes.c_int64 * rank)]
    made: ctypes.Structure = type(f"MemRef{rank}", (ctypes.Structure,), {"_fields_": fields})()
    return made


def _descriptor(array: np.ndarray) -> Any:
    """MLIR's memref descriptor of a dense array."""
    descriptor: Any = _empty_descriptor(array.ndim)
    descriptor.allocated = descriptor.aligned = array.ctypes.data
    for i in range(array.ndim):
        descriptor.sizes[i] = array.shape[i]
        descriptor.strides[i] = array.strides[i] // array.itemsize
    return descriptor


def _to_array(descriptor: Any, dtype: str) -> np.ndarray:
    """A copy of the memref a call returned; bfloat16 as uint16."""
    kind = np.dtype("uint16" if dtype == "bfloat16" else dtype)
    shape = tuple(getattr(descriptor, "sizes", ()))
    if 0 in shape:
        return np.zeros(shape, kind)
    strides = tuple(stride * kind.itemsize for stride in getattr(descriptor, "strides", ()))
    start = descriptor.aligned + descriptor.offset * kind.itemsize
    extent = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + kind.itemsize
    raw = (ctypes.c_char * extent).from_address(start)
    return np.array(np.ndarray(shape, kind, buffer=raw, strides=strides))
