"""Loops over dispatches: one kernel that runs every iteration, calling the kernels of its body.

The body's tensors are pointers that the iterations hand on: a state lies in one of two slots, alternately, or in the slice of a scan
output that was just written, so nothing is copied. The kernels find the induction variable behind the program's symbols in their dims.

An iteration whose dispatches are small calls them on its own thread: a fork and join would cost more than it saves. Then, or where there
are not many more threads, each independent part of the loop (the two directions of a layer) is a tile and runs all its iterations by
itself. Else the loop is one tile, on the thread of the caller, and launches what is large over the pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import sympy

from llmos.compiler.analysis.loops import ELSEWHERE, Loop, root_of
from llmos.compiler.codegen.builder import Builder, Sizes, Value, byte_width
from llmos.compiler.codegen.kernel import Kernel, Launch, address_of, call_pointer, product
from llmos.compiler.ir.attributes import BUFFERS, INDUCTION_VARIABLE, text_of
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import callee_of
from llmos.compiler.ir.sizes import Expr, SymbolTable
from llmos.runtime.native.abi import CONTEXT_LAUNCH, CONTEXT_THREADS

NUM_THREADS = sympy.Symbol("llmos.threads", integer=True, positive=True)
NOT_PROFILED = -1  # as the number of a dispatch: its time is part of the loop's
SMALL_NS = 10_000  # a dispatch that takes longer on one thread is worth a fork and join (1 to 3 us) in every iteration


@dataclass(frozen=True)
class LoopLayout:
    """The pointers that the host hands to a loop's kernel, in order: context, externals, slots, scan outputs; then room for
    the last states."""

    externals: tuple[Value, ...]  # values made outside: what the calls read, and the states before the first iteration
    slots: tuple[int, ...]
    scan_outputs: tuple[int, ...]  # positions among the carried tensors
    states: tuple[int, ...]

    @classmethod
    def of(cls, loop: Loop) -> LoopLayout:
        """Read the layout of a loop whose calls have their buffers."""
        operands = [root_of(v) for call in loop.calls for v in call.operands if isinstance(v.type, ir.RankedTensorType)]
        operands += [root_of(loop.inits[position]) for position in loop.states]
        inner = {*loop.carried, *[result for op in loop.ops for result in op.results]}
        slots = {place for call in loop.calls for place in ir.DenseI64ArrayAttr(call.attributes[BUFFERS]) if place != ELSEWHERE}
        changing = [p for p in loop.states if root_of(loop.yielded[p]) != loop.carried[p]]
        return cls(
            tuple(dict.fromkeys(v for v in operands if v not in inner)), tuple(sorted(slots)), tuple(loop.scan_outputs), tuple(changing)
        )

    @property
    def first_state(self) -> int:
        """Return the place of the first of the last states."""
        return 1 + len(self.externals) + len(self.slots) + len(self.scan_outputs)

    @property
    def num_pointers(self) -> int:
        """Return how many pointers the kernel is handed."""
        return self.first_state + len(self.states)


@dataclass(frozen=True)
class LoopPlan:
    """What is known of a loop before it is emitted. `costs_ns`: what each dispatch of the body takes on one thread, by its name."""

    name: str
    loop: Loop
    table: SymbolTable
    kernels: Mapping[str, Kernel]
    costs_ns: Mapping[str, Expr]

    @cached_property
    def layout(self) -> LoopLayout:
        """Return the pointers that the host hands over."""
        return LoopLayout.of(self.loop)

    @cached_property
    def induction_variable(self) -> Expr:
        """Return the symbol that the body's sizes and offsets are written in."""
        return self.table.parse(text_of(self.loop.op.attributes, INDUCTION_VARIABLE))

    @cached_property
    def num_tiles(self) -> Expr:
        """Return one for each part where all that an iteration does is small, or there are fewer threads than twice the parts; else one."""
        parts = len(self.loop.parts)
        if parts == 1:
            return sympy.S.One
        largest = sympy.Max(*[self.costs_ns[_callee(call)] for call in self.loop.calls])
        are_small = sympy.floor(sympy.Integer(SMALL_NS) / sympy.Max(1, largest))
        are_enough = sympy.floor(sympy.Integer(2 * parts - 1) / NUM_THREADS)
        return sympy.expand(1 + (parts - 1) * sympy.Min(1, are_small + are_enough))

    @property
    def launch(self) -> Launch:
        """Return the number of tiles, and the most scratch that a dispatch of the body needs."""
        launches = [self.kernels[_callee(call)].launch for call in self.loop.calls]
        return Launch(self.num_tiles, sympy.Max(0, *[launch.scratch_bytes for launch in launches]))


