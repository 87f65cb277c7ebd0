"""Names that `--dynamic` gives to the dimensions that a front end left symbolic."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llmos.compiler.ir.attributes import COMPUTED, COMPUTES, GUARDS, SHAPE, SYMBOLS
from llmos.compiler.ir.bindings import ir
from llmos.runtime.errors import UserError

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def rename_symbols(module: ir.Module, names: Sequence[str]) -> None:
    """Gives the symbols of `module` other names, in the order in which the inputs first show them.

    Raises UserError where there are fewer symbols than names, or where a name would be that of another symbol.
    """
    attributes = module.operation.attributes
    found = [entry.name for entry in ir.DictAttr(attributes[SYMBOLS])] if SYMBOLS in attributes else []
    functions = [op for op in module.body.operations if op.operation.name == "func.func"]
    order = _in_order(functions, found)
    if len(names) > len(order):
        have = f"its dynamic dimensions are {', '.join(order)}" if order else "it has none: export it with dynamic shapes"
        raise UserError(f"--dynamic names {len(names)} dimensions ({', '.join(names)}) and the model has {len(order)}; {have}")
    renaming = dict(zip(order, names, strict=False))
    computed = {entry.name: ir.DictAttr(entry.attr) for entry in ir.DictAttr(attributes[COMPUTED])} if COMPUTED in attributes else {}
    clash = set(renaming.values()) & (set(order) - set(renaming) | set(computed))
    if clash:
        raise UserError(f"--dynamic: the model has another dimension that is called {sorted(clash)[0]}; name that one too")
    rename(module, renaming)


def rename(module: ir.Module, renaming: Mapping[str, str]) -> None:
    """Gives symbols and computed sizes of an imported module other names, wherever it says them."""
    attributes = module.operation.attributes
    with module.context, ir.Location.unknown():
        if SYMBOLS in attributes:
            ranges = ir.DictAttr(attributes[SYMBOLS])
            attributes[SYMBOLS] = ir.DictAttr.get({renaming.get(entry.name, entry.name): entry.attr for entry in ranges})
        if COMPUTED in attributes:
            computed = {renaming.get(each.name, each.name): ir.DictAttr(each.attr) for each in ir.DictAttr(attributes[COMPUTED])}
            attributes[COMPUTED] = ir.DictAttr.get({name: _renamed_texts(fields, renaming) for name, fields in computed.items()})
        if GUARDS in attributes:
            attributes[GUARDS] = ir.ArrayAttr.get([_renamed_dim(text, renaming) for text in ir.ArrayAttr(attributes[GUARDS])])
        for function in [op.operation for op in module.body.operations if op.operation.name == "func.func"]:
            for key in ("arg_attrs", "res_attrs"):
                if key in function.attributes:
                    function.attributes[key] = _renamed_all(ir.ArrayAttr(function.attributes[key]), renaming)
            for op in function.regions[0].blocks[0].operations:
                if COMPUTES in op.operation.attributes:
                    op.operation.attributes[COMPUTES] = _renamed_dim(op.operation.attributes[COMPUTES], renaming)


def _in_order(functions: Sequence[ir.OpView], symbols: Sequence[str]) -> list[str]:
    order: list[str] = []
    for function in functions:
        if "arg_attrs" not in function.operation.attributes:
            continue
        for argument in map(ir.DictAttr, ir.ArrayAttr(function.operation.attributes["arg_attrs"])):
            dims = ir.ArrayAttr(argument[SHAPE]) if SHAPE in argument else []
            for dim in map(str, dims):
                order += [name for name in _IDENTIFIER.findall(dim) if name in symbols and name not in order]
    return order


def _renamed_all(arguments: ir.ArrayAttr, renaming: Mapping[str, str]) -> ir.ArrayAttr:
    return ir.ArrayAttr.get([_renamed(ir.DictAttr(argument), renaming) for argument in arguments])


def _renamed(argument: ir.DictAttr, renaming: Mapping[str, str]) -> ir.DictAttr:
    entries = {entry.name: entry.attr for entry in argument}
    if SHAPE in entries:
        entries[SHAPE] = ir.ArrayAttr.get([_renamed_dim(dim, renaming) for dim in ir.ArrayAttr(entries[SHAPE])])
    return ir.DictAttr.get(entries)


def _renamed_texts(fields: ir.DictAttr, renaming: Mapping[str, str]) -> ir.DictAttr:
    return ir.DictAttr.get({entry.name: _renamed_dim(entry.attr, renaming) for entry in fields})


def _renamed_dim(dim: ir.Attribute, renaming: Mapping[str, str]) -> ir.Attribute:
    if not isinstance(dim, ir.StringAttr):
        return dim
    return ir.StringAttr.get(_IDENTIFIER.sub(lambda found: renaming.get(found[0], found[0]), dim.value))
