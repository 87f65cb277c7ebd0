"""What sampling takes: `benchmarks/sampling.py`.

One row of 50,257 logits, as of a model that knows what comes next (a few dozen likely tokens above noise) and of one that doesn't (noise
alone). Targets, on one thread: greedy under 50 microseconds, every filter alone under 300 on rows of the first kind.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from llmos.runtime.native.binding import num_threads, set_num_threads
from llmos.runtime.native.sampling import RowSampling, sample_rows

VOCABULARY, CALLS = 50_257, 200
HISTORY = (np.arange(2000, dtype=np.int32), np.arange(200, dtype=np.int32))
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, 5 logprobs": {"num_logprobs": 5},
    "temperature": {"temperature": 0.8},
    "top-k 50": {"temperature": 0.8, "top_k": 50},
    "top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "typical-p 0.9": {"temperature": 0.8, "typical_p": 0.9},
    "top-k 50, top-p 0.9, penalties": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1},
}


def rows_of_logits() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, VOCABULARY).astype(np.float32)
    likely = 2 * noise
    likely[rng.integers(0, VOCABULARY, 30)] += rng.uniform(5, 14, 30).astype(np.float32)
    return {"likely tokens": likely, "noise": noise}


def time_us(logits: np.ndarray, settings: dict[str, Any], count: int) -> float:
    """The median of a call for `count` rows."""
    rows = [RowSampling(seed=seed, **settings) for seed in range(count)]
    repeated = np.repeat(logits[None], count, 0)
    times = []
    for position in range(CALLS):
        begin_s = time.perf_counter()
        sample_rows(repeated, rows, [position] * count, [HISTORY] * count)
        times.append(time.perf_counter() - begin_s)
    return float(np.median(times)) * 1e6


def main() -> None:
    logits = rows_of_logits()
    threads = num_threads()
    print(f"{'':32}" + "".join(f"{name:>16}" for name in logits) + f"{f'16 rows, {threads} threads':>24}   (microseconds)")
    for name, settings in SETTINGS.items():
        set_num_threads(1)
        alone = [time_us(row, settings, 1) for row in logits.values()]
        set_num_threads(threads)
        together = time_us(logits["likely tokens"], settings, 16)
        print(f"{name:32}" + "".join(f"{each:16.0f}" for each in alone) + f"{together:24.0f}")


if __name__ == "__main__":
    main()
