"""A weight that says at run time which products are quantized: `quant.switches`, int32, an element for each, 0 for float."""

from __future__ import annotations

from llmos.compiler.ir.attributes import WEIGHT, items, tensor_attributes
from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.passes.quant._generics import Read, after, axis_sizes, constant, elementwise

SWITCHES = "quant.switches"


def add_switches(entry: EntryFunc, num_products: int) -> None:
    """Append the argument, int32 [num_products]."""
    with entry.op.context, ir.Location.unknown():
        kind = ir.RankedTensorType.get([num_products], ir.IntegerType.get_signless(32))
        entry.add_argument(kind, items(tensor_attributes(SWITCHES, "int32", kind=WEIGHT)))


def switches_of(entry: EntryFunc) -> ir.Value | None:
    """Return the argument, if the module has it."""
    return next((each.value for each in entry.arguments.weights if each.name == SWITCHES), None)


def chosen(plain: ir.Value, quantized: ir.Value, switches: ir.Value, number: int) -> ir.Value:
    """Choose the quantized product where an element of the switches isn't 0, and let all that read the plain one read that."""
    with after(plain):
        reads = [Read.whole(plain), Read.whole(quantized), Read(switches, (ir.AffineExpr.get_constant(number),))]
        made = elementwise(reads, axis_sizes(plain), ir.F32Type.get(), _select)
    plain.replace_all_uses_except(made, made.owner.operation)
    return made


def _select(plain: ir.Value, quantized: ir.Value, switch: ir.Value) -> ir.Value:
    is_on = arith.cmpi(arith.CmpIPredicate.ne, switch, constant(0, switch.type))
    return arith.select(is_on, quantized, plain)
