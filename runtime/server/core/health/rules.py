"""The rules of a health matrix, as a YAML file has them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmos.runtime.errors import UserError

BAD_REQUESTS = "bad_requests_per_min"
METRICS = (
    "memory_bytes",
    "memory_share",
    "latency_p50_s",
    "latency_p95_s",
    "latency_p99_s",
    "requests_per_s",
    "error_share",
    "rejected_share",
    "requests_waiting",
    "long_input_share",
    "score_drop",
    BAD_REQUESTS,
)
SCALE_OUT, DEGRADE, FILTER, ROLL_BACK, BAN = "scale_out", "degrade", "filter", "roll_back", "ban"
_OPTIONS: Mapping[str, Mapping[str, float | None]] = {  # of each action, with what holds where none is given; None: nothing
    SCALE_OUT: {},
    DEGRADE: {"max_tokens": None, "max_delay_ms": None},
    FILTER: {"max_input_tokens": 5000},
    ROLL_BACK: {},
    BAN: {"seconds": 600},
}
_MUST = {ROLL_BACK: "score_drop", BAN: BAD_REQUESTS}  # the metric that tells which model, or which client
_CONDITION = re.compile(r"([<>])\s*([0-9.eE+-]+)")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MAX_FILE_BYTES = 64 << 10
_MAX_DEPTH = 20
_MAX_RULES = 100
MAX_BAD_REQUESTS = 100_000  # of an address in a minute
_MAX_LIMIT = 1e18  # of a condition, as of memory_limit_bytes


@dataclass(frozen=True)
class Condition:
    """A metric beyond a limit. above: whether it must be above, else below."""

    metric: str
    above: bool
    limit: float

    def holds(self, value: float) -> bool:
        """Return whether a value is beyond the limit."""
        return value > self.limit if self.above else value < self.limit


@dataclass(frozen=True)
class Rule:
    """What is done once all conditions have held for for_s seconds, until one has not for clear_s."""

    name: str
    when: tuple[Condition, ...]
    action: str
    options: Mapping[str, float] = field(default_factory=dict)
    for_s: float = 0.0
    clear_s: float = 0.0
    dry_run: bool = False


@dataclass(frozen=True)
class HealthRules:
    """window_s: over which rates, shares and percentiles are. interval_s: between two looks. webhook: gets every event. period_s: of the
    scores that are compared with those of the period before. least_requests: a share of fewer is 0. memory_limit_bytes: that memory_share
    is of; None: what the container, or else the machine, has.
    """

    rules: tuple[Rule, ...]
    window_s: float = 60.0
    interval_s: float = 1.0
    webhook: str = ""
    dry_run: bool = False
    long_input_tokens: int = 5000
    period_s: float = 7 * 24 * 3600.0
    least_requests: int = 20
    memory_limit_bytes: float | None = None

    @classmethod
    def read(cls, path: Path) -> HealthRules:
        """Read a file. Raises UserError that names it and the rule."""
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise UserError(f"{path}: a file of rules has at most {_MAX_FILE_BYTES >> 10} KiB")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"can't read {path} ({error})") from error
        try:
            return cls.parse(text)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def parse(cls, text: str) -> HealthRules:
        """Read the text of a file. Raises UserError."""
        document = _mapping(_loaded(text), "a file of rules")
        rules = document.pop("rules", None)
        if not isinstance(rules, list) or not 1 <= len(rules) <= _MAX_RULES:
            raise UserError(f"'rules' must be a list of 1 to {_MAX_RULES} rules")
        known = {
            "window_s": (1, 3600),
            "interval_s": (0.01, 60),
            "long_input_tokens": (1, 1e9),
            "period_s": (0.1, 1e9),
            "least_requests": (1, 1e6),
            "memory_limit_bytes": (1, 1e18),
        }
        numbers = {name: _number(document.pop(name), name, *known[name]) for name in known if name in document}
        webhook, dry_run = document.pop("webhook", ""), document.pop("dry_run", False)
        if not isinstance(webhook, str) or (webhook and not webhook.startswith(("http://", "https://"))):
            raise UserError("'webhook' must be a URL")
        _require_bool(dry_run, "dry_run")
        _require_empty(document, "a file of rules")
        parsed = tuple(_rule(each, number) for number, each in enumerate(rules, 1))
        names = [rule.name for rule in parsed]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise UserError(f"two rules are named '{repeated}'")
        if not webhook and any(rule.action == SCALE_OUT for rule in parsed):
            raise UserError("the action scale_out needs a 'webhook', which is asked for more servers")
        for name in ("long_input_tokens", "least_requests"):
            if name in numbers:
                numbers[name] = int(numbers[name])
        return cls(parsed, webhook=webhook, dry_run=dry_run, **numbers)  # type: ignore[arg-type]


def _loaded(text: str) -> object:
    """Return what YAML says, without aliases, which make small files large. Raises UserError."""
    import yaml  # by servers with rules alone

    depth = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.events.CollectionStartEvent) - isinstance(event, yaml.events.CollectionEndEvent)
            if depth > _MAX_DEPTH:  # which takes a time that grows with the square
                raise UserError("this is no file of rules: it is nested too deeply")
            if isinstance(event, yaml.events.AliasEvent):
                raise UserError("aliases are not supported")
            if getattr(event, "tag", None) is not None:  # PyYAML fails on values that don't fit their tags
                raise UserError("tags are not supported")
        found: object = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a ValueError is a date that is none
        raise UserError(f"this is no YAML ({' '.join(str(error).split())[:200]})") from error
    return found


def _rule(given: object, number: int) -> Rule:
    found = _mapping(given, f"rule {number}")
    name = found.pop("name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(f"rule {number}: 'name' must be of small letters, digits, '-' and '_'")
    where = f"rule '{name}'"
    when = tuple(_condition(where, metric, text) for metric, text in _mapping(found.pop("when", None), f"{where}: 'when'").items())
    if not when:
        raise UserError(f"{where}: 'when' needs a condition such as {{memory_share: '> 0.9'}}")
    action, options = _action(where, found.pop("action", None))
    if action in _MUST and _MUST[action] not in {condition.metric for condition in when if condition.above}:
        raise UserError(f"{where}: {action} needs the condition {_MUST[action]}: '> LIMIT', which says whom it is about")
    for_s = _number(found.pop("for_s", 0), f"{where}: for_s", 0, 1e6)
    clear_s = _number(found.pop("clear_s", for_s), f"{where}: clear_s", 0, 1e6)
    dry_run = found.pop("dry_run", False)
    _require_bool(dry_run, f"{where}: dry_run")
    _require_empty(found, where)
    return Rule(name, when, action, options, for_s, clear_s, dry_run)


def _condition(where: str, metric: object, text: object) -> Condition:
    if metric not in METRICS:
        raise UserError(f"{where}: there is no metric '{metric!s:.60}': there are {', '.join(METRICS)}")
    found = _CONDITION.fullmatch(text.strip()) if isinstance(text, str) else None
    try:
        limit = float(found[2]) if found else math.nan
    except ValueError:
        limit = math.nan
    if found is None or not abs(limit) <= _MAX_LIMIT:
        raise UserError(f"{where}: the condition of {metric} must be such as '> 0.9' or '< 10'")
    if metric == BAD_REQUESTS and limit > MAX_BAD_REQUESTS:
        raise UserError(f"{where}: the limit of {metric} must be at most {MAX_BAD_REQUESTS:,}, since no more are counted")
    return Condition(str(metric), found[1] == ">", limit)


def _action(where: str, given: object) -> tuple[str, dict[str, float]]:
    """Read `ban` or `{ban: {seconds: 600}}`."""
    name, more = given, {}
    if isinstance(given, dict) and len(given) == 1:
        ((name, found),) = given.items()
        more = _mapping(found, f"{where}: the action")
    if not isinstance(name, str) or name not in _OPTIONS:
        raise UserError(f"{where}: 'action' must be one of {', '.join(_OPTIONS)}")
    unknown = next((str(key) for key in more if key not in _OPTIONS[name]), None)
    if unknown is not None:
        known = ", ".join(_OPTIONS[name]) or "none"
        raise UserError(f"{where}: {name} has no option '{unknown:.60}': there are {known}")
    options = {key: value for key, value in _OPTIONS[name].items() if value is not None}
    options |= {key: _number(value, f"{where}: {key}", 0 if key == "max_delay_ms" else 1, 1e9) for key, value in more.items()}
    if name == DEGRADE and not options:
        raise UserError(f"{where}: degrade needs max_tokens or max_delay_ms")
    return name, options


def _mapping(given: object, what: str) -> dict[Any, Any]:
    if not isinstance(given, dict):
        raise UserError(f"{what} must be a mapping")
    return dict(given)


def _number(given: object, what: str, least: float, most: float) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not least <= given <= most:
        raise UserError(f"{what} must be a number from {least:g} to {most:g}")
    return float(given)


def _require_bool(given: object, what: str) -> None:
    if not isinstance(given, bool):
        raise UserError(f"{what} must be true or false")


def _require_empty(rest: Mapping[Any, Any], what: str) -> None:
    if rest:
        raise UserError(f"{what} has nothing named '{next(iter(rest))!s:.60}'")
