"""If, Loop and Scan: branches with constant conditions are resolved, loops of constant trip count are unrolled."""

from __future__ import annotations

from typing import Any

import torch

from llmos.compiler.frontend.onnx.registry import Known, Subgraph, Value, op
from llmos.compiler.frontend.onnx.values import ConstantValue, constant_value, scalar_of
from llmos.runtime.errors import UnsupportedError, UserError

# Unrolling a loop of a larger trip count would make a program too large to compile.
MAX_TRIP_COUNT = 256


@op("If")
def if_(condition: Value, *, then_branch: Subgraph, else_branch: Subgraph) -> tuple[Any, ...]:
    """Lower If: run the branch of a constant condition; otherwise run both and select their results (ONNX ops have no side effects).

    Raises UnsupportedError if a data-dependent condition selects between different shapes.
    """
    if isinstance(condition, ConstantValue):
        return tuple(then_branch() if bool(scalar_of(condition)) else else_branch())
    if not isinstance(condition, torch.Tensor):
        raise UnsupportedError("If needs a boolean tensor as its condition.")
    first, second = then_branch(), else_branch()
    if len(first) != len(second):
        raise UserError(f"an If has a branch of {len(first)} outputs and one of {len(second)}: check the model with onnx.checker.")
    return tuple(_choose(condition, a, b) for a, b in zip(first, second, strict=True))


def _choose(condition: torch.Tensor, a: Value, b: Value) -> torch.Tensor:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor) or a.shape != b.shape or a.dtype != b.dtype:
        raise UnsupportedError(
            "an If whose condition is computed from data has branches of different shapes; bind the input that decides it to a constant."
        )
    return torch.where(condition.reshape(()), a, b)


@op("Loop")
def loop(trips: Known, condition: Known, *state: Value, body: Subgraph) -> tuple[Any, ...]:
    """Lower Loop, unrolled: the trip count, or the condition after each iteration, must be constant.

    Raises UnsupportedError for one computed from data, for no iteration, and for more than MAX_TRIP_COUNT.
    """
    limit = int(_known(trips, "its trip count")) if trips is not None else None
    going = bool(_known(condition, "its condition")) if condition is not None else True
    values, scans, iteration = list(state), None, 0
    while going and (limit is None or iteration < limit):
        if iteration == MAX_TRIP_COUNT:
            raise UnsupportedError(f"a Loop of more than {MAX_TRIP_COUNT} iterations isn't supported.")
        results = body(constant_value(iteration, "int64"), constant_value(going, "bool"), *values)
        going = bool(_known(results[0], "its condition"))
        values = results[1 : 1 + len(state)]
        rows = results[1 + len(state) :]
        scans = [[row] for row in rows] if scans is None else [[*column, row] for column, row in zip(scans, rows, strict=True)]
        iteration += 1
    if scans is None:
        raise UnsupportedError("a Loop without an iteration isn't supported.")
    return (*values, *(_stack(column, 0) for column in scans))


@op("Scan")
def scan_of_batches(*items: Value, body: Subgraph, num_scan_inputs: int, directions: tuple[int, ...] | None = None) -> tuple[Any, ...]:
    """Lower Scan of opset 8: over axis 1 of [batch, length, ...], with the batch unrolled too.

    The first input holds optional row lengths. Raises UnsupportedError for these and for a dynamic batch or length.
    """
    lengths, *rest = items
    if lengths is not None:
        raise UnsupportedError("Scan of opset 8 with sequence_lens isn't supported; export with opset 9 or later.")
    if not all(isinstance(item, torch.Tensor) and isinstance(item.shape[0], int) for item in rest):
        raise UnsupportedError("Scan of opset 8 needs a static batch; fix the dimension (--dynamic name=size).")
    rows = [
        scan(*[item[b] for item in rest], body=body, num_scan_inputs=num_scan_inputs, scan_input_directions=directions)  # type: ignore[index]
        for b in range(rest[0].shape[0])  # type: ignore[union-attr]
    ]
    return tuple(torch.stack(column, 0) for column in zip(*rows, strict=True))


@op("Scan", since=9)
def scan(
    *items: Value,
    body: Subgraph,
    num_scan_inputs: int,
    scan_input_axes: tuple[int, ...] | None = None,
    scan_input_directions: tuple[int, ...] | None = None,
    scan_output_axes: tuple[int, ...] | None = None,
    scan_output_directions: tuple[int, ...] | None = None,
) -> tuple[Any, ...]:
    """Lower Scan from opset 9, unrolled. Raises UnsupportedError for a dynamic length, or one that isn't 1 to MAX_TRIP_COUNT."""
    count = len(items) - num_scan_inputs
    state, sequences = list(items[:count]), items[count:]
    axes = scan_input_axes or (0,) * num_scan_inputs
    reverse = scan_input_directions or (0,) * num_scan_inputs
    columns: list[list[Value]] = []
    for iteration in range(_scan_length(sequences, axes)):
        rows = [_row(x, axis, iteration, bool(back)) for x, axis, back in zip(sequences, axes, reverse, strict=True)]
        results = body(*state, *rows)
        state = results[:count]
        columns = columns or [[] for _ in results[count:]]
        for column, value in zip(columns, results[count:], strict=True):
            column.append(value)
    directions = scan_output_directions or (0,) * len(columns)
    ordered = [column[::-1] if back else column for column, back in zip(columns, directions, strict=True)]
    return (*state, *(_stack(c, axis) for c, axis in zip(ordered, scan_output_axes or (0,) * len(columns), strict=True)))


def _scan_length(sequences: tuple[Value, ...], axes: tuple[int, ...]) -> int:
    first = sequences[0]
    length = first.shape[axes[0]] if isinstance(first, torch.Tensor) else None
    if not isinstance(length, int) or not 0 < length <= MAX_TRIP_COUNT:
        raise UnsupportedError(f"Scan needs a static length of 1 to {MAX_TRIP_COUNT}.")
    return length


def _row(x: Value, axis: int, iteration: int, reverse: bool) -> torch.Tensor:
    if not isinstance(x, torch.Tensor):
        raise UnsupportedError("Scan over a constant isn't supported.")
    return x.select(axis, x.shape[axis] - 1 - iteration if reverse else iteration)


def _stack(values: list[Any], axis: int) -> torch.Tensor:
    tensors = [torch.as_tensor(v.array) if isinstance(v, ConstantValue) and not v.is_symbolic else v for v in values]
    if not all(isinstance(item, torch.Tensor) for item in tensors):
        raise UnsupportedError("a loop that collects sizes or sequences isn't supported.")
    return torch.stack(tensors, axis)


def _known(value: Value, what: str) -> Any:
    if not isinstance(value, ConstantValue):
        raise UnsupportedError(f"a Loop is supported where {what} is known before any data is; here it is computed from data.")
    return scalar_of(value)
