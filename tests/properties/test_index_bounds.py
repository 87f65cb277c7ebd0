"""A sample of tests/properties/index_bounds.py, whose long form is `make fuzz-index`; and that the guards it relies on guard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .guarded import GuardedMemory, Overrun

ROOT = Path(__file__).parents[2]


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_no_index_leaves_its_buffer() -> None:
    calls = os.environ.get("LLMOS_INDEX_CALLS", "180")
    found = _python("-m", "tests.properties.index_bounds", "--calls", calls, "--calls-of-program", "60", "--seed", "7")
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr[-2000:]}"


@pytest.mark.parametrize("offset", [-1, 8])
def test_an_access_beside_a_buffer_is_a_fault(offset: int) -> None:
    at_end = offset > 0
    code = f"""
import ctypes
from tests.properties.guarded import GuardedMemory
address = GuardedMemory({at_end}).buffer(8, 1)
ctypes.c_char.from_address(address + {7 if at_end else 0}).value
print("inside", flush=True)
ctypes.c_char.from_address(address + {offset}).value
"""
    found = _python("-c", code)
    assert found.stdout == "inside\n" and found.returncode < 0


@pytest.mark.parametrize("at_end", [True, False])
def test_a_write_between_a_buffer_and_the_page_is_seen(at_end: bool) -> None:
    memory = GuardedMemory(at_end)
    with memory.lent():
        memory.array((3, 5), np.dtype(np.float32))[...] = 1
    with pytest.raises(Overrun), memory.lent():
        array = memory.array((4093,), np.dtype(np.uint8), 64)
        wide = np.lib.stride_tricks.as_strided(array, (4094,), (1,))
        wide[-1] = 1
