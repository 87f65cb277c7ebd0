"""Imports MLIR text: linalg, tensor, arith and tosa modules, as the linalg stage."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmos.compiler.frontend.annotations import check_annotations, check_symbols
from llmos.compiler.frontend.cleanup import ALLOWED, check_dialects, drop_assertions
from llmos.compiler.frontend.model import ImportedModel, with_quantization
from llmos.compiler.ir.attributes import INPUT, KIND, SYMBOLS, WEIGHT, items, ranges_attribute, tensor_attributes
from llmos.compiler.ir.bindings import PassManager, arith, context, func, ir, linalg, tensor
from llmos.compiler.ir.functions import is_public, make_private
from llmos.compiler.ir.parsing import read_text, require_shallow
from llmos.compiler.ir.weights import Weight
from llmos.runtime.errors import UnsupportedError, UserError

MAX_SIZE = 2**31 - 1  # the largest size of an unbounded dimension

# The order in which upstream lowers tosa.
TOSA_TO_LINALG = (
    "builtin.module(func.func(tosa-optional-decompositions,canonicalize,tosa-infer-shapes,tosa-make-broadcastable,tosa-to-linalg-named,"
    "canonicalize,tosa-layerwise-constant-fold,tosa-make-broadcastable,tosa-to-linalg,tosa-to-tensor,tosa-to-arith{include-apply-rescale=true},"
    "tosa-to-scf,canonicalize,cse))"
)
_DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "i1": "bool", "ui8": "uint8",
}  # fmt: skip


def import_mlir(source: str | Path, *, name: str = "model", ir_context: ir.Context | None = None) -> ImportedModel:
    """Import a module with one public function on ranked tensors, from a path or from text.

    Arguments without llmos attributes are inputs named arg0, arg1, ..., their dynamic dimensions are symbols d0, d1, ...; tensor
    constants become weights. Raises UserError for text that isn't a valid module, UnsupportedError for dialects that can't be compiled.
    """
    module = parse(_text(source), ir_context or context())
    with module.context, ir.Location.unknown():
        check_symbols(module)
        function = _entry(module)
        _lower_tosa(module)
        drop_assertions(module)
        _check_types(function)
        weights = _constants_to_weights(function)
        _annotate(module, function, weights)
        check_annotations(module, weights)
        check_dialects(module)
    return ImportedModel(name=name, module=module, weights=weights, metadata=with_quantization({}, module))


def _text(source: str | Path) -> str:
    if isinstance(source, str) and "\n" in source:
        return source
    return read_text(Path(source))


def parse(text: str, ctx: ir.Context) -> ir.Module:
    """Parse and verify text. Raises UserError with the first error, UnsupportedError for a dialect that isn't registered."""
    foreign = sorted(
        set(re.findall(r"\b(stablehlo|mhlo|chlo|onnx|tf|tfl|torch)\.\w+", text)) - ({"torch"} if "!torch" not in text else set())
    )
    unknown = [dialect for dialect in foreign if dialect == "torch" or not _is_registered(ctx, dialect)]
    if unknown:
        raise UnsupportedError(
            f"the dialect {', '.join(unknown)} can't be compiled from text; lower it to linalg or tosa first, or give the original model"
        )
    require_shallow(text)
    try:
        return ir.Module.parse(text, ctx)
    except ir.MLIRError as error:
        raise UserError(f"not a valid MLIR module: {_first_error(error)}") from None


def _is_registered(ctx: ir.Context, dialect: str) -> bool:
    try:
        _ = ctx.dialects[dialect]
    except (IndexError, KeyError):
        return False
    return True


def _first_error(error: ir.MLIRError) -> str:
    for diagnostic in error.error_diagnostics:
        message = str(diagnostic.message).split(". If this is intended")[0]  # mentions a flag that llmos lacks
        return f"{message} ({place(diagnostic.location)})"
    return str(error).splitlines()[0]


def place(location: ir.Location) -> str:
    """Return the line and the column of an op in unnamed text; the location itself where it has none."""
    found = re.search(r":(\d+):(\d+)", str(location))
    return f"line {found[1]}, column {found[2]}" if found else str(location)


