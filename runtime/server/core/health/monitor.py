"""The health matrix of a running server: looks at its metrics, and carries out what rules say."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos.runtime.engine import Engine
from llmos.runtime.errors import LlmosError
from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.core.health.matrix import Change, Matrix
from llmos.runtime.server.core.health.rules import BAD_REQUESTS, BAN, DEGRADE, FILTER, ROLL_BACK, HealthRules, Rule
from llmos.runtime.server.core.health.signals import Signals, client_key
from llmos.runtime.server.core.health.webhook import Webhook
from llmos.runtime.server.core.http import RequestInfo
from llmos.runtime.server.core.metrics import Metrics
from llmos.runtime.server.core.registry import Registry

_LOG = logging.getLogger("llmos.server")
_MAX_EVENTS = 200
_MAX_BANNED = 10_000
_LEAST_COUNTED = 1_000  # bad requests of an address in a minute, for the report
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass
class Limits:
    """What rules that act take from requests. max_tokens: that may be generated. max_input_tokens: of an input that is not refused."""

    max_tokens: int | None = None
    max_input_tokens: int | None = None


class HealthMonitor:
    """Belongs on the event loop. clock: seconds, of any beginning."""

    def __init__(self, rules: HealthRules, registry: Registry, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = Limits()
        self.rules = rules
        self._registry = registry
        self._metrics = metrics
        self._clock = clock
        self._matrix = Matrix(rules.rules)
        self._signals = Signals(rules.window_s, rules.long_input_tokens, rules.period_s, rules.least_requests)
        self._values: dict[str, float] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=_MAX_EVENTS)
        self._banned: dict[str, tuple[float, Rule]] = {}  # until when
        self._counted = _most_counted(rules)
        self._webhook = Webhook(rules.webhook, metrics.webhook_failures.inc) if rules.webhook else None
        self._memory_limit = rules.memory_limit_bytes or _memory_limit()
        self._tasks: set[asyncio.Task[None]] = set()
        for rule in rules.rules:
            metrics.rule_active.labels(rule.name, rule.action).set(0)

    # What requests ask and tell.

    def check(self, client: str | None) -> None:
        """Raise HttpError 403 for a client that is banned."""
        if not self._banned or client is None:
            return
        until_s, rule = self._banned.get(client_key(client), (0.0, None))
        left_s = until_s - self._clock()
        if rule is not None and left_s > 0:
            message = f"this address sent too many bad requests: try again in {left_s:.3g} s"
            raise HttpError(403, message, code="banned", headers=[(b"retry-after", str(math.ceil(left_s)).encode())])

    def admit_input(self, info: RequestInfo, num_tokens: int) -> None:
        """Take note of an input. Raises HttpError 503 for one that is too long for now."""
        info.longest_input = max(info.longest_input, num_tokens)
        most = self.limits.max_input_tokens
        if most is not None and num_tokens > most:
            message = f"inputs of more than {most} tokens are refused while too many are that long: this one has {num_tokens}"
            raise HttpError(503, message, code="input_too_long_for_now", headers=[(b"retry-after", b"60")])

    def observe(self, info: RequestInfo, status: int, client: str | None) -> None:
        """Take note of a request that has ended."""
        now_s = self._clock()
        if info.model is not None and info.is_call:
            self._signals.add_request(now_s, time.perf_counter() - info.start_s, status, info.longest_input)
        self.observe_answer(status, client)

    def observe_answer(self, status: int, client: str | None) -> None:
        """Take note of an answer to a client, also to what was no request."""
        if client is not None and (key := client_key(client)) not in self._banned:
            self._signals.add_answer(self._clock(), key, status, self._counted)

    def add_score(self, model: str, score: float) -> None:
        """Take note of how good a model's answers are. Raises HttpError 404 for a model that is not served."""
        self._registry.find(model)
        self._signals.add_score(self._clock(), model, score)

    def report(self) -> dict[str, Any]:
        """Return the metrics, the rules that act, who is banned, and the last events."""
        now_s = self._clock()
        return {
            "dry_run": self.rules.dry_run,
            "metrics": self._values,
            "active": [rule.name for rule in self._matrix.active],
            "banned": {client: round(until_s - now_s, 3) for client, (until_s, _) in self._banned.items()},
            "events": list(self._events),
        }

    # The loop.

    async def run(self) -> None:
        """Look at the metrics again and again, until canceled."""
        while True:
            await asyncio.sleep(self.rules.interval_s)
            try:
                self.look()
            except Exception:  # a fault here must not end the watch
                _LOG.exception("the health rules failed")

    def look(self) -> None:
        """Look at the metrics once, and do what follows."""
        now_s = self._clock()
        self._values = {**self._signals.values(now_s), **self._of_process()}
        for name, value in self._values.items():
            self._metrics.health_value.labels(name).set(value)
        self._lift_bans(now_s)
        for change in self._matrix.step(self._values, now_s):
            self._metrics.rule_active.labels(change.rule.name, change.rule.action).set(float(change.begins))
            if change.rule.action not in (BAN, ROLL_BACK):  # which have an event for each client or model
                self._tell(change.rule, "begin" if change.begins else "end", **change.values)
            elif change.rule.action == ROLL_BACK and change.begins:
                self._roll_back(change)
        for rule in self._matrix.active:
            if rule.action == BAN:
                self._ban(rule, now_s)
        self._limit()

    def _of_process(self) -> dict[str, float]:
        memory = resident_bytes(os.getpid())
        waiting = sum(engine.num_waiting for served in self._registry.all() for engine in served.engines)
        return {"memory_bytes": float(memory), "memory_share": memory / self._memory_limit, "requests_waiting": float(waiting)}

    def _is_dry(self, rule: Rule) -> bool:
        return self.rules.dry_run or rule.dry_run

    def _tell(self, rule: Rule, state: str, **more: float | str) -> None:
        """Say what happens: in an event, a metric and a line of the log."""
        dry = self._is_dry(rule)
        self._metrics.health_actions.labels(rule.name, rule.action, state, str(dry).lower()).inc()
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        event = {"time": at, "rule": rule.name, "action": rule.action, "state": state, "dry_run": dry, **more}
        self._events.append(event)
        told = ", ".join(f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}" for name, value in more.items())
        _LOG.warning("health rule %s: %s %ss%s%s", rule.name, rule.action, state, " (dry run)" if dry else "", f": {told}" if told else "")
        if self._webhook is not None and not dry:
            self._webhook.send(event)

    # The actions.

    def _limit(self) -> None:
        """Set what degrade and filter take from requests: the least that any rule says."""
        acting = [rule for rule in self._matrix.active if not self._is_dry(rule)]

        def least(action: str, option: str) -> float | None:
            return min((rule.options[option] for rule in acting if rule.action == action and option in rule.options), default=None)

        tokens, inputs, delay_ms = least(DEGRADE, "max_tokens"), least(FILTER, "max_input_tokens"), least(DEGRADE, "max_delay_ms")
        self.limits = Limits(None if tokens is None else int(tokens), None if inputs is None else int(inputs))
        for engine in [engine for served in self._registry.all() for engine in served.engines]:
            if isinstance(engine, Engine):
                engine.limit_delay(None if delay_ms is None else delay_ms / 1e3)

    def _ban(self, rule: Rule, now_s: float) -> None:
        limit = max(condition.limit for condition in rule.when if condition.metric == BAD_REQUESTS)
        for client in self._signals.clients_above(limit, now_s):
            if client in self._banned or len(self._banned) >= _MAX_BANNED:
                continue
            self._signals.forget(client)
            self._tell(rule, "begin", client=client, seconds=rule.options["seconds"])
            if not self._is_dry(rule):
                self._banned[client] = now_s + rule.options["seconds"], rule

    def _lift_bans(self, now_s: float) -> None:
        for client, (until_s, rule) in list(self._banned.items()):
            if until_s <= now_s:
                del self._banned[client]
                self._tell(rule, "end", client=client)

    def _roll_back(self, change: Change) -> None:
        limit = max(condition.limit for condition in change.rule.when if condition.metric == "score_drop")
        for model in self._signals.models_above(limit, self._clock()):
            self._tell(change.rule, "begin", model=model, **change.values)
            if not self._is_dry(change.rule):
                task = asyncio.get_running_loop().create_task(self._serve_earlier(change.rule, model))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _serve_earlier(self, rule: Rule, model: str) -> None:
        try:
            version = await self._registry.roll_back(model)
        except LlmosError as error:
            self._tell(rule, "fail", model=model, reason=str(error))
        else:
            self._signals.forget_scores(model)
            self._tell(rule, "end", model=model, version=str(version))


def _most_counted(rules: HealthRules) -> int:
    """Return how many bad requests of an address are counted: more than any rule asks about."""
    asked = (condition.limit for rule in rules.rules for condition in rule.when if condition.metric == BAD_REQUESTS)
    return int(max([_LEAST_COUNTED, *asked])) + 1


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and its children, as those of isolated models; 0 for one that has ended."""
    process = Path(f"/proc/{pid}")
    try:
        own = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        children = [child for thread in (process / "task").iterdir() for child in _children(thread)]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return own + sum(map(resident_bytes, children))


def _children(thread: Path) -> list[int]:
    """Return the processes that a thread has started; none for one that has ended, and where the kernel doesn't tell."""
    try:
        return list(map(int, (thread / "children").read_text().split()))
    except (FileNotFoundError, ProcessLookupError):
        return []


def _memory_limit() -> float:
    """Return the bytes that the process may use: of its container, or of the machine."""
    return min(_limits())


def _limits() -> Iterator[float]:
    yield float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        text = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        return
    if text.isdecimal():
        yield float(text)
