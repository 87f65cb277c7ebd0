"""What this machine can do at most, measured: multiply-adds and reads from memory of a small C program built for it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

from llmos.runtime.errors import UserError

_SOURCE = Path(__file__).with_name("peak.c")
NOISE = 0.01  # of a rate, between measurements that nothing disturbs
SETTLED, MOST = 3, 20  # measurements that are no higher, and measurements in all; one takes a third of a second
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast")


@dataclass(frozen=True)
class Limits:
    """fp32 FLOP/s, bytes/s read from memory, and operations/s on products of bytes and of bfloat16, of some cores together.

    int8_ops_per_s, bf16_ops_per_s: summed in int32 and fp32, by the tiles of AMX where there are any; 0 where the C program knows no
    instruction for them.
    """

    flops_per_s: float
    bytes_per_s: float
    int8_ops_per_s: float = 0.0
    bf16_ops_per_s: float = 0.0

    def ops_per_s(self, arithmetic: str) -> float:
        """Operations/s of what a kernel multiplies: "int8", "bf16", or the peak of fp32."""
        return {"int8": self.int8_ops_per_s, "bf16": self.bf16_ops_per_s}.get(arithmetic, 0.0) or self.flops_per_s

    def grows_beyond(self, other: Limits) -> bool:
        """Whether any rate is higher than the other's by more than noise."""
        return any(mine > theirs * (1 + NOISE) for mine, theirs in zip(astuple(self), astuple(other), strict=True))

    def best(self, other: Limits) -> Limits:
        """Return the higher rates of both: other work on the machine lowers what is measured and never raises it."""
        return Limits(*map(max, astuple(self), astuple(other)))


def settled(measure: Callable[[], Limits]) -> Limits:
    """Return the highest rates of repeated measurements, once SETTLED in a row were no higher; after MOST at the latest."""
    best, num_settled = measure(), 0
    for _ in range(MOST - 1):
        found = measure()
        best, num_settled = best.best(found), 0 if found.grows_beyond(best) else num_settled + 1
        if num_settled == SETTLED:
            break
    return best


def measure_limits(num_threads: int) -> Limits:
    """Measure the limits of `num_threads` cores until they are stable. Raises UserError if there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise UserError("the machine's peak is measured by a C program and there is no C compiler: install gcc, or give --no-peak")
    with tempfile.TemporaryDirectory(prefix="llmos-peak-") as folder:
        program = Path(folder) / "peak"
        _run([compiler, *_FLAGS, str(_SOURCE), "-o", str(program), "-lpthread"])
        return settled(lambda: _measure_once(program, num_threads))


def _measure_once(program: Path, num_threads: int) -> Limits:
    flops, pair_ops, byte_ops, num_bytes = (float(part) * 1e9 for part in _run([str(program), str(num_threads)]).split())
    return Limits(flops, num_bytes, byte_ops, pair_ops)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(f"measuring the machine's peak failed ({command[0]}: {last[0]}): give --no-peak")
    return done.stdout
