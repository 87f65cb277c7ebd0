"""What the host function of an entry does on any target: reads its arguments, lays out the arena, starts the dispatches in order.

How a kernel is started is a backend's, in a subclass of CallEmitter.

runtime/native/abi.py has the offsets and codes of the ABI (runtime/native/include/llmos/abi.h).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import sympy

from llmos.compiler.analysis.loops import is_loop, root_of
from llmos.compiler.codegen.builder import Builder, Sizes, Value, byte_width
from llmos.compiler.codegen.computed import is_allocatable, is_valid
from llmos.compiler.codegen.kernel import Kernel, call_pointer, product
from llmos.compiler.ir.attributes import BUFFERS, COMPUTES, callers_shape
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc, callee_of
from llmos.compiler.ir.ops import VIEWS
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import ComputedSymbol, Expr, SymbolTable
from llmos.compiler.ir.updates import argument_of
from llmos.runtime.native.abi import (
    ALIGNMENT,
    ANY_BYTES,
    ANY_VALUE,
    CONTEXT_ARENA,
    CONTEXT_WEIGHTS,
    OUT_OF_MEMORY,
    SIZE_OUT_OF_RANGE,
    TENSOR_DATA,
    TENSOR_OFFSET,
    TENSOR_SHAPE,
)


@dataclass(frozen=True)
class EntryPlan:
    """What is known of an entry before its host functions are emitted."""

    main: ir.Operation
    table: SymbolTable
    kernels: Mapping[str, Kernel]  # by dispatch function, or the name of a loop's induction variable
    weights: Sequence[int] = ()  # places in the context's table; empty: from 0 on
    first_kernel: int = 0  # the place in the manifest's kernels of the first that it launches

    @cached_property
    def shapes(self) -> Shapes:
        """Return the sizes of the entry's tensors as expressions of the symbols."""
        return Shapes.of(self.main, self.table)

    @property
    def block(self) -> ir.Block:
        """Return the entry's body."""
        return self.main.regions[0].blocks[0]

    @property
    def terminator(self) -> ir.Operation:
        """Return the op that returns the entry's outputs."""
        return list(self.block.operations)[-1].operation

    @property
    def num_arguments(self) -> int:
        """Return the number of a call's arguments: inputs, then outputs."""
        entry = EntryFunc(self.main)
        return len(entry.arguments.inputs) + len(entry.outputs)

    @property
    def num_buffers(self) -> int:
        """Return the most pointers that the kernel of a call is handed."""
        calls = [op.operation for op in self.block.operations if op.operation.name == "func.call"]
        return max([*[len(call.operands) + len(call.results) for call in calls], 1])

    @property
    def result_shapes(self) -> list[Sequence[Expr]]:
        """Return the dimensions that a caller sees of each output."""
        return [callers_shape(each.dtype, self.shapes.shape(each.value)) for each in EntryFunc(self.main).outputs]

    @property
    def doubtful_dims(self) -> list[Expr]:
        """Return the sizes of tensors that data might make negative."""
        ops = [op.operation for op in self.block.operations]
        tensors = [r for op in ops for r in op.results if isinstance(r.type, ir.RankedTensorType) and op.name != "tensor.empty"]
        dims = dict.fromkeys(dim for value in tensors for dim in self.shapes.shape(value) if self.table.computed_in(dim))
        return [dim for dim in dims if not self.table.bounds(dim)[0] >= 0]


