"""Export of an ONNX module by torch.export, with as many declared dimensions dynamic as the graph allows."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from unittest import mock

import sympy
import torch
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes_config
from torch.fx.experimental.symbolic_shapes import DimConstraints

from llmos.compiler.frontend.dims import MAX_SIZE
from llmos.compiler.frontend.onnx.module import OnnxModule
from llmos.compiler.frontend.onnx.symbols import InputSpec, Range, dynamic_shapes, symbols_of, with_static
from llmos.runtime.errors import UserError

_PATCHING = threading.Lock()


@dataclass(frozen=True)
class Exported:
    """The program, its inputs with the remaining dynamic dimensions, and notes on the others."""

    program: ExportedProgram
    inputs: tuple[InputSpec, ...]
    notes: tuple[str, ...] = ()


def export_module(
    module: OnnxModule, specs: tuple[InputSpec, ...], ranges: Mapping[str, Range], examples: tuple[torch.Tensor, ...]
) -> Exported:
    """Export with every dimension dynamic if the graph allows it; else with guards, and a warning about narrowed or fixed dimensions."""
    try:
        return Exported(_traced(module, dynamic_shapes(specs, ranges), examples), specs)
    except UserError:
        raise
    except Exception as error:
        if not symbols_of(specs):
            raise
        reason = error
    exported = _with_conditions(module, specs, ranges, examples) or _with_fixed(module, specs, ranges, examples, reason)
    for note in exported.notes:
        warnings.warn(note, stacklevel=4)
    return exported


def _traced(module: OnnxModule, shapes: Any, examples: tuple[torch.Tensor, ...], takes_all_sizes: bool = False) -> ExportedProgram:
    """Trace the module. `takes_all_sizes`: without export's assumption that no size is 0 or 1."""
    # export solves guards only to suggest fixes; on nested quotients it takes a minute and may fail.
    unsolved = mock.patch.object(DimConstraints, "solve", lambda self: None)
    with _PATCHING, torch.no_grad(), unsolved, symbolic_shapes_config.patch(backed_size_oblivious=takes_all_sizes):  # type: ignore[attr-defined]
        return torch.export.export(module, examples, dynamic_shapes=(shapes,) if shapes is not None else None, strict=False)


def _with_conditions(
    module: OnnxModule, specs: tuple[InputSpec, ...], ranges: Mapping[str, Range], examples: tuple[torch.Tensor, ...]
) -> Exported | None:
    """Export with the graph's requirements on sizes as guards (llmos.guards) and fixed dimensions static; None if export fails."""
    for hint, takes_all_sizes in ((Dim.DYNAMIC, True), (Dim.AUTO, True), (Dim.AUTO, False)):
        with suppress(Exception):
            program = _traced(module, _hinted(specs, ranges, hint), examples, takes_all_sizes)
            return _described(program, module, specs, ranges, 1 if takes_all_sizes else 2)
    return _with_shared_ranges(module, specs, ranges, examples)


def _with_shared_ranges(
    module: OnnxModule, specs: tuple[InputSpec, ...], ranges: Mapping[str, Range], examples: tuple[torch.Tensor, ...]
) -> Exported | None:
    """With dimensions of several inputs in the narrower ranges that each of their uses allows. None where export fails.

    Export takes no hint that two dimensions are equal: a first trace finds the ranges, a second one is told them.
    """
    with suppress(Exception):
        alone = _traced(module, _hinted(specs, ranges, Dim.DYNAMIC, alone=True), examples, takes_all_sizes=True)
        causes = dict(module.limiting_nodes)
        found = {name: ranges.get(name, (1, MAX_SIZE)) for name in symbols_of(specs)}
        for name, _, size in _sizes_of(alone, specs):
            low, high = _range_of(alone, size, found[name], 1)
            found[name] = max(low, found[name][0]), min(high, found[name][1])
        program = _traced(module, dynamic_shapes(specs, found), examples, takes_all_sizes=True)
        return _described(program, module, specs, ranges, 1, causes)
    return None


def _sizes_of(program: ExportedProgram, specs: Sequence[InputSpec]) -> Iterator[tuple[str, tuple[int, int], Any]]:
    """Of each dynamic dimension of an input: its name, (input, axis), and what export has for it, a symbol or the number it is fixed at."""
    users = set(program.graph_signature.user_inputs)
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in users]
    for i, (spec, shape) in enumerate(zip(specs, shapes, strict=True)):
        for axis, (name, size) in enumerate(zip(spec.shape, shape, strict=True)):
            if isinstance(name, str):
                yield name, (i, axis), size


