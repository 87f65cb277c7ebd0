"""How the host function of an entry starts kernels on a GPU: by their index, with a grid of blocks, in the order of the call's stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmos.compiler.backends.cuda.kernel import Grid
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.host_calls import CallEmitter, EntryPlan, branch, field_of
from llmos.compiler.codegen.kernel import Kernel, call_pointer
from llmos.compiler.ir.bindings import ir
from llmos.runtime.errors import UnsupportedError
from llmos.runtime.native.abi import (
    CONTEXT_DEVICE,
    CONTEXT_STREAM,
    DEVICE_COPY,
    DEVICE_LAUNCH,
    DEVICE_SYNCHRONIZE,
    GRID_BLOCKS,
    GRID_BYTES,
    GRID_DISPATCH,
    GRID_SHARED_BYTES,
    GRID_THREADS,
)


@dataclass(frozen=True)
class CudaEntryPlan(EntryPlan):
    """first_index: of its kernels among those of all entries of an artifact."""

    first_index: int = 0


def kernel_names(plan: EntryPlan) -> list[str]:
    """Return the names of the kernels that an entry starts; a launch gives the place of one."""
    return list(dict.fromkeys(kernel.name for kernel in plan.kernels.values()))


@dataclass
class CudaCalls(CallEmitter):
    """Emits the launches of one entry of the CUDA backend."""

    def start(self, kernel: Kernel, pointers: Sequence[Value], number: int, block: ir.Block) -> ir.Block:
        """Emit a launch. Returns the block that follows if it is accepted; an error of the kernel ends the call later."""
        b, grid = self.b, kernel.launch
        assert isinstance(grid, Grid)
        with b.at_entry():
            record, arguments = b.stack(GRID_BYTES // 8), b.stack(1 + len(pointers) + len(self.plan.table.names))
        for i, pointer in enumerate(pointers):
            b.store(pointer, b.address(self.buffers, b.index(i), b.ptr), 8)
        places = [b.address(self.buffers, b.index(i), b.ptr) for i in range(len(pointers))]
        places += [b.address(self.dims, b.index(i), b.i64) for i in range(len(self.plan.table.names))]
        for i, place in enumerate(places, 1):
            b.store(place, b.address(arguments, b.index(i), b.ptr), 8)
        self._fill(record, grid, number)
        index = b.const(b.i32, self._index(kernel))
        device = field_of(b, self.context, CONTEXT_DEVICE, b.ptr)
        stream = field_of(b, self.context, CONTEXT_STREAM, b.ptr)
        code = call_pointer(b, field_of(b, device, DEVICE_LAUNCH, b.ptr), [device, index, record, arguments, stream], b.i32)
        following = block.create_after()
        branch(b.compare("eq", code, b.const(b.i32, 0)), following, [], self.failed, [code])
        return following

    def _index(self, kernel: Kernel) -> int:
        """The place of a kernel among those that the code lists."""
        assert isinstance(self.plan, CudaEntryPlan)
        return self.plan.first_index + kernel_names(self.plan).index(kernel.name)

    def _fill(self, record: Value, grid: Grid, number: int) -> None:
        """Emit the llmos_grid of a launch."""
        b = self.b
        blocks = b.op("arith.trunci", [self.sizes(grid.num_tiles)], b.i32)
        numbers = {GRID_THREADS: grid.threads, GRID_SHARED_BYTES: int(grid.scratch_bytes), GRID_DISPATCH: number}
        numbers |= {offset + 4 * axis: 1 for offset in (GRID_BLOCKS, GRID_THREADS) for axis in (1, 2)}
        fields = {GRID_BLOCKS: blocks, **{offset: b.const(b.i32, each) for offset, each in numbers.items()}}
        for offset, value in fields.items():
            b.store(value, b.address(record, b.index(offset), b.i8), 4)

    def run_loop(self, op: ir.Operation, number: int, block: ir.Block) -> ir.Block:
        """Raises UnsupportedError."""
        raise UnsupportedError("the cuda backend has no loops over dispatches yet (a recurrent model): compile it for a CPU")

    def read(self, pointer: Value) -> Value:
        """Emit the read of a number that a dispatch has written, an i64: a copy that the host waits for."""
        b = self.b
        with b.at_entry():
            place = b.stack(1)
        device = field_of(b, self.context, CONTEXT_DEVICE, b.ptr)
        stream = field_of(b, self.context, CONTEXT_STREAM, b.ptr)
        b.store(b.index(-1), place, 8)  # no size: what is there if the copy fails
        self._copy(place, pointer, b.index(8))
        call_pointer(b, field_of(b, device, DEVICE_SYNCHRONIZE, b.ptr), [device, stream], b.i32)
        return b.load(place, b.i64, 8)

    def copy(self, target: Value, source: Value, num_bytes: Value) -> None:
        """Emit a copy between tensors that don't overlap, in the order of the stream."""
        self._copy(target, source, num_bytes)

    def _copy(self, target: Value, source: Value, num_bytes: Value) -> None:
        b = self.b
        device = field_of(b, self.context, CONTEXT_DEVICE, b.ptr)
        stream = field_of(b, self.context, CONTEXT_STREAM, b.ptr)
        call_pointer(b, field_of(b, device, DEVICE_COPY, b.ptr), [device, target, source, num_bytes, stream], b.i32)
