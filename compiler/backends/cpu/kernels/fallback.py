"""The net below every other kernel: any op that MLIR can bufferize, as plain loops on one thread.

Slow is allowed here, wrong is not. The dispatch's own function is bufferized by upstream passes, gets checks of what data decides, and is
called with memref descriptors; temporaries inside come from malloc.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy

from llmos.compiler.backends.cpu.kernels.checked_memory import add_checks
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Frame, Launch, kernel
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.execution.reference import forbid_writes
from llmos.compiler.ir.attributes import DISPATCH
from llmos.compiler.ir.bindings import PassManager, ir
from llmos.compiler.ir.functions import functions_of, make_private, make_public, name_of
from llmos.runtime.errors import UnsupportedError

BUFFERIZE = (
    "func.func(linalg-generalize-named-ops)",
    "convert-shape-to-std",
    "func.func(refback-generalize-tensor-pad)",
    "func.func(refback-generalize-tensor-concat)",
    "func.func(tm-tensor-bufferize)",
    "one-shot-bufferize{%s allow-return-allocs-from-loops bufferize-function-boundaries "
    "function-boundary-type-conversion=identity-layout-map}",
    "buffer-results-to-out-params{hoist-static-allocs=true modify-public-functions=true}",
    "buffer-deallocation-pipeline",
    "func.func(tm-tensor-to-loops)",
    "func.func(refback-munge-memref-copy)",
    "func.func(convert-linalg-to-loops)",
    "func.func(lower-affine)",
)


def emit_fallback(module: ir.Module, dispatch: Dispatch) -> Launch:
    """Append the kernel of a `fallback` dispatch, and the bufferized function that it calls.

    Raises UnsupportedError where upstream's lowerings refuse an op, or data decides the size of a temporary.
    """
    body = f"{dispatch.name}_body"
    _append_body(module, dispatch, body)
    with kernel(module, dispatch) as frame:
        operands = [_descriptor(frame.b, frame, frame.emitter.buffers[value], value.type) for value in dispatch.tensors]
        sizes = [
            frame.emitter.sizes(dispatch.shapes.index(a)) for a in dispatch.block.arguments if not isinstance(a.type, ir.RankedTensorType)
        ]
        operands += [frame.b.op("arith.index_cast", [size], ir.IndexType.get()) for size in sizes]
        operands += [_descriptor(frame.b, frame, buffer, value.type) for buffer, value in zip(frame.outputs, dispatch.results, strict=True)]
        operands.append(frame.emitter.guards.error)
        ir.Operation.create("func.call", operands=operands, attributes={"callee": ir.FlatSymbolRefAttr.get(body)})
    return Launch(sympy.S.One)


def _append_body(module: ir.Module, dispatch: Dispatch, name: str) -> None:
    """The dispatch's function over memrefs, results as trailing arguments, and behind them the address of the error code."""
    alone = ir.Module.create()
    with ir.InsertionPoint(alone.body):
        func = dispatch.func.clone()
    func.attributes["sym_name"] = ir.StringAttr.get(name)
    make_public(func)
    for key in ("arg_attrs", DISPATCH):
        del func.attributes[key]
    forbid_writes(alone)
    copies = any(op.name.startswith("tm_tensor.") for op in dispatch.block.operations)
    try:
        PassManager.parse(f"builtin.module({','.join(BUFFERIZE)})" % ("copy-before-write" if copies else "")).run(alone.operation)
    except ir.MLIRError as error:
        names = sorted({op.name for op in dispatch.block.operations} - {"func.return", "arith.constant", "tensor.empty"})
        raise UnsupportedError(f"no kernel for {', '.join(names)}: {str(error).splitlines()[0]}") from error
    add_checks(functions_of(alone)[name])
    _rename_helpers(alone, name)
    with ir.InsertionPoint(module.body):
        for op in alone.body.operations:
            copy = op.operation.clone()
            if copy.name == "func.func":
                make_private(copy)


def _rename_helpers(alone: ir.Module, prefix: str) -> None:
    """Functions that bufferization adds have the same name in every dispatch."""
    for op in alone.body.operations:
        name = name_of(op) if "sym_name" in op.attributes else prefix
        if name != prefix:
            ir.SymbolTable.replace_all_symbol_uses(name, f"{prefix}_{name}", alone.operation)
            ir.SymbolTable.set_symbol_name(op.operation, f"{prefix}_{name}")


def _descriptor(b: Builder, frame: Frame, buffer: Buffer, kind: ir.Type) -> Value:
    """A memref of a dense buffer: {allocated, aligned, offset, sizes, strides}."""
    rank = len(buffer.shape)
    arrays = f", array<{rank} x i64>, array<{rank} x i64>" if rank else ""
    struct = ir.Type.parse(f"!llvm.struct<(ptr, ptr, i64{arrays})>")
    value = b.op("llvm.mlir.undef", [], struct)
    fields: list[tuple[Sequence[int], Value]] = [((0,), buffer.pointer), ((1,), buffer.pointer), ((2,), b.index(0))]
    for axis in range(rank):
        fields.append(((3, axis), frame.emitter.sizes(buffer.shape[axis])))
        fields.append(((4, axis), frame.emitter.sizes(buffer.strides[axis])))
    for position, field in fields:
        value = b.op("llvm.insertvalue", [value, field], struct, position=ir.DenseI64ArrayAttr.get(list(position)))
    tensor = ir.RankedTensorType(kind)
    memref = ir.MemRefType.get(tensor.shape, tensor.element_type)
    return b.op("builtin.unrealized_conversion_cast", [value], memref)
