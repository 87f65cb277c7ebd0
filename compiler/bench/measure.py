"""Engines in turns: each in its own process, a block of runs at a time, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from llmos.runtime.errors import UserError

BLOCK = 5
# Thread pools spin for a while after their work; the next engine starts when they have parked.
_PAUSE_S = 0.25


class Engine:
    """The process of one peer. device: of llmos; others run on the CPU. Raises UserError where the peer can't load or run the model."""

    def __init__(self, peer: str, source: Path, num_threads: int, folder: Path, device: str = "cpu") -> None:
        self.peer = peer
        self._outputs = folder / f"{peer}.npz"
        command = [sys.executable, "-m", "llmos.compiler.bench.worker", peer, str(source), str(num_threads), device]
        environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
        # What libraries say while they load is of use only when they fail.
        self._log = folder / f"{peer}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Path, num_runs: int, num_warm_ups: int) -> list[float]:
        """Seconds of each run."""
        assert self._process.stdin
        self._process.stdin.write(f"{inputs}\t{self._outputs}\t{num_runs}\t{num_warm_ups}\n")
        self._process.stdin.flush()
        return [float(value) for value in self._read()["seconds"]]

    def outputs(self) -> list[np.ndarray]:
        """Of the last run."""
        with np.load(self._outputs) as stored:
            return [stored[name] for name in stored.files]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            last = self._log.read_text().strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"{self.peer} ended with code {self._process.wait()} ({last[0]}): leave it out of --against")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(f"{self.peer}: {answer['error']}")
        return answer


@dataclass(frozen=True)
class Measurement:
    """One engine at one size: the time of every run in seconds, and its outputs."""

    peer: str
    seconds: tuple[float, ...]
    outputs: list[np.ndarray] = field(repr=False)

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.seconds, q))

    @property
    def median(self) -> float:
        return self.percentile(50)

    def error_against(self, reference: Sequence[np.ndarray]) -> float | None:
        """The largest absolute difference of any element; None where the outputs have other shapes."""
        if [array.shape for array in self.outputs] != [array.shape for array in reference]:
            return None
        differences = [np.abs(a.astype(np.float64) - b.astype(np.float64)) for a, b in zip(self.outputs, reference, strict=True) if a.size]
        return max((float(difference.max()) for difference in differences), default=0.0)


def measure(engines: Sequence[Engine], inputs: Sequence[np.ndarray], num_runs: int, folder: Path) -> list[Measurement]:
    """`num_runs` or a few more runs of each engine, in turns of BLOCK runs; the first of each turn warms up and isn't counted."""
    file = folder / "inputs.npz"
    np.savez(file, *inputs)
    for engine in engines:
        engine.run(file, 0, 3)
    seconds: dict[str, list[float]] = {engine.peer: [] for engine in engines}
    for _ in range(-(-num_runs // BLOCK)):
        for engine in engines:
            time.sleep(_PAUSE_S)
            seconds[engine.peer] += engine.run(file, BLOCK, 1)
    return [Measurement(engine.peer, tuple(seconds[engine.peer]), engine.outputs()) for engine in engines]
