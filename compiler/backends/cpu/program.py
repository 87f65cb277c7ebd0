"""From dispatch functions to one module of kernels and the host function, for one target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import sympy

from llmos.compiler.analysis.casts import extended
from llmos.compiler.analysis.generic import Generic, is_fill
from llmos.compiler.analysis.loops import Loop, is_loop
from llmos.compiler.analysis.paged_attention import BLOCK_SIZE, OPERANDS, is_paged_attention
from llmos.compiler.backends.cpu.arithmetic.register_tile import register_tile
from llmos.compiler.backends.cpu.cost import COSTS
from llmos.compiler.backends.cpu.host import emit_host
from llmos.compiler.backends.cpu.host_calls import EntryPlan
from llmos.compiler.backends.cpu.kernels.attention import attention_in
from llmos.compiler.backends.cpu.kernels.attention_amx import emit_attention
from llmos.compiler.backends.cpu.kernels.contraction import emit_contraction
from llmos.compiler.backends.cpu.kernels.contraction_plan import contraction_in
from llmos.compiler.backends.cpu.kernels.contraction_window import emit_contraction_window
from llmos.compiler.backends.cpu.kernels.elementwise import emit_elementwise
from llmos.compiler.backends.cpu.kernels.fallback import emit_fallback
from llmos.compiler.backends.cpu.kernels.insert import emit_insert
from llmos.compiler.backends.cpu.kernels.paged_attention import emit_paged_attention
from llmos.compiler.backends.cpu.kernels.row_reduction import emit_rows
from llmos.compiler.backends.cpu.kernels.scan import emit_scan
from llmos.compiler.backends.cpu.kernels.scatter import emit_scatter
from llmos.compiler.backends.cpu.kernels.sort import emit_sort
from llmos.compiler.backends.cpu.kernels.winograd import emit_winograd, winograd_work
from llmos.compiler.backends.cpu.loops import LoopPlan, emit_loop
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Kernel, Launch, product
from llmos.compiler.ir.attributes import INDUCTION_VARIABLE, text_of
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc, EntryFunc, callee_of, functions_of
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import Expr, SymbolTable

Emit = Callable[[ir.Module, Dispatch, CpuTarget], Launch]

EMITTERS: Mapping[str, Emit] = {
    "attention": emit_attention,
    "paged_attention": emit_paged_attention,
    "contraction": emit_contraction,
    "contraction_window": emit_contraction_window,
    "winograd": emit_winograd,
    "row_reduction": lambda module, dispatch, _: emit_rows(module, dispatch),
    "scan": lambda module, dispatch, _: emit_scan(module, dispatch),
    "sort": lambda module, dispatch, _: emit_sort(module, dispatch),
    "elementwise": lambda module, dispatch, target: emit_elementwise(module, dispatch, register_tile(target.vector_bits)),
    "scatter": lambda module, dispatch, _: emit_scatter(module, dispatch),
    "insert": lambda module, dispatch, _: emit_insert(module, dispatch),
    "fallback": lambda module, dispatch, _: emit_fallback(module, dispatch),
}


@dataclass(frozen=True)
class Work:
    """What a dispatch does, for profiles: floating-point operations and bytes of memory it must touch, over the symbols."""

    flops: Expr
    num_bytes: Expr


@dataclass(frozen=True)
class LoopUnit:
    """A loop of the host function, and the dispatches of its body, in order."""

    loop: Loop
    dispatches: Sequence[Dispatch]

    @property
    def induction_variable(self) -> str:
        """Return the name of the loop's symbol."""
        return text_of(self.loop.op.attributes, INDUCTION_VARIABLE)

    @property
    def name(self) -> str:
        """Return the name of the loop's kernel."""
        return f"{self.induction_variable}_loop"


