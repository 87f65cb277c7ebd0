"""When rules begin and end: pure, without a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmos.runtime.server.core.health.rules import Rule


@dataclass(frozen=True)
class Change:
    """A rule that begins to act, or ends. values: of its metrics."""

    rule: Rule
    begins: bool
    values: Mapping[str, float]


class Matrix:
    """The state of rules. A rule that waits for its time begins again at 0 with the first look at which it doesn't hold."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._since_s: dict[str, float] = {}  # that a rule has been otherwise than `active` says
        self._active: dict[str, Rule] = {}

    @property
    def active(self) -> list[Rule]:
        """Return the rules that act."""
        return list(self._active.values())

    def step(self, values: Mapping[str, float], now_s: float) -> list[Change]:
        """Return what changes with these values of the metrics."""
        changes = []
        for rule in self._rules:
            holds = all(condition.holds(values[condition.metric]) for condition in rule.when)
            active = rule.name in self._active
            if holds == active:
                self._since_s.pop(rule.name, None)
                continue
            since_s = self._since_s.setdefault(rule.name, now_s)
            if now_s - since_s < (rule.clear_s if active else rule.for_s):
                continue
            del self._since_s[rule.name]
            if holds:
                self._active[rule.name] = rule
            else:
                del self._active[rule.name]
            changes.append(Change(rule, holds, {condition.metric: values[condition.metric] for condition in rule.when}))
        return changes
