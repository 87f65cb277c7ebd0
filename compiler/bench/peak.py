"""What this machine can do at most, measured: fp32 multiply-adds and reads from memory of a small C program built for it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llmos.runtime.errors import UserError

_SOURCE = Path(__file__).with_name("peak.c")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast")


@dataclass(frozen=True)
class Limits:
    """fp32 FLOP/s, and bytes/s read from memory, of some cores together."""

    flops_per_s: float
    bytes_per_s: float


def measure_limits(num_threads: int) -> Limits:
    """Of `num_threads` cores. Raises UserError where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise UserError("the machine's peak is measured by a C program and there is no C compiler: install gcc, or give --no-peak")
    with tempfile.TemporaryDirectory(prefix="llmos-peak-") as folder:
        program = Path(folder) / "peak"
        _run([compiler, *_FLAGS, str(_SOURCE), "-o", str(program), "-lpthread"])
        flops, num_bytes = (float(part) * 1e9 for part in _run([str(program), str(num_threads)]).split())
        return Limits(flops, num_bytes)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(f"measuring the machine's peak failed ({command[0]}: {last[0]}): give --no-peak")
    return done.stdout
