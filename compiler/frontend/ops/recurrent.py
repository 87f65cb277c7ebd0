"""Recurrent cells over a sequence, as one scf.for over time whose body is linalg: `llmos::lstm_scan`, `gru_scan` and `rnn_scan`.

Formulas: ONNX operator specification, LSTM, GRU and RNN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import DYNAMIC, Builder, Meta, Tensor
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops.contractions import contract
from llmos.compiler.frontend.ops.shapes import extract
from llmos.compiler.frontend.scalars import sigmoid, tanh
from llmos.compiler.ir.bindings import arith, ir, scf, tensor

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]


def lstm_scan(b: Builder, result: Sequence[Meta], xs: Tensor, r: Tensor, h0: Tensor, c0: Tensor, reverse: bool) -> list[Tensor]:
    """Run an LSTM over xs [time, batch, 4H] (gates i, o, f, c) with r [4H, H], h0 and c0 [batch, H].

    Return (hidden [time, batch, H], last h, last c).
    """

    def step(x: Tensor, state: State) -> State:
        h, c = state
        recurrent = contract(b, [(h, "bk"), (r, "gk")], "bg")
        gates = b.elementwise(lambda v, w: v.to(w.dtype) + w, [x, recurrent], x.dtype)
        i, o, f, g = _chunks(b, gates, 4)
        new = b.elementwise(lambda f, c, i, g: sigmoid(f) * c + sigmoid(i) * tanh(g), [f, c, i, g], c.dtype)
        return b.elementwise(lambda o, c: sigmoid(o) * tanh(c), [o, new], h.dtype), new

    return _scan(b, result[0], xs, (h0, c0), reverse, step)


def gru_scan(
    b: Builder, result: Sequence[Meta], xs: Tensor, r: Tensor, bias: Tensor, h0: Tensor, linear_before_reset: bool, reverse: bool
) -> list[Tensor]:
    """Run a GRU over xs [time, batch, 3H] (gates z, r, h) with r [3H, H], bias [H] and h0 [batch, H].

    Return (hidden [time, batch, H], last h).
    """
    hidden = h0.shape[-1]
    assert isinstance(hidden, int)
    # One product with all of r if h is its operand unchanged; a separate product for the hidden gate if the reset gate scales h.
    gates, last = (r, None) if linear_before_reset else (extract(b, r, 0, 0, 2 * hidden), extract(b, r, 0, 2 * hidden, hidden))

    def times(h: Tensor, weight: Tensor) -> Tensor:
        return contract(b, [(h, "bk"), (weight, "gk")], "bg")

    def step(x: Tensor, state: State) -> State:
        (h,) = state
        xz, xr, xh = _chunks(b, x, 3)
        hz, hr, *hh = _chunks(b, times(h, gates), 2 if last is not None else 3)
        if last is None:
            args = [xz, hz, xr, hr, xh, hh[0], bias, h]
            return (b.elementwise(_reset_after_product, args, h.dtype),)
        kept = b.elementwise(lambda v, w, h: sigmoid(v + w) * h, [xr, hr, h], h.dtype)
        args = [xz, hz, xh, times(kept, last), bias, h]
        return (b.elementwise(lambda xz, hz, xh, hh, k, h: _blend(xz + hz, tanh(xh + hh + k), h), args, h.dtype),)

    return _scan(b, result[0], xs, (h0,), reverse, step)


def _reset_after_product(
    xz: s.Scalar, hz: s.Scalar, xr: s.Scalar, hr: s.Scalar, xh: s.Scalar, hh: s.Scalar, bias: s.Scalar, h: s.Scalar
) -> s.Scalar:
    return _blend(xz + hz, tanh(xh + sigmoid(xr + hr) * (hh + bias)), h)


def _blend(update: s.Scalar, new: s.Scalar, old: s.Scalar) -> s.Scalar:
    """(1 - z) * new + z * old, for z = sigmoid(update)."""
    z = sigmoid(update)
    return (1.0 - z) * new + z * old


def rnn_scan(b: Builder, result: Sequence[Meta], xs: Tensor, r: Tensor, h0: Tensor, reverse: bool) -> list[Tensor]:
    """Run a tanh RNN over xs [time, batch, H] with r [H, H] and h0 [batch, H]; return (hidden [time, batch, H], last h)."""

    def step(x: Tensor, state: State) -> State:
        recurrent = contract(b, [(state[0], "bk"), (r, "gk")], "bg")
        return (b.elementwise(lambda v, w: s.tanh(v + w), [x, recurrent], state[0].dtype),)

    return _scan(b, result[0], xs, (h0,), reverse, step)


def _chunks(b: Builder, x: Tensor, count: int, dim: int = -1) -> list[Tensor]:
    dim %= x.rank
    size = x.shape[dim]
    assert isinstance(size, int)
    return [extract(b, x, dim, i * (size // count), size // count) for i in range(count)]


def _scan(b: Builder, hidden: Meta, xs: Tensor, state: State, reverse: bool, step: Step) -> list[Tensor]:
    """Run `step` at every time step; the first state it returns is the hidden state."""
    xs = b.dense(xs)
    # Copy the initial state: otherwise the loop would update the buffer of a weight or an input.
    start = [b.dense(each) for each in state]
    length = xs.shape[0]
    inits = [b.empty(hidden.shape, hidden.dtype), *[each.value for each in start]]
    loop = scf.ForOp(b.index(0), b.index(length), b.index(1), inits)
    with ir.InsertionPoint(loop.body):
        at = loop.induction_variable
        if reverse:
            at = arith.subi(b.index(_minus_one(b, length)), at)
        carried = list(loop.inner_iter_args)
        inner = tuple(b.dense_tensor(value, each.shape, each.dtype) for value, each in zip(carried[1:], start, strict=True))
        new = [b.dense(each) for each in step(_at(b, xs, at), inner)]
        scf.YieldOp([_put(b, carried[0], new[0], at), *[each.value for each in new]])
    values = list(loop.results)
    last = [b.dense_tensor(value, each.shape, each.dtype) for value, each in zip(values[1:], start, strict=True)]
    return [b.dense_tensor(values[0], hidden.shape, hidden.dtype), *last]


def _minus_one(b: Builder, dim: Dim) -> Dim:
    import sympy

    return b.sizes.simplify(sympy.sympify(dim) - 1)


def _at(b: Builder, xs: Tensor, at: ir.Value) -> Tensor:
    """Return xs[at] for an index computed in the loop."""
    shape = xs.shape[1:]
    static = [dim if isinstance(dim, int) else DYNAMIC for dim in (1, *shape)]
    zeros, ones = [0] * len(shape), [1] * xs.rank
    value = tensor.ExtractSliceOp(b.type(shape, xs.dtype), xs.value, [at], b.dynamic(shape), [], [DYNAMIC, *zeros], static, ones).result
    return b.dense_tensor(value, shape, xs.dtype)


def _put(b: Builder, into: ir.Value, x: Tensor, at: ir.Value) -> ir.Value:
    static = [dim if isinstance(dim, int) else DYNAMIC for dim in (1, *x.shape)]
    zeros, ones = [0] * x.rank, [1] * (x.rank + 1)
    return tensor.InsertSliceOp(x.value, into, [at], b.dynamic(x.shape), [], [DYNAMIC, *zeros], static, ones).result
