"""recognize-attention: what is one group, and what must not be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llmos.compiler.ir.attributes import ATTENTION
from llmos.compiler.ir.bindings import ir
from llmos.passes.recognize_attention import RecognizeAttention

from .ir_tests import apply, check, functions, generics

Tensor = torch.Tensor
Q, K, V = (torch.randn(2, 4, length, 16) for length in (5, 7, 7))


def groups(function: Callable[..., object], *inputs: Tensor) -> list[int]:
    """Number of ops in each attention found."""
    module = apply(generics(function, *inputs), RecognizeAttention())
    main = functions(module)[0].regions[0].blocks[0]
    found = [ir.IntegerAttr(op.attributes[ATTENTION]).value for op in main.operations if ATTENTION in op.operation.attributes]
    return [found.count(number) for number in sorted(set(found))]


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) * 0.25, -1)


def test_every_op_of_an_attention_is_tagged() -> None:
    module = apply(generics(lambda q, k, v: probabilities(q, k) @ v, Q, K, V), RecognizeAttention())
    check(
        module,
        """
        CHECK: func.func @main
        CHECK: linalg.generic {{.*}}"reduction"]{{.*}}llmos.attention = 0
        CHECK: arith.mulf
        CHECK: linalg.generic {{.*}}llmos.attention = 0
        CHECK: arith.maximumf
        CHECK: linalg.generic {{.*}}llmos.attention = 0
        CHECK: math.exp
        CHECK: linalg.generic {{.*}}llmos.attention = 0
        CHECK: arith.addf
        CHECK: linalg.generic {{.*}}llmos.attention = 0
        CHECK: arith.divf
        CHECK: linalg.generic {{.*}}"reduction"]{{.*}}llmos.attention = 0
        CHECK: return
        """,
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v),
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda q, k, v: torch.softmax((q @ k.transpose(-1, -2)).tanh() * 3, -1) @ v,
        lambda q, k, v: probabilities(q, k) @ v + 1,
    ],
)
def test_is_recognised(function: Callable[..., object]) -> None:
    assert len(groups(function, Q, K, V)) == 1


def test_two_attentions_get_two_numbers() -> None:
    found = groups(lambda q, k, v: (probabilities(q, k) @ v, probabilities(q * 2, k) @ v), Q, K, V)
    assert len(found) == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v: (probabilities(q, k) @ v, probabilities(q, k)),  # the probabilities are an output
        lambda q, k, v: (probabilities(q, k) @ v, (q @ k.transpose(-1, -2)).amax()),  # the scores are read elsewhere
        lambda q, k, v: torch.softmax(q @ k.transpose(-1, -2), -2) @ v,  # over queries
        lambda q, k, v: torch.sigmoid(q @ k.transpose(-1, -2)) @ v,  # no softmax
        lambda q, k, v: (probabilities(q.double(), k.double()) @ v.double()).float(),  # not float32
        lambda q, k, v: probabilities(q, k).cumsum(-1) @ v,  # something in between
        lambda q, k, v: probabilities(q[:1], k[:1]) @ v,  # one softmax for a batch of V
        lambda q, k, v: torch.einsum("hij,bhjd->bhid", probabilities(q[0], k[0]), v),
        lambda q, k, v: torch.einsum("hij,bhjd->hidb", probabilities(q[0], k[0]), v),
    ],
)
def test_is_left_alone(function: Callable[..., object]) -> None:
    assert groups(function, Q, K, V) == []
