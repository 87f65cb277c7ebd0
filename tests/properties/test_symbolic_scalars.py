"""Numbers that follow from input sizes as arguments of ops: the compiled program takes them from the sizes of each call.

The generator takes torch's own samples of an operator and puts an expression of a dynamic size in the place of each number. CI runs it on
OPERATORS; LLMOS_SYMBOLIC_SCALARS=all takes every operator.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from llmos.compiler.frontend.torch import import_torch, to_numpy
from llmos.runtime.errors import UnsupportedError
from tests.conformance.inprocess import Compiled
from tests.conformance.opinfo import difference, dtypes, entries

Tensor = torch.Tensor
AUTO = torch.export.Dim.AUTO
TRACED, SIZES = (4, 6), ((4, 6), (5, 7), (2, 9), (3, 2))

FUNCTIONS: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "alpha and beta": lambda x: (
        x.add(x, alpha=x.size(1)),
        x.sub(x, alpha=x.size(0) / 3),
        torch.rsub(x, x, alpha=x.size(0)),
        (x * 4).int().add((x * 4).int(), alpha=x.size(1)),
        torch.addmm(x @ x.t(), x, x.t(), beta=x.size(0), alpha=1 / x.size(1)),
        torch.addcmul(x, x, x, value=x.size(0) / 2),
    ),
    "arithmetic on sizes": lambda x: (
        x / torch._sym_sqrt(x.size(1)),
        x * math.floor(x.size(0) / x.size(1)) + math.ceil(x.size(0) / x.size(1)),
        x * round(x.size(0) / x.size(1), 2),
        x * (x.size(0) ** 0.5) + x.size(1) ** 2,
        x * ((-x.size(0)) % 3) + (-x.size(1)) // 2,
        x * max(x.size(0), x.size(1)) + min(x.size(0), 3),
        x * abs(x.size(0) - 5) + (x.size(0) << 2) + (x.size(1) >> 1) + math.trunc(x.size(0) / x.size(1)),
    ),
    "bools of sizes": lambda x: (x * (x.size(0) > x.size(1)), x * torch.sym_ite(x.size(0) > x.size(1), 2, 3)),
    "binary ops": lambda x: (
        x.size(0) ** x,
        x.abs() ** (1 / x.size(1)),
        torch.div(x, x.size(0), rounding_mode="floor"),
        torch.remainder(x.size(1), x) + torch.fmod(x, x.size(1) / 3),
        (x * 4).long() * x.size(0),
        x.eq(x.size(0)) | x.lt(x.size(1) / 9),
        x.lerp(x * 2, 1 / x.size(0)),
    ),
    "limits": lambda x: (
        x.clamp(-1 / x.size(0), x.size(1) / 5),
        x.clamp(min=-x.size(0)),
        F.hardtanh(x, -x.size(0), x.size(1)),
        F.threshold(x, x.size(0), x.size(1)),
        x.masked_fill(x > 0, x.size(0) / 2),
        torch.where(x > 0, x.size(0), x),
    ),
    "filled and ranges": lambda x: (
        torch.full((3, x.size(0)), x.size(1) / 3),
        torch.full_like(x, x.size(0), dtype=torch.int64),
        torch.arange(1, x.size(0) + 1) * x.size(1),
        torch.linspace(0, x.size(0), 5),
        torch.scalar_tensor(x.size(0) / 2),
        torch.cat([x, torch.zeros(1, x.size(1)) + x.size(0)]),
    ),
    "activations, orders of norms, diagonals": lambda x: (
        F.elu(x, x.size(0)),
        F.softplus(x, x.size(0), x.size(1)),
        torch.linalg.vector_norm(x, x.size(0)),
        x.tril(x.size(0) - 3) + x.triu(2 - x.size(1)),
        x.std(0, correction=x.size(0) - 0.5),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numbers_follow_the_sizes_of_each_call(name: str) -> None:
    module = _module(lambda x: tuple(FUNCTIONS[name](x)))
    program = torch.export.export(module, (torch.randn(TRACED),), dynamic_shapes=({0: AUTO, 1: AUTO},))
    compiled = Compiled(import_torch(program))

    for sizes in SIZES:
        x = torch.randn(sizes)
        for place, (got, want) in enumerate(zip(compiled([to_numpy(x)]), module(x), strict=True)):
            assert not difference(got, want), f"output {place} at {sizes}: {difference(got, want)}"


def test_a_number_that_decides_the_graph_is_refused_with_its_expression() -> None:
    program = torch.export.export(_module(lambda x: torch.special.zeta(x, x.size(0))), (torch.rand(4, 6),), dynamic_shapes=({0: AUTO},))
    with pytest.raises(UnsupportedError, match="depends on input sizes"):
        import_torch(program)


OPERATORS = (
    "add", "addcdiv", "addmv", "baddbmm", "clamp", "fmod", "heaviside", "isclose", "logit", "masked_fill", "mul", "nn.functional.celu",
    "nn.functional.huber_loss", "nn.functional.leaky_relu", "nn.functional.logsigmoid", "nn.functional.pdist", "new_full", "pow", "where",
)  # fmt: skip
WANTED = os.environ.get("LLMOS_SYMBOLIC_SCALARS", "")


@pytest.mark.parametrize("name", sorted(entries()) if WANTED == "all" else [name for name in OPERATORS if name in entries()])
def test_any_number_of_an_operator_may_follow_from_a_size(name: str) -> None:
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    op = entries()[name]
    torch.manual_seed(0)
    samples = itertools.islice(op.sample_inputs("cpu", dtypes(op)[0], requires_grad=False), 8)
    tried = (case for sample in samples for case in _cases(op, sample))
    for module, tensors in itertools.islice(tried, 2 if not WANTED else 20):
        _compare(module, tensors)


class _Replaced(torch.nn.Module):
    """An operator on a sample whose number at `place` is an expression of the first input's size; 5 gives the number itself."""

    def __init__(self, op: Any, sample: Any, place: int) -> None:
        super().__init__()
        self._op, self._finish, self._place = op.op, sample.output_process_fn_grad, place
        values, self._spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
        self._values = [None if isinstance(value, Tensor) else value for value in values]
        self._places = [i for i, value in enumerate(values) if isinstance(value, Tensor)]

    def forward(self, sized: Tensor, *tensors: Tensor) -> Any:
        values = list(self._values)
        for place, tensor in zip(self._places, tensors, strict=True):
            values[place] = tensor
        number, size = values[self._place], sized.shape[0]
        values[self._place] = size + (number - 5) if isinstance(number, int) else size * (number / 5)
        first, args, kwargs = pytree.tree_unflatten(values, self._spec)
        return self._finish(self._op(first, *args, **kwargs))


