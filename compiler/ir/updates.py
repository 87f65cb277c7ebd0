"""Inputs that an entry updates: each has its new value among the function's results, and in memory lies where the input does.

The IR stays functional. A result marked UPDATES is no output of the entry: passes/update_in_place.py says which dispatches write straight
into the input, and the host function copies what lies elsewhere once all else is done.
"""

from __future__ import annotations

from llmos.compiler.ir.attributes import argument_attributes, result_attributes
from llmos.compiler.ir.bindings import ir

UPDATES = "llmos.updates"  # of a result of main: the name of the input whose new value it is
IN_PLACE = "llmos.in_place"  # of a dispatch function: the tensor operand whose memory its one result takes
WITHIN = "llmos.within"  # of a call: the argument of main in whose memory its one result lies
_FIRST_ARGUMENT = -(1 << 31)  # as a place of plan-memory: the memory of argument 0; those of the others follow downward


def argument_place(position: int) -> int:
    """The place of a result that lies in the memory of an argument of main."""
    return _FIRST_ARGUMENT - position


def argument_of(place: int) -> int | None:
    """The argument in whose memory a place is; None for a slot or an output."""
    return _FIRST_ARGUMENT - place if place <= _FIRST_ARGUMENT else None


def updated_arguments(main: ir.Operation) -> dict[int, int]:
    """By number of the result that is its new value: the position of each argument of a public function that is updated."""
    names = [_text(each, "llmos.name") if _text(each, "llmos.kind") == "input" else None for each in argument_attributes(main)]
    marked = [(number, _text(each, UPDATES)) for number, each in enumerate(result_attributes(main)) if UPDATES in each]
    return {number: names.index(name) for number, name in marked}


def output_numbers(main: ir.Operation) -> list[int]:
    """The results of a public function that are outputs of its entry, in order."""
    return [number for number, each in enumerate(result_attributes(main)) if UPDATES not in each]


def integer_of(op: ir.Operation, key: str) -> int | None:
    """The number of an attribute such as WITHIN or IN_PLACE; None without one."""
    return int(ir.IntegerAttr(op.attributes[key]).value) if key in op.attributes else None


def _text(attributes: dict[str, ir.Attribute], key: str) -> str:
    return str(ir.StringAttr(attributes[key]).value) if key in attributes else ""