@dataclass
class CallEmitter(ABC):
    """Emits the launches of one entry into its host function. Pointers are to data, where nothing else is said."""

    plan: EntryPlan
    b: Builder
    failed: ir.Block  # returns its argument, the code
    sizes: Sizes
    context: Value
    dims: Value  # the sizes that kernels read
    buffers: Value  # the pointers that a kernel is handed
    outputs: Sequence[Value]
    output_tensors: Sequence[Value]  # DLTensors
    pointers: dict[ir.Value, Value]  # of each tensor that is known by now
    slots: dict[int, Value] = field(default_factory=dict)
    waiting: dict[int, Expr] = field(default_factory=dict)  # sizes of slots that no arena holds yet
    defined: set[ComputedSymbol] = field(default_factory=set)  # sizes that a dispatch wrote and the entry has read
    doubtful: list[Expr] = field(default_factory=list)  # dims that are still to be checked

    @classmethod
    def num_buffers(cls, plan: EntryPlan) -> int:
        """Return the most pointers that a kernel is handed."""
        return plan.num_buffers

    @classmethod
    def further_sizes(cls, b: Builder, context: Value) -> dict[sympy.Expr, Value]:
        """Emit the symbols of launches that no tensor shows."""
        return {}

    @classmethod
    def of(cls, plan: EntryPlan, b: Builder, context: Value, args: Value, failed: ir.Block) -> Self:
        """Load the pointers of inputs, outputs and weights, and the symbols from the input dims that are one. `args`: TVMFFIAny[]."""
        arguments = EntryFunc(plan.main).arguments
        inputs, weights = arguments.inputs, arguments.weights
        with b.at_entry():
            tensors = [field_of(b, args, i * ANY_BYTES + ANY_VALUE, b.ptr) for i in range(plan.num_arguments)]
            data = [b.address(field_of(b, t, TENSOR_DATA, b.ptr), field_of(b, t, TENSOR_OFFSET, b.i64), b.i8) for t in tensors]
            found = _symbols(plan, b, tensors)
            pointers = {given.value: pointer for given, pointer in zip(inputs, data, strict=False)}
            if weights:
                table = field_of(b, context, CONTEXT_WEIGHTS, b.ptr)
                for place, weight in zip(plan.weights or range(len(weights)), weights, strict=False):
                    pointers[weight.value] = b.load(b.address(table, b.index(place), b.ptr), b.ptr, 8)
            dims = b.stack(max(1, len(plan.table.sizes)))
            buffers = b.stack(cls.num_buffers(plan))
            for i, symbol in enumerate(plan.table.symbols):
                value = found.get(symbol.expr, b.index(symbol.min))
                b.store(value, b.address(dims, b.index(i), b.i64), 8)
            sizes = Sizes(b, {**found, **cls.further_sizes(b, context)})
        outputs, output_tensors = data[len(inputs) :], tensors[len(inputs) :]
        return cls(plan, b, failed, sizes, context, dims, buffers, outputs, output_tensors, pointers, doubtful=plan.doubtful_dims)

    def emit(self, block: ir.Block) -> None:
        """Emit all that an entry does, from `block` on."""
        with ir.InsertionPoint(block):
            current = self._reserve(block)
        number = self.plan.first_kernel
        for op in self.plan.block.operations:
            operation = op.operation
            if operation.name in VIEWS:
                if operation.operands[0] in self.pointers:
                    self.pointers[operation.results[0]] = self.pointers[operation.operands[0]]
            elif operation.name == "func.call" or is_loop(operation):
                start = self.run_loop if is_loop(operation) else self._launch
                with ir.InsertionPoint(current):
                    current = start(operation, number, current)
                number += 1
            elif COMPUTES in operation.attributes:
                with ir.InsertionPoint(current):
                    current = self._define(operation, current)
        with ir.InsertionPoint(current):
            self._write_computed_shapes()
            self._copy_updates()
            ir.Operation.create("func.return", operands=[self.b.const(self.b.i32, 0)])

    def _reserve(self, block: ir.Block) -> ir.Block:
        """Ask for the slots whose sizes the inputs give."""
        sizes = [self.plan.table.parse(size) for size in EntryFunc(self.plan.main).slots]
        self.waiting = {slot: size for slot, size in enumerate(sizes) if self.plan.table.computed_in(size)}
        return self._allocate({slot: size for slot, size in enumerate(sizes) if slot not in self.waiting}, block)

    def _allocate(self, slots: Mapping[int, Expr], block: ir.Block) -> ir.Block:
        """Ask for memory, and place slots in it one after the other; the block that follows if there is some."""
        if not slots:
            return block
        b = self.b
        offset, offsets = b.index(0), []
        for size in slots.values():
            offsets.append(offset)
            rounded = b.binary("arith.andi", b.add(self.sizes(size), b.index(ALIGNMENT - 1)), b.index(-ALIGNMENT))
            offset = b.add(offset, rounded)
        arena = call_pointer(b, field_of(b, self.context, CONTEXT_ARENA, b.ptr), [self.context, offset], b.ptr)
        null = b.op("llvm.mlir.zero", [], b.ptr)
        present = b.op("llvm.icmp", [arena, null], b.i1, predicate=ir.IntegerAttr.get(b.i64, 1))
        self.slots.update({slot: b.address(arena, at, b.i8) for slot, at in zip(slots, offsets, strict=True)})
        return self._continue_if(present, block, OUT_OF_MEMORY)

    def _continue_if(self, condition: Value, block: ir.Block, code: int) -> ir.Block:
        """The block that follows where a condition holds; else the call ends with a code."""
        following = block.create_after()
        branch(condition, following, [], self.failed, [self.b.const(self.b.i32, code)])
        return following

    # -- sizes that the entry computes
    def _define(self, op: ir.Operation, block: ir.Block) -> ir.Block:
        """Read a size that a dispatch wrote, check it, and ask for the slots that have waited for it."""
        b = self.b
        name = ir.StringAttr(op.attributes[COMPUTES]).value
        place, symbol = next((i, each) for i, each in enumerate(self.plan.table.sizes) if each.name == name)
        assert isinstance(symbol, ComputedSymbol)
        value = self.read(self.pointers[op.operands[0]])
        following = self._continue_if(is_valid(b, self.sizes, self.plan.table, symbol, value), block, SIZE_OUT_OF_RANGE)
        with ir.InsertionPoint(following):
            b.store(value, b.address(self.dims, b.index(place), b.i64), 8)
            self.sizes.define(symbol.expr, value)
            self.defined.add(symbol)
            following = self._check_dims(following)
        with ir.InsertionPoint(following):
            ready = {slot: size for slot, size in self.waiting.items() if self.defined.issuperset(self.plan.table.computed_in(size))}
            self.waiting = {slot: size for slot, size in self.waiting.items() if slot not in ready}
            return self._allocate_checked(ready, following)

    def _check_dims(self, block: ir.Block) -> ir.Block:
        """End the call where a size that is known by now is negative."""
        ready = [dim for dim in self.doubtful if self.defined.issuperset(self.plan.table.computed_in(dim))]
        self.doubtful = [dim for dim in self.doubtful if dim not in ready]
        for dim in ready:
            with ir.InsertionPoint(block):
                fits = self.b.compare("sge", self.sizes(dim), self.b.index(0))
                block = self._continue_if(fits, block, SIZE_OUT_OF_RANGE)
        return block

    def _allocate_checked(self, slots: Mapping[int, Expr], block: ir.Block) -> ir.Block:
        """As `_allocate`, for sizes that nobody has checked the product of."""
        if not slots:
            return block
        total = sum(slots.values(), sympy.S.Zero) + ALIGNMENT * len(slots)
        following = self._continue_if(is_allocatable(self.b, self.sizes, sympy.expand(total)), block, OUT_OF_MEMORY)
        with ir.InsertionPoint(following):
            return self._allocate(slots, following)

    def _write_computed_shapes(self) -> None:
        """The true sizes of outputs, in the place of the bounds that they were allocated by."""
        for tensor, shape in zip(self.output_tensors, self.plan.result_shapes, strict=True):
            for axis, dim in enumerate(shape):
                if self.plan.table.computed_in(dim):
                    sizes = field_of(self.b, tensor, TENSOR_SHAPE, self.b.ptr)
                    self.b.store(self.sizes(dim), self.b.address(sizes, self.b.index(axis), self.b.i64), 8)

    def _copy_updates(self) -> None:
        """The new values of updated inputs that lie elsewhere, to where the inputs do. By then nothing reads an old one."""
        arguments = list(self.plan.block.arguments)
        for number, position in EntryFunc(self.plan.main).updated.items():
            value = self.plan.terminator.operands[number]
            target, source = self.pointers[arguments[position]], self.pointers[root_of(value)]
            if source != target:
                width = byte_width(ir.RankedTensorType(value.type).element_type)
                num_bytes = self.sizes(product(self.plan.shapes.shape(value)) * width)
                self.copy(target, source, num_bytes)

    def _launch(self, call: ir.Operation, number: int, block: ir.Block) -> ir.Block:
        """One dispatch; `number` is its place in the manifest's kernels."""
        dispatch = callee_of(call)
        results = [self.place(place) for place in ir.DenseI64ArrayAttr(call.attributes[BUFFERS])]
        self.pointers.update(zip(call.results, results, strict=True))
        tensors = [self.pointers[operand] for operand in call.operands if isinstance(operand.type, ir.RankedTensorType)]
        return self.start(self.plan.kernels[dispatch], [*tensors, *results], number, block)

    def place(self, place: int) -> Value:
        """Return the pointer of what a call's `llmos.buffers` names: a slot, an output or an argument."""
        argument = argument_of(place)
        if argument is not None:
            return self.pointers[self.plan.block.arguments[argument]]
        return self.slots[place] if place >= 0 else self.outputs[-1 - place]

    # -- what depends on where kernels run
    @abstractmethod
    def start(self, kernel: Kernel, pointers: Sequence[Value], number: int, block: ir.Block) -> ir.Block:
        """Emit the launch of a kernel. `number`: its place in the manifest's kernels. Returns the block that follows if it succeeds."""

    @abstractmethod
    def run_loop(self, op: ir.Operation, number: int, block: ir.Block) -> ir.Block:
        """Emit all iterations of a loop. Returns the block that follows if they succeed."""

    @abstractmethod
    def read(self, pointer: Value) -> Value:
        """Emit the read of a number that a dispatch has written, an i64."""

    @abstractmethod
    def copy(self, target: Value, source: Value, num_bytes: Value) -> None:
        """Emit a copy between tensors that don't overlap."""