def emit_loop(module: ir.Module, plan: LoopPlan) -> Launch:
    """Append the kernel of a loop; its function has the ABI of all kernels."""
    with _function(module, plan.name) as (b, (buffers, dims, begin, end, scratch)):
        emitter = LoopEmitter.of(plan, b, buffers, dims, scratch)
        b.store(b.const(b.i32, 0), emitter.error, 4)
        with b.loop(begin, end, b.index(1)) as tile:
            for part in range(len(plan.loop.parts)):
                emitter.part_of_tile(part, tile.iv)
        ir.Operation.create("func.return", operands=[b.load(emitter.error, b.i32, 4)])
    return plan.launch


@contextmanager
def _function(module: ir.Module, name: str) -> Iterator[tuple[Builder, Sequence[Value]]]:
    ptr, i64, i32 = ir.Type.parse("!llvm.ptr"), ir.IntegerType.get_signless(64), ir.IntegerType.get_signless(32)
    kind = ir.FunctionType.get([ptr, ptr, i64, i64, ptr], [i32])
    with ir.InsertionPoint(module.body):
        func = ir.Operation.create(
            "func.func", regions=1, attributes={"sym_name": ir.StringAttr.get(name), "function_type": ir.TypeAttr.get(kind)}
        )
    block = func.regions[0].blocks.append(*kind.inputs)
    with ir.InsertionPoint(block):
        b = Builder(block, 1)
        b.set_anchor(ir.Operation.create("arith.constant", results=[i32], attributes={"value": ir.IntegerAttr.get(i32, 0)}))
        yield b, list(block.arguments)