@dataclass
class Program:
    """The dispatches of a planned module.

    weights: the places of its weights in the table of an artifact of several entries; empty where it has the table for itself.
    first_kernel: the number of its first unit in the manifest.
    """

    module: ir.Module
    table: SymbolTable
    main: ir.Operation
    units: list[Dispatch | LoopUnit] = field(default_factory=list)  # in the order of the host function
    weights: tuple[int, ...] = ()
    first_kernel: int = 0

    @classmethod
    def of(cls, module: ir.Module) -> Program:
        """Read the entry of a planned module."""
        table = SymbolTable.of(module)
        functions = functions_of(module)
        main = EntryFunc.of(module).op
        shapes = Shapes.of(main, table)

        def called(op: ir.Operation) -> Dispatch:
            return Dispatch(functions[callee_of(op)], table)

        units: list[Dispatch | LoopUnit] = []
        for op in main.regions[0].blocks[0].operations:
            if op.operation.name == "func.call":
                units.append(called(op.operation))
            elif is_loop(op.operation):
                loop = Loop(op.operation, shapes)
                units.append(LoopUnit(loop, [called(call) for call in loop.calls]))
        return cls(module, table, main, units)

    @property
    def dispatches(self) -> list[Dispatch]:
        """Return every dispatch, those in loops included."""
        return [each for unit in self.units for each in (unit.dispatches if isinstance(unit, LoopUnit) else [unit])]

    @property
    def loops(self) -> list[LoopUnit]:
        """Return the loops of the host function."""
        return [unit for unit in self.units if isinstance(unit, LoopUnit)]


def emit_kernels(program: Program, target: CpuTarget) -> ir.Module:
    """Return a module with one function for each distinct dispatch, and the host function: the `kernels` stage.

    Raises UnsupportedError for a dispatch that no kernel fits.
    """
    with program.module.context, ir.Location.unknown():
        module = ir.Module.create()
        kernels: dict[str, Kernel] = {}
        known: dict[str, Kernel] = {}
        for dispatch in program.dispatches:
            text = identity(dispatch)
            if text not in known:
                known[text] = Kernel(dispatch.name, EMITTERS[dispatch.kind](module, dispatch, target))
            kernels[dispatch.name] = known[text]
        for unit in program.loops:
            costs = {each.name: _cost_ns(each) for each in unit.dispatches}
            plan = LoopPlan(unit.name, unit.loop, program.table, kernels, costs)
            kernels[unit.induction_variable] = Kernel(unit.name, emit_loop(module, plan))
        emit_host(module, EntryPlan(program.main, program.table, kernels, program.weights, program.first_kernel))
    return module


def identity(dispatch: Dispatch) -> str:
    """Return a dispatch's text without its name: equal for dispatches that one kernel serves.

    In the scope of the function: to print it as a part of its module, MLIR would number all of that each time.
    """
    return str(dispatch.func.get_asm(use_local_scope=True)).replace(f"@{dispatch.name}(", "@_(", 1)


def _cost_ns(dispatch: Dispatch) -> Expr:
    """About what a dispatch takes on one thread."""
    work = describe_work(dispatch)
    return COSTS.duration_ns(dispatch.kind, work.flops, work.num_bytes)


def describe_loop(unit: LoopUnit) -> Work:
    """Return the arithmetic and the traffic of all iterations."""
    works = [describe_work(dispatch) for dispatch in unit.dispatches]
    flops, num_bytes = (sum(parts, sympy.S.Zero) for parts in ([w.flops for w in works], [w.num_bytes for w in works]))
    return Work(sympy.expand(unit.loop.trip_count * flops), sympy.expand(unit.loop.trip_count * num_bytes))


