"""The frame of a kernel: one function with the ABI of docs/architecture.md, and what the host must know to launch it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import sympy

from llmos.compiler.codegen.builder import Builder, Sizes, Value
from llmos.compiler.codegen.coordinates import IndexEmitter
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.evaluate import ValueEmitter
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

LANES = 16  # of row kernels on every target: the order of additions, and so the bits, don't depend on the machine


@dataclass(frozen=True)
class Launch:
    """How the host starts a kernel: the size of its one-dimensional grid and the scratch a thread needs, over the symbols."""

    num_tiles: Expr
    scratch_bytes: Expr = sympy.S.Zero


@dataclass(frozen=True)
class Kernel:
    """A kernel function in the module, and how to start it."""

    name: str
    launch: Launch


@dataclass
class Frame:
    """An open kernel function."""

    b: Builder
    emitter: ValueEmitter
    outputs: list[Buffer]
    begin: Value
    end: Value
    scratch: Value

    @contextmanager
    def tiles(self) -> Iterator[Value]:
        """Open a loop over the tiles of this call, and a scope. Gives the number of the tile, an i64."""
        with self.b.loop(self.begin, self.end, self.b.index(1)) as loop, self.emitter.scope():
            yield loop.iv


@contextmanager
def kernel(module: ir.Module, dispatch: Dispatch, lanes: int = LANES) -> Iterator[Frame]:
    """Append `func @<dispatch name>(buffers, dims, begin, end, scratch) -> i32` to a module; the body is emitted inside the `with`."""
    ptr, i64, i32 = ir.Type.parse("!llvm.ptr"), ir.IntegerType.get_signless(64), ir.IntegerType.get_signless(32)
    kind = ir.FunctionType.get([ptr, ptr, i64, i64, ptr], [i32])
    with ir.InsertionPoint(module.body):
        func = ir.Operation.create(
            "func.func", regions=1, attributes={"sym_name": ir.StringAttr.get(dispatch.name), "function_type": ir.TypeAttr.get(kind)}
        )
    block = func.regions[0].blocks.append(*kind.inputs)
    buffers_pointer, dims_pointer, begin, end, scratch = block.arguments
    with ir.InsertionPoint(block):
        b = Builder(block, lanes, never_negative=begin)
        anchor = ir.Operation.create("arith.constant", results=[i32], attributes={"value": ir.IntegerAttr.get(i32, 0)})
        b.set_anchor(anchor)
        sizes, buffers, outputs, error = _enter(b, dispatch, buffers_pointer, dims_pointer)
        b.store(anchor.results[0], error, 4)
        yield Frame(b, ValueEmitter.of(dispatch, buffers, IndexEmitter(b, sizes), error), outputs, begin, end, scratch)
        ir.Operation.create("func.return", operands=[b.load(error, i32, 4)])


def _enter(
    b: Builder, dispatch: Dispatch, buffers_pointer: Value, dims_pointer: Value
) -> tuple[Sizes, dict[Value, Buffer], list[Buffer], Value]:
    """Load the symbols and the buffer pointers."""
    with b.at_entry():
        symbols: dict[sympy.Expr, Value] = {}
        for i, symbol in enumerate(dispatch.table.names):
            symbols[symbol.expr] = b.load(b.address(dims_pointer, b.index(i), b.i64), b.i64, 8)
        pointers = [
            b.load(b.address(buffers_pointer, b.index(i), b.ptr), b.ptr, 8) for i in range(len(dispatch.tensors) + len(dispatch.results))
        ]
        one = b.const(b.i64, 1)
        error = b.op("llvm.alloca", [one], b.ptr, elem_type=ir.TypeAttr.get(b.i32), alignment=ir.IntegerAttr.get(b.i64, 4))
    shapes = dispatch.shapes
    values = [*dispatch.tensors, *dispatch.results]
    made = [Buffer.dense(pointer, value.type.element_type, shapes.shape(value)) for pointer, value in zip(pointers, values, strict=True)]
    count = len(dispatch.tensors)
    return Sizes(b, symbols), dict(zip(values[:count], made[:count], strict=True)), made[count:], error


def split_index(b: Builder, sizes: Sizes, flat: Value, extents: Sequence[Expr]) -> list[Value]:
    """Emit the row-major coordinates of a flat index, i64, one for each extent."""
    coords: list[Value] = []
    for extent in reversed(extents[1:]):
        size = sizes(extent)
        coords.insert(0, b.rem(flat, size))
        flat = b.div(flat, size)
    return [flat, *coords] if extents else []


def product(sizes: Sequence[Expr]) -> Expr:
    """Return the product of sizes, expanded; 1 for none."""
    return sympy.expand(sympy.Mul(*sizes)) if sizes else sympy.Integer(1)


def ceil_div(size: Expr, by: int) -> Expr:
    """Return size / by, rounded up; `by` is positive."""
    return sympy.Integer(-(-int(size) // by)) if size.is_Integer else sympy.floor((size + by - 1) / by)


def address_of(b: Builder, kernel: str) -> Value:
    """Emit the address of a kernel's function, by its name."""
    kind = ir.FunctionType.get([b.ptr, b.ptr, b.i64, b.i64, b.ptr], [b.i32])
    constant = b.op("func.constant", [], kind, value=ir.FlatSymbolRefAttr.get(kernel))
    return b.op("builtin.unrealized_conversion_cast", [constant], b.ptr)


def call_pointer(b: Builder, function: Value, arguments: Sequence[Value], result: ir.Type) -> Value:
    """Emit an indirect call. Returns its result, of type `result`."""
    return b.op(
        "llvm.call",
        [function, *arguments],
        result,
        operandSegmentSizes=ir.DenseI32ArrayAttr.get([1 + len(arguments), 0]),
        op_bundle_sizes=ir.DenseI32ArrayAttr.get([]),
    )
