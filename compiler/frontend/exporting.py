"""Convert any torch source to one functional ExportedProgram, and read its signature."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._export.utils import _collect_all_valid_cia_ops, _get_decomp_for_cia, _is_preservable_cia_op
from torch.export import ExportedProgram, exported_program
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.fx.experimental import _config as symbolic_shapes_config

from llmos.compiler.frontend.complex_numbers import COMPLEX, as_pairs, has_complex
from llmos.compiler.frontend.decompositions import own_decompositions, result_types
from llmos.compiler.frontend.decompositions.checking import checked
from llmos.compiler.frontend.decompositions.quantization import UNLIKE_METADATA
from llmos.compiler.frontend.decompositions.scatters import select_by_slice, takes_mask
from llmos.compiler.frontend.graph import op_name
from llmos.compiler.frontend.loading import QuietTorch, first_line, load_program
from llmos.compiler.frontend.ops.table import IGNORED, table
from llmos.compiler.frontend.prims import without_prims
from llmos.compiler.frontend.recurrent import RecurrentAsScan, has_recurrent_layers
from llmos.compiler.frontend.seeding import seeded
from llmos.compiler.frontend.size_tensors import with_sizes_read
from llmos.compiler.frontend.spectra import SpectraOfAnySize
from llmos.compiler.frontend.storage_views import FOLLOWERS, read_from_storage
from llmos.compiler.ir.bindings import torch_decompositions
from llmos.runtime.errors import InputError, UnsupportedError, UserError

Source = torch.nn.Module | ExportedProgram | str | Path

_PATCHING = threading.Lock()  # threads that restore torch in another order than they patched it would leave it patched


def export(source: Source, example_args: Sequence[Any] | None, dynamic_shapes: Any, random: str = "") -> ExportedProgram:
    """Export the source as a functional program of ops that can be lowered. `random` names the seed input of random numbers.

    Raises InputError for a module without example inputs, UserError for a damaged file.
    Raises UnsupportedError where torch can't trace the module or decompose an op.
    """
    if isinstance(source, ExportedProgram):
        program = source
    elif isinstance(source, torch.nn.Module):
        program = _export_module(source, example_args, dynamic_shapes)
    else:
        program = load_program(Path(source))
    return functional(seeded(program, random) if random else program)


def _distinct(example_args: Sequence[Any]) -> tuple[Any, ...]:
    """Copy repeated tensors: export would treat one tensor passed twice as one input used twice."""
    seen: set[int] = set()
    made: list[Any] = []
    for argument in example_args:
        again = isinstance(argument, torch.Tensor) and id(argument) in seen
        made.append(argument.clone() if again else argument)
        seen.add(id(argument))
    return tuple(made)


def _export_module(module: torch.nn.Module, example_args: Sequence[Any] | None, dynamic_shapes: Any) -> ExportedProgram:
    if example_args is None:
        raise InputError("example inputs are needed to export a module: pass example_args=(tensor, ...)")
    try:
        return _traced(module, example_args, dynamic_shapes)
    except UserError:
        raise
    except Exception as error:
        program = _traced_at_any_size(module, example_args, dynamic_shapes) if str(error).startswith("Constraints violated") else None
        if program is None:
            raise UnsupportedError(f"torch.export can't trace this module: {_reason(error)}") from error
        return program


def _traced(module: torch.nn.Module, example_args: Sequence[Any], dynamic_shapes: Any, strict: bool = False) -> ExportedProgram:
    recurrent = RecurrentAsScan() if has_recurrent_layers(module) else nullcontext()
    spectra = SpectraOfAnySize() if dynamic_shapes else nullcontext()
    with warnings.catch_warnings(), torch.no_grad(), QuietTorch(), recurrent, spectra:
        warnings.simplefilter("ignore")
        return torch.export.export(module, _distinct(example_args), dynamic_shapes=dynamic_shapes, strict=strict)


def _traced_at_any_size(module: torch.nn.Module, example_args: Sequence[Any], dynamic_shapes: Any) -> ExportedProgram | None:
    """Export without the assumption that computed sizes aren't 0 or 1; then retry with TorchDynamo, which keeps `int(h * 0.7)` symbolic."""
    for strict in (False, True):
        with suppress(Exception), symbolic_shapes_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            return _traced(module, example_args, dynamic_shapes, strict)
    return None


