"""nn.LSTM, nn.GRU and nn.RNN under torch.export: each layer and direction becomes one scan op, so that the length can stay symbolic.

Tracing torch's own ops unrolls the time steps, which fixes the length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from llmos.compiler.frontend import cells

Layer = Callable[[torch.Tensor, Sequence[torch.Tensor], tuple[torch.Tensor, ...], bool], tuple[torch.Tensor, ...]]


def has_recurrent_layers(module: torch.nn.Module) -> bool:
    """Whether a module holds an nn.LSTM, nn.GRU or nn.RNN without a projection."""
    return any(isinstance(each, torch.nn.RNNBase) and each.proj_size == 0 for each in module.modules())


class RecurrentAsScan(TorchFunctionMode):
    """While active, torch.lstm, torch.gru and torch.rnn_tanh on tensors (not packed sequences) go through llmos's scan ops."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        layer = {torch.lstm: _lstm, torch.gru: _gru, torch.rnn_tanh: _rnn}.get(func)
        # Packed sequences pass the batch sizes, a tensor, as second argument and the flat weights as fourth.
        if layer is None or kwargs or not isinstance(args[3], bool):
            return func(*args, **(kwargs or {}))
        return _stack(layer, func is torch.lstm, *args)


def _stack(
    layer: Layer, is_lstm: bool, x: torch.Tensor, initial: Any, weights: Sequence[torch.Tensor], biases: bool, layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Run all layers and directions; arguments as torch.lstm's. Dropout is ignored in inference."""
    per, directions = (4 if biases else 2), 2 if bidirectional else 1
    x = x.transpose(0, 1) if batch_first else x
    states = tuple(initial) if is_lstm else (initial,)
    ends: list[tuple[torch.Tensor, ...]] = []
    for index in range(layers):
        outputs = []
        for direction in range(directions):
            at = index * directions + direction
            hidden, *end = layer(x, weights[at * per : (at + 1) * per], tuple(state[at] for state in states), direction == 1)
            outputs.append(hidden)
            ends.append(tuple(end))
        x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
    x = x.transpose(0, 1) if batch_first else x
    return x, *(torch.stack(each) for each in zip(*ends, strict=True))


def _reordered(parameter: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    parts = parameter.chunk(len(order), 0)
    return torch.cat([parts[i] for i in order], 0)


def _lstm(x: torch.Tensor, weights: Sequence[torch.Tensor], state: tuple[torch.Tensor, ...], reverse: bool) -> tuple[torch.Tensor, ...]:
    """Reorder torch's gates i, f, g, o to the scan's i, o, f, g."""
    w, r, *biases = [_reordered(each, (0, 3, 1, 2)) for each in weights]
    bias = biases[0] + biases[1] if biases else None
    return tuple(cells.lstm_scan(torch.nn.functional.linear(x, w, bias), r, *state, reverse))


def _gru(x: torch.Tensor, weights: Sequence[torch.Tensor], state: tuple[torch.Tensor, ...], reverse: bool) -> tuple[torch.Tensor, ...]:
    """Reorder torch's gates r, z, n to the scan's z, r, n; pass n's recurrent bias separately."""
    w, r, *biases = [_reordered(each, (1, 0, 2)) for each in weights]
    hidden = r.shape[1]
    if biases:
        inner, outer = biases[1][2 * hidden :], biases[0] + torch.cat([biases[1][: 2 * hidden], torch.zeros_like(biases[1][:hidden])])
    else:
        inner, outer = torch.zeros_like(r[:hidden, 0]), None
    return tuple(cells.gru_scan(torch.nn.functional.linear(x, w, outer), r, inner, *state, True, reverse))


def _rnn(x: torch.Tensor, weights: Sequence[torch.Tensor], state: tuple[torch.Tensor, ...], reverse: bool) -> tuple[torch.Tensor, ...]:
    w, r, *biases = weights
    bias = biases[0] + biases[1] if biases else None
    return tuple(cells.rnn_scan(torch.nn.functional.linear(x, w, bias), r, *state, reverse))
