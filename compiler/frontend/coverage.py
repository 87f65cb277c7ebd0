"""Coverage report of a model (`llmos check`): which ops can be compiled and how, each with its source line, without compiling."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental.symbolic_shapes
from torch import fx

from llmos.compiler.analysis.quantization import summary
from llmos.compiler.frontend.bounds import require_bounds
from llmos.compiler.frontend.builder import Builder
from llmos.compiler.frontend.dims import Dim, IndexValues, Sizes
from llmos.compiler.frontend.exporting import Source, check_outputs, export, over_real_numbers, program_inputs
from llmos.compiler.frontend.fallback_subgraphs import FallbackSubgraphs
from llmos.compiler.frontend.graph import GraphLowering, op_name, source_line
from llmos.compiler.frontend.mlir import foreign_ops, import_mlir, parse
from llmos.compiler.frontend.ops.table import IGNORED, table
from llmos.compiler.frontend.symbols import find_symbols
from llmos.compiler.ir.bindings import arith, context, ir
from llmos.compiler.ir.limits import require_addressable
from llmos.compiler.ir.parsing import read_text
from llmos.runtime.errors import LlmosError, UnsupportedError, UserError

DIRECT, FALLBACK, NOTHING = "linalg", "torch-mlir", "nothing to do"
NOTE = "note"  # a row that is no op: a restriction of the compiled model


@dataclass(frozen=True)
class Row:
    """One op of the model. `how` is "linalg" (our own lowering), "torch-mlir", "nothing to do" or "note"; empty where unsupported."""

    op: str
    supported: bool
    how: str
    count: int
    where: str
    reason: str = ""


def check(source: Source, example_args: Sequence[Any] | None = None, dynamic_shapes: Any = None) -> list[Row]:
    """Report every op of a torch, .onnx or .mlir model, unsupported ones first, then by name. Arguments as `import_torch`'s.

    Raises UserError for a missing or damaged file, UnsupportedError for a model that can't be exported.
    """
    path = Path(source) if isinstance(source, str | Path) else None
    if path is not None and not path.is_file():
        raise UserError(f"{path}: no such file")
    if path is not None and path.suffix == ".mlir":
        return _sorted(_check_mlir(path))
    if path is not None and path.suffix == ".onnx":
        return _sorted(_check_onnx(path))
    return _sorted(_check_torch(source, example_args, dynamic_shapes))


def _sorted(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.supported, row.op, row.where))


def _check_mlir(path: Path) -> list[Row]:
    rows = [Row(op, False, "", 1, where, "the dialect isn't supported") for op, where in foreign_ops(parse(read_text(path), context()))]
    if rows:
        return rows
    try:
        module = import_mlir(path).module
        require_addressable(module)
    except UnsupportedError as error:
        return [Row("(module)", False, "", 1, "", str(error))]
    return _quantization(module)


def _quantization(module: ir.Module) -> list[Row]:
    """A row that says how many ops quantize and dequantize, and how; none where none does."""
    found = summary(module)
    return [Row("(quantization)", True, NOTE, 1, "", f"quantization: {found}")] if found else []


def _check_onnx(path: Path) -> list[Row]:
    return check_onnx(path)


def check_onnx(source: Any, bind: Mapping[str, Any] | None = None, example_args: Sequence[Any] | None = None) -> list[Row]:
    """As `check`, for an .onnx file or a ModelProto; `bind` and `example_args` as `import_onnx`'s.

    Reports all unknown nodes before exporting; an error of the export becomes a row.
    """
    from llmos.compiler.frontend.onnx import export_onnx, unsupported_ops

    problems = [Row(each.op, False, "", 1, each.node, each.reason) for each in unsupported_ops(source)]
    if problems:
        return _sorted(problems)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each warning becomes a row
            exported = export_onnx(source, bind=bind, example_args=example_args)
    except UserError as error:
        place = next((note.removeprefix("in ONNX node ") for note in getattr(error, "__notes__", ())), "")
        return [Row("(export)", False, "", 1, place, str(error))]
    notes = [Row("(dimensions)", True, NOTE, 1, "", note) for note in exported.notes]
    return _sorted(notes + _check_torch(exported.program, None, None))


def _check_torch(source: Any, example_args: Sequence[Any] | None, dynamic_shapes: Any) -> list[Row]:
    program = export(source, example_args, dynamic_shapes)
    rows = []
    try:
        check_outputs(program)
        program = over_real_numbers(program)
    except LlmosError as error:
        rows.append(Row("(output)", False, "", 1, "", str(error)))
    inputs = program_inputs(program)
    sizes = find_symbols(program, [each.node for each in inputs if each.kind == "input"], dynamic_shapes)
    return rows + _dry_run(program.graph, [each.node for each in inputs], sizes)


def _dry_run(graph: fx.Graph, inputs: Sequence[fx.Node], sizes: Sizes) -> list[Row]:
    """Lower the graph op by op into a discarded module; the error of an op becomes its row."""
    counts: Counter[Row] = Counter()
    with context() as ctx, ir.Location.unknown():
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            symbols = {symbol.expr: arith.ConstantOp(ir.IndexType.get(), 1).result for symbol in sizes.symbols}
            anchor = arith.ConstantOp(ir.IndexType.get(), 0)
            builder = Builder(sizes, IndexValues(anchor.operation, symbols))
            checker = _Checker(GraphLowering(builder, sizes, FallbackSubgraphs()), ctx)
            for node in inputs:
                checker.stand_in(node)
            for node in graph.nodes:
                if node.op == "call_function" and (row := checker.row(node)) is not None:
                    counts[row] += 1
        rows = [Row(row.op, row.supported, row.how, count, row.where, row.reason) for row, count in counts.items()]
        rows += _quantization(module)
        try:
            require_bounds(sizes, checker.output_dims(graph))
            require_addressable(module)
        except UserError as error:
            rows.append(Row("(sizes)", False, "", 1, "", str(error)))
        return rows


@dataclass(frozen=True)
class _Checker:
    """Lowers each op; a failed one is replaced by a placeholder of its result's shape, so that later ops are lowered too."""

    lowering: GraphLowering
    ctx: ir.Context

    def row(self, node: fx.Node) -> Row | None:
        name, where = op_name(node), source_line(node)[2:-1]
        if name in IGNORED:
            return Row(name, True, NOTHING, 1, "")
        if not node.users or any(self._is_pending(each) for each in node.all_input_nodes):
            self.stand_in(node)  # not needed, or caused by an op that is already reported
            return None
        before = self.lowering.fallback_subgraphs.count
        try:
            self.lowering.lower(node)
            is_fallback = self.lowering.fallback_subgraphs.count > before
            if is_fallback:
                self.lowering.fallback_subgraphs.try_last(self.ctx)
        except LlmosError as error:
            self.stand_in(node)
            return Row(name, False, "", 1, where, str(error).removeprefix(f"{name}: ").replace(source_line(node), ""))
        if not name.startswith(("aten.", "llmos.", "quantized_decomposed.")):
            return None
        return Row(name, True, FALLBACK if is_fallback else DIRECT if name in table() else NOTHING, 1, where if is_fallback else "")

    def stand_in(self, node: fx.Node) -> None:
        self.lowering.stand_in(node)

    def output_dims(self, graph: fx.Graph) -> list[Dim]:
        """Return the sizes of the outputs, without those that depend on unsupported data-dependent ops."""
        (outputs,) = (node.args[0] for node in graph.nodes if node.op == "output")
        values = [each.meta.get("val") for each in outputs if isinstance(each, fx.Node)]
        sizes = self.lowering.sizes
        dims = [sizes.dim(size) for val in values if isinstance(val, torch.Tensor) for size in val.shape]
        return [dim for dim in dims if not sizes.is_pending(dim)]

    def _is_pending(self, node: fx.Node) -> bool:
        """Whether a value, or its size, depends on data that an unsupported op should have read."""
        val = node.meta.get("val")
        values = val.shape if isinstance(val, torch.Tensor) else [val]
        sizes = self.lowering.sizes
        return any(sizes.is_pending(sizes.dim(each)) for each in values if isinstance(each, torch.SymInt))


def format_rows(rows: Sequence[Row]) -> str:
    """Format a table for the terminal: unsupported ops in full, then the supported ones with their counts."""
    lines = [
        f"unsupported  {row.op}{f'  ×{row.count}' if row.count > 1 else ''}  {row.where}\n             {row.reason}"
        for row in rows
        if not row.supported
    ]
    lines += [f"{NOTE:<13}{row.reason}" for row in rows if row.how == NOTE]
    totals: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.supported and row.how != NOTE:
            totals[row.op, row.how] += row.count
    lines += [f"{how:<13}{op}  ×{count}" for (op, how), count in sorted(totals.items())]
    return "\n".join(lines)
