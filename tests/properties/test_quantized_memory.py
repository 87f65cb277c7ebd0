"""Quantized products and convolutions touch nothing beside their buffers, of any size: each lies against a page that faults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import llmos
from llmos.compiler.backends.options import CompileOptions
from tests.codegen.programs import runnable
from tests.codegen.test_int4 import MORE, ROWS, Products, rows_of
from tests.codegen.test_quantized_convolutions import HALVES, Conv, compiled

from .guarded import GuardedProgram

OPTIMIZED = True  # what touches memory beside a buffer may be LLVM's work

TARGETS = ("x86-64-v4-amx", "x86-64-v4-vnni", "x86-64-v4", "x86-64-v3-vnni", "x86-64-v3")
SCHEMES = [("w8a8", target) for target in TARGETS] + [
    (quant, target) for quant in ("w8a16", "fp8", "w4a16:g32") for target in TARGETS[2::2]
]


class Layers(torch.nn.Module):
    """A looked-up row, then products of every rest of k by 4 and of columns by a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(259, 65)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in ((65, 66), (66, 67), (67, 128), (128, 33)))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


@pytest.mark.sample(0, 1, 4, 6, 7)
@pytest.mark.parametrize(("quant", "target"), SCHEMES)
def test_products_stay_within_their_buffers(quant: str, target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = CompileOptions(quant=quant, target=runnable(target), repro=None, cache=False, accuracy_report=False)
    shapes = ({0: torch.export.Dim("rows", min=1, max=64)},)
    llmos.compile(Layers().eval(), (torch.arange(3),), dynamic_shapes=shapes, options=options).save(tmp_path / "m.llmos")
    program, guarded = llmos.load(tmp_path / "m.llmos"), GuardedProgram(tmp_path / "m.llmos")
    for rows in (1, 2, 3, 5, 8, 16, 33, 64):
        ids = np.random.default_rng(rows).integers(0, 259, rows)
        for at_end in (True, False):
            codes, (got,) = guarded([ids], at_end)
            assert not any(codes)
            np.testing.assert_array_equal(got, program(ids))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["x86-64-v4-vnni", "x86-64-v4", "x86-64-v3"])
def test_products_of_int8_rows_stay_within_their_buffers(target: str, tmp_path: Path) -> None:
    options = CompileOptions(quant="w4a8", target=runnable(target), repro=None, cache=False, accuracy_report=False)
    rows = torch.export.Dim("rows", min=1, max=64)
    examples = tuple(torch.ones(2, case.k) for case in MORE)
    llmos.compile(Products(MORE), examples, dynamic_shapes={"inputs": tuple({0: rows} for _ in MORE)}, options=options).save(
        tmp_path / "m.llmos"
    )
    program, guarded = llmos.load(tmp_path / "m.llmos"), GuardedProgram(tmp_path / "m.llmos")
    for count in ROWS:
        inputs = [rows_of(case)[:count] for case in MORE]
        expected = program(*inputs)
        for at_end in (True, False):
            codes, found = guarded(inputs, at_end)
            assert not any(codes)
            for got, want, case in zip(found, expected, MORE, strict=True):
                np.testing.assert_array_equal(got, want, err_msg=str(case))


@pytest.mark.parametrize(("target", "convs"), HALVES)
def test_convolutions_stay_within_their_buffers(target: str, convs: Sequence[Conv], tmp_path: Path) -> None:
    program, guarded = compiled(convs, target, tmp_path), GuardedProgram(tmp_path / "m.llmos")
    for batch in (1, 2):
        rng = np.random.default_rng(batch)
        inputs = [rng.integers(0, 100, (batch, conv.c, *conv.image)).astype(conv.left) for conv in convs]
        expected = program(*inputs)
        for at_end in (True, False):
            codes, found = guarded(inputs, at_end)
            assert not any(codes)
            for got, want, conv in zip(found, expected, convs, strict=True):
                np.testing.assert_array_equal(got, want, err_msg=str(conv))