def _entry(module: ir.Module) -> func.FuncOp:
    """Find the one public function and rename it to `main`."""
    functions = [op for op in module.body.operations if isinstance(op, func.FuncOp)]
    public = list(filter(is_public, functions))
    chosen = next((op for op in public if op.name.value == "main"), public[0] if len(public) == 1 else None)
    if chosen is None:
        names = ", ".join(op.name.value for op in public) or "none"
        raise UserError(f"the module needs one public function, or one called main; it has {names}")
    for other in public:
        if other.name.value != chosen.name.value:
            make_private(other)
    chosen.attributes["sym_name"] = ir.StringAttr.get("main")
    if len(functions) > 1:
        _run_upstream("builtin.module(inline,symbol-dce)", module)
    return next(op for op in module.body.operations if isinstance(op, func.FuncOp) and op.name.value == "main")


def _run_upstream(pipeline: str, module: ir.Module) -> None:
    try:
        PassManager.parse(pipeline).run(module.operation)
    except ir.MLIRError as error:
        raise UnsupportedError(f"the module can't be lowered: {_first_error(error)}") from None


def _walk(root: ir.Operation, visit: Callable[[ir.Operation], None]) -> None:
    def go_on(op: ir.Operation) -> ir.WalkResult:
        visit(op)
        return ir.WalkResult.ADVANCE

    root.walk(go_on)


def _lower_tosa(module: ir.Module) -> None:
    names: set[str] = set()
    _walk(module.operation, lambda op: names.add(op.name))
    if not any(name.startswith("tosa.") for name in names):
        return
    _run_upstream(TOSA_TO_LINALG, module)


def _check_types(function: func.FuncOp) -> None:
    kind = ir.FunctionType(function.type)
    for each in [*kind.inputs, *kind.results]:
        if not isinstance(each, ir.RankedTensorType) or str(each.element_type) not in _DTYPES:
            raise UnsupportedError(
                f"the type {each} of an argument or result isn't supported: use ranked tensors of {', '.join(sorted(_DTYPES))}"
            )


def _constants_to_weights(function: func.FuncOp) -> dict[str, Weight]:
    """Turn tensor constants into arguments, and splat constants into fills."""
    found: list[ir.Operation] = []
    _walk(function.operation, lambda op: found.append(op) if _is_tensor_constant(op) else None)
    weights: dict[str, Weight] = {}
    for op in found:
        value, kind = op.attributes["value"], ir.RankedTensorType(op.results[0].type)
        if isinstance(value, ir.DenseElementsAttr) and value.is_splat:
            replacement = _fill(op, value, kind)
        else:
            name = f"constant{len(weights)}"
            weights[name] = _weight(value, kind)
            replacement = function.entry_block.add_argument(kind, ir.Location.unknown())
        op.results[0].replace_all_uses_with(replacement)
        op.erase()
    results = ir.FunctionType(function.type).results
    inputs = [argument.type for argument in function.entry_block.arguments]
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, results))
    return weights


def _is_tensor_constant(op: ir.Operation) -> bool:
    return op.name in ("arith.constant", "tosa.const") and isinstance(op.results[0].type, ir.RankedTensorType)


def _fill(op: ir.Operation, value: ir.DenseElementsAttr, kind: ir.RankedTensorType) -> ir.Value:
    with ir.InsertionPoint(op):
        scalar = arith.ConstantOp(kind.element_type, value.get_splat_value()).result
        empty = tensor.EmptyOp(list(kind.shape), kind.element_type).result
        return linalg.fill(scalar, outs=[empty])


def _weight(value: ir.Attribute, kind: ir.RankedTensorType) -> Weight:
    dtype, shape = _DTYPES[str(kind.element_type)], tuple(kind.shape)
    array = _array(value, dtype, shape)
    return Weight(dtype, shape, lambda: array)


