"""Figures of a load: percentiles, throughput, and goodput under a service level objective (SLO)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmos.runtime.bench.samples import REJECTED, Sample
from llmos.runtime.errors import UserError

_OF_SAMPLE: dict[str, Callable[[Sample], float | None]] = {
    "ttft": lambda sample: sample.ttft_s,
    "tpot": lambda sample: sample.tpot_s,
    "itl": lambda sample: max(sample.gaps_s, default=None),
    "e2e": lambda sample: sample.e2e_s,
}
# MLPerf Inference's limits for chats of a model of 8 B parameters.
_PRESETS = {"conversational": "ttft=2000,tpot=100", "interactive": "ttft=500,tpot=30"}


@dataclass(frozen=True)
class Slo:
    """What a request must keep to count: the most milliseconds of each metric. itl: of its longest gap."""

    limits_ms: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Parse `ttft=2000,tpot=100`, or the name of a preset. Raises UserError."""
        limits: dict[str, float] = {}
        for part in _PRESETS.get(text, text).split(","):
            name, _, value = part.partition("=")
            try:
                limit = float(value)
            except ValueError:
                limit = math.nan
            if name.strip() not in _OF_SAMPLE or not limit > 0:
                known = f"{', '.join(_OF_SAMPLE)} in milliseconds, or {' or '.join(_PRESETS)}"
                raise UserError(f"--slo {text}: give limits such as ttft=2000,tpot=100 ({known})")
            limits[name.strip()] = limit
        return cls(limits)

    def is_met(self, sample: Sample) -> bool:
        """Return whether a request was answered within the limits; what it has no figure for is no limit to it."""
        values = ((_OF_SAMPLE[name](sample), limit) for name, limit in self.limits_ms.items())
        return sample.ok and all(value is None or value * 1e3 <= limit for value, limit in values)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return a percentile of values in order, by linear interpolation (numpy's default)."""
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread_ms(values_s: Sequence[float]) -> dict[str, float] | None:
    """Return mean, p50, p95, p99 and max of times, in milliseconds; None for no times."""
    if not values_s:
        return None
    ordered = sorted(values_s)
    found = {f"p{percent}": percentile(ordered, percent) for percent in (50, 95, 99)}
    found = {"mean": sum(ordered) / len(ordered), **found, "max": ordered[-1]}
    return {name: round(value * 1e3, 4) for name, value in found.items()}


def summary(samples: Sequence[Sample], slo: Slo | None, duration_s: float = 0.0, warmup_s: float = 0.0) -> dict[str, Any]:
    """Return the figures of one load as JSON. Latencies are those of requests that were answered; others are counted, and 429 apart.

    duration_s: over which throughput counts, if the last answer came earlier. warmup_s: requests due earlier are left out.
    """
    if not samples:
        raise UserError("the load has no request: make it longer, or its rate higher")
    begin_s = min(sample.due_s for sample in samples) + warmup_s
    counted = [sample for sample in samples if sample.due_s >= begin_s]
    if not counted:
        raise UserError("the load has no request behind its warm-up: make it longer")
    ok = [sample for sample in counted if sample.ok]
    rejected = [sample for sample in counted if sample.status == REJECTED]
    window_s = max(max(sample.end_s for sample in counted) - begin_s, duration_s - warmup_s, 1e-9)
    errors = Counter(sample.error for sample in counted if not sample.ok and sample.status != REJECTED)
    found: dict[str, Any] = {
        "duration_s": round(window_s, 3),
        "num_requests": len(counted),
        "num_ok": len(ok),
        "num_rejected": len(rejected),
        "num_errors": sum(errors.values()),
        "errors": dict(errors),
        "num_output_tokens": sum(sample.num_output_tokens for sample in ok),
        "requests_per_s": round(len(ok) / window_s, 3),
        "prompt_tokens_per_s": round(sum(sample.num_prompt_tokens for sample in ok) / window_s, 1),
        "output_tokens_per_s": round(sum(sample.num_output_tokens for sample in ok) / window_s, 1),
    }
    if slo is not None:
        met = sum(slo.is_met(sample) for sample in counted)
        found |= {"slo_ms": dict(slo.limits_ms), "goodput_per_s": round(met / window_s, 3), "slo_met": round(met / len(counted), 4)}
    for name in ("ttft", "tpot", "e2e"):
        values = [value for sample in ok if (value := _OF_SAMPLE[name](sample)) is not None]
        found[f"{name}_ms"] = spread_ms(values)
    found["itl_ms"] = spread_ms([gap for sample in ok for gap in sample.gaps_s])
    found["rejected_ms"] = spread_ms([sample.e2e_s for sample in rejected])
    found["client_lag_ms"] = spread_ms([sample.sent_s - sample.due_s for sample in counted])
    return found
