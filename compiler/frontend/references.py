"""Eager torch as the reference of an exported program: takes numpy inputs, then states; returns outputs, new states, updated inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from llmos.compiler.frontend.exporting import ProgramInput, Source, mutated_buffers, mutated_inputs, outputs_in_order, program_inputs
from llmos.compiler.frontend.model import Reference
from llmos.compiler.frontend.results import as_array


def to_numpy(value: torch.Tensor) -> np.ndarray:
    """Convert to a dense array, without a copy if the tensor is dense; bfloat16 becomes uint16."""
    dense = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return dense.view(torch.uint16).numpy() if dense.dtype == torch.bfloat16 else dense.numpy()


def reference_of(source: Source, program: ExportedProgram, inputs: Sequence[ProgramInput]) -> Reference:
    """Return a function that runs eager torch on numpy inputs, then states; it returns outputs, new states, updated inputs."""
    if any(each.kind == "state" for each in inputs):
        return _stateful_reference(program, [each for each in inputs if each.kind != "weight"])
    inputs = [each for each in inputs if each.kind == "input"]
    run: Callable[..., Any] = source if isinstance(source, torch.nn.Module) else program.module()

    def reference(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        tensors = _tensors(arrays, inputs)
        with torch.no_grad():
            answer = run(*tensors)
        return [*_arrays(answer), *_updated(program, inputs, tensors)]

    return reference


def _stateful_reference(program: ExportedProgram, inputs: Sequence[ProgramInput]) -> Reference:
    """Run the exported program on inputs, then states; return outputs, then the new values of states, then those of inputs."""
    names = [each.name for each in inputs if each.kind == "state"]

    def reference(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        module = program.module()
        tensors = _tensors(arrays, inputs)
        given, states = tensors[: len(tensors) - len(names)], tensors[len(tensors) - len(names) :]
        # The module shares its buffers with the user's program: run on copies.
        buffers = [value.clone() for value in states]
        for name, value in zip(names, buffers, strict=True):
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = value
        with torch.no_grad():
            answer = module(*given)
        return [array.copy() for array in [*_arrays(answer), *map(to_numpy, buffers), *_updated(program, inputs, tensors)]]

    return reference


def _tensors(arrays: Sequence[np.ndarray], inputs: Sequence[ProgramInput]) -> list[torch.Tensor]:
    """Wrap arrays as tensors; copy those that the model changes."""
    pairs = zip(arrays, inputs, strict=True)
    return [_from_numpy(array.copy() if each.is_updated else array, each.node.meta["val"].dtype) for array, each in pairs]


def _updated(program: ExportedProgram, inputs: Sequence[ProgramInput], tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Return the updated inputs in the order of the graph's outputs."""
    by_name = {each.node.name: tensor for each, tensor in zip(inputs, tensors, strict=False)}
    return [to_numpy(by_name[name]) for name in mutated_inputs(program)]


def _arrays(answer: Any) -> list[np.ndarray]:
    leaves = torch.utils._pytree.tree_leaves(answer)
    return [to_numpy(leaf) if isinstance(leaf, torch.Tensor) else as_array(leaf) for leaf in leaves if leaf is not None]


def seeded_reference(program: ExportedProgram) -> Reference:
    """Run the graph on inputs (the seed last), then states; return outputs, then the new values of states and of inputs."""
    dtypes = [each.node.meta["val"].dtype for each in program_inputs(program) if each.kind != "weight"]
    changed, specs = mutated_buffers(program), program.graph_signature.input_specs
    held = {**program.state_dict, **program.constants}

    def reference(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        tensors = [_from_numpy(array, dtype) for array, dtype in zip(arrays, dtypes, strict=True)]
        count = len(tensors) - len(changed)
        given, known = iter(tensors[:count]), {**held, **dict(zip(changed, tensors[count:], strict=True))}
        values = [next(given) if spec.kind == InputKind.USER_INPUT else known[str(spec.target)] for spec in specs]
        with torch.no_grad():
            found = outputs_in_order(program, list(program.graph_module(*values)))
        return [array.copy() for group in found for array in _arrays(group)]

    return reference


def _from_numpy(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    dense = torch.from_numpy(np.asarray(array, order="C"))
    return dense.view(torch.bfloat16) if dtype == torch.bfloat16 else dense
