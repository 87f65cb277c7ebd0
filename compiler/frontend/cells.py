"""One time step of the recurrent cells, and the scans over time that stay one op in an exported program.

A cell's step takes `x`, the input's contribution to the gates at one time step (the input times W, plus the biases), and the state.
`llmos::lstm_scan`, `llmos::gru_scan` and `llmos::rnn_scan` run the standard cells over a sequence whose length may be symbolic; the
compiler lowers them to loops. Formulas: ONNX operator specification, LSTM, GRU and RNN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from llmos.runtime.errors import UnsupportedError

Activation = Callable[[torch.Tensor], torch.Tensor]
State = tuple[torch.Tensor, ...]
Step = Callable[[torch.Tensor, State], State]


@dataclass(frozen=True)
class CellOptions:
    """The attributes of an ONNX node that change a cell; `functions` are its activations in ONNX's order (f, g, h)."""

    functions: tuple[Activation, ...]
    clip: float | None = None
    input_forget: bool = False
    linear_before_reset: bool = False

    def bound(self, x: torch.Tensor) -> torch.Tensor:
        """Return x clamped to [-clip, clip]; x itself without a clip."""
        return x if self.clip is None else torch.clamp(x, -self.clip, self.clip)


def lstm_step(x: torch.Tensor, state: State, r: torch.Tensor, options: CellOptions, peephole: torch.Tensor | None = None) -> State:
    """Return (h, c) after one step: x [batch, 4H] in the order input, output, forget, cell; h, c [batch, H]; r [4H, H].

    peephole [3H] is in the order input, output, forget. Formulas: ONNX operator specification, LSTM.
    """
    h, c = state
    f, g, last = options.functions
    i, o, forget, cell = (x + torch.matmul(h, r.t())).chunk(4, -1)
    pi, po, pf = peephole.chunk(3, -1) if peephole is not None else (None, None, None)
    i = f(options.bound(i if pi is None else i + pi * c))
    forget = f(options.bound(forget if pf is None else forget + pf * c))
    if options.input_forget:
        forget = 1 - i
    c = forget * c + i * g(options.bound(cell))
    return f(options.bound(o if po is None else o + po * c)) * last(c), c


def gru_step(x: torch.Tensor, state: State, r: torch.Tensor, bias: torch.Tensor, options: CellOptions) -> State:
    """Return (h,) after one step: x [batch, 3H] in the order update, reset, hidden; h [batch, H]; r [3H, H].

    x holds all biases but the recurrent one of hidden, which is `bias` [H]. Formulas: ONNX operator specification, GRU.
    """
    (h,) = state
    f, g = options.functions
    hidden = h.shape[-1]
    xz, xr, xh = x.chunk(3, -1)
    rz, rr, rh = r[:hidden], r[hidden : 2 * hidden], r[2 * hidden :]
    update = f(options.bound(xz + torch.matmul(h, rz.t())))
    reset = f(options.bound(xr + torch.matmul(h, rr.t())))
    if options.linear_before_reset:
        new = g(options.bound(xh + reset * (torch.matmul(h, rh.t()) + bias)))
    else:
        new = g(options.bound(xh + torch.matmul(reset * h, rh.t()) + bias))
    return ((1 - update) * new + update * h,)


def rnn_step(x: torch.Tensor, state: State, r: torch.Tensor, options: CellOptions) -> State:
    """Return (h,) after one step of an Elman RNN: x, h [batch, H], r [H, H]."""
    return (options.functions[0](options.bound(x + torch.matmul(state[0], r.t()))),)


def unroll(step: Step, xs: torch.Tensor, state: State, reverse: bool, lengths: torch.Tensor | None = None) -> tuple[torch.Tensor, State]:
    """Unroll the steps of xs [time, batch, ...]; return (hidden states [time, batch, H], last state).

    Past its length in `lengths` [batch], a batch row keeps its state and outputs zeros.
    """
    hidden = []
    times = range(xs.shape[0])
    for t in reversed(times) if reverse else times:
        new = step(xs[t], state)
        if lengths is not None:
            inside = (lengths > t).unsqueeze(-1)
            hidden.append(torch.where(inside, new[0], torch.zeros_like(new[0])))
            state = tuple(torch.where(inside, n, s) for n, s in zip(new, state, strict=True))
        else:
            state = new
            hidden.append(state[0])
    return torch.stack(hidden[::-1] if reverse else hidden), state


