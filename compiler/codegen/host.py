"""The host functions of an entry: its calls, the sizes of its outputs, and the conditions on sizes.

The first's signature is TVM FFI's (runtime/native/include/llmos/abi.h); runtime/native/abi.py has the header's numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.codegen.builder import Builder, Sizes
from llmos.compiler.codegen.host_calls import CallEmitter, EntryPlan, branch
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import name_of
from llmos.compiler.ir.guards import Guard, guards_of
from llmos.compiler.ir.sizes import SymbolTable
from llmos.runtime.native.abi import BAD_ARGUMENTS


def emit_host(module: ir.Module, plan: EntryPlan, calls: type[CallEmitter]) -> None:
    """Append `__tvm_ffi_<entry>`, `__llmos_shapes_<entry>` and, where sizes must satisfy something, `__llmos_guards_<entry>`.

    calls: how the backend starts kernels.
    """
    name = name_of(plan.main)
    _emit_entry(module, plan, calls, f"__tvm_ffi_{name}")
    _emit_shapes(module, plan, f"__llmos_shapes_{name}")
    if guards := guards_of(plan.main.parent, plan.table):
        _emit_guards(module, plan, f"__llmos_guards_{name}", guards)


def _emit_entry(module: ir.Module, plan: EntryPlan, calls: type[CallEmitter], name: str) -> None:
    """What a caller calls; it returns a code."""
    ptr, i32 = ir.Type.parse("!llvm.ptr"), ir.IntegerType.get_signless(32)
    block = _function(module, name, [ptr, ptr, i32, ptr], [i32])
    context, args, count, _ = block.arguments
    checked = block.create_after()
    failed = checked.create_after(i32)
    with ir.InsertionPoint(block):
        expected = ir.Operation.create(
            "arith.constant", results=[i32], attributes={"value": ir.IntegerAttr.get(i32, plan.num_arguments)}
        ).results[0]
        bad = ir.Operation.create("arith.constant", results=[i32], attributes={"value": ir.IntegerAttr.get(i32, BAD_ARGUMENTS)}).results[0]
        same = ir.Operation.create(
            "arith.cmpi",
            results=[ir.IntegerType.get_signless(1)],
            operands=[count, expected],
            attributes={"predicate": ir.IntegerAttr.get(ir.IntegerType.get_signless(64), 0)},
        ).results[0]
        branch(same, checked, [], failed, [bad])
    with ir.InsertionPoint(failed):
        ir.Operation.create("func.return", operands=[failed.arguments[0]])
    with ir.InsertionPoint(checked):
        b = Builder(checked, 1)
        b.set_anchor(ir.Operation.create("arith.constant", results=[b.i32], attributes={"value": ir.IntegerAttr.get(b.i32, 0)}))
        emitter = calls.of(plan, b, context, args, failed)
    emitter.emit(checked)


def _emit_shapes(module: ir.Module, plan: EntryPlan, name: str) -> None:
    """The sizes of the outputs, one after the other."""
    ptr = ir.Type.parse("!llvm.ptr")
    block = _function(module, name, [ptr, ptr], [])
    out = block.arguments[1]
    with ir.InsertionPoint(block):
        b, sizes = _sizes_from(block, plan.table)
        dims = [plan.table.upper_bound(dim) for shape in plan.result_shapes for dim in shape]
        for i, dim in enumerate(dims):
            b.store(sizes(dim), b.address(out, b.index(i), b.i64), 8)
        ir.Operation.create("func.return")


def _emit_guards(module: ir.Module, plan: EntryPlan, name: str, guards: Sequence[Guard]) -> None:
    """The number of the first condition that doesn't hold, or -1."""
    block = _function(module, name, [ir.Type.parse("!llvm.ptr")], [ir.IntegerType.get_signless(64)])
    with ir.InsertionPoint(block):
        b, sizes = _sizes_from(block, plan.table)
        found = b.index(-1)
        for number, guard in reversed(list(enumerate(guards))):
            holds = b.compare(guard.predicate, sizes(guard.left), sizes(guard.right))
            found = b.select(holds, found, b.index(number))
        ir.Operation.create("func.return", operands=[found])


def _sizes_from(block: ir.Block, table: SymbolTable) -> tuple[Builder, Sizes]:
    """At the start of a function whose first argument points to the symbols, in manifest order."""
    b = Builder(block, 1)
    b.set_anchor(ir.Operation.create("arith.constant", results=[b.i32], attributes={"value": ir.IntegerAttr.get(b.i32, 0)}))
    with b.at_entry():
        places = [b.address(block.arguments[0], b.index(i), b.i64) for i in range(len(table.symbols))]
        symbols = {symbol.expr: b.load(place, b.i64, 8) for symbol, place in zip(table.symbols, places, strict=True)}
    return b, Sizes(b, symbols)


def _function(module: ir.Module, name: str, kinds: Sequence[ir.Type], results: Sequence[ir.Type]) -> ir.Block:
    with ir.InsertionPoint(module.body):
        func = ir.Operation.create(
            "func.func",
            regions=1,
            attributes={
                "sym_name": ir.StringAttr.get(name),
                "function_type": ir.TypeAttr.get(ir.FunctionType.get(list(kinds), list(results))),
            },
        )
    return func.regions[0].blocks.append(*kinds)