def _reason(error: BaseException) -> str:
    """Return the line of an error that tells the cause: the second one if a dimension's range is violated, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) < 2 or not lines[0].startswith("Constraints violated"):
        return first_line(error)
    return f"{lines[0].split('!')[0]}: {lines[1].removeprefix('- ').rstrip('.')}; give the dimension another range, or make it static"


def functional(program: ExportedProgram) -> ExportedProgram:
    """Functionalize, decompose ops that neither our table nor torch-mlir lowers, and make views of memory read that memory.

    Raises UnsupportedError if torch can't decompose an op.
    """
    known = _of_known_ops(without_prims(program))
    read = read_from_storage(without_prims(known))  # torch's definitions may leave primitive ops
    return known if read is known else _of_known_ops(read)


def over_real_numbers(program: ExportedProgram) -> ExportedProgram:
    """Replace complex numbers by pairs of real ones in a functional program; COMPLEX in the metadata marks the pairs.

    Raises UnsupportedError for an op without a rule.
    """
    if not has_complex(program):
        return program
    pairs = as_pairs(program)
    real = functional(pairs)
    for before, after in zip(_ends(pairs), _ends(real), strict=True):
        after.meta.update({COMPLEX: before.meta[COMPLEX]} if COMPLEX in before.meta else {})
    return real


def _ends(program: ExportedProgram) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.op in ("placeholder", "output")]


def _of_known_ops(program: ExportedProgram) -> ExportedProgram:
    """Remove in-place ops and unknown ops. Decomposes only if needed, because it takes a second."""
    nodes = _calls(program)
    if all((op_name(node) in table() and not _is_decomposed(node)) or op_name(node) in IGNORED or _is_plain(node) for node in nodes):
        return program
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = with_sizes_read(program)
            decomposed = _decomposed(program, decompositions(program))
        except UserError as error:
            raise type(error)(first_line(error)) from None  # torch appends the position in the graph
        except Exception as error:
            raise UnsupportedError(f"torch can't decompose this model's ops: {first_line(error)}") from error
        return decomposed


def _decomposed(program: ExportedProgram, chosen: Mapping[Any, Callable[..., Any]]) -> ExportedProgram:
    """As `run_decompositions`, in half the time.

    torch overrides the dispatch of each of its 500 composite ops around every run and restores it. The 450 that `chosen` decomposes by
    their own definition don't need the override: they decompose to it by default.
    """
    composite = _composite_ops()
    left_alone = {op for op, body in chosen.items() if op in composite and _is_definition(op, body)}
    in_python = {op for op in own_decompositions() if op in chosen and _is_defined_in_python(op)}
    overridden = composite - left_alone - in_python
    with (
        _PATCHING,
        mock.patch.object(exported_program, "_collect_all_valid_cia_ops", lambda: set(overridden)),
        mock.patch.object(exported_program, "_is_preservable_cia_op", lambda op: op not in in_python and _is_preservable_cia_op(op)),
        _without_python_definition(in_python),
    ):
        decomposed: ExportedProgram = program.run_decompositions({op: body for op, body in chosen.items() if op not in left_alone})
    return decomposed


@cache
def _composite_ops() -> frozenset[Any]:
    return frozenset(_collect_all_valid_cia_ops())


def _is_definition(op: Any, body: Any) -> bool:
    registered = op.py_kernels.get(torch._C.DispatchKey.CompositeImplicitAutograd)
    return body is registered or getattr(body, "keywords", {}).get("kernel") is op


_DEFINITIONS = (torch._C.DispatchKey.Autograd, torch._C.DispatchKey.CompositeImplicitAutograd)


def _is_defined_in_python(op: Any) -> bool:
    """Whether tracing uses torch's Python definition of an op before it looks into the table of decompositions."""
    is_composite = torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd")
    return not is_composite and any(key in op.py_kernels for key in _DEFINITIONS)


@contextmanager
def _without_python_definition(ops: Collection[Any]) -> Iterator[None]:
    kept = {op: dict(op.py_kernels) for op in ops}
    try:
        for op in ops:
            for key in _DEFINITIONS:
                op.py_kernels.pop(key, None)
            op._dispatch_cache.clear()
        yield
    finally:
        for op, kernels in kept.items():
            op.py_kernels.clear()
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()


def _calls(program: ExportedProgram) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def _trains(node: fx.Node) -> bool:
    """Whether a batch norm uses batch statistics. It is decomposed to expose the updates of its buffers."""
    return op_name(node) == "aten.batch_norm.default" and node.args[5] is True


def _is_decomposed(node: fx.Node) -> bool:
    """Whether a call of an op in our table has a form that the table doesn't handle."""
    return _trains(node) or takes_mask(node.target, node.args)


def _is_plain(node: fx.Node) -> bool:
    """Whether a node is getitem or size arithmetic."""
    return not isinstance(node.target, torch._ops.OpOverload | torch._ops.HigherOrderOperator) or "sym_" in op_name(node)


