"""LSTM, GRU and RNN: one matrix product of the inputs of all steps, then a scan over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from llmos.compiler.frontend import cells
from llmos.compiler.frontend.cells import CellOptions, State
from llmos.compiler.frontend.onnx.registry import Value, op
from llmos.compiler.frontend.onnx.values import ConstantValue
from llmos.runtime.errors import UnsupportedError

# A static sequence up to this length is unrolled: a streaming model runs one step a call.
MAX_UNROLLED = 4


@dataclass(frozen=True)
class Recurrence:
    """The attributes that the three ops share."""

    hidden_size: int
    direction: str
    layout: int
    activations: tuple[str, ...]
    alpha: tuple[float, ...]
    beta: tuple[float, ...]
    clip: float | None
    defaults: tuple[str, ...]

    @property
    def directions(self) -> tuple[bool, ...]:
        """Return, for each direction, whether it runs backward."""
        return {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[self.direction]

    @property
    def is_standard(self) -> bool:
        """Whether the activations are the default ones, without a clip: the form of the scan ops."""
        names = tuple(name.lower() for name in self.activations)
        return self.clip is None and names in ((), self.defaults * len(self.directions))

    def functions(self, direction: int) -> tuple[cells.Activation, ...]:
        """Return the activations of one direction; alphas and betas are assigned in order to those that take one."""
        names = self.activations or self.defaults * len(self.directions)
        count = len(self.defaults)
        alphas, betas = list(self.alpha), list(self.beta)
        made = []
        for name in names:
            takes_alpha = name.lower() in ("hardsigmoid", "leakyrelu", "elu", "affine")
            takes_beta = name.lower() in ("hardsigmoid", "affine")
            alpha = alphas.pop(0) if takes_alpha and alphas else None
            beta = betas.pop(0) if takes_beta and betas else None
            made.append(cells.activation(name, alpha, beta))
        return tuple(made[direction * count : (direction + 1) * count])


@op("LSTM", since=7)
def lstm(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None = None,
    sequence_lens: Value = None,
    initial_h: torch.Tensor | None = None,
    initial_c: torch.Tensor | None = None,
    p: torch.Tensor | None = None,
    *,
    hidden_size: int = 0,
    direction: str = "forward",
    layout: int = 0,
    activations: tuple[str, ...] = (),
    activation_alpha: tuple[float, ...] = (),
    activation_beta: tuple[float, ...] = (),
    clip: float | None = None,
    input_forget: int = 0,
) -> tuple[torch.Tensor, ...]:
    """Lower LSTM from opset 7: return (Y, last h, last c). A scan, or unrolled if it is short or not standard.

    Raises UnsupportedError for a dynamic length with sequence_lens, clip, peepholes, input_forget or other activations.
    """
    common = Recurrence(r.shape[-1], direction, layout, activations, activation_alpha, activation_beta, clip, ("sigmoid", "tanh", "tanh"))

    def scan(d: int, xs: torch.Tensor, state: State, reverse: bool, lengths: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        if lengths is None and common.is_standard and p is None and not input_forget and not _is_short(xs):
            hidden, h, c = torch.ops.llmos.lstm_scan(xs, r[d], *state, reverse)
            return hidden, (h, c)
        _require_static(xs)
        options = CellOptions(common.functions(d), clip, bool(input_forget))
        return cells.unroll(lambda x, s: cells.lstm_step(x, s, r[d], options, None if p is None else p[d]), xs, state, reverse, lengths)

    def inputs(d: int, x: torch.Tensor) -> torch.Tensor:
        size = 4 * common.hidden_size
        return F.linear(x, w[d], None if b is None else b[d, :size] + b[d, size:])

    return _run(common, x, _lengths(sequence_lens, x, layout), (initial_h, initial_c), inputs, scan)


@op("GRU", since=7)
def gru(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None = None,
    sequence_lens: Value = None,
    initial_h: torch.Tensor | None = None,
    *,
    hidden_size: int = 0,
    direction: str = "forward",
    layout: int = 0,
    activations: tuple[str, ...] = (),
    activation_alpha: tuple[float, ...] = (),
    activation_beta: tuple[float, ...] = (),
    clip: float | None = None,
    linear_before_reset: int = 0,
) -> tuple[torch.Tensor, ...]:
    """Lower GRU from opset 7: return (Y, last h). A scan, or unrolled if it is short or not standard.

    Raises UnsupportedError for a dynamic length with sequence_lens, clip or other activations.
    """
    common = Recurrence(r.shape[-1], direction, layout, activations, activation_alpha, activation_beta, clip, ("sigmoid", "tanh"))
    size = common.hidden_size

    def bias(d: int) -> torch.Tensor:
        """Return the recurrent bias of the hidden gate, which is inside the reset gate's product if linear_before_reset."""
        return b[d, 5 * size :] if b is not None else torch.zeros((size,), dtype=x.dtype)

    def scan(d: int, xs: torch.Tensor, state: State, reverse: bool, lengths: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        if lengths is None and common.is_standard and not _is_short(xs):
            hidden, h = torch.ops.llmos.gru_scan(xs, r[d], bias(d), *state, bool(linear_before_reset), reverse)
            return hidden, (h,)
        _require_static(xs)
        options = CellOptions(common.functions(d), clip, linear_before_reset=bool(linear_before_reset))
        return cells.unroll(lambda x, s: cells.gru_step(x, s, r[d], bias(d), options), xs, state, reverse, lengths)

    def inputs(d: int, x: torch.Tensor) -> torch.Tensor:
        if b is None:
            return F.linear(x, w[d])
        recurrent = torch.cat((b[d, 3 * size : 5 * size], torch.zeros((size,), dtype=x.dtype)))
        return F.linear(x, w[d], b[d, : 3 * size] + recurrent)

    return _run(common, x, _lengths(sequence_lens, x, layout), (initial_h,), inputs, scan)


@op("RNN", since=7)
def rnn(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None = None,
    sequence_lens: Value = None,
    initial_h: torch.Tensor | None = None,
    *,
    hidden_size: int = 0,
    direction: str = "forward",
    layout: int = 0,
    activations: tuple[str, ...] = (),
    activation_alpha: tuple[float, ...] = (),
    activation_beta: tuple[float, ...] = (),
    clip: float | None = None,
) -> tuple[torch.Tensor, ...]:
    """Lower RNN from opset 7: return (Y, last h). A scan, or unrolled if it is short or not standard.

    Raises UnsupportedError for a dynamic length with sequence_lens, clip or other activations.
    """
    common = Recurrence(r.shape[-1], direction, layout, activations, activation_alpha, activation_beta, clip, ("tanh",))
    size = common.hidden_size

    def scan(d: int, xs: torch.Tensor, state: State, reverse: bool, lengths: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        if lengths is None and common.is_standard and not _is_short(xs):
            hidden, h = torch.ops.llmos.rnn_scan(xs, r[d], *state, reverse)
            return hidden, (h,)
        _require_static(xs)
        options = CellOptions(common.functions(d), clip)
        return cells.unroll(lambda x, s: cells.rnn_step(x, s, r[d], options), xs, state, reverse, lengths)

    def inputs(d: int, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w[d], None if b is None else b[d, :size] + b[d, size:])

    return _run(common, x, _lengths(sequence_lens, x, layout), (initial_h,), inputs, scan)


def _run(
    common: Recurrence, x: torch.Tensor, lengths: torch.Tensor | None, initial: tuple[torch.Tensor | None, ...], inputs: Any, scan: Any
) -> tuple[torch.Tensor, ...]:
    """Run all directions; return Y [time, directions, batch, H] and last states [directions, batch, H]; layout 1 puts batch first."""
    if common.layout:
        x = x.transpose(0, 1)
        initial = tuple(None if state is None else state.transpose(0, 1) for state in initial)
    zeros = torch.zeros((x.shape[1], common.hidden_size), dtype=x.dtype)
    outputs, finals = [], []
    for d, reverse in enumerate(common.directions):
        state = tuple(zeros if given is None else given[d] for given in initial)
        hidden, last = scan(d, inputs(d, x), state, reverse, lengths)
        outputs.append(hidden)
        finals.append(last)
    y = torch.stack(outputs, 1)
    states = [torch.stack(parts) for parts in zip(*finals, strict=True)]
    if common.layout:
        return y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states)
    return y, *states


def _is_short(xs: torch.Tensor) -> bool:
    return isinstance(xs.shape[0], int) and 0 < xs.shape[0] <= MAX_UNROLLED


def _require_static(xs: torch.Tensor) -> None:
    if not isinstance(xs.shape[0], int):
        raise UnsupportedError("a recurrent op with sequence_lens, clip or its own activations needs a static sequence length.")


def _lengths(value: Value, x: torch.Tensor, layout: int) -> torch.Tensor | None:
    """Return the length of each batch row; None if all equal the sequence length."""
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, ConstantValue) and not value.is_symbolic:
        steps = x.shape[1 if layout else 0]
        if isinstance(steps, int) and bool((value.array == steps).all()):
            return None
        return torch.tensor(value.array.tolist(), dtype=torch.int64)
    raise UnsupportedError("sequence_lens of a recurrent op must be a tensor.")
