"""`make gpu-check` without a GPU: its cases on the fake one, and what it says where there is no driver."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import Case, Checked, Figure, cases, check, table
from benchmarks.gpu_check_llm import compare
from llmos.runtime.program import Program

from .fake import program

SHORT = {"gelu", "attention bf16", "scatter", "linear w4a16:g32"}  # what runs each time; the others are slow tests


def load_model(model: torch.nn.Module, inputs: Sequence[torch.Tensor], *, precision: str, quant: str) -> Program:
    return program(model, inputs, precision=precision, quant=quant)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=() if case.name in SHORT else pytest.mark.slow) for case in cases()]
)
def test_its_cases_are_right_on_the_fake_gpu(case: Case) -> None:
    found = check(case, load_model)
    assert found.is_right, found


@pytest.mark.slow
@pytest.mark.parametrize("kv", ["fp32", "bf16", "int8"])
def test_its_language_model_is_right_on_the_fake_gpu(kv: str) -> None:
    found = compare(kv, lambda model: program(model, ()))
    assert found.error <= found.tolerance and found.same_bits, found


def test_one_line_says_that_there_is_no_driver() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if not result.stdout.startswith("gpu-check: "):
        pytest.skip("this machine has a GPU")
    assert result.returncode == 1
    assert result.stdout == "gpu-check: no NVIDIA driver: libcuda.so.1 can't be loaded on this machine\n"


def test_its_table_shows_what_is_wrong() -> None:
    wrong = Checked("softmax", float("inf"), 1e-6, True)
    text = table([wrong], [Figure("copy", 1.5, 2e12, "B/s", 0.5, 2.0)])
    assert "softmax                  WRONG  error inf of 1e-06" in text
    assert "copy                         1.500 ms     2.00 TB/s    50% of peak torch 2.000 ms" in text