def _cases(op: Any, sample: Any) -> Iterator[tuple[_Replaced, list[Tensor]]]:
    values = pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
    tensors = [value.detach() for value in values if isinstance(value, Tensor)]
    for place, value in enumerate(values):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield _Replaced(op, sample, place), tensors


def _compare(module: _Replaced, tensors: list[Tensor]) -> None:
    """At two sizes, where torch.export keeps the number dynamic; a refusal is an answer, an exception of another kind is not."""
    shapes = {"sized": {0: AUTO}, **({"tensors": tuple(None for _ in tensors)} if tensors else {})}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (torch.zeros(5), *tensors), dynamic_shapes=shapes)
    except Exception:
        return
    try:
        compiled = Compiled(import_torch(program))
    except UnsupportedError:
        return
    for size in (5, 6):
        try:
            wanted = pytree.tree_leaves(program.module()(torch.zeros(size), *tensors))
        except Exception:  # export made the number a constant, and checks it
            continue
        found = compiled([to_numpy(torch.zeros(size)), *[to_numpy(each) for each in tensors]])
        for got, want in zip(found, wanted, strict=True):
            assert not difference(got, want), f"at {size}: {difference(got, want)}"


def _module(function: Callable[..., Any]) -> torch.nn.Module:
    return type("Module", (torch.nn.Module,), {"forward": staticmethod(function)})()
