"""`make gpu-check` without a GPU: its cases on the fake one, and what it says where there is no driver."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import Case, Checked, Figure, cases, check, table
from llmos.runtime.program import Program

from .fake import program

SHORT = {"gelu", "attention bf16"}  # of which one runs each time; the others are slow tests


def load_model(model: torch.nn.Module, inputs: Sequence[torch.Tensor], *, precision: str) -> Program:
    return program(model, inputs, precision=precision)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=() if case.name in SHORT else pytest.mark.slow) for case in cases()]
)
def test_its_cases_are_right_on_the_fake_gpu(case: Case) -> None:
    found = check(case, load_model)
    assert found.is_right, found


def test_one_line_says_that_there_is_no_driver() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    if not result.stdout.startswith("gpu-check: "):
        pytest.skip("this machine has a GPU")
    assert result.returncode == 1
    assert result.stdout == "gpu-check: no NVIDIA driver: libcuda.so.1 can't be loaded on this machine\n"


def test_its_table_shows_what_is_wrong() -> None:
    wrong = Checked("softmax", float("inf"), 1e-6, True)
    text = table([wrong], [Figure("copy", 1.5, 2e12, "B/s", 0.5, 2.0)])
    assert "softmax                  WRONG  error inf of 1e-06" in text
    assert "copy                         1.500 ms     2.00 TB/s    50% of peak torch 2.000 ms" in text
