"""The outputs of an exported program and their names; numbers become tensors of rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy
import torch
from torch import fx
from torch.export import ExportedProgram

from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.complex_numbers import COMPLEX
from llmos.compiler.frontend.ops.shapes import filled
from llmos.compiler.frontend.scalars import NUMPY_NAMES, Deferred
from llmos.compiler.ir.bindings import ir
from llmos.runtime.errors import UnsupportedError

_COMPLEX_NAMES = {torch.float32: "complex64", torch.float64: "complex128"}
_NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}


def dtype_name(dtype: torch.dtype, is_complex: bool) -> str:
    """Return the manifest's name of a dtype, or of the complex dtype whose parts the tensor holds."""
    return (_COMPLEX_NAMES if is_complex else NUMPY_NAMES)[dtype]


def output_nodes(program: ExportedProgram) -> list[Any]:
    """Return the graph's outputs: nodes, numbers, or None."""
    return list(_output(program).args[0])  # type: ignore[arg-type]


def complex_outputs(program: ExportedProgram) -> list[bool]:
    """For each of the graph's outputs, whether it holds complex numbers as pairs."""
    return list(_output(program).meta.get(COMPLEX, [False] * len(output_nodes(program))))


def _output(program: ExportedProgram) -> fx.Node:
    found: fx.Node = next(node for node in reversed(list(program.graph_module.graph.nodes)) if node.op == "output")
    return found


def as_result(b: Builder, value: Any) -> Tensor:
    """Return a value of the graph as a tensor with its own memory; a Python number becomes an int64, float64 or bool tensor of rank 0.

    Raises UnsupportedError for any other value.
    """
    if isinstance(value, sympy.Expr):
        value = b.number(value)
    if isinstance(value, Deferred):
        value = filled(b, Meta((), value.dtype), value)
    elif type(value) in _NUMBERS:
        value = b.full((), _NUMBERS[type(value)], value)
    if not isinstance(value, Tensor):
        raise UnsupportedError(f"an output of the model is {value!r}, neither a tensor nor a number: return tensors and numbers only")
    dense = b.dense(value)
    # An input or a weight that is returned unchanged is copied to its own buffer.
    return b.copy(dense) if isinstance(dense.value.owner, ir.Block) else dense


def as_array(leaf: Any) -> np.ndarray:
    """Convert a Python number to numpy as `as_result` does."""
    return np.asarray(leaf, NUMPY_NAMES[_NUMBERS[type(leaf)]])


def output_names(program: ExportedProgram, given: Sequence[Any]) -> list[str]:
    """Return the keys of a returned dict, else `output`, or output0, output1, ...; skips outputs that are None in `given`."""
    spec = program.call_spec.out_spec
    keys = list(spec.context) if spec is not None and spec.type is dict and len(spec.context) == len(given) else []
    kept = [i for i, each in enumerate(given) if each is not None]
    if keys and all(isinstance(key, str) for key in keys):
        return [str(keys[i]) for i in kept]
    return ["output"] if len(kept) == 1 else [f"output{i}" for i in range(len(kept))]
