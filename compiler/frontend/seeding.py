"""Programs that draw random numbers: add a seed input and replace each draw by Philox (docs/frontend.md)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.utils import _pytree as pytree

from llmos.compiler.frontend.decompositions.randomness import TABLE
from llmos.compiler.frontend.loading import first_line
from llmos.compiler.frontend.splicing import copied, updated
from llmos.runtime.errors import UnsupportedError, UserError

_DRAW = "llmos.random_bits.default"
DRAWN = "llmos.philox.default"


def seeded(program: ExportedProgram, name: str) -> ExportedProgram:
    """Add the seed `name`, int64 [], as last input if the program draws random numbers. Each draw is a stream, in program order.

    Raises UserError if the program already has an input of that name, UnsupportedError for a draw without a counter-based form.
    """
    if not any(_draws(node) for node in program.graph.nodes):
        return program
    taken = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    if name in taken:
        raise UserError(f"the model has an input {name!r} already: choose another name for the seed of its random numbers")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = program.run_decompositions(dict(TABLE))
        except Exception as error:
            raise UnsupportedError(f"torch can't decompose this model's random numbers: {first_line(error)}") from error
    return _with_seed(program, name)


def draws(program: ExportedProgram) -> bool:
    """Whether a program has a seed."""
    return any(str(node.target) == DRAWN for node in program.graph.nodes)


def _draws(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    return "dropout" not in str(node.target) or node.args[-1] is not False


def _with_seed(program: ExportedProgram, name: str) -> ExportedProgram:
    module, signature = copied(program)
    graph = module.graph
    calls = [node for node in graph.nodes if str(node.target) == _DRAW]
    if not calls:
        return program
    last = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(last[-1]) if last else graph.inserting_before(next(iter(graph.nodes))):
        seed = graph.placeholder(name)
    seed.meta["val"] = _fake_seed(calls[0].meta["val"])
    for stream, node in enumerate(calls):
        with graph.inserting_before(node):
            made = graph.call_function(torch.ops.llmos.philox.default, (seed, stream, node.args[0]))
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        graph.erase_node(node)
    module.recompile()
    signature.input_specs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(seed.name), None))
    with_seed = updated(program, module, signature)
    _call_with(with_seed, seed.name)
    return with_seed


def _call_with(program: ExportedProgram, name: str) -> None:
    """Add a keyword to the program's call signature, by which later tracing unpacks the inputs."""
    call = program.module_call_graph[0].signature
    if call is not None:
        args, kwargs = pytree.tree_unflatten(range(call.in_spec.num_leaves), call.in_spec)
        call.in_spec = pytree.tree_structure((args, {**kwargs, name: 0}) if kwargs else ((*args, 0), kwargs))
        call.inputs.append(TensorArgument(name))
        if call.forward_arg_names is not None:
            call.forward_arg_names = [*call.forward_arg_names, name]
    if program.example_inputs is not None:
        args, kwargs = program.example_inputs
        seed = torch.zeros((), dtype=torch.int64)
        program.example_inputs = (args, {**kwargs, name: seed}) if kwargs else ((*args, seed), kwargs)


def _fake_seed(like: Any) -> torch.Tensor:
    assert isinstance(like, FakeTensor)
    with like.fake_mode:
        return torch.zeros((), dtype=torch.int64)
