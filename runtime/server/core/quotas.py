"""What a key may use: requests and tokens a minute, and its share of a busy model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llmos.runtime.errors import UserError


@dataclass(frozen=True)
class Quota:
    """weight: of its share, beside other keys, of a model that is busy. requests_per_min, tokens_per_min: used at once or spread."""

    weight: float = 1.0
    requests_per_min: float = math.inf
    tokens_per_min: float = math.inf

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise UserError("a key's weight must be above 0")
        if not (self.requests_per_min >= 1 and self.tokens_per_min >= 1):  # a bucket that holds less than 1 never lets anything through
            raise UserError("a key's requests_per_min and tokens_per_min must be 1 or more")


@dataclass
class Bucket:
    """A token bucket: holds what a minute gives, and fills at that rate. It may be overdrawn by what is only known afterwards."""

    per_min: float
    level: float
    at_s: float

    def wait_s(self, now_s: float) -> float:
        """Return the time until there is something in it."""
        self.level = min(self.per_min, self.level + (now_s - self.at_s) * self.per_min / 60)
        self.at_s = now_s
        return 0.0 if self.level >= 1 else (1 - self.level) * 60 / self.per_min

    def take(self, amount: float) -> None:
        self.level -= amount


class RateLimiter:
    """The buckets of all principals. quotas: by principal; who has none is not limited. Times are seconds on the caller's clock."""

    def __init__(self, quotas: Mapping[str, Quota], now_s: float) -> None:
        self._requests = {
            who: Bucket(quota.requests_per_min, quota.requests_per_min, now_s)
            for who, quota in quotas.items()
            if quota.requests_per_min < math.inf
        }
        self._tokens = {
            who: Bucket(quota.tokens_per_min, quota.tokens_per_min, now_s)
            for who, quota in quotas.items()
            if quota.tokens_per_min < math.inf
        }

    def admit(self, principal: str, now_s: float) -> float:
        """Count a request. Return 0, or the seconds after which it may come again."""
        buckets = [each[principal] for each in (self._requests, self._tokens) if principal in each]
        wait_s = max((bucket.wait_s(now_s) for bucket in buckets), default=0.0)
        if wait_s == 0 and principal in self._requests:
            self._requests[principal].take(1)
        return wait_s

    def charge(self, principal: str, num_tokens: int) -> None:
        """Count the tokens of a request that has ended."""
        if principal in self._tokens:
            self._tokens[principal].take(num_tokens)