def _symbols(plan: EntryPlan, b: Builder, tensors: Sequence[Value]) -> dict[sympy.Expr, Value]:
    """The value of each symbol that is a dim of an input. `tensors`: DLTensors of the arguments."""
    found: dict[sympy.Expr, Value] = {}
    for given, tensor in zip(EntryFunc(plan.main).arguments.inputs, tensors, strict=False):
        for axis, dim in enumerate(given.shape):
            expr = plan.table.parse(dim)
            if expr.is_Symbol and expr not in found:
                found[expr] = b.load(b.address(field_of(b, tensor, TENSOR_SHAPE, b.ptr), b.index(axis), b.i64), b.i64, 8)
    return found


def branch(condition: Value, yes: ir.Block, yes_args: Sequence[Value], no: ir.Block, no_args: Sequence[Value]) -> None:
    """End a block by a conditional branch."""
    ir.Operation.create(
        "cf.cond_br",
        operands=[condition, *yes_args, *no_args],
        successors=[yes, no],
        attributes={"operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, len(yes_args), len(no_args)])},
    )


def field_of(b: Builder, base: Value, offset: int, kind: ir.Type) -> Value:
    """Emit the load of a field of 8 bytes of a structure of the ABI; `offset` in bytes."""
    return b.load(b.address(base, b.index(offset), b.i8), kind, 8)
