"""Unsigned integers above the signed maximum: every op of ONNX and torch that takes them, against exact integers and eager torch.

MLIR's integer types have no sign, so each op has to choose its form by the dtype; a wrong choice shows above the signed maximum alone.

LLMOS_PROPERTY_CASES=1 takes every op in every type.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch._subclasses.fake_tensor import FakeTensorMode

from llmos.compiler.frontend.onnx import import_onnx
from llmos.compiler.frontend.torch import import_torch
from tests.codegen.programs import Returns
from tests.conformance.inprocess import Compiled
from tests.properties.unsigned_nodes import DTYPES, Array, Node, expected, nodes, numbers

Tensor = torch.Tensor
EVERYTHING = bool(os.environ.get("LLMOS_PROPERTY_CASES"))
SHARE = 4  # of the nodes: a type has one in so many, others than the other types
OPSET = 26
COPIES = (1, 200, 11)  # of the numbers along a row: the lengths that kernels treat on their own; the first is traced
DIMS: Mapping[str, Sequence[str | int]] = {
    **dict.fromkeys(("x", "y", "d", "n", "m"), (3, "w")),
    "z": ("w", 3),
    "x4": (1, 1, 3, "w"),
    "grid": (1, 3, "w", 2),
    **dict.fromkeys(("ids", "n2"), (2, "w")),
}


def model_of(chosen: Sequence[Node], inputs: Mapping[str, Array], is_dynamic: bool) -> onnx.ModelProto:
    """One model of all nodes, node i with its first output as y<i>."""
    made, constants, outputs = [], [], []
    for i, node in enumerate(chosen):
        names = [f"{name}{i}" if name else "" for name in node.constants]
        constants += [numpy_helper.from_array(a, n) for n, a in zip(names, node.constants.values(), strict=True) if n]
        extra = [f"extra{i}"] if node.op == "TopK" else []
        made.append(helper.make_node(node.op, [*node.inputs.split(), *names], [f"y{i}", *extra], f"{node.op}{i}", **node.attributes))
        outputs.append(helper.make_empty_tensor_value_info(f"y{i}"))
    infos = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(a.dtype), DIMS.get(name, a.shape) if is_dynamic else a.shape
        )
        for name, a in inputs.items()
    ]  # fmt: skip
    graph = helper.make_graph(made, "unsigned", infos, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def wrong_nodes(chosen: Sequence[Node], inputs: Mapping[str, Array], found: Sequence[Array], dtype: str) -> list[str]:
    messages = []
    for node, got in zip(chosen, found, strict=True):
        want = expected(node, inputs, dtype)
        if got.dtype != want.dtype or got.shape != want.shape:
            messages.append(f"{node.op} {dict(node.attributes)}: {got.dtype}{got.shape} instead of {want.dtype}{want.shape}")
        elif not np.array_equal(got, want):
            at = tuple(np.argwhere(got != want)[0])
            messages.append(f"{node.op} {dict(node.attributes)}: {got[at]} instead of {want[at]} at {[int(i) for i in at]}")
    return messages


@pytest.mark.sample(0, 2, 3)
@pytest.mark.parametrize("dtype", DTYPES)
def test_onnx(dtype: str) -> None:
    """Sizes are dynamic for half of the types and static for the others, which is another way through the kernels."""
    is_dynamic, first = dtype in ("uint64", "uint16"), numbers(dtype)
    chosen = nodes(dtype)[0 if EVERYTHING else DTYPES.index(dtype) % SHARE :: 1 if EVERYTHING else SHARE]
    used = {name for node in chosen for name in node.inputs.split()}
    program = Compiled(import_onnx(model_of(chosen, {name: a for name, a in first.items() if name in used}, is_dynamic)))
    for copies in COPIES if is_dynamic else COPIES[:1]:
        inputs = numbers(dtype, copies)
        found = program([a for name, a in inputs.items() if name in used])
        wrong = wrong_nodes(chosen, inputs, found, dtype)
        assert not wrong, f"{3, 6 * copies}: " + "; ".join(wrong)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "sort": lambda x, y, d, ids: torch.sort(x, dim=-1, stable=True)[0],
    "down": lambda x, y, d, ids: torch.sort(x, 0, descending=True)[0],
    "topk": lambda x, y, d, ids: torch.topk(x, 2)[0],
    "kthvalue": lambda x, y, d, ids: torch.kthvalue(x, 2)[0],
    "median": lambda x, y, d, ids: torch.median(x, 1)[0],
    "mode": lambda x, y, d, ids: torch.mode(x, 1)[0],
    "max": lambda x, y, d, ids: torch.max(x, 1)[0],
    "min": lambda x, y, d, ids: torch.min(x, 0)[0],
    "amax": lambda x, y, d, ids: torch.amax(x, (0, 1)),
    "amin": lambda x, y, d, ids: torch.amin(x, 0),
    "argmax": lambda x, y, d, ids: torch.argmax(x.reshape(-1)[:9], 0),
    "argmin": lambda x, y, d, ids: torch.argmin(x.reshape(-1)[1:17], 0),
    "aminmax": lambda x, y, d, ids: torch.cat(torch.aminmax(x, dim=1)),
    "cummax": lambda x, y, d, ids: torch.cummax(x, 1)[0],
    "cummin": lambda x, y, d, ids: torch.cummin(x, 0)[0],
    "cumsum": lambda x, y, d, ids: torch.cumsum(x, 1),
    "cumprod": lambda x, y, d, ids: torch.cumprod(x, 1, dtype=x.dtype),
    "sum": lambda x, y, d, ids: torch.sum(x, 1),
    "prod": lambda x, y, d, ids: torch.prod(x, 0, dtype=x.dtype),
    "mean": lambda x, y, d, ids: torch.mean(x, 1, dtype=torch.float64),
    "clamp": lambda x, y, d, ids: x.clamp(3, 200),
    "clamp_min": lambda x, y, d, ids: x.clamp(min=200),
    "clamp_tensor": lambda x, y, d, ids: x.clamp(max=y),
    "relu": lambda x, y, d, ids: torch.relu(x),
    "maximum": lambda x, y, d, ids: torch.maximum(x, y),
    "fmin": lambda x, y, d, ids: torch.fmin(x, y),
    "lt": lambda x, y, d, ids: x < y,
    "ge_number": lambda x, y, d, ids: x >= 200,
    "floor_divide": lambda x, y, d, ids: x // d,
    "div_trunc": lambda x, y, d, ids: torch.div(x, d, rounding_mode="trunc"),
    "true_divide": lambda x, y, d, ids: x / d,
    "remainder": lambda x, y, d, ids: x % d,
    "fmod": lambda x, y, d, ids: torch.fmod(x, d),
    "remainder_number": lambda x, y, d, ids: x % 7,
    "shift_right": lambda x, y, d, ids: x >> 1,
    "sign": lambda x, y, d, ids: torch.sign(x),
    "abs": lambda x, y, d, ids: torch.abs(x),
    "float32": lambda x, y, d, ids: x.float(),
    "bfloat16": lambda x, y, d, ids: x.to(torch.bfloat16).float(),
    "int64": lambda x, y, d, ids: x.long(),
    "gcd": lambda x, y, d, ids: torch.gcd(x, y),
    "matmul": lambda x, y, d, ids: x @ y.T,
    "searchsorted": lambda x, y, d, ids: torch.searchsorted(torch.sort(x.reshape(-1))[0], y),
    "scatter_amax": lambda x, y, d, ids: x.scatter_reduce(0, ids, y[:2], "amax"),
    "scatter_amin": lambda x, y, d, ids: x.scatter_reduce(0, ids, y[:2], "amin", include_self=False),
    "scatter_mean": lambda x, y, d, ids: x.scatter_reduce(0, ids, y[:2], "mean"),
    "index_reduce": lambda x, y, d, ids: x.index_reduce(0, ids[0, :3], y, "amax"),
    "max_pool": lambda x, y, d, ids: torch.nn.functional.max_pool2d(x[None], 3, 1, 1),
    "masked_fill": lambda x, y, d, ids: x.masked_fill(x > y, 201),
}


# What follows from the order of elements alone: elements, or places and comparisons.
ORDER = {
    *("sort", "down", "topk", "kthvalue", "median", "mode", "max", "min", "amax", "amin", "aminmax", "cummax", "cummin", "maximum", "fmin"),
    *("scatter_amax", "scatter_amin", "index_reduce", "max_pool"),
}
PLACES = frozenset(("argmax", "argmin", "lt", "searchsorted"))


def eager(name: str, inputs: Sequence[Tensor]) -> Tensor | None:
    """What eager torch gives; of types that it lacks, what int64 gives. None where neither says anything."""
    function = FUNCTIONS[name]
    with suppress(RuntimeError, TypeError):
        return function(*inputs)
    if inputs[0].dtype == torch.uint64:
        return signed_order(name, inputs)
    if name == "scatter_mean":  # its sums wrap
        return None
    with suppress(RuntimeError, TypeError):
        return function(*[each.to(torch.int64) for each in inputs])
    return None


def signed_order(name: str, inputs: Sequence[Tensor]) -> Tensor | None:
    """An op about the order of uint64, by int64 in the same order."""
    if name not in ORDER | PLACES:
        return None
    lowest = torch.iinfo(torch.int64).min
    made = FUNCTIONS[name](*[each.view(torch.int64) ^ lowest if each.dtype == torch.uint64 else each for each in inputs])
    return (made ^ lowest).view(torch.uint64) if name in ORDER else made


def exports(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> bool:
    """Whether torch's metadata has the op in this type."""
    with suppress(RuntimeError, TypeError, NotImplementedError), FakeTensorMode() as mode:
        function(*[mode.from_tensor(each) for each in inputs])
        return True
    return False


@pytest.mark.sample(0, 2)
@pytest.mark.parametrize("dtype", DTYPES if EVERYTHING else ("uint8", "uint32", "uint64"))
@pytest.mark.filterwarnings("ignore")
def test_torch(dtype: str) -> None:
    arrays = numbers(dtype)
    inputs = [torch.from_numpy(arrays[name]) for name in ("x", "y", "d", "ids")]
    wanted = {name: want for name in FUNCTIONS if (want := eager(name, inputs)) is not None and exports(FUNCTIONS[name], inputs)}
    assert len(wanted) > (len(ORDER) if dtype == "uint64" else 0.9 * len(FUNCTIONS))
    program = Compiled(import_torch(Returns(**{name: FUNCTIONS[name] for name in wanted}), tuple(inputs)))
    wrong = []
    for (name, want), got in zip(wanted.items(), program([each.numpy() for each in inputs]), strict=True):
        if not np.array_equal(got, want.numpy().astype(got.dtype)):
            wrong.append(f"{name}: {got.reshape(-1)[:8]} instead of {want.reshape(-1)[:8]}")
    assert not wrong, "; ".join(wrong)
