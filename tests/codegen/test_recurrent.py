"""Recurrent layers and loops over dispatches against eager torch; their bits alone, in a batch and on two threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from llmos.runtime.native.binding import num_threads, set_num_threads

from .programs import assert_like_eager, compile_text, compile_torch, dim, in_turn, to_array

LENGTHS = ((1, 1), (2, 5), (13, 3), (33, 17))
LAYERS: dict[str, Callable[[], torch.nn.Module]] = {
    "lstm": lambda: torch.nn.LSTM(20, 24),
    "lstm-both-2": lambda: torch.nn.LSTM(20, 50, num_layers=2, bidirectional=True),
    "lstm-batch-first": lambda: torch.nn.LSTM(7, 16, batch_first=True, bias=False),
    "gru": lambda: torch.nn.GRU(20, 33),
    "gru-both": lambda: torch.nn.GRU(5, 48, bidirectional=True),
    "rnn": lambda: torch.nn.RNN(20, 24, num_layers=2),
}


@pytest.mark.parametrize(("name", "target"), in_turn((name,) for name in LAYERS))
def test_layers(name: str, target: str) -> None:
    torch.manual_seed(0)
    module = LAYERS[name]()
    width = int(module.input_size)
    program = compile_torch(module, (torch.randn(7, 3, width),), ({0: dim("a", 1, 64), 1: dim("b", 1, 64)},), target)
    for first, second in LENGTHS:
        assert_like_eager(program, module, torch.randn(first, second, width))


class Stateful(torch.nn.Module):
    """A stream: the state comes in and goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.LSTM(12, 40)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Any:
        y, (h, c) = self.layer(x, (h, c))
        return torch.relu(y), h, c


def test_a_state_that_comes_in_and_goes_out() -> None:
    torch.manual_seed(1)
    module = Stateful()
    shapes = ({0: dim("t", 1, 64), 1: dim("b", 1, 9)}, {1: dim("b", 1, 9)}, {1: dim("b", 1, 9)})
    program = compile_torch(module, (torch.randn(5, 3, 12), torch.randn(1, 3, 40), torch.randn(1, 3, 40)), shapes)
    for length, batch in ((1, 1), (2, 9), (7, 2)):
        assert_like_eager(program, module, torch.randn(length, batch, 12), torch.randn(1, batch, 40), torch.randn(1, batch, 40))


def test_alone_in_a_batch_and_on_two_threads() -> None:
    """300 is wide enough for a turn to be launched over the pool at a batch of 64, and not at 1."""
    torch.manual_seed(2)
    module = torch.nn.GRU(30, 300, bidirectional=True)
    program = compile_torch(module, (torch.randn(4, 3, 30),), ({0: dim("t", 1, 64), 1: dim("b", 1, 64)},))
    x = to_array(torch.randn(6, 64, 30))
    before, found = num_threads(), []
    try:
        for threads in (1, 2):
            set_num_threads(threads)
            found.append([*program(x), *[np.concatenate([program(x[:, i : i + 1])[0] for i in range(0, 64, 9)], 1)]])
    finally:
        set_num_threads(before)
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(found[0][0][:, ::9], found[0][2])


LOOP = """
module attributes {{llmos.symbols = {{n = array<i64: 0, 100>}}}} {{
  func.func @main(%x: tensor<?x3xf32> {{llmos.kind = "input", llmos.name = "x", llmos.dtype = "float32", llmos.shape = ["n", 3]}},
                  %p: tensor<3xf32> {{llmos.kind = "input", llmos.name = "p", llmos.dtype = "float32", llmos.shape = [3]}},
                  %q: tensor<3xf32> {{llmos.kind = "input", llmos.name = "q", llmos.dtype = "float32", llmos.shape = [3]}})
      -> (tensor<?x3xf32>, tensor<3xf32>, tensor<3xf32>) {{
    %c0 = arith.constant 0 : index
    %c1 = arith.constant 1 : index
    %n = tensor.dim %x, %c0 : tensor<?x3xf32>
    %y = tensor.empty(%n) : tensor<?x3xf32>
    %r:3 = scf.for %i = %c0 to %n step %c1 iter_args(%ys = %y, %a = %p, %b = %q) -> (tensor<?x3xf32>, tensor<3xf32>, tensor<3xf32>) {{
      %row = tensor.extract_slice %x[%i, 0] [1, 3] [1, 1] : tensor<?x3xf32> to tensor<3xf32>
      %e = tensor.empty() : tensor<3xf32>
      %s = linalg.add ins(%row, %a : tensor<3xf32>, tensor<3xf32>) outs(%e : tensor<3xf32>) -> tensor<3xf32>
      %last = arith.subi %n, %c1 : index
      %at = arith.subi %last, %i : index
      %ys2 = tensor.insert_slice %s into %ys[{place}, 0] [1, 3] [1, 1] : tensor<3xf32> into tensor<?x3xf32>
      scf.yield %ys2, {state} : tensor<?x3xf32>, tensor<3xf32>, tensor<3xf32>
    }}
    return %r#0, %r#1, %r#2 : tensor<?x3xf32>, tensor<3xf32>, tensor<3xf32>
  }}
}}
"""
STATES: dict[str, Callable[[Any, Any, Any], tuple[Any, Any]]] = {  # s, a, b to the next a, b
    "%b, %a": lambda s, a, b: (b, a),
    "%s, %a": lambda s, a, b: (s, a),
    "%s, %s": lambda s, a, b: (s, s),
    "%a, %s": lambda s, a, b: (a, s),
    "%b, %b": lambda s, a, b: (b, b),
}


@pytest.mark.parametrize("place", ["%i", "%at"])
@pytest.mark.parametrize("state", list(STATES))
def test_what_a_loop_hands_on(state: str, place: str) -> None:
    """States that are swapped, kept, made twice or read where they are stacked; no turn at all."""
    program = compile_text(LOOP.format(state=state, place=place))
    assert [kernel.kind for kernel in program.manifest.kernels].count("loop") == 1
    rng = np.random.default_rng(3)
    for length in (0, 1, 2, 5):
        x, p, q = rng.standard_normal((length, 3), np.float32), *rng.standard_normal((2, 3), np.float32)
        a, b, rows = p, q, []
        for row in x:
            s = row + a
            rows.append(s)
            a, b = STATES[state](s, a, b)
        want = np.array(rows[:: 1 if place == "%i" else -1], np.float32).reshape(length, 3)
        for found, expected in zip(program(x, p, q), (want, a, b), strict=True):
            np.testing.assert_array_equal(found, expected)
