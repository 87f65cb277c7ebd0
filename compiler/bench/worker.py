"""The process of one engine. Reads a command a line on standard input, answers with a JSON line; outputs go to files.

run INPUTS.npz OUTPUTS.npz NUM_RUNS NUM_WARM_UPS   ->  {"seconds": [...]}
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import TextIO

import numpy as np

from llmos.compiler.bench.engines import load_llmos
from llmos.compiler.bench.peers import PEERS, Runner


def main(peer: str, source: str, num_threads: int, device: str) -> None:
    answers = _own_stdout()
    try:
        load = functools.partial(load_llmos, device=device) if peer == "llmos" else PEERS[peer]
        runner = load(Path(source), num_threads)
    except Exception as error:
        _answer(answers, {"error": _line(error)})
        return
    _answer(answers, {"ready": peer})
    for line in sys.stdin:
        try:
            _answer(answers, {"seconds": _run(runner, *line.split("\t"))})
        except Exception as error:
            _answer(answers, {"error": _line(error)})


def _run(runner: Runner, inputs: str, outputs: str, num_runs: str, num_warm_ups: str) -> list[float]:
    with np.load(inputs) as stored:
        arrays = [stored[name] for name in stored.files]
    results: list[np.ndarray] = []
    for _ in range(int(num_warm_ups)):
        results = runner(arrays)
    seconds = []
    for _ in range(int(num_runs)):
        start = time.perf_counter()
        results = runner(arrays)
        seconds.append(time.perf_counter() - start)
    np.savez(outputs, *results)
    return seconds


def _own_stdout() -> TextIO:
    """Our own channel; what libraries print to standard output goes to standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def _answer(channel: TextIO, answer: dict[str, object]) -> None:
    channel.write(json.dumps(answer) + "\n")
    channel.flush()


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return f"no module named {error.name}: pip install it" if isinstance(error, ModuleNotFoundError) else text or type(error).__name__


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
