"""The frame of a kernel on a GPU: one function of many threads, and what its threads do together.

A kernel is `@name(error, buffers..., sizes...)`. Its threads know their block and their number in it, share memory, wait for each other
and pass values between lanes of a warp: that is all that differs from a kernel on a CPU. Values, coordinates and memory are
emitted by the same emitters (compiler/codegen). backends/cuda/emulation.py has the second mapping of what threads do together: onto a
processor, so that the numbers of every kernel are tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import sympy

from llmos.compiler.codegen.builder import LOOP_DYNAMIC, Builder, Sizes, Value, byte_width, is_float
from llmos.compiler.codegen.coordinates import IndexEmitter
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.evaluate import ValueEmitter
from llmos.compiler.codegen.kernel import Launch
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.ir.attributes import GPU_KERNEL
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc
from llmos.compiler.ir.sizes import Expr

WARP = 32
ALIGN = 16  # bytes that one thread moves at a time; every buffer starts at a multiple of it
SHARED = "__llmos_shared"  # the memory that a block shares, whose size its launch gives
FULL_MASK = -1  # all lanes of a warp
BUTTERFLY = 0x1F  # llvm.nvvm.shfl.sync.bfly: lanes of all 32 exchange


@dataclass(frozen=True, kw_only=True)
class Grid(Launch):
    """How the host starts a kernel: num_tiles blocks of so many threads; scratch_bytes of memory that a block shares."""

    threads: int


@dataclass
class BlockFrame:
    """An open kernel function. block, thread: numbers of the block in the grid and of the thread in it, i64."""

    b: Builder
    emitter: ValueEmitter
    outputs: list[Buffer]
    block: Value
    thread: Value
    num_threads: int
    shared: Value

    def barrier(self) -> None:
        """Emit the wait for all threads of the block; what each wrote before, all see after."""
        self.b.intrinsic("llvm.nvvm.barrier.cta.sync.aligned.all", [self.b.const(self.b.i32, 0)])

    def warp_barrier(self) -> None:
        """Emit the wait for all lanes of the warp; what each wrote before, all see after."""
        self.b.intrinsic("llvm.nvvm.bar.warp.sync", [self.b.const(self.b.i32, FULL_MASK)])

    def exchange(self, value: Value, distance: int) -> Value:
        """Emit the value of lane (own lane xor distance) of the warp. `value`: a scalar of 8 to 64 bits."""
        b, kind = self.b, value.type
        width = byte_width(kind) * 8
        if width == 64:
            return self._exchange_halves(value, distance)
        bits = ir.IntegerType.get_signless(width)
        word = b.op("arith.bitcast", [value], bits) if is_float(kind) else value
        word = word if width == 32 else b.op("arith.extui", [word], b.i32)
        moved = self._exchange_word(word, distance)
        moved = moved if width == 32 else b.op("arith.trunci", [moved], bits if is_float(kind) else kind)
        return b.op("arith.bitcast", [moved], kind) if is_float(kind) else moved

    def _exchange_halves(self, value: Value, distance: int) -> Value:
        b = self.b
        pair = ir.VectorType.get([2], b.i32)
        halves = b.op("llvm.bitcast", [value], pair)
        moved = halves
        for i in (0, 1):
            at = ir.DenseI64ArrayAttr.get([i])
            half = self._exchange_word(b.op("vector.extract", [halves], b.i32, static_position=at), distance)
            moved = b.op("vector.insert", [half, moved], pair, static_position=at)
        return b.op("llvm.bitcast", [moved], value.type)

    def _exchange_word(self, word: Value, distance: int) -> Value:
        b = self.b
        numbers = [b.const(b.i32, each) for each in (FULL_MASK, distance, BUTTERFLY)]
        return b.intrinsic("llvm.nvvm.shfl.sync.bfly.i32", [numbers[0], word, *numbers[1:]], b.i32)

    def combine_warp(self, value: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """Emit what all lanes of the warp hold, combined in one order: every lane gets the same bits if `combine` is commutative."""
        for distance in (16, 8, 4, 2, 1):
            value = combine(value, self.exchange(value, distance))
        return value

    def combine_block(self, values: Sequence[Value], combines: Sequence[Callable[[Value, Value], Value]], at: int = 0) -> list[Value]:
        """Emit several values, each combined over all threads of the block, by way of shared memory from byte `at` on; all threads
        get the results. Every thread must come here.
        """
        b = self.b
        made = [self.combine_warp(value, combine) for value, combine in zip(values, combines, strict=True)]
        num_warps = self.num_threads // WARP
        if num_warps == 1:
            return made
        warp = b.op("arith.shrui", [self.thread, b.index(5)], b.i64)
        for i, value in enumerate(made):
            b.store(value, b.address(self.shared_at(at + 8 * i * num_warps), b.mul(warp, b.index(8)), b.i8), 8)
        self.barrier()
        for i, combine in enumerate(combines):
            parts = [b.load(self.shared_at(at + 8 * (i * num_warps + w)), values[i].type, 8) for w in range(num_warps)]
            made[i] = parts[0]
            for part in parts[1:]:
                made[i] = combine(made[i], part)
        self.barrier()
        return made

    def fragment(self, offset: Value) -> list[Value]:
        """Emit the load of four 8 by 16-byte matrices from shared memory, a word of each for every lane: that of row lane / 4 and place
        lane % 4. `offset`: in bytes, i64, of a row, those of the first matrix from lanes 0 to 7, and so on; a multiple of 16.
        """
        b, near = self.b, ir.Type.parse("!llvm.ptr<3>")
        base = b.op("llvm.mlir.addressof", [], near, global_name=ir.FlatSymbolRefAttr.get(SHARED))
        place = ir.DenseI32ArrayAttr.get([LOOP_DYNAMIC])
        address = b.op("llvm.getelementptr", [base, offset], near, elem_type=ir.TypeAttr.get(b.i8), rawConstantIndices=place)
        kind = ir.Type.parse("!llvm.struct<(i32, i32, i32, i32)>")
        made = b.intrinsic("llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.b16.p3", [address], kind)
        return [b.op("llvm.extractvalue", [made], b.i32, position=ir.DenseI64ArrayAttr.get([i])) for i in range(4)]

    def shared_at(self, offset: int) -> Value:
        """Emit the address of a byte of the block's shared memory."""
        return self.b.address(self.shared, self.b.index(offset), self.b.i8)


