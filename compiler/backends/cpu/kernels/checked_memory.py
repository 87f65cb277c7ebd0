"""Checks put into plain loops over memrefs: what data decides never reads or writes outside, and never traps.

Upstream's lowerings (tm_tensor to loops, linalg to loops) and loops over elements trust every index. Here each load and store at an index
that data decides is put under a check; where it fails the code of the error is stored, and nothing is read or written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.indices import depends_on_data
from llmos.compiler.ir.bindings import ir
from llmos.runtime.errors import UnsupportedError
from llmos.runtime.native.abi import INDEX_OUT_OF_RANGE

_PLACES = frozenset({"memref.subview", "memref.reinterpret_cast", "memref.alloc", "memref.alloca"})  # sizes and offsets as operands
_DIVISIONS = frozenset(f"arith.{name}" for name in ("divsi", "divui", "remsi", "remui", "floordivsi", "ceildivsi", "ceildivui"))


def add_checks(func: ir.Operation) -> None:
    """Appends an argument to `func`, the address of the error code (!llvm.ptr), and puts what data decides under checks that set it.

    Raises UnsupportedError where data decides the place or the size of a buffer.
    """
    with func.context, ir.Location.unknown() as unknown:
        pointer = ir.Type.parse("!llvm.ptr")
        error = func.regions[0].blocks[0].add_argument(pointer, unknown)
        kind = ir.FunctionType(ir.TypeAttr(func.attributes["function_type"]).value)
        func.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get([*kind.inputs, pointer], kind.results))
        for op in list(_ops_in(func)):
            if op.name in _PLACES and any(depends_on_data(each) for each in op.operands if isinstance(each.type, ir.IndexType)):
                raise UnsupportedError("data decides the size of a temporary or a part of one")
            if op.name in ("memref.load", "memref.store"):
                _check_access(op, error)
            elif op.name in _DIVISIONS and depends_on_data(op.operands[1]):
                _check_divisor(op)


def _ops_in(op: ir.Operation) -> Iterator[ir.Operation]:
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation
                yield from _ops_in(inner.operation)


def _check_access(op: ir.Operation, error: Value) -> None:
    first = 1 if op.name == "memref.load" else 2
    memref, indices = op.operands[first - 1], list(op.operands)[first:]
    unknown = [axis for axis, index in enumerate(indices) if depends_on_data(index)]
    if not unknown:
        return
    with ir.InsertionPoint(op):
        inside = [_is_inside(memref, axis, indices[axis]) for axis in unknown]
        condition = inside[0]
        for each in inside[1:]:
            condition = _op("arith.andi", [condition, each], condition.type)
        kinds = [result.type for result in op.results]
        branch = ir.Operation.create("scf.if", results=kinds, operands=[condition], regions=2)
    _fill(branch.regions[0], lambda: list(op.clone().results))
    _fill(branch.regions[1], lambda: _report(error, kinds))
    for old, new in zip(op.results, branch.results, strict=True):
        old.replace_all_uses_with(new)
    op.erase()


def _is_inside(memref: Value, axis: int, index: Value) -> Value:
    kind = ir.MemRefType(memref.type)
    if kind.is_dynamic_dim(axis):
        size = _op("memref.dim", [memref, _constant(ir.IndexType.get(), axis)], ir.IndexType.get())
    else:
        size = _constant(ir.IndexType.get(), kind.get_dim_size(axis))
    return _compare("ult", index, size)


def _report(error: Value, kinds: Sequence[ir.Type]) -> list[Value]:
    """Stores the code; what a load then gives."""
    code = _constant(ir.IntegerType.get_signless(32), INDEX_OUT_OF_RANGE)
    _op("llvm.store", [code, error], None, alignment=ir.IntegerAttr.get(ir.IntegerType.get_signless(64), 4))
    return [_zero(kind) for kind in kinds]


def _zero(kind: ir.Type) -> Value:
    if isinstance(kind, ir.ComplexType):
        part = ir.FloatAttr.get(kind.element_type, 0.0)
        return _op("complex.constant", [], kind, value=ir.ArrayAttr.get([part, part]))
    return _constant(kind, 0)


def _check_divisor(op: ir.Operation) -> None:
    """By 0 gives 0, and the lowest number by -1 wraps, as everywhere in kernels: an integer division never traps."""
    a, divisor = op.operands
    kind = op.results[0].type
    with ir.InsertionPoint(op):
        zero, one = _constant(kind, 0), _constant(kind, 1)
        by_zero = _compare("eq", divisor, zero)
        traps = by_zero
        if not op.name.endswith("ui"):
            by_minus_one = _compare("eq", divisor, _constant(kind, -1))
            traps = _op("arith.ori", [by_zero, by_minus_one], by_zero.type)
        op.operands[1] = _op("arith.select", [traps, one, divisor], kind)
    with ir.InsertionPoint.after(op):
        made = op.results[0]
        if not op.name.endswith("ui"):
            opposite = zero if op.name == "arith.remsi" else _op("arith.subi", [zero, a], kind)
            made = _op("arith.select", [by_minus_one, opposite, made], kind)
        made = _op("arith.select", [by_zero, zero, made], kind)
        first = made.owner.operation
    op.results[0].replace_all_uses_except(made, [first] if op.name.endswith("ui") else [first, first.operands[2].owner.operation])


def _op(name: str, operands: Sequence[Value], result: ir.Type | None, **attributes: ir.Attribute) -> Value:
    made = ir.Operation.create(name, results=[] if result is None else [result], operands=list(operands), attributes=attributes)
    return made.results[0] if result is not None else made


def _constant(kind: ir.Type, number: int) -> Value:
    is_integer = isinstance(kind, (ir.IntegerType, ir.IndexType))
    value = ir.IntegerAttr.get(kind, number) if is_integer else ir.FloatAttr.get(kind, float(number))
    return _op("arith.constant", [], kind, value=value)


def _compare(predicate: str, a: Value, b: Value) -> Value:
    number = {"eq": 0, "ult": 6}[predicate]
    i1, i64 = ir.IntegerType.get_signless(1), ir.IntegerType.get_signless(64)
    return _op("arith.cmpi", [a, b], i1, predicate=ir.IntegerAttr.get(i64, number))


def _fill(region: ir.Region, emit: Callable[[], list[Value]]) -> None:
    with ir.InsertionPoint(region.blocks.append()):
        ir.Operation.create("scf.yield", operands=emit())
