"""`llmos::lstm_scan`, `gru_scan` and `rnn_scan` (ops/cells.py) as linalg: one scf.for over time that carries the state.

Each turn is a contraction of the state with the recurrent weights, which starts from the input's share of the gates, and one elementwise op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor, affine_dim
from llmos.compiler.frontend.dims import Dim, Shape
from llmos.compiler.ir import arith, ir, scf, tensor

Turn = Callable[[ir.Value, list[ir.Value]], list[ir.Value]]


def lstm_scan(b: Builder, result: Sequence[Meta], xs: Tensor, r: Tensor, h0: Tensor, c0: Tensor, reverse: bool) -> list[Tensor]:
    """Gates in the order input, output, forget, cell (ONNX LSTM)."""
    r, shape, dtype = b.dense(r), h0.shape, h0.dtype

    def turn(x: ir.Value, state: list[ir.Value]) -> list[ir.Value]:
        h, c = state
        gates = [_columns(b, _recur(b, x, h, r, shape), g, shape, dtype) for g in range(4)]
        operands = [*gates, b.dense_tensor(c, shape, dtype)]
        cell = b.elementwise(lambda i, _, f, g, c: s.sigmoid(f) * c + s.sigmoid(i) * s.tanh(g), operands, dtype, shape)
        hidden = b.elementwise(lambda o, c: s.sigmoid(o) * s.tanh(c), [gates[1], cell], dtype, shape)
        return [hidden.value, cell.value]

    return _scan(b, result, xs, [h0, c0], reverse, turn)


def gru_scan(
    b: Builder, result: Sequence[Meta], xs: Tensor, r: Tensor, bias: Tensor, h0: Tensor, linear_before_reset: bool, reverse: bool
) -> list[Tensor]:
    """Gates in the order update, reset, hidden (ONNX GRU)."""
    r, shape, dtype = b.dense(r), h0.shape, h0.dtype
    hidden_size = shape[1]
    assert isinstance(hidden_size, int)
    # The update and reset gates take the state as it is; the hidden one takes it before or after the reset.
    both, last = _rows(b, r, 0, 2 * hidden_size), _rows(b, r, 2 * hidden_size, hidden_size)

    def turn(x: ir.Value, state: list[ir.Value]) -> list[ir.Value]:
        held = b.dense_tensor(state[0], shape, dtype)
        wide = (shape[0], 2 * hidden_size)
        share = _window(b, x, [0, 0], wide, [*wide], dtype)
        gates = _recur(b, share, state[0], both, shape)
        update, reset = (_columns(b, gates, g, shape, dtype) for g in range(2))
        new = _columns(b, x, 2, shape, dtype)
        if linear_before_reset:
            product = b.dense_tensor(_recur(b, b.fill(shape, dtype, 0.0), state[0], last, shape), shape, dtype)
            operands = [update, reset, new, product, bias, held]
            body = lambda z, r, x, p, bias, h: _mix(z, s.tanh(x + s.sigmoid(r) * (p + bias)), h)  # noqa: E731
        else:
            kept = b.elementwise(lambda r, h: s.sigmoid(r) * h, [reset, held], dtype, shape)
            product = b.dense_tensor(_recur(b, b.fill(shape, dtype, 0.0), kept.value, last, shape), shape, dtype)
            operands = [update, new, product, bias, held]
            body = lambda z, x, p, bias, h: _mix(z, s.tanh(x + p + bias), h)  # noqa: E731
        return [b.elementwise(body, operands, dtype, shape).value]

    return _scan(b, result, xs, [h0], reverse, turn)


def rnn_scan(b: Builder, result: Sequence[Meta], xs: Tensor, r: Tensor, h0: Tensor, reverse: bool) -> list[Tensor]:
    """tanh of the input's share plus the state's."""
    r, shape, dtype = b.dense(r), h0.shape, h0.dtype

    def turn(x: ir.Value, state: list[ir.Value]) -> list[ir.Value]:
        total = b.dense_tensor(_recur(b, x, state[0], r, shape), shape, dtype)
        return [b.elementwise(s.tanh, [total], dtype, shape).value]

    return _scan(b, result, xs, [h0], reverse, turn)


def _mix(update: s.Scalar, new: s.Scalar, held: s.Scalar) -> s.Scalar:
    """(1 - z) · new + z · h with z the sigmoid of the update gate."""
    z = s.sigmoid(update)
    return (1.0 - z) * new + z * held


def _scan(b: Builder, result: Sequence[Meta], xs: Tensor, states: Sequence[Tensor], reverse: bool, turn: Turn) -> list[Tensor]:
    """Hidden states [time, batch, H] and the last state, by a loop over time whose body is `turn(x, state)`."""
    xs, first = b.dense(xs), [b.dense(state) for state in states]
    time, batch, width = xs.shape
    hidden, dtype = first[0].shape[1], xs.dtype
    zero, one, steps = _index(0), _index(1), _value(b, time)
    last = arith.subi(steps, one)
    loop = scf.ForOp(zero, steps, one, [b.empty(result[0].shape, dtype), *(state.value for state in first)])
    with ir.InsertionPoint(loop.body):
        t = loop.induction_variable
        at = arith.subi(last, t) if reverse else t
        x = _window(b, xs.value, [at, 0, 0], (batch, width), [1, batch, width], dtype)
        collected, *state = loop.inner_iter_args
        new = turn(x, list(state))
        scf.YieldOp([_insert(b, new[0], collected, at, (batch, hidden)), *new])
    metas = [(m.shape, m.dtype) for m in result]
    return [b.dense_tensor(value, shape, kind) for value, (shape, kind) in zip(loop.results_, metas, strict=True)]


def _recur(b: Builder, share: ir.Value, h: ir.Value, r: Tensor, shape: Shape) -> ir.Value:
    """share [batch, G] + h [batch, H] · r [G, H] transposed."""
    batch, gate, k = (affine_dim(i) for i in range(3))
    held = b.dense_tensor(h, shape, r.dtype)
    (value,) = b.generic(
        [(held, [batch, k]), (r, [gate, k])],
        [(share, r.dtype, [batch, gate])],
        ["parallel", "parallel", "reduction"],
        lambda x, w, total: [total + x * w],
    )
    return value


def _columns(b: Builder, gates: ir.Value, gate: int, shape: Shape, dtype: torch.dtype) -> Tensor:
    """One gate of [batch, gates · H] as [batch, H]."""
    hidden = shape[1]
    assert isinstance(hidden, int)
    return b.dense_tensor(_window(b, gates, [0, gate * hidden], shape, [*shape], dtype), shape, dtype)


def _rows(b: Builder, x: Tensor, start: int, count: int) -> Tensor:
    shape = (count, x.shape[1])
    return b.dense_tensor(_window(b, x.value, [start, 0], shape, [*shape], x.dtype), shape, x.dtype)


def _window(
    b: Builder, source: ir.Value, offsets: Sequence[int | ir.Value], shape: Shape, sizes: Sequence[Dim], dtype: torch.dtype
) -> ir.Value:
    """A slice of unit stride, its dims of size 1 dropped down to `shape`."""
    placed = _Placement.of(b, offsets, sizes)
    return tensor.ExtractSliceOp(b.type(shape, dtype), source, placed.offsets, placed.sizes, [], *placed.static()).result


def _insert(b: Builder, value: ir.Value, into: ir.Value, at: ir.Value, shape: Shape) -> ir.Value:
    placed = _Placement.of(b, [at, 0, 0], [1, *shape])
    return tensor.InsertSliceOp(value, into, placed.offsets, placed.sizes, [], *placed.static()).result


class _Placement:
    """Offsets and sizes of a slice, split into what is known and what is a value, as MLIR wants them."""

    def __init__(self, offsets: list[ir.Value], sizes: list[ir.Value], static_offsets: list[int], static_sizes: list[int]) -> None:
        self.offsets, self.sizes = offsets, sizes
        self._static_offsets, self._static_sizes = static_offsets, static_sizes

    @classmethod
    def of(cls, b: Builder, offsets: Sequence[int | ir.Value], sizes: Sequence[Dim]) -> _Placement:
        dynamic = ir.ShapedType.get_dynamic_size()
        return cls(
            [offset for offset in offsets if not isinstance(offset, int)],
            [b.index(size) for size in sizes if not isinstance(size, int)],
            [offset if isinstance(offset, int) else ir.ShapedType.get_dynamic_stride_or_offset() for offset in offsets],
            [size if isinstance(size, int) else dynamic for size in sizes],
        )

    def static(self) -> tuple[ir.DenseI64ArrayAttr, ir.DenseI64ArrayAttr, ir.DenseI64ArrayAttr]:
        ones = [1] * len(self._static_sizes)
        return tuple(ir.DenseI64ArrayAttr.get(values) for values in (self._static_offsets, self._static_sizes, ones))  # type: ignore[return-value]


def _index(value: int) -> ir.Value:
    return arith.ConstantOp(ir.IndexType.get(), value).result


def _value(b: Builder, dim: Dim) -> ir.Value:
    return _index(dim) if isinstance(dim, int) else b.index(dim)