def _array(value: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    stored = np.dtype("uint16" if dtype == "bfloat16" else dtype)
    if isinstance(value, ir.DenseElementsAttr):
        return _dense_array(value, stored).reshape(shape)
    try:  # dense_resource<...>: raw bytes stored outside of the text
        return np.frombuffer(bytes(memoryview(value)), dtype=stored).reshape(shape)
    except (TypeError, ValueError):
        raise UnsupportedError(f"a constant kept as {str(value)[:40]}... can't be read; write it as dense<...>") from None


def _dense_array(value: Any, stored: np.dtype[Any]) -> np.ndarray:
    if stored == np.bool_:
        return np.array([bool(each) for each in value], dtype=np.bool_)
    try:
        return np.array(value).astype(stored, copy=False) if stored != np.uint16 else np.frombuffer(memoryview(value), np.uint16)
    except (TypeError, ValueError, RuntimeError):
        return np.array([_bits(each) for each in value], dtype=stored)


def _bits(value: float) -> int:
    """Return the bfloat16 bit pattern of a float (exact, since the value was a bfloat16)."""
    return int(np.float32(value).view(np.uint32)) >> 16


def _annotate(module: ir.Module, function: func.FuncOp, weights: Mapping[str, Weight]) -> None:
    """Add the attributes of docs/architecture.md that the text lacks."""
    arguments = list(function.entry_block.arguments)
    given = _given(function, len(arguments) - len(weights))
    ranges = _given_symbols(module)
    attributes = []
    for position, argument in enumerate(arguments[: len(arguments) - len(weights)]):
        attributes.append(_input_attributes(position, ir.RankedTensorType(argument.type), given[position], ranges))
    for name, weight in weights.items():
        attributes.append(tensor_attributes(name, weight.dtype, kind=WEIGHT))
    function.arg_attrs = ir.ArrayAttr.get(attributes)
    results = ir.FunctionType(function.type).results
    labels = ["output"] if len(results) == 1 else [f"output{i}" for i in range(len(results))]
    if "res_attrs" not in function.attributes:
        named = [tensor_attributes(label, _dtype(kind)) for label, kind in zip(labels, results, strict=True)]
        function.attributes["res_attrs"] = ir.ArrayAttr.get(named)
    module.operation.attributes[SYMBOLS] = ranges_attribute(ranges)


def _dtype(kind: Any) -> str:
    return _DTYPES[str(kind.element_type)]


def _given(function: func.FuncOp, count: int) -> list[dict[str, ir.Attribute]]:
    if "arg_attrs" not in function.attributes:
        return [{} for _ in range(count)]
    return [items(each) for each in ir.ArrayAttr(function.attributes["arg_attrs"])]


def _given_symbols(module: ir.Module) -> dict[str, tuple[int, int]]:
    if SYMBOLS not in module.operation.attributes:
        return {}
    return {name: tuple(ir.DenseI64ArrayAttr(bounds)) for name, bounds in items(module.operation.attributes[SYMBOLS]).items()}


def _input_attributes(
    position: int, kind: ir.RankedTensorType, given: Mapping[str, ir.Attribute], ranges: dict[str, tuple[int, int]]
) -> ir.DictAttr:
    if KIND in given:
        return ir.DictAttr.get(dict(given))
    dims: list[int | str] = []
    for axis in range(kind.rank):
        if not kind.is_dynamic_dim(axis):
            dims.append(kind.get_dim_size(axis))
            continue
        symbol = f"d{len(ranges)}"
        ranges[symbol] = (1, MAX_SIZE)
        dims.append(symbol)
    return tensor_attributes(f"arg{position}", _dtype(kind), kind=INPUT, shape=dims)


def foreign_ops(module: ir.Module) -> list[tuple[str, str]]:
    """Return the ops of dialects that can't be compiled, with their location in the text."""
    found: list[tuple[str, str]] = []

    def visit(op: ir.Operation) -> None:
        if op.name.split(".")[0] not in (*ALLOWED, "tosa", "cf"):
            found.append((op.name, place(op.location)))

    _walk(module.operation, visit)
    return found
