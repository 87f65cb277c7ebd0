"""Models whose weights are stored in a half type, computed in float32 without a whole copy of them.

For tracing, each weight is replaced by a float32 tensor whose memory nobody touches; the values go from the file to the compiler one by
one. For a run, the weights of a module are converted when it is called, and dropped behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llmos.compiler.ir.weights import Weight

_HALF = (torch.float16, torch.bfloat16)


@contextmanager
def traced_as_float32(model: nn.Module) -> Iterator[dict[str, Weight]]:
    """Inside, half weights are float32 tensors without values; gives their values by name."""
    stored = [(module, key, value) for module in model.modules() for key, value in _halves(module).items()]
    empty = {id(value): nn.Parameter(torch.empty(value.shape, dtype=torch.float32), requires_grad=False) for _, _, value in stored}
    names = {name: value for name, value in model.named_parameters(remove_duplicate=False) if value.dtype in _HALF}
    for module, key, value in stored:
        module._parameters[key] = empty[id(value)]
    try:
        yield {name: _weight(value) for name, value in names.items()}
    finally:
        for module, key, value in stored:
            module._parameters[key] = value


@contextmanager
def run_in_float32(model: nn.Module) -> Iterator[None]:
    """Inside, a call of the model computes in float32."""
    handles = []
    for module in model.modules():
        if halves := _halves(module):
            handles += [module.register_forward_pre_hook(_converter(halves)), module.register_forward_hook(_restorer(halves))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _halves(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own parameters of half types, by their names in it."""
    return {key: value for key, value in module._parameters.items() if value is not None and value.dtype in _HALF}


def _weight(value: torch.Tensor) -> Weight:
    return Weight("float32", tuple(value.shape), lambda: value.detach().float().contiguous().numpy())


def _converter(halves: dict[str, Any]) -> Any:
    def convert(module: nn.Module, _: Any) -> None:
        for key, value in halves.items():
            module._parameters[key] = nn.Parameter(value.detach().float(), requires_grad=False)

    return convert


def _restorer(halves: dict[str, Any]) -> Any:
    def restore(module: nn.Module, *_: Any) -> None:
        module._parameters.update(halves)

    return restore