def combine_bytes(num_values: int, num_threads: int) -> int:
    """Return the shared memory that `combine_block` needs."""
    return 8 * num_values * (num_threads // WARP) if num_threads > WARP else 0


@contextmanager
def kernel(module: ir.Module, dispatch: Dispatch, threads: int, lanes: int = 1) -> Iterator[BlockFrame]:
    """Append `func @<dispatch name>(error, buffers..., sizes...)` to a module; the body, of one thread, is emitted inside the `with`.

    threads: of a block, a multiple of a warp. lanes: neighboring elements that a thread handles at a time.
    """
    block = _function(module, dispatch)
    error, *rest = block.arguments
    with ir.InsertionPoint(block):
        b = Builder(block, lanes)
        anchor = ir.Operation.create("arith.constant", results=[b.i32], attributes={"value": ir.IntegerAttr.get(b.i32, 0)})
        b.set_anchor(anchor)
        count = len(dispatch.tensors) + len(dispatch.results)
        with b.at_entry():
            number, thread = (_special_register(b, name) for name in ("ctaid", "tid"))
            of_shared = b.op("llvm.mlir.addressof", [], ir.Type.parse("!llvm.ptr<3>"), global_name=ir.FlatSymbolRefAttr.get(SHARED))
            shared = b.op("llvm.addrspacecast", [of_shared], b.ptr)
        sizes = Sizes(b, {symbol.expr: size for symbol, size in zip(dispatch.table.names, rest[count:], strict=True)})
        buffers = [
            Buffer.dense(pointer, value.type.element_type, dispatch.shapes.shape(value))
            for pointer, value in zip(rest, [*dispatch.tensors, *dispatch.results], strict=False)
        ]
        split = len(dispatch.tensors)
        emitter = ValueEmitter.of(dispatch, dict(zip(dispatch.tensors, buffers, strict=False)), IndexEmitter(b, sizes), error)
        yield BlockFrame(b, emitter, buffers[split:], number, thread, threads, shared)
        ir.Operation.create("func.return")


def num_blocks(units: Expr, per_block: int) -> Expr:
    """Return how many blocks so many units need."""
    return sympy.Integer(-(-int(units) // per_block)) if units.is_Integer else sympy.floor((units + per_block - 1) / per_block)


def is_multiple(size: Expr, by: int) -> bool:
    """Whether a size is a multiple of a number, whatever its symbols are."""
    terms = sympy.expand(size).as_coefficients_dict()
    whole = all(term.is_polynomial(*term.free_symbols) for term in terms)  # no quotient, which might not be whole by itself
    return whole and all(coefficient.is_Integer and coefficient % by == 0 for coefficient in terms.values())


def _function(module: ir.Module, dispatch: Dispatch) -> ir.Block:
    """Append the function. Its pointers are aligned, and apart from each other unless the dispatch writes into what it reads."""
    ptr, i64 = ir.Type.parse("!llvm.ptr"), ir.IntegerType.get_signless(64)
    count = len(dispatch.tensors) + len(dispatch.results)
    kind = ir.FunctionType.get([ptr] * (1 + count) + [i64] * len(dispatch.table.names), [])
    aligned = {"llvm.align": ir.IntegerAttr.get(i64, ALIGN)}
    apart = {} if DispatchFunc(dispatch.func).in_place is not None else {"llvm.noalias": ir.UnitAttr.get()}
    read = {**aligned, **apart, **({"llvm.readonly": ir.UnitAttr.get()} if apart else {})}
    attributes = [{}, *[read] * len(dispatch.tensors), *[{**aligned, **apart}] * len(dispatch.results), *[{}] * len(dispatch.table.names)]
    with ir.InsertionPoint(module.body):
        func = ir.Operation.create(
            "func.func",
            regions=1,
            attributes={
                "sym_name": ir.StringAttr.get(dispatch.name),
                "function_type": ir.TypeAttr.get(kind),
                "arg_attrs": ir.ArrayAttr.get([ir.DictAttr.get(each) for each in attributes]),
                GPU_KERNEL: ir.UnitAttr.get(),
            },
        )
    return func.regions[0].blocks.append(*kind.inputs)


def _special_register(b: Builder, name: str) -> Value:
    return b.op("arith.extui", [b.intrinsic(f"llvm.nvvm.read.ptx.sreg.{name}.x", [], b.i32)], b.i64)