def _hinted(specs: Sequence[InputSpec], ranges: Mapping[str, Range], hint: Any, alone: bool = False) -> tuple[dict[int, Any] | None, ...]:
    """As `dynamic_shapes`, with hints, on which export places no constraints, for dimensions named once; for all if `alone`."""
    uses, declared = Counter(dim for spec in specs for dim in spec.shape), dynamic_shapes(specs, ranges)
    assert declared is not None

    def of(name: str, dim: Any) -> Any:
        low, high = ranges.get(name, (1, None))
        return hint(min=low, max=high) if alone or uses[name] == 1 else dim

    return tuple(
        {axis: of(str(spec.shape[axis]), dim) for axis, dim in dims.items()} if dims else None
        for spec, dims in zip(specs, declared, strict=True)
    )


def _described(
    program: ExportedProgram,
    module: OnnxModule,
    specs: tuple[InputSpec, ...],
    ranges: Mapping[str, Range],
    least: int,
    limits: Mapping[tuple[int, int], str] | None = None,
) -> Exported:
    """Describe the exported dimensions.

    least: the smallest size that export assumed. limits: the nodes that limit dimensions, if not those of the last trace.
    """
    fixed: dict[str, int] = {}
    narrower: dict[str, Range] = {}
    causes: dict[str, str] = {}
    limits = module.limiting_nodes if limits is None else limits
    for name, place, size in _sizes_of(program, specs):
        causes[name] = causes.get(name) or limits.get(place, "")
        if isinstance(size, int):
            fixed[name] = size
        elif (found := _range_of(program, size, declared := ranges.get(name, (1, MAX_SIZE)), least)) != declared:
            narrower[name] = found
    notes = [_note_of_ranges(narrower, causes)] if narrower else []
    notes += [_note_of_sizes(fixed, _joined(causes[name] for name in fixed))] if fixed else []
    return Exported(program, with_static(specs, fixed), tuple(notes))


def _range_of(program: ExportedProgram, size: torch.SymInt, declared: Range, least: int) -> Range:
    known = program.range_constraints[size.node.expr]
    high = sympy.sympify(known.upper)
    return declared[0] if known.lower <= max(declared[0], least) else int(known.lower), min(
        int(high), MAX_SIZE
    ) if high.is_Integer else MAX_SIZE


def _joined(causes: Any) -> str:
    return ", ".join(dict.fromkeys(f"node {cause}" for cause in causes if cause))


def _note_of_ranges(ranges: Mapping[str, Range], causes: Mapping[str, str]) -> str:
    parts = [f"'{name}' of {low}{' or more' if high == MAX_SIZE else f' to {high}'}" for name, (low, high) in ranges.items()]
    nodes = _joined(causes[name] for name in ranges)
    return f"the graph doesn't allow every size: it takes {', '.join(parts)}{f' (because of {nodes})' if nodes else ''}."


def _note_of_sizes(sizes: Mapping[str, int], cause: str) -> str:
    fixed = ", ".join(f"'{name}' at {size}" for name, size in sizes.items())
    return (
        f"the graph doesn't allow every size, so it is compiled with {fixed}{f' (because of {cause})' if cause else ''}; "
        "choose other sizes with dynamic={name: size} (--dynamic name=size)."
    )


def _with_fixed(
    module: OnnxModule, specs: tuple[InputSpec, ...], ranges: Mapping[str, Range], examples: tuple[torch.Tensor, ...], reason: Exception
) -> Exported:
    """Export with all dimensions but the first fixed, or all."""
    names, cause = symbols_of(specs), _joined(module.limiting_nodes.values()) or _node_of(reason)
    for fixed in dict.fromkeys((names[1:], names)):
        sizes = _sizes(specs, examples, fixed)
        static = with_static(specs, sizes)
        try:
            program = _traced(module, dynamic_shapes(static, ranges), examples)
        except Exception:
            if not symbols_of(static):
                raise
            continue
        return Exported(program, static, (_note_of_sizes(sizes, cause),) if sizes else ())
    raise AssertionError("the last one is fully static and either returns or raises")


def _node_of(error: Exception) -> str:
    """Return the node that an export failed in, and the reason."""
    node = next((note.removeprefix("in ONNX node ") for note in getattr(error, "__notes__", ()) if note.startswith("in ONNX node")), "")
    lines = [line.strip(" -\n") for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if "guard" in line or "cannot" in line), lines[0] if lines else type(error).__name__)[:200]
    return f"node {node}: {reason}" if node else reason


def _sizes(specs: Sequence[InputSpec], examples: Sequence[torch.Tensor], names: Sequence[str]) -> dict[str, int]:
    pairs = [(dim, size) for spec, x in zip(specs, examples, strict=True) for dim, size in zip(spec.shape, x.shape, strict=True)]
    return {str(dim): size for dim, size in pairs if dim in names}
