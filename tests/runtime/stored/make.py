"""Makes the stored artifacts that are not there yet, and the numbers of their calls (README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.runtime.artifact.signature import new_key
from llmos.runtime.artifact.writer import write_artifact

FOLDER = Path(__file__).parent
OPTIONS = CompileOptions(target="x86-64-v3", cache=False, repro=None)
BATCH = torch.export.Dim("batch", min=1, max=64)


class Dynamic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).softmax(-1)


class State(nn.Module):
    """A running sum, and a cache of which one row is written."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.full((4,), 2.0))
        self.register_buffer("cache", torch.zeros(8, 4))

    def forward(self, row: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        self.total += row.sum(0)
        self.cache.index_copy_(0, position, row)
        return self.cache @ self.total


class Guarded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0] // 2, 2, 3).sum(1)


class Computed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x > 0] * 2


class Step(nn.Module):
    """A projection of a token goes into a cache of the caller, which is read."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table

    def forward(self, cache: torch.Tensor, ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        row = self.table(ids)
        cache.index_copy_(0, at, row)
        cache[-1] = row[0]
        return cache @ row[0]


def make_updated(path: Path) -> None:
    """Two entries with one weight, of which one updates its input."""
    table = nn.Embedding(6, 4)
    step, calls = Step(table), [(torch.randn(rows, 4), torch.tensor([rows]), torch.tensor([rows - 2])) for rows in (2, 4, 5)]
    inputs = {"step": tuple(each.clone() for each in calls[0]), "embed": (torch.tensor([1, 2]),)}
    shapes = {"step": ({0: torch.export.Dim("rows", min=2, max=64)}, None, None)}
    write_artifact(path, llmos.compile({"step": step, "embed": table}, inputs, dynamic_shapes=shapes, options=OPTIONS).contents, new_key())
    recorded = []
    for given in calls:
        before = [_listed(value.clone()) for value in given]
        result = step(*given)
        recorded.append({"entry": "step", "inputs": before, "output": _listed(result), "updated": {"0": _listed(given[0])}})
    ids = torch.tensor([5, 0])
    recorded.append({"entry": "embed", "inputs": [_listed(ids)], "output": _listed(table(ids))})
    path.with_suffix(".json").write_text(json.dumps({"name": path.stem, "calls": recorded}, indent=1) + "\n")


def models() -> dict[str, tuple[nn.Module, tuple[torch.Tensor, ...], Any, list[tuple[torch.Tensor, ...]]]]:
    """Each model, example inputs, dynamic shapes, and the calls whose numbers are kept."""
    rows = [torch.randn(n, 4) for n in (1, 3, 7)]
    steps = [(torch.randn(1, 4), torch.tensor([position])) for position in (0, 5, 7)]
    even = [torch.randn(2 * n, 3) for n in (1, 2, 5)]
    return {
        "dynamic": (Dynamic(), (rows[1],), ({0: BATCH},), [(row,) for row in rows]),
        "state": (State(), steps[0], None, steps),
        "guards": (Guarded(), (even[1],), ({0: torch.export.Dim.DYNAMIC},), [(x,) for x in even]),
        "computed": (Computed(), (rows[1],), ({0: BATCH},), [(row,) for row in [*rows, -torch.ones(2, 4)]]),
    }


def make(name: str, path: Path, model: nn.Module, example: tuple[torch.Tensor, ...], shapes: Any, calls: Any) -> None:
    artifact = llmos.compile(model, example, dynamic_shapes=shapes, options=OPTIONS)
    write_artifact(path, artifact.contents, new_key())
    results = [model(*inputs) for inputs in calls]  # of torch: the artifact's own are in the accuracy report
    recorded = [
        {"inputs": [_listed(value) for value in inputs], "output": _listed(result)} for inputs, result in zip(calls, results, strict=True)
    ]
    path.with_suffix(".json").write_text(json.dumps({"name": name, "calls": recorded}, indent=1) + "\n")


def _listed(value: torch.Tensor) -> dict[str, Any]:
    array: np.ndarray = value.detach().clone().numpy()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "values": array.reshape(-1).tolist()}


def main() -> None:
    torch.manual_seed(0)
    for name, (model, example, shapes, calls) in models().items():
        path = FOLDER / f"{name}.llmos"
        if not path.exists():
            with torch.no_grad():
                make(name, path, model, example, shapes, calls)

    with torch.no_grad():
        if not (FOLDER / "updated.llmos").exists():
            make_updated(FOLDER / "updated.llmos")


if __name__ == "__main__":
    main()
