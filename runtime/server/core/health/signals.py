"""What a server sees of itself, over a window of time. Pure: times are the caller's, and nothing is read but what it is told."""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote

_MAX_ENDED = 10_000  # requests of a window that are kept, the latest: a look at them takes a few milliseconds
_MAX_CLIENTS = 4_096
_MAX_MODELS = 1_000
_BUCKETS = 168  # of a period: the hours of a week
_MINUTE_S = 60.0
_NO_FAULT = frozenset({408, 429, 499})  # of who sent a request


class Ended(NamedTuple):
    """A call of a model that has ended."""

    at_s: float
    latency_s: float
    status: int
    num_tokens: int


def client_key(address: str) -> str:
    """Return what a client is known by: its address, of IPv6 the network of 64 bits, all of which is its own."""
    try:
        found = ipaddress.ip_address(unquote(address).strip("[]"))  # gRPC has brackets around those of IPv6
    except ValueError:
        return address
    if found.version == 6 and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False).network_address)
    return str(found)


@dataclass
class Signals:
    """window_s: of rates, shares and percentiles. long_input_tokens: from more on an input is long. period_s: of scores. least_requests:
    a share of fewer is 0."""

    window_s: float
    long_input_tokens: int
    period_s: float
    least_requests: int
    _ended: deque[Ended] = field(default_factory=lambda: deque(maxlen=_MAX_ENDED))
    _bad: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    _scores: OrderedDict[str, deque[tuple[int, float, int]]] = field(default_factory=OrderedDict)

    def add_request(self, now_s: float, latency_s: float, status: int, num_tokens: int) -> None:
        """Take note of a call of a model."""
        self._ended.append(Ended(now_s, latency_s, status, num_tokens))

    def add_answer(self, now_s: float, client: str, status: int, most: int) -> None:
        """Take note of an answer to a client. most: bad requests of a minute that are counted at all."""
        if not 400 <= status < 500 or status in _NO_FAULT:
            return
        times = self._bad.setdefault(client, deque(maxlen=most))
        self._bad.move_to_end(client)
        times.append(now_s)
        if len(self._bad) > _MAX_CLIENTS:
            self._bad.popitem(last=False)

    def add_score(self, now_s: float, model: str, score: float) -> None:
        """Take note of how good a model's answers are, by whatever measure, higher being better."""
        buckets = self._scores.setdefault(model, deque(maxlen=2 * _BUCKETS + 1))
        self._scores.move_to_end(model)
        number = int(now_s * _BUCKETS / self.period_s)
        if buckets and buckets[-1][0] == number:
            _, total, count = buckets.pop()
            buckets.append((number, total + score, count + 1))
        else:
            buckets.append((number, score, 1))
        if len(self._scores) > _MAX_MODELS:
            self._scores.popitem(last=False)

    def forget(self, client: str) -> None:
        """Forget the bad requests of a client."""
        self._bad.pop(client, None)

    def forget_scores(self, model: str) -> None:
        """Forget the scores of a model, which were those of another version."""
        self._scores.pop(model, None)

    def values(self, now_s: float) -> dict[str, float]:
        """Return the value of each metric that follows from requests."""
        while self._ended and self._ended[0].at_s <= now_s - self.window_s:
            self._ended.popleft()
        latencies = sorted(each.latency_s for each in self._ended if each.status == 200)
        statuses = Counter(each.status for each in self._ended)
        full = len(self._ended) == _MAX_ENDED
        span_s = max(now_s - self._ended[0].at_s, 1e-3) if full else self.window_s
        long = sum(each.num_tokens > self.long_input_tokens for each in self._ended)
        return {
            **{f"latency_p{percent}_s": latencies[(len(latencies) - 1) * percent // 100] if latencies else 0.0 for percent in (50, 95, 99)},
            "requests_per_s": len(self._ended) / span_s,
            "error_share": self._share(sum(count for status, count in statuses.items() if status >= 500)),
            "rejected_share": self._share(statuses[429]),
            "long_input_share": self._share(long),
            "score_drop": max((drop for _, drop in self._drops(now_s)), default=0.0),
            "bad_requests_per_min": max((float(count) for _, count in self._bad_counts(now_s)), default=0.0),
        }

    def clients_above(self, limit: float, now_s: float) -> list[str]:
        """Return the clients with more bad requests in the last minute."""
        return [client for client, count in self._bad_counts(now_s) if count > limit]

    def models_above(self, limit: float, now_s: float) -> list[str]:
        """Return the models whose scores have dropped by more, as a share."""
        return [model for model, drop in self._drops(now_s) if drop > limit]

    def _share(self, count: int) -> float:
        return count / len(self._ended) if len(self._ended) >= self.least_requests else 0.0

    def _bad_counts(self, now_s: float) -> list[tuple[str, int]]:
        found = []
        for client, times in list(self._bad.items()):
            while times and times[0] <= now_s - _MINUTE_S:
                times.popleft()
            if times:
                found.append((client, len(times)))
            else:
                del self._bad[client]
        return found

    def _drops(self, now_s: float) -> list[tuple[str, float]]:
        """Return by how much the mean score of each model's last period is below that of the period before."""
        first = int(now_s * _BUCKETS / self.period_s) - _BUCKETS
        found = []
        for model, buckets in self._scores.items():
            late = [bucket for bucket in buckets if bucket[0] > first]
            early = [bucket for bucket in buckets if first - _BUCKETS < bucket[0] <= first]
            counts = [sum(count for _, _, count in part) for part in (early, late)]
            if min(counts) < self.least_requests:
                continue
            before, now = (sum(total for _, total, _ in part) / count for part, count in zip((early, late), counts, strict=True))
            if before > 0:
                found.append((model, 1 - now / before))
        return found