def decompositions(program: ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """Return torch-mlir's table and ours, minus directly lowered ops, plus torch's definitions of the remaining composite ops."""
    kept = table()
    known = {**torch_decompositions(), **own_decompositions()}
    partial = torch.ops.aten.index_put.default  # its mask forms are decomposed
    chosen = {op: body for op, body in known.items() if (str(op) not in kept or op is partial) and op not in FOLLOWERS}
    if _changes_inputs(program):
        chosen[torch.ops.aten.select_scatter.default] = select_by_slice
    for node in _calls(program):
        op = node.target
        if (
            isinstance(op, torch._ops.OpOverload)
            and (op_name(node) not in kept or _trains(node))
            and op not in chosen
            and op not in FOLLOWERS
            and op._can_decompose()
        ):
            chosen[op] = _get_decomp_for_cia(op)
    return {op: body if _is_trusted(op, body) else checked(op, body) for op, body in chosen.items()}


def _changes_inputs(program: ExportedProgram) -> bool:
    """Whether an op writes into an input, or a view of one."""
    inputs = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT}
    return any(
        _root(node).name in inputs for node in _calls(program) if getattr(getattr(node.target, "_schema", None), "is_mutable", False)
    )


def _root(node: fx.Node) -> fx.Node:
    """Return the base of a chain of views and in-place writes, following first arguments."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _is_trusted(op: Any, body: Any) -> bool:
    """Whether a decomposition needs no check against torch's metadata: it is the op's definition, or more accurate than the metadata."""
    return op in result_types.TABLE or op in UNLIKE_METADATA or (op in _composite_ops() and _is_definition(op, body))


@dataclass(frozen=True)
class ProgramInput:
    """One placeholder of the exported graph."""

    node: fx.Node
    kind: str  # "input", "weight" or "state": a buffer that the model changes
    name: str
    tensor: torch.Tensor | None  # a weight's value
    is_updated: bool = False  # an input that the model changes

    @property
    def is_complex(self) -> bool:
        """Whether its last dimension, of size 2, holds the real and imaginary parts of complex numbers."""
        return bool(self.node.meta.get(COMPLEX, False))


def program_inputs(program: ExportedProgram) -> list[ProgramInput]:
    """Return the tensor placeholders: user inputs, then states in the order of their new values. Raises UnsupportedError if sparse."""
    mutated, updated = mutated_buffers(program), mutated_inputs(program)
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    inputs: list[ProgramInput] = []
    weights: list[ProgramInput] = []
    states: dict[str, ProgramInput] = {}
    for spec in program.graph_signature.input_specs:
        if not isinstance(spec.arg, TensorArgument):
            continue
        node = nodes[spec.arg.name]
        if node.meta["val"].layout != torch.strided:
            raise UnsupportedError(f"{spec.arg.name} is a sparse tensor, which isn't supported: make it dense with .to_dense()")
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(ProgramInput(node, "input", spec.arg.name, None, spec.arg.name in updated))
        else:
            assert spec.target is not None
            kind = "state" if spec.target in mutated else "weight"
            made = ProgramInput(node, kind, spec.target, _value_of(program, spec.target))
            if kind == "state":
                states[spec.target] = made
            else:
                weights.append(made)
    return [*inputs, *[states[name] for name in mutated], *weights]


def mutated_buffers(program: ExportedProgram) -> list[str]:
    """Return the names of buffers that the model changes, in the order of their new values among the graph's outputs."""
    return _targets(program, OutputKind.BUFFER_MUTATION)


def mutated_inputs(program: ExportedProgram) -> list[str]:
    """Return the placeholder names of inputs that the model changes, in their order."""
    changed = _targets(program, OutputKind.USER_INPUT_MUTATION)
    return [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT and spec.arg.name in changed]


def _targets(program: ExportedProgram, kind: OutputKind) -> list[str]:
    return [str(spec.target) for spec in program.graph_signature.output_specs if spec.kind == kind]


def outputs_in_order(program: ExportedProgram, values: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Group `values`, one for each graph output, into model outputs, new values of buffers and new values of inputs."""
    pairs = list(zip(program.graph_signature.output_specs, values, strict=True))
    buffers = [value for spec, value in pairs if spec.kind == OutputKind.BUFFER_MUTATION]
    inputs = {spec.target: value for spec, value in pairs if spec.kind == OutputKind.USER_INPUT_MUTATION}
    outputs = [value for spec, value in pairs if spec.kind not in _MUTATIONS]
    return outputs, buffers, [inputs[name] for name in mutated_inputs(program)]


_MUTATIONS = (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)


def _value_of(program: ExportedProgram, name: str) -> torch.Tensor:
    value: Mapping[str, Any] = program.state_dict if name in program.state_dict else program.constants
    return value[name]  # type: ignore[no-any-return]


def check_outputs(program: ExportedProgram) -> None:
    """Raise UnsupportedError for a program that changes a parameter."""
    for spec in program.graph_signature.output_specs:
        if spec.kind == OutputKind.PARAMETER_MUTATION:
            raise UnsupportedError(
                f"the model changes the parameter {spec.target!r} while it runs: keep it in a buffer, or return the new value as an output"
            )
