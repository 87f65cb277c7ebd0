"""Validation of llmos attributes in hand-written MLIR text: they are complete, well-formed and match the types they annotate."""

from __future__ import annotations

from collections.abc import Collection

from llmos.compiler.ir.attributes import COMPUTED, DTYPE, INPUT, KIND, NAME, SHAPE, SYMBOLS, WEIGHT
from llmos.compiler.ir.bindings import func, ir
from llmos.compiler.ir.functions import is_public
from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.errors import UserError

_ADVICE = "see the linalg stage in docs/architecture.md"


def check_symbols(module: ir.Module) -> None:
    """Raise UserError if the table of symbols or of computed sizes, where present, is malformed or lacks a range."""
    _check_computed(module)
    if SYMBOLS not in module.operation.attributes:
        return
    table = module.operation.attributes[SYMBOLS]
    if not isinstance(table, ir.DictAttr):
        raise UserError(f"{SYMBOLS} is not a dictionary of ranges; {_ADVICE}")
    for named in (table[i] for i in range(len(table))):
        bounds = list(named.attr) if isinstance(named.attr, ir.DenseI64ArrayAttr) else []
        if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
            raise UserError(f"{SYMBOLS} gives {named.name} no range [min, max]; {_ADVICE}")


def _check_computed(module: ir.Module) -> None:
    if COMPUTED not in module.operation.attributes:
        return
    table = module.operation.attributes[COMPUTED]
    if not isinstance(table, ir.DictAttr):
        raise UserError(f"{COMPUTED} is not a dictionary of sizes; {_ADVICE}")
    for named in (table[i] for i in range(len(table))):
        fields = ir.DictAttr(named.attr) if isinstance(named.attr, ir.DictAttr) else ir.DictAttr.get({}, module.context)
        limits = list(fields["range"]) if "range" in fields and isinstance(fields["range"], ir.DenseI64ArrayAttr) else []
        if len(limits) != 2 or limits[0] > limits[1]:
            raise UserError(f"{COMPUTED} gives {named.name} no range [min, max]; {_ADVICE}")
        for key in ("bound", "equals"):
            _text(f"{COMPUTED}: {named.name}", fields, key)


def check_annotations(module: ir.Module, weights: Collection[str]) -> None:
    """Raise UserError for the first argument or result of the public function whose attributes don't match it."""
    main = next((op for op in module.body.operations if isinstance(op, func.FuncOp) and is_public(op)), None)
    if main is None or main.is_external:
        raise UserError(f"the module has no public function with a body; {_ADVICE}")
    for attribute, values in (("arg_attrs", main.type.inputs), ("res_attrs", main.type.results)):
        if attribute not in main.attributes and len(values):
            raise UserError(f"{main.name.value} has no {attribute}; {_ADVICE}")
    for number, (kind, given) in enumerate(zip(main.type.inputs, _dicts(main, "arg_attrs"), strict=False)):
        _check_argument(f"argument {number}", kind, given, weights)
    for number, (kind, given) in enumerate(zip(main.type.results, _dicts(main, "res_attrs"), strict=False)):
        _check_tensor(f"result {number}", kind, given)


def _dicts(main: func.FuncOp, attribute: str) -> list[ir.DictAttr]:
    return [ir.DictAttr(each) for each in ir.ArrayAttr(main.attributes[attribute])] if attribute in main.attributes else []


def _check_argument(what: str, kind: ir.Type, given: ir.DictAttr, weights: Collection[str]) -> None:
    _check_tensor(what, kind, given)
    role = _text(what, given, KIND)
    if role == WEIGHT:
        if _text(what, given, NAME) not in weights:
            raise UserError(f"{what} is the weight {_text(what, given, NAME)!r}, which is not among the weights beside the text")
    elif role != INPUT:
        raise UserError(f"{what}: {KIND} is {role!r}, not {INPUT} or {WEIGHT}; {_ADVICE}")
    elif SHAPE not in given or not isinstance(given[SHAPE], ir.ArrayAttr):
        raise UserError(f"{what} has no {SHAPE}; {_ADVICE}")
    else:
        _check_shape(what, ir.RankedTensorType(kind), ir.ArrayAttr(given[SHAPE]))


def _check_shape(what: str, kind: ir.RankedTensorType, shape: ir.ArrayAttr) -> None:
    if len(shape) != kind.rank:
        raise UserError(f"{what}: {SHAPE} has {len(shape)} entries for {kind}")
    for axis, entry in enumerate(shape):
        fits = isinstance(entry, ir.StringAttr) if kind.is_dynamic_dim(axis) else _is_number(entry, kind.get_dim_size(axis))
        if not fits:
            raise UserError(f"{what}: entry {axis} of {SHAPE}, {entry}, doesn't fit {kind}")


def _is_number(entry: ir.Attribute, size: int) -> bool:
    return isinstance(entry, ir.IntegerAttr) and int(ir.IntegerAttr(entry).value) == size


def _check_tensor(what: str, kind: ir.Type, given: ir.DictAttr) -> None:
    if not isinstance(kind, ir.RankedTensorType):
        raise UserError(f"{what} is {kind}, not a ranked tensor")
    _text(what, given, NAME)
    dtype = _text(what, given, DTYPE)
    if dtype not in DTYPES:
        raise UserError(f"{what}: {DTYPE} is {dtype!r}, not one of {', '.join(DTYPES)}")


def _text(what: str, given: ir.DictAttr, key: str) -> str:
    if key not in given or not isinstance(given[key], ir.StringAttr):
        raise UserError(f"{what} has no {key}; {_ADVICE}")
    return str(ir.StringAttr(given[key]).value)
