"""The host function of an entry: reads the arguments' sizes, lays out the arena, launches the dispatches in order, checks each.

Its signature is TVM FFI's (runtime/native/include/llmos/abi.h); runtime/native/abi.py has the header's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy

from llmos.compiler.analysis.loops import Loop, is_loop, loops_in, root_of
from llmos.compiler.backends.cpu.computed import is_allocatable, is_valid
from llmos.compiler.backends.cpu.loops import NUM_THREADS, LoopLayout
from llmos.compiler.codegen.builder import Builder, Sizes, Value, byte_width
from llmos.compiler.codegen.kernel import Kernel, address_of, call_pointer, product
from llmos.compiler.ir.attributes import (
    BUFFERS,
    COMPUTES,
    INDUCTION_VARIABLE,
    callers_shape,
    text_of,
)
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc, callee_of, name_of
from llmos.compiler.ir.guards import Guard, guards_of
from llmos.compiler.ir.ops import VIEWS
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import ComputedSymbol, Expr, SymbolTable
from llmos.compiler.ir.updates import argument_of
from llmos.runtime.native.abi import (
    ALIGNMENT,
    ANY_BYTES,
    ANY_VALUE,
    BAD_ARGUMENTS,
    CONTEXT_ARENA,
    CONTEXT_LAUNCH,
    CONTEXT_THREADS,
    CONTEXT_WEIGHTS,
    OUT_OF_MEMORY,
    SIZE_OUT_OF_RANGE,
    TENSOR_DATA,
    TENSOR_OFFSET,
    TENSOR_SHAPE,
)


@dataclass
class HostEmitter:
    """Emits `__tvm_ffi_<entry>`, `__llmos_shapes_<entry>` and, where sizes must satisfy something, `__llmos_guards_<entry>`."""

    module: ir.Module
    main: ir.Operation
    table: SymbolTable
    kernels: Mapping[str, Kernel]  # by dispatch function, or the name of a loop's induction variable
    weights: Sequence[int] = ()  # places in the context's table; empty: from 0 on
    first_kernel: int = 0

    def emit(self) -> None:
        self.shapes = Shapes.of(self.main, self.table)
        self.defined: set[ComputedSymbol] = set()
        self.doubtful = self._doubtful_dims()
        name = name_of(self.main)
        self._emit_entry(f"__tvm_ffi_{name}")
        self._emit_shapes(f"__llmos_shapes_{name}")
        if guards := guards_of(self.main.parent, self.table):
            self._emit_guards(f"__llmos_guards_{name}", guards)

    # -- pieces of the module
    def _function(self, name: str, kinds: Sequence[ir.Type], results: Sequence[ir.Type]) -> ir.Block:
        with ir.InsertionPoint(self.module.body):
            func = ir.Operation.create(
                "func.func",
                regions=1,
                attributes={
                    "sym_name": ir.StringAttr.get(name),
                    "function_type": ir.TypeAttr.get(ir.FunctionType.get(list(kinds), list(results))),
                },
            )
        return func.regions[0].blocks.append(*kinds)

    def _sizes_from(self, block: ir.Block) -> tuple[Builder, Sizes]:
        """At the start of a function whose first argument points to the symbols, in manifest order."""
        b = Builder(block, 1)
        b.set_anchor(ir.Operation.create("arith.constant", results=[b.i32], attributes={"value": ir.IntegerAttr.get(b.i32, 0)}))
        with b.at_entry():
            places = [b.address(block.arguments[0], b.index(i), b.i64) for i in range(len(self.table.symbols))]
            symbols = {symbol.expr: b.load(place, b.i64, 8) for symbol, place in zip(self.table.symbols, places, strict=True)}
        return b, Sizes(b, symbols)

    def _emit_guards(self, name: str, guards: Sequence[Guard]) -> None:
        """The number of the first condition that doesn't hold, or -1."""
        block = self._function(name, [ir.Type.parse("!llvm.ptr")], [ir.IntegerType.get_signless(64)])
        with ir.InsertionPoint(block):
            b, sizes = self._sizes_from(block)
            found = b.index(-1)
            for number, guard in reversed(list(enumerate(guards))):
                holds = b.compare(guard.predicate, sizes(guard.left), sizes(guard.right))
                found = b.select(holds, found, b.index(number))
            ir.Operation.create("func.return", operands=[found])

    def _emit_shapes(self, name: str) -> None:
        ptr = ir.Type.parse("!llvm.ptr")
        block = self._function(name, [ptr, ptr], [])
        out = block.arguments[1]
        with ir.InsertionPoint(block):
            b, sizes = self._sizes_from(block)
            dims = [self.table.upper_bound(dim) for shape in self._result_shapes() for dim in shape]
            for i, dim in enumerate(dims):
                b.store(sizes(dim), b.address(out, b.index(i), b.i64), 8)
            ir.Operation.create("func.return")

    def _result_shapes(self) -> list[Sequence[Expr]]:
        """The dimensions that a caller sees of each output."""
        return [callers_shape(each.dtype, self.shapes.shape(each.value)) for each in EntryFunc(self.main).outputs]

    def _terminator(self) -> ir.Operation:
        return list(self.main.regions[0].blocks[0].operations)[-1].operation

    # -- the entry
    def _emit_entry(self, name: str) -> None:
        ptr, i32 = ir.Type.parse("!llvm.ptr"), ir.IntegerType.get_signless(32)
        block = self._function(name, [ptr, ptr, i32, ptr], [i32])
        self.context, self.args, count, _ = block.arguments
        checked = block.create_after()
        failed = checked.create_after(i32)
        with ir.InsertionPoint(block):
            expected = ir.Operation.create(
                "arith.constant", results=[i32], attributes={"value": ir.IntegerAttr.get(i32, self._num_arguments())}
            ).results[0]
            bad = ir.Operation.create(
                "arith.constant", results=[i32], attributes={"value": ir.IntegerAttr.get(i32, BAD_ARGUMENTS)}
            ).results[0]
            same = ir.Operation.create(
                "arith.cmpi",
                results=[ir.IntegerType.get_signless(1)],
                operands=[count, expected],
                attributes={"predicate": ir.IntegerAttr.get(ir.IntegerType.get_signless(64), 0)},
            ).results[0]
            self._branch(same, checked, [], failed, [bad])
        with ir.InsertionPoint(failed):
            ir.Operation.create("func.return", operands=[failed.arguments[0]])
        self._emit_calls(checked, failed)

    def _num_arguments(self) -> int:
        entry = EntryFunc(self.main)
        return len(entry.arguments.inputs) + len(entry.outputs)

    def _branch(self, condition: Value, yes: ir.Block, yes_args: Sequence[Value], no: ir.Block, no_args: Sequence[Value]) -> None:
        ir.Operation.create(
            "cf.cond_br",
            operands=[condition, *yes_args, *no_args],
            successors=[yes, no],
            attributes={"operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, len(yes_args), len(no_args)])},
        )

    def _emit_calls(self, block: ir.Block, failed: ir.Block) -> None:
        with ir.InsertionPoint(block):
            b = Builder(block, 1)
            b.set_anchor(ir.Operation.create("arith.constant", results=[b.i32], attributes={"value": ir.IntegerAttr.get(b.i32, 0)}))
            self.b = b
            self._read_arguments()
        current = block
        with ir.InsertionPoint(block):
            current = self._reserve(block, failed)
        number = self.first_kernel
        for op in self.main.regions[0].blocks[0].operations:
            operation = op.operation
            if operation.name in VIEWS:
                if operation.operands[0] in self.pointers:
                    self.pointers[operation.results[0]] = self.pointers[operation.operands[0]]
            elif operation.name == "func.call" or is_loop(operation):
                start = self._run_loop if is_loop(operation) else self._launch
                with ir.InsertionPoint(current):
                    current = start(operation, number, current, failed)
                number += 1
            elif COMPUTES in operation.attributes:
                with ir.InsertionPoint(current):
                    current = self._define(operation, current, failed)
        with ir.InsertionPoint(current):
            self._write_computed_shapes()
            self._copy_updates()
            ir.Operation.create("func.return", operands=[b.const(b.i32, 0)])

    def _read_arguments(self) -> None:
        """Data pointers of inputs, outputs and weights; the symbols, from the input dims that are one."""
        b, arguments = self.b, EntryFunc(self.main).arguments
        inputs, weights = arguments.inputs, arguments.weights
        self.pointers: dict[ir.Value, Value] = {}
        with b.at_entry():
            tensors = [self._field(self.args, i * ANY_BYTES + ANY_VALUE, b.ptr) for i in range(self._num_arguments())]
            data = [b.address(self._field(t, TENSOR_DATA, b.ptr), self._field(t, TENSOR_OFFSET, b.i64), b.i8) for t in tensors]
            found: dict[sympy.Expr, Value] = {}
            for given, tensor in zip(inputs, tensors, strict=False):
                for axis, dim in enumerate(given.shape):
                    expr = self.table.parse(dim)
                    if expr.is_Symbol and expr not in found:
                        found[expr] = b.load(b.address(self._field(tensor, TENSOR_SHAPE, b.ptr), b.index(axis), b.i64), b.i64, 8)
            self.pointers.update({given.value: pointer for given, pointer in zip(inputs, data, strict=False)})
            self.outputs, self.output_tensors = data[len(inputs) :], tensors[len(inputs) :]
            if weights:
                table = self._field(self.context, CONTEXT_WEIGHTS, b.ptr)
                for place, weight in zip(self.weights or range(len(weights)), weights, strict=False):
                    self.pointers[weight.value] = b.load(b.address(table, b.index(place), b.ptr), b.ptr, 8)
            self.dims = b.stack(max(1, len(self.table.sizes)))
            self.buffers = b.stack(self._most_buffers())
            for i, symbol in enumerate(self.table.symbols):
                value = found.get(symbol.expr, b.index(symbol.min))
                b.store(value, b.address(self.dims, b.index(i), b.i64), 8)
            self.sizes = Sizes(b, {**found, NUM_THREADS: self._field(self.context, CONTEXT_THREADS, b.i64)})

    def _most_buffers(self) -> int:
        block = self.main.regions[0].blocks[0]
        calls = [op.operation for op in block.operations if op.operation.name == "func.call"]
        counts = [len(call.operands) + len(call.results) for call in calls]
        return max([*[LoopLayout.of(Loop(op, self.shapes)).num_pointers for op in loops_in(block)], *counts, 1])

    def _field(self, base: Value, offset: int, kind: ir.Type) -> Value:
        return self.b.load(self.b.address(base, self.b.index(offset), self.b.i8), kind, 8)

    def _reserve(self, block: ir.Block, failed: ir.Block) -> ir.Block:
        """Ask for the slots whose sizes the inputs give."""
        sizes = [self.table.parse(size) for size in EntryFunc(self.main).slots]
        self.slots: dict[int, Value] = {}
        self.waiting = {slot: size for slot, size in enumerate(sizes) if self.table.computed_in(size)}
        return self._allocate({slot: size for slot, size in enumerate(sizes) if slot not in self.waiting}, block, failed)

    def _allocate(self, slots: Mapping[int, Expr], block: ir.Block, failed: ir.Block) -> ir.Block:
        """Ask for memory, and place slots in it one after the other; the block that follows if there is some."""
        if not slots:
            return block
        b = self.b
        offset, offsets = b.index(0), []
        for size in slots.values():
            offsets.append(offset)
            rounded = b.binary("arith.andi", b.add(self.sizes(size), b.index(ALIGNMENT - 1)), b.index(-ALIGNMENT))
            offset = b.add(offset, rounded)
        arena = call_pointer(b, self._field(self.context, CONTEXT_ARENA, b.ptr), [self.context, offset], b.ptr)
        null = b.op("llvm.mlir.zero", [], b.ptr)
        present = b.op("llvm.icmp", [arena, null], b.i1, predicate=ir.IntegerAttr.get(b.i64, 1))
        self.slots.update({slot: b.address(arena, at, b.i8) for slot, at in zip(slots, offsets, strict=True)})
        return self._continue_if(present, block, failed, OUT_OF_MEMORY)

    def _continue_if(self, condition: Value, block: ir.Block, failed: ir.Block, code: int) -> ir.Block:
        """The block that follows where a condition holds; else the call ends with a code."""
        following = self._next(block)
        self._branch(condition, following, [], failed, [self.b.const(self.b.i32, code)])
        return following

    # -- sizes that the entry computes
    def _define(self, op: ir.Operation, block: ir.Block, failed: ir.Block) -> ir.Block:
        """Read a size that a dispatch wrote, check it, and ask for the slots that have waited for it."""
        b = self.b
        name = ir.StringAttr(op.attributes[COMPUTES]).value
        place, symbol = next((i, each) for i, each in enumerate(self.table.sizes) if each.name == name)
        assert isinstance(symbol, ComputedSymbol)
        value = b.load(self.pointers[op.operands[0]], b.i64, 8)
        following = self._continue_if(is_valid(b, self.sizes, self.table, symbol, value), block, failed, SIZE_OUT_OF_RANGE)
        with ir.InsertionPoint(following):
            b.store(value, b.address(self.dims, b.index(place), b.i64), 8)
            self.sizes.define(symbol.expr, value)
            self.defined.add(symbol)
            following = self._check_dims(following, failed)
        with ir.InsertionPoint(following):
            ready = {slot: size for slot, size in self.waiting.items() if self.defined.issuperset(self.table.computed_in(size))}
            self.waiting = {slot: size for slot, size in self.waiting.items() if slot not in ready}
            return self._allocate_checked(ready, following, failed)

    def _doubtful_dims(self) -> list[Expr]:
        """Sizes of tensors that data might make negative."""
        ops = [op.operation for op in self.main.regions[0].blocks[0].operations]
        tensors = [r for op in ops for r in op.results if isinstance(r.type, ir.RankedTensorType) and op.name != "tensor.empty"]
        dims = dict.fromkeys(dim for value in tensors for dim in self.shapes.shape(value) if self.table.computed_in(dim))
        return [dim for dim in dims if not self.table.bounds(dim)[0] >= 0]

    def _check_dims(self, block: ir.Block, failed: ir.Block) -> ir.Block:
        """End the call where a size that is known by now is negative."""
        ready = [dim for dim in self.doubtful if self.defined.issuperset(self.table.computed_in(dim))]
        self.doubtful = [dim for dim in self.doubtful if dim not in ready]
        for dim in ready:
            with ir.InsertionPoint(block):
                fits = self.b.compare("sge", self.sizes(dim), self.b.index(0))
                block = self._continue_if(fits, block, failed, SIZE_OUT_OF_RANGE)
        return block

    def _allocate_checked(self, slots: Mapping[int, Expr], block: ir.Block, failed: ir.Block) -> ir.Block:
        """As `_allocate`, for sizes that nobody has checked the product of."""
        if not slots:
            return block
        total = sum(slots.values(), sympy.S.Zero) + ALIGNMENT * len(slots)
        following = self._continue_if(is_allocatable(self.b, self.sizes, sympy.expand(total)), block, failed, OUT_OF_MEMORY)
        with ir.InsertionPoint(following):
            return self._allocate(slots, following, failed)

    def _write_computed_shapes(self) -> None:
        """The true sizes of outputs, in the place of the bounds that they were allocated by."""
        for tensor, shape in zip(self.output_tensors, self._result_shapes(), strict=True):
            for axis, dim in enumerate(shape):
                if self.table.computed_in(dim):
                    sizes = self._field(tensor, TENSOR_SHAPE, self.b.ptr)
                    self.b.store(self.sizes(dim), self.b.address(sizes, self.b.index(axis), self.b.i64), 8)

    def _copy_updates(self) -> None:
        """The new values of updated inputs that lie elsewhere, to where the inputs do. By then nothing reads an old one."""
        b, arguments = self.b, list(self.main.regions[0].blocks[0].arguments)
        for number, position in EntryFunc(self.main).updated.items():
            value = self._terminator().operands[number]
            target, source = self.pointers[arguments[position]], self.pointers[root_of(value)]
            if source != target:
                width = byte_width(ir.RankedTensorType(value.type).element_type)
                num_bytes = self.sizes(product(self.shapes.shape(value)) * width)
                b.op("llvm.intr.memcpy", [target, source, num_bytes], None, isVolatile=ir.BoolAttr.get(False))

    def _next(self, block: ir.Block) -> ir.Block:
        return block.create_after()

    def _launch(self, call: ir.Operation, number: int, block: ir.Block, failed: ir.Block) -> ir.Block:
        """One dispatch; `number` is its place in the manifest's kernels."""
        dispatch = callee_of(call)
        results = [self._place(place) for place in ir.DenseI64ArrayAttr(call.attributes[BUFFERS])]
        self.pointers.update(zip(call.results, results, strict=True))
        tensors = [self.pointers[operand] for operand in call.operands if isinstance(operand.type, ir.RankedTensorType)]
        return self._start(self.kernels[dispatch], [*tensors, *results], number, block, failed)

    def _place(self, place: int) -> Value:
        argument = argument_of(place)
        if argument is not None:
            return self.pointers[self.main.regions[0].blocks[0].arguments[argument]]
        return self.slots[place] if place >= 0 else self.outputs[-1 - place]

    def _start(self, kernel: Kernel, pointers: Sequence[Value], number: int, block: ir.Block, failed: ir.Block) -> ir.Block:
        """Launch a kernel; the block that follows if it succeeds."""
        b = self.b
        for i, pointer in enumerate(pointers):
            b.store(pointer, b.address(self.buffers, b.index(i), b.ptr), 8)
        launch = [self.sizes(kernel.launch.num_tiles), self.sizes(kernel.launch.scratch_bytes), b.const(b.i32, number)]
        arguments = [self.context, address_of(b, kernel.name), self.buffers, self.dims, *launch]
        code = call_pointer(b, self._field(self.context, CONTEXT_LAUNCH, b.ptr), arguments, b.i32)
        fine = b.compare("eq", code, b.const(b.i32, 0))
        following = self._next(block)
        self._branch(fine, following, [], failed, [code])
        return following

    def _run_loop(self, op: ir.Operation, number: int, block: ir.Block, failed: ir.Block) -> ir.Block:
        """All iterations of a loop, as one kernel (backends/cpu/loops.py)."""
        loop = Loop(op, self.shapes)
        layout = LoopLayout.of(loop)
        places = list(ir.DenseI64ArrayAttr(op.attributes[BUFFERS]))
        scan_outputs = {position: self._place(places[position]) for position in layout.scan_outputs}
        given = [self.context, *[self.pointers[value] for value in layout.externals], *[self.slots[slot] for slot in layout.slots]]
        kernel = self.kernels[text_of(op.attributes, INDUCTION_VARIABLE)]
        following = self._start(kernel, [*given, *scan_outputs.values()], number, block, failed)
        for position, result in enumerate(op.results):
            if position in scan_outputs:
                self.pointers[result] = scan_outputs[position]
            elif position in layout.states:
                with ir.InsertionPoint(following):
                    at = layout.first_state + layout.states.index(position)
                    self.pointers[result] = self.b.load(self.b.address(self.buffers, self.b.index(at), self.b.ptr), self.b.ptr, 8)
            else:
                self.pointers[result] = self.pointers[root_of(loop.inits[position])]
        return following