def describe_work(dispatch: Dispatch) -> Work:
    """Arithmetic and traffic of one dispatch: each operand and result once; of a table that is gathered from, what is read.

    In place, what is given is read and written, and the tensor that it is written into is not counted. Attention over a paged cache is
    counted as if every request filled its row of the block tables.
    """
    shapes = dispatch.shapes
    if dispatch.kind == "paged_attention":
        return _paged_attention_work(dispatch)
    in_place = DispatchFunc(dispatch.func).in_place
    if in_place is not None:
        given = [product(shapes.shape(value)) * _width(value) for i, value in enumerate(dispatch.tensors) if i != in_place]
        return Work(sympy.expand(_flops(dispatch)), sympy.expand(2 * sum(given, sympy.S.Zero)))
    sizes = [_elements_read(dispatch, value) * _width(value) for value in dispatch.tensors]
    sizes += [product(shapes.shape(value)) * _width(value) for value in dispatch.results]
    gathered = [product(shapes.shape(value)) * _width(value) for value in _gathered(dispatch)]
    written = product(shapes.shape(dispatch.results[0])) * _width(dispatch.results[0])
    num_bytes = sum(sizes, sympy.Integer(0)) - sum(gathered, sympy.Integer(0)) + written * len(gathered)
    if dispatch.kind == "winograd":
        flops, more_bytes = winograd_work(dispatch)
        return Work(flops, sympy.expand(num_bytes + more_bytes))
    return Work(sympy.expand(_flops(dispatch)), sympy.expand(num_bytes))


def _paged_attention_work(dispatch: Dispatch) -> Work:
    """Both products of all tokens over the positions of a row of the block tables; of the cache, the blocks that these list."""
    op = next(op for op in dispatch.ops if is_paged_attention(op))
    operands = dict(zip(OPERANDS, Generic(op).inputs, strict=False))
    shape = {name: dispatch.shapes.shape(value) for name, value in operands.items()}
    flops = 4 * product(shape["query"]) * shape["block_tables"][1] * BLOCK_SIZE
    num_bytes = product(shape["block_tables"]) * product(shape["cache"][1:]) * _width(operands["cache"])
    others = [value for value in (*dispatch.tensors, *dispatch.results) if value != operands["cache"]]
    num_bytes += sum((product(dispatch.shapes.shape(value)) * _width(value) for value in others), sympy.S.Zero)
    return Work(sympy.expand(flops), sympy.expand(num_bytes))


def _elements_read(dispatch: Dispatch, tensor: ir.Value) -> Expr:
    """All of a tensor, or the slices of it that are taken."""
    users = list({use.owner.operation for use in tensor.uses})
    slices = [op.results[0] for op in users if op.name == "tensor.extract_slice"]
    whole = product(dispatch.shapes.shape(tensor))
    return whole if len(slices) < len(users) or not slices else sum((product(dispatch.shapes.shape(v)) for v in slices), sympy.S.Zero)


def _width(value: ir.Value) -> int:
    return max(1, int(getattr(ir.RankedTensorType(value.type).element_type, "width", 64)) // 8)


def _gathered(dispatch: Dispatch) -> list[ir.Value]:
    found: dict[ir.Value, None] = {}
    for op in dispatch.block.operations:
        if op.name == "linalg.generic":
            tables = [inner.operands[0] for inner in Generic(op.operation).body.operations if inner.name == "tensor.extract"]
            found.update({extended(table) or table: None for table in tables})
    return [value for value in found if value in dispatch.tensors]


def _flops(dispatch: Dispatch) -> Expr:
    if dispatch.kind == "attention":
        parts = attention_in(dispatch)
        return sum((2 * product(c.generic.loop_sizes(dispatch.shapes)) for c in (parts.scores, parts.values)), sympy.Integer(0))
    if dispatch.kind == "contraction":
        return 2 * product(contraction_in(dispatch).generic.loop_sizes(dispatch.shapes))
    total: Expr = sympy.Integer(0)
    for op in dispatch.ops:
        if op.name == "linalg.generic" and not is_fill(op):
            generic = Generic(op)
            if dispatch.kind == "contraction_window" and generic.is_elementwise:
                continue  # an epilogue, as of a contraction
            arithmetic = sum(1 for inner in generic.body.operations if inner.name.endswith("f") or inner.name.startswith("math."))
            total += arithmetic * product(generic.loop_sizes(dispatch.shapes))
    return total