@dataclass
class LoopEmitter:
    """Emits the iterations of one loop into its kernel. Every value but `sizes` is an address."""

    plan: LoopPlan
    b: Builder
    sizes: Sizes
    context: Value
    buffers: Value  # that the host handed over
    dims: Value  # of the kernels inside, which hold the induction variable too
    scratch: Value
    error: Value  # of the kernel's i32 error code
    slots: Mapping[int, Value]
    scan_outputs: Mapping[int, Value]
    arrays: Mapping[ir.Operation, Value]  # of the pointers that each call hands to its kernel
    pointers: dict[Value, Value]  # of each tensor that is known by now

    @classmethod
    def of(cls, plan: LoopPlan, b: Builder, buffers: Value, dims: Value, scratch: Value) -> LoopEmitter:
        """Load the symbols and pointers at the kernel's entry."""
        layout = plan.layout
        with b.at_entry():
            known = {s.expr: b.load(b.address(dims, b.index(i), b.i64), b.i64, 8) for i, s in enumerate(plan.table.sizes)}
            own_dims = b.stack(len(plan.table.names))
            for i, symbol in enumerate(plan.table.sizes):
                b.store(known[symbol.expr], b.address(own_dims, b.index(i), b.i64), 8)
            context, *given = (b.load(b.address(buffers, b.index(i), b.ptr), b.ptr, 8) for i in range(layout.first_state))
            threads = b.load(b.address(context, b.index(CONTEXT_THREADS), b.i8), b.i64, 8)
            externals, given = given[: len(layout.externals)], given[len(layout.externals) :]
            arrays = {call: b.stack(len(call.operands) + len(call.results)) for call in plan.loop.calls}
            error = b.stack(1)
        return cls(
            plan,
            b,
            Sizes(b, {**known, NUM_THREADS: threads}),
            context,
            buffers,
            own_dims,
            scratch,
            error,
            slots=dict(zip(layout.slots, given, strict=False)),
            scan_outputs=dict(zip(layout.scan_outputs, given[len(layout.slots) :], strict=True)),
            arrays=arrays,
            pointers=dict(zip(layout.externals, externals, strict=True)),
        )

    # -- parts
    def part_of_tile(self, part: int, tile: Value) -> None:
        """Emit every iteration of a part; where each part is a tile, under a branch on the tile."""
        b = self.b
        if len(self.plan.loop.parts) == 1:
            self._iterations(part)
            return
        with b.when(b.binary("arith.ori", self._is_alone(), b.compare("eq", tile, b.index(part)))):
            self._iterations(part)

    def _is_alone(self) -> Value:
        """Whether one tile runs all parts, and so may launch."""
        return self.b.compare("eq", self.sizes(self.plan.num_tiles), self.b.index(1))

    def _iterations(self, part: int) -> None:
        """Every iteration of one part; the pointers of its last states go to the host."""
        b, loop = self.b, self.plan.loop
        calls = loop.parts[part]
        made = {result for call in calls for result in call.results}
        states = [p for p in self.plan.layout.states if root_of(loop.yielded[p]) in made]
        for call in calls:
            self._store_fixed(call)
        start = [self.pointers[root_of(loop.inits[p])] for p in states]
        position = [symbol.expr for symbol in self.plan.table.names].index(self.plan.induction_variable)
        outside = dict(self.pointers)
        with b.loop(b.index(0), self.sizes(loop.trip_count), b.index(1), start) as iterations:
            b.store(iterations.iv, b.address(self.dims, b.index(position), b.i64), 8)
            self.pointers.update({loop.carried[p]: pointer for p, pointer in zip(states, iterations.args, strict=True)})
            self.pointers.update({loop.carried[p]: self._init(p) for p in loop.states if p not in self.plan.layout.states})
            for call in calls:
                self._call(call, iterations.iv)
            iterations.yield_([self.pointers[root_of(loop.yielded[p])] for p in states])
        self.pointers = outside
        for p, last in zip(states, iterations.results, strict=True):
            b.store(last, b.address(self.buffers, b.index(self.plan.layout.first_state + self.plan.layout.states.index(p)), b.ptr), 8)

    def _init(self, position: int) -> Value:
        return self.pointers[root_of(self.plan.loop.inits[position])]

    # -- calls
    def _store_fixed(self, call: ir.Operation) -> None:
        """The pointers that are the same in every iteration."""
        b = self.b
        for i, value in enumerate(_tensors(call)):
            if root_of(value) in self.pointers:
                b.store(self.pointers[root_of(value)], b.address(self.arrays[call], b.index(i), b.ptr), 8)

    def _call(self, call: ir.Operation, iteration: Value) -> None:
        b, array, tensors = self.b, self.arrays[call], _tensors(call)
        for i, value in enumerate(tensors):
            if root_of(value) not in self.plan.layout.externals:
                b.store(self.pointers[root_of(value)], b.address(array, b.index(i), b.ptr), 8)
        places = list(ir.DenseI64ArrayAttr(call.attributes[BUFFERS]))
        for i, result in enumerate(call.results):
            self.pointers[result] = self._place(result, places[2 * i], places[2 * i + 1], iteration)
            b.store(self.pointers[result], b.address(array, b.index(len(tensors) + i), b.ptr), 8)
        code = self._run(call)
        with b.when(b.compare("ne", code, b.const(b.i32, 0))):
            b.store(code, self.error, 4)

    def _place(self, result: Value, even: int, odd: int, iteration: Value) -> Value:
        b = self.b
        if even == ELSEWHERE:
            return self._slice(result, iteration)
        if even == odd:
            return self.slots[even]
        is_odd = b.compare("ne", b.binary("arith.andi", iteration, b.index(1)), b.index(0))
        return b.select(is_odd, self.slots[odd], self.slots[even])

    def _slice(self, result: Value, iteration: Value) -> Value:
        """The slice of a scan output that this iteration writes; its place is linear in the induction variable."""
        b, loop = self.b, self.plan.loop
        output = next(each for each in loop.scan_outputs.values() if each.source == result)
        start = output.offset.subs(self.plan.induction_variable, 0)
        step = sympy.expand(output.offset - start) / self.plan.induction_variable
        at = b.add(self.sizes(sympy.expand(start)), b.mul(self.sizes(sympy.expand(step)), iteration))
        kind = ir.RankedTensorType(output.insert.results[0].type).element_type
        stride = self.sizes(product(loop.shapes.shape(output.insert.results[0])[1:]) * byte_width(kind))
        return b.address(self.scan_outputs[output.position], b.mul(at, stride), b.i8)

    def _run(self, call: ir.Operation) -> Value:
        """The dispatch on this thread or, if it is large, over the pool; its code."""
        b, kernel, array = self.b, self.plan.kernels[_callee(call)], self.arrays[call]
        tiles, scratch = kernel.launch.num_tiles, kernel.launch.scratch_bytes

        def here() -> Value:
            arguments = [array, self.dims, b.index(0), self.sizes(tiles), self.scratch]
            return b.op("func.call", arguments, b.i32, callee=ir.FlatSymbolRefAttr.get(kernel.name))

        def over_pool() -> Value:
            launch = b.load(b.address(self.context, b.index(CONTEXT_LAUNCH), b.i8), b.ptr, 8)
            arguments = [self.context, address_of(b, kernel.name), array, self.dims, self.sizes(tiles), self.sizes(scratch)]
            return call_pointer(b, launch, [*arguments, b.const(b.i32, NOT_PROFILED)], b.i32)

        cost = self.plan.costs_ns[_callee(call)]
        if tiles == 1 or (cost.is_Integer and cost <= SMALL_NS):
            return here()
        is_large = b.compare("sgt", self.sizes(cost), b.index(SMALL_NS))
        return b.choose(b.binary("arith.andi", is_large, self._is_alone()), b.i32, over_pool, here)


def _tensors(call: ir.Operation) -> list[Value]:
    return [value for value in call.operands if isinstance(value.type, ir.RankedTensorType)]


def _callee(call: ir.Operation) -> str:
    return callee_of(call)
