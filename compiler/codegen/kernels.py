"""From dispatch functions to one module of kernels and the host function, for one target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import sympy

from llmos.compiler.codegen.attention import attention_in, emit_attention
from llmos.compiler.codegen.contraction import emit_contraction
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.fallback import emit_fallback
from llmos.compiler.codegen.host import HostEmitter, Kernel
from llmos.compiler.codegen.kernel import Launch, product
from llmos.compiler.codegen.layout import contraction_in
from llmos.compiler.codegen.rows import emit_rows
from llmos.compiler.codegen.tile import register_tile
from llmos.compiler.codegen.tile_bf16 import PairArithmetic
from llmos.compiler.ir import ir
from llmos.compiler.linalg import Generic, is_fill
from llmos.compiler.symbolic import Expr, SymbolTable
from llmos.compiler.target import Target
from llmos.compiler.widening import widened

Emit = Callable[[ir.Module, Dispatch, Target], Launch]

EMITTERS: Mapping[str, Emit] = {
    "attention": lambda module, dispatch, target: emit_attention(module, dispatch, register_tile(target.vector_bits)),
    "contraction": lambda module, dispatch, target: emit_contraction(
        module, dispatch, register_tile(target.vector_bits), PairArithmetic.of(target)
    ),
    "row": lambda module, dispatch, _: emit_rows(module, dispatch),
    "elementwise": lambda module, dispatch, _: emit_rows(module, dispatch),
    "fallback": lambda module, dispatch, _: emit_fallback(module, dispatch),
}


@dataclass(frozen=True)
class Work:
    """What a dispatch does, for profiles: floating-point operations and bytes of memory it must touch, over the symbols."""

    flops: Expr
    num_bytes: Expr


@dataclass
class Program:
    """The dispatches of a planned module."""

    module: ir.Module
    table: SymbolTable
    main: ir.Operation
    calls: list[Dispatch] = field(default_factory=list)  # in the order of the host function

    @classmethod
    def of(cls, module: ir.Module) -> Program:
        table = SymbolTable.of(module)
        functions = {ir.StringAttr(op.operation.attributes["sym_name"]).value: op.operation for op in module.body.operations}
        main = next(op for op in functions.values() if "sym_visibility" not in op.attributes)
        calls = [op.operation for op in main.regions[0].blocks[0].operations if op.operation.name == "func.call"]
        return cls(
            module, table, main, [Dispatch(functions[ir.FlatSymbolRefAttr(call.attributes["callee"]).value], table) for call in calls]
        )


def emit_kernels(program: Program, target: Target) -> ir.Module:
    """A module with one function for each distinct dispatch, and the host function: the `kernels` stage."""
    with program.module.context, ir.Location.unknown():
        module = ir.Module.create()
        kernels: dict[str, Kernel] = {}
        known: dict[str, Kernel] = {}
        for dispatch in program.calls:
            text = identity(dispatch)
            if text not in known:
                known[text] = Kernel(dispatch.name, EMITTERS[dispatch.kind](module, dispatch, target))
            kernels[dispatch.name] = known[text]
        HostEmitter(module, program.main, program.table, kernels).emit()
    return module


def identity(dispatch: Dispatch) -> str:
    """A dispatch's text without its name: equal for dispatches that one kernel serves."""
    return str(dispatch.func).replace(f"@{dispatch.name}(", "@_(", 1)


def describe_work(dispatch: Dispatch) -> Work:
    """Arithmetic and traffic of one dispatch: each operand and result once; of a table that is gathered from, what is read."""
    shapes = dispatch.shapes
    sizes = [product(shapes.shape(value)) * _width(value) for value in [*dispatch.tensors, *dispatch.results]]
    gathered = [product(shapes.shape(value)) * _width(value) for value in _gathered(dispatch)]
    written = product(shapes.shape(dispatch.results[0])) * _width(dispatch.results[0])
    num_bytes = sum(sizes, sympy.Integer(0)) - sum(gathered, sympy.Integer(0)) + written * len(gathered)
    return Work(sympy.expand(_flops(dispatch)), sympy.expand(num_bytes))


def _width(value: ir.Value) -> int:
    return max(1, int(getattr(ir.RankedTensorType(value.type).element_type, "width", 64)) // 8)


def _gathered(dispatch: Dispatch) -> list[ir.Value]:
    found: dict[ir.Value, None] = {}
    for op in dispatch.block.operations:
        if op.name == "linalg.generic":
            tables = [inner.operands[0] for inner in Generic(op.operation).body.operations if inner.name == "tensor.extract"]
            found.update({widened(table) or table: None for table in tables})
    return [value for value in found if value in dispatch.tensors]


def _flops(dispatch: Dispatch) -> Expr:
    if dispatch.kind == "attention":
        parts = attention_in(dispatch)
        return sum((2 * product(c.generic.loop_sizes(dispatch.shapes)) for c in (parts.scores, parts.values)), sympy.Integer(0))
    if dispatch.kind == "contraction":
        return 2 * product(contraction_in(dispatch).generic.loop_sizes(dispatch.shapes))
    total: Expr = sympy.Integer(0)
    for op in dispatch.block.operations:
        if op.name == "linalg.generic" and not is_fill(op.operation):
            generic = Generic(op.operation)
            arithmetic = sum(1 for inner in generic.body.operations if inner.name.endswith("f") or inner.name.startswith("math."))
            total += arithmetic * product(generic.loop_sizes(dispatch.shapes))
    return total
