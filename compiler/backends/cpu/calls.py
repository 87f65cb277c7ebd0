"""How the host function of an entry starts kernels on a CPU: over the thread pool of the C core, by their addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from llmos.compiler.analysis.loops import Loop, loops_in, root_of
from llmos.compiler.backends.cpu.loops import NUM_THREADS, LoopLayout
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.host_calls import CallEmitter, EntryPlan, branch, field_of
from llmos.compiler.codegen.kernel import Kernel, address_of, call_pointer
from llmos.compiler.ir.attributes import BUFFERS, INDUCTION_VARIABLE, text_of
from llmos.compiler.ir.bindings import ir
from llmos.runtime.native.abi import CONTEXT_LAUNCH, CONTEXT_THREADS


@dataclass
class CpuCalls(CallEmitter):
    """Emits the launches of one entry of the CPU backend."""

    @classmethod
    def num_buffers(cls, plan: EntryPlan) -> int:
        """Return the most pointers that a kernel is handed, those of loops included."""
        return max([plan.num_buffers, *[LoopLayout.of(Loop(op, plan.shapes)).num_pointers for op in loops_in(plan.block)]])

    @classmethod
    def further_sizes(cls, b: Builder, context: Value) -> dict[sympy.Expr, Value]:
        """Emit the number of threads."""
        return {NUM_THREADS: field_of(b, context, CONTEXT_THREADS, b.i64)}

    def start(self, kernel: Kernel, pointers: Sequence[Value], number: int, block: ir.Block) -> ir.Block:
        """Emit a fork-join over the pool. Returns the block that follows if it succeeds."""
        b = self.b
        for i, pointer in enumerate(pointers):
            b.store(pointer, b.address(self.buffers, b.index(i), b.ptr), 8)
        launch = [self.sizes(kernel.launch.num_tiles), self.sizes(kernel.launch.scratch_bytes), b.const(b.i32, number)]
        arguments = [self.context, address_of(b, kernel.name), self.buffers, self.dims, *launch]
        code = call_pointer(b, field_of(b, self.context, CONTEXT_LAUNCH, b.ptr), arguments, b.i32)
        fine = b.compare("eq", code, b.const(b.i32, 0))
        following = block.create_after()
        branch(fine, following, [], self.failed, [code])
        return following

    def run_loop(self, op: ir.Operation, number: int, block: ir.Block) -> ir.Block:
        """Emit all iterations of a loop, as one kernel (backends/cpu/loops.py). Returns the block that follows if it succeeds."""
        loop = Loop(op, self.plan.shapes)
        layout = LoopLayout.of(loop)
        places = list(ir.DenseI64ArrayAttr(op.attributes[BUFFERS]))
        scan_outputs = {position: self.place(places[position]) for position in layout.scan_outputs}
        given = [self.context, *[self.pointers[value] for value in layout.externals], *[self.slots[slot] for slot in layout.slots]]
        kernel = self.plan.kernels[text_of(op.attributes, INDUCTION_VARIABLE)]
        following = self.start(kernel, [*given, *scan_outputs.values()], number, block)
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

    def read(self, pointer: Value) -> Value:
        """Emit the read of a number that a dispatch has written, an i64."""
        return self.b.load(pointer, self.b.i64, 8)

    def copy(self, target: Value, source: Value, num_bytes: Value) -> None:
        """Emit a copy between tensors that don't overlap."""
        self.b.op("llvm.intr.memcpy", [target, source, num_bytes], None, isVolatile=ir.BoolAttr.get(False))
