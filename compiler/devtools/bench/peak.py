"""The peak of this machine, measured: fp32 multiply-adds of a small C program built for it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from llmos.runtime.errors import UserError

_SOURCE = Path(__file__).with_name("peak.c")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast")


def measure_peak(num_threads: int) -> float:
    """fp32 FLOP/s of `num_threads` cores together. Raises UserError where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise UserError("the machine's peak is measured by a C program and there is no C compiler: install gcc, or give --no-peak")
    with tempfile.TemporaryDirectory(prefix="llmos-peak-") as folder:
        program = Path(folder) / "peak"
        _run([compiler, *_FLAGS, str(_SOURCE), "-o", str(program), "-lpthread"])
        return float(_run([str(program), str(num_threads)])) * 1e9


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(f"measuring the machine's peak failed ({command[0]}: {last[0]}): give --no-peak")
    return done.stdout