STANDARD_LSTM = CellOptions((torch.sigmoid, torch.tanh, torch.tanh))
STANDARD_RNN = CellOptions((torch.tanh,))


def _standard_gru(linear_before_reset: bool) -> CellOptions:
    return CellOptions((torch.sigmoid, torch.tanh), linear_before_reset=linear_before_reset)


@torch.library.custom_op("llmos::lstm_scan", mutates_args=())
def lstm_scan(
    xs: torch.Tensor, r: torch.Tensor, h0: torch.Tensor, c0: torch.Tensor, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run an LSTM over xs [time, batch, 4H] (gates i, o, f, c) with r [4H, H], h0 and c0 [batch, H].

    Return (hidden states [time, batch, H], last h, last c).
    """
    if xs.shape[0] == 0:
        return xs.new_empty((0, *h0.shape)), h0.clone(), c0.clone()
    hidden, (h, c) = unroll(lambda x, state: lstm_step(x, state, r, STANDARD_LSTM), xs, (h0, c0), reverse)
    return hidden, h.clone(), c.clone()


@torch.library.custom_op("llmos::gru_scan", mutates_args=())
def gru_scan(
    xs: torch.Tensor, r: torch.Tensor, bias: torch.Tensor, h0: torch.Tensor, linear_before_reset: bool, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a GRU over xs [time, batch, 3H] (gates z, r, h) with r [3H, H], bias [H] and h0 [batch, H].

    Return (hidden states [time, batch, H], last h).
    """
    if xs.shape[0] == 0:
        return xs.new_empty((0, *h0.shape)), h0.clone()
    options = _standard_gru(linear_before_reset)
    hidden, (h,) = unroll(lambda x, state: gru_step(x, state, r, bias, options), xs, (h0,), reverse)
    return hidden, h.clone()


@torch.library.custom_op("llmos::rnn_scan", mutates_args=())
def rnn_scan(xs: torch.Tensor, r: torch.Tensor, h0: torch.Tensor, reverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a tanh RNN over xs [time, batch, H] with r [H, H] and h0 [batch, H].

    Return (hidden states [time, batch, H], last h).
    """
    if xs.shape[0] == 0:
        return xs.new_empty((0, *h0.shape)), h0.clone()
    hidden, (h,) = unroll(lambda x, state: rnn_step(x, state, r, STANDARD_RNN), xs, (h0,), reverse)
    return hidden, h.clone()


@lstm_scan.register_fake
def _(xs: torch.Tensor, r: torch.Tensor, h0: torch.Tensor, c0: torch.Tensor, reverse: bool) -> tuple[torch.Tensor, ...]:
    return xs.new_empty((xs.shape[0], *h0.shape)), torch.empty_like(h0), torch.empty_like(c0)


@gru_scan.register_fake
def _(
    xs: torch.Tensor, r: torch.Tensor, bias: torch.Tensor, h0: torch.Tensor, linear_before_reset: bool, reverse: bool
) -> tuple[torch.Tensor, ...]:
    return xs.new_empty((xs.shape[0], *h0.shape)), torch.empty_like(h0)


@rnn_scan.register_fake
def _(xs: torch.Tensor, r: torch.Tensor, h0: torch.Tensor, reverse: bool) -> tuple[torch.Tensor, ...]:
    return xs.new_empty((xs.shape[0], *h0.shape)), torch.empty_like(h0)


def activation(name: str, alpha: float | None, beta: float | None) -> Activation:
    """Return the activation with an ONNX name. Raises UnsupportedError for an unknown one."""
    plain: dict[str, Activation] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "softsign": torch.nn.functional.softsign,
        "softplus": torch.nn.functional.softplus,
    }
    name = name.lower()
    if name in plain:
        return plain[name]
    if name == "hardsigmoid":
        return lambda x: torch.clamp((0.2 if alpha is None else alpha) * x + (0.5 if beta is None else beta), 0, 1)
    if name == "leakyrelu":
        return lambda x: torch.nn.functional.leaky_relu(x, 0.01 if alpha is None else alpha)
    if name == "elu":
        return lambda x: torch.nn.functional.elu(x, 1.0 if alpha is None else alpha)
    if name == "affine":
        return lambda x: (1.0 if alpha is None else alpha) * x + (0.0 if beta is None else beta)
    raise UnsupportedError(f"the activation '{name}' of a recurrent op isn't supported.")
