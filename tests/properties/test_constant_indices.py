"""ONNX ops whose indices are constants: outside of a known size a compile error, of a dynamic one an error of the call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.runtime.errors import InputError, LlmosError, UserError
from llmos.runtime.program import Program

OPTIONS = CompileOptions(target="native", cache=False, repro=None, accuracy_report=False)
ROWS, COLUMNS = 4, 6
INSIDE = ([0], [-4], [0, 3, -2], [1] * 70)
OUTSIDE = ([4], [-5], [0, 9], [10**11, 0], [2**63 - 1], [5] * 70)


def _program(op: str, places: list[int], axis: int, rows: int | str, folder: Path) -> Program:
    index = np.array(places)
    if op in ("GatherElements", "ScatterElements"):
        index = np.repeat(index[:, None], COLUMNS, 1) if axis in (0, -2) else np.repeat(index[None], ROWS, 0)
    index = index[:, None] if op.endswith("ND") else index
    attributes = {} if op.endswith("ND") else {"axis": axis}
    shape = [rows, COLUMNS] if axis in (0, -2) else [COLUMNS, rows]
    inputs, values = ["x", "i"], [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    if op.startswith("Scatter"):
        inputs.append("u")
        count = [len(places), COLUMNS] if axis in (0, -2) else [COLUMNS, len(places)]
        values.append(helper.make_tensor_value_info("u", TensorProto.FLOAT, count))
    node = helper.make_node(op, inputs, ["y"], **attributes)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", values, [result], [numpy_helper.from_array(index, "i")])
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString())
    compile_model(path, options=OPTIONS).save(folder / "model.llmos")
    return llmos.load(folder / "model.llmos")


def _arguments(op: str, places: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    made = [rng.random((ROWS, COLUMNS), np.float32)]
    return [*made, rng.random((len(places), COLUMNS), np.float32)] if op.startswith("Scatter") else made


def _expected(op: str, places: list[int], arguments: list[np.ndarray]) -> np.ndarray:
    x = arguments[0].copy()
    if not op.startswith("Scatter"):
        return x[places]
    for place, row in zip(places, arguments[1], strict=True):
        x[place] = row
    return x


OPS = ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND")


@pytest.mark.parametrize("op", OPS)
def test_inside(op: str, tmp_path: Path) -> None:
    for number, places in enumerate(INSIDE):
        rows = "rows" if number % 2 else ROWS
        arguments = _arguments(op, places)
        found = _program(op, places, (0, -2)[number % 2], rows, tmp_path)(*arguments)
        assert np.array_equal(np.asarray(found), _expected(op, places, arguments)), (op, places, rows)


@pytest.mark.parametrize("op", OPS)
def test_outside_of_a_known_size(op: str, tmp_path: Path) -> None:
    for number, places in enumerate(OUTSIDE):
        with pytest.raises(LlmosError, match=f"{op} has the constant index -?[0-9]+, outside of a dim of size 4"):
            _program(op, places, (0, -2)[number % 2], ROWS, tmp_path)


@pytest.mark.parametrize("op", OPS)
def test_outside_of_a_dynamic_size(op: str, tmp_path: Path) -> None:
    """The dim stays dynamic: each call is told by its own size."""
    program = _program(op, [0, 5], 0, "rows", tmp_path)
    wide = np.zeros((9, COLUMNS), np.float32)
    rest = _arguments(op, [0, 5])[1:]
    assert np.asarray(program(wide, *rest)).shape[1] == COLUMNS
    with pytest.raises(InputError, match="index"):
        program(wide[:ROWS], *rest)


TORCH: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda x: x[torch.full((2,), ROWS)],
    lambda x: x[torch.tensor([7, 1])],
    lambda x: x.index_select(0, torch.arange(ROWS + 1)),
    lambda x: x.gather(-2, torch.full((2, 3), -1)),
    lambda x: torch.nn.functional.embedding(torch.arange(2, 7), x),
    lambda x: x.index_add(0, torch.full((2,), ROWS), x[:2]),
    lambda x: x.scatter(-2, torch.full((2, 3), -1), x),
    lambda x: x.index_put((torch.tensor([-5]),), x[0]),
)


class _Function(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._function(x)


@pytest.mark.parametrize("number", range(len(TORCH)))
def test_outside_in_torch(number: int) -> None:
    with pytest.raises(UserError, match=r"the constant index -?[0-9]+ lies outside of a dimension of size 4"):
        compile_model(_Function(TORCH[number]), (torch.zeros(ROWS, COLUMNS),), options=OPTIONS)
