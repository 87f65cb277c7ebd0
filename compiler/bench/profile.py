"""`llmos bench --profile`: where the time of a call goes, dispatch by dispatch, beside what the machine could do.

The limit of a dispatch is the longer of its arithmetic at the measured peak and its bytes at the measured memory bandwidth ("Roofline",
Williams, Waterman and Patterson, 2009). What lies in a cache already is read faster than that, so small dispatches can be above 100 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmos.compiler.bench.peak import Limits
from llmos.compiler.bench.work import evaluate
from llmos.runtime.artifact.manifest import KernelSpec
from llmos.runtime.cli.tables import table
from llmos.runtime.native.binding import num_threads as process_num_threads
from llmos.runtime.native.binding import set_num_threads
from llmos.runtime.program import DispatchTime, load

NUM_WARM_UPS = 3
HEADER = ("dispatch", "calls", "tiles", "ms", "share", "GFLOP/s", "GB/s", "of limit")


@dataclass(frozen=True)
class DispatchCost:
    """One launch: its time and its least possible one in seconds, floating-point operations, bytes that it must touch."""

    name: str
    kind: str
    label: str
    num_tiles: int
    seconds: float
    flops: float
    num_bytes: float
    limit_s: float

    @property
    def of_limit(self) -> float:
        return self.limit_s / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class CallProfile:
    """The fastest of some calls: its time in seconds, and every launch in order."""

    total_s: float
    dispatches: tuple[DispatchCost, ...]

    @property
    def sum_s(self) -> float:
        """Of all launches; what is missing to the total is the host function between them."""
        return sum(cost.seconds for cost in self.dispatches)

    def record(self) -> dict[str, Any]:
        costs = [{**asdict(cost), "of_limit": cost.of_limit} for cost in self.dispatches]
        return {"total_s": self.total_s, "sum_s": self.sum_s, "dispatches": costs}


def profile_call(
    artifact: Path, inputs: Sequence[np.ndarray], sizes: Mapping[str, int], num_threads: int, num_runs: int, limits: Limits
) -> CallProfile:
    """Profiles `num_runs` calls of the first entry and keeps the fastest, which others disturbed least. Raises InputError."""
    before = process_num_threads()
    set_num_threads(num_threads)
    try:
        with load(artifact) as program:
            entry = program[program.manifest.entries[0].name]
            for _ in range(NUM_WARM_UPS):
                entry(*inputs)
            best = min((entry.profile(*inputs) for _ in range(num_runs)), key=lambda run: run.total_s)
            kernels = {kernel.name: kernel for kernel in program.manifest.kernels}
    finally:
        set_num_threads(before)
    return CallProfile(best.total_s, tuple(_cost(time, kernels.get(time.name), sizes, limits) for time in best.dispatches))


def _cost(time: DispatchTime, kernel: KernelSpec | None, sizes: Mapping[str, int], limits: Limits) -> DispatchCost:
    details = kernel.details if kernel else {}
    flops, num_bytes = (evaluate(str(details.get(key, "0")), sizes) for key in ("flops", "bytes"))
    limit = max(flops / limits.ops_per_s(str(details.get("arithmetic", ""))), num_bytes / limits.bytes_per_s)
    label = str(details.get("label", time.kind))
    return DispatchCost(time.name, time.kind, label, time.num_tiles, time.duration_s, flops, num_bytes, limit)


def profile_lines(profile: CallProfile) -> list[str]:
    """A table of what is alike together, dearest first, and the sum beside the total."""
    groups: dict[tuple[str, int, float, float], list[DispatchCost]] = {}
    for cost in profile.dispatches:
        groups.setdefault((cost.label, cost.num_tiles, cost.flops, cost.num_bytes), []).append(cost)
    rows = [_row(costs, profile.sum_s) for costs in sorted(groups.values(), key=lambda costs: -sum(c.seconds for c in costs))]
    share = profile.sum_s / profile.total_s if profile.total_s else 0.0
    return [
        table(rows, header=HEADER, indent=0),
        f"dispatches {profile.sum_s * 1e3:.3f} ms, {share:.1%} of a call's {profile.total_s * 1e3:.3f} ms",
    ]


def _row(costs: Sequence[DispatchCost], total_s: float) -> tuple[str, ...]:
    seconds = sum(cost.seconds for cost in costs) or 1e-12
    rates = (sum(cost.flops for cost in costs) / seconds, sum(cost.num_bytes for cost in costs) / seconds)
    return (
        costs[0].label,
        str(len(costs)),
        str(costs[0].num_tiles),
        f"{seconds * 1e3:.3f}",
        f"{seconds / total_s:.1%}" if total_s else "",
        *(f"{rate * 1e-9:.1f}" for rate in rates),
        f"{sum(cost.limit_s for cost in costs) / seconds:.0%}",
    )
