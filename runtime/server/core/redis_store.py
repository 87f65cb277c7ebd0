"""Values in a Redis that may be slow or gone: then they are missing, and no request waits for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llmos.runtime.errors import UserError

if TYPE_CHECKING:
    from redis.asyncio import Redis

_LOG = logging.getLogger("llmos.server")

LIMIT_S = 0.003  # that a request waits for a value
MAX_VALUE_BYTES = 1 << 20
_PREFIX = b"llmos:response:"
_CONNECTIONS = 4  # that read, and as many that write
_WRITE_LIMIT_S = 1.0
_MAX_WRITES = 64  # at a time; more are dropped
_CONNECT_S = 1.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 15.0  # between attempts to reach it


class RedisStore:
    """Values by name, each for `ttl_s` seconds. Belongs to one event loop.

    Only connections that are there are used: where one fails or a value takes longer than limit_s, all values are missing until a task
    in the background has reached the Redis again, within limit_s too. on_failure: called for each use that failed. Raises UserError for a
    URL that is none.
    """

    def __init__(self, url: str, ttl_s: float, on_failure: Callable[[], None], limit_s: float = LIMIT_S) -> None:
        self._reader, self._writer = _client(url), _client(url)
        self._place = urlsplit(url).hostname or urlsplit(url).path  # without its password
        self._ttl_ms = max(1, round(ttl_s * 1e3))
        self._on_failure = on_failure
        self._limit_s = limit_s
        self._is_up = False
        self._said_down = False
        self._free = asyncio.Semaphore(_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_writes = 0
        self._looks = False

    async def get(self, name: bytes) -> bytes | None:
        """Return a value, or what there is up to somewhat more than MAX_VALUE_BYTES of it; None if there is none. Takes limit_s at most."""
        from redis.exceptions import RedisError, ResponseError

        if not self._is_up:
            self._look()
            return None
        try:
            async with asyncio.timeout(self._limit_s), self._free:
                value = await self._reader.getrange(_PREFIX + name.hex().encode(), 0, MAX_VALUE_BYTES)
        except ResponseError:  # it is of another type
            return None
        except (RedisError, OSError, TimeoutError) as error:
            self._fail(error)
            return None
        return value if isinstance(value, bytes) and value else None

    def put(self, name: bytes, value: bytes) -> None:
        """Keep a value of at most MAX_VALUE_BYTES; waits for nothing, and drops it where that is too much."""
        if self._is_up and self._num_writes < _MAX_WRITES:
            self._num_writes += 1
            self._start(self._put(name, value))

    def close(self) -> None:
        """Stop what is on its way."""
        for task in list(self._tasks):
            task.cancel()

    async def _put(self, name: bytes, value: bytes) -> None:
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(_WRITE_LIMIT_S):
                await self._writer.set(_PREFIX + name.hex().encode(), value, px=self._ttl_ms)
        except (RedisError, OSError, TimeoutError) as error:
            self._fail(error)
        finally:
            self._num_writes -= 1

    def _fail(self, error: Exception) -> None:
        self._on_failure()
        if not self._said_down:
            self._said_down = True
            _LOG.warning("the Redis at %s does not answer in time (%s): serving without it", self._place, _reason(error))
        self._is_up = False
        self._look()

    def _look(self) -> None:
        """Try to reach it, in the background."""
        if not self._looks:
            self._looks = True
            self._start(self._reach())

    async def _reach(self) -> None:
        pause_s = _FIRST_PAUSE_S
        try:
            while not await self._answers():
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LAST_PAUSE_S)
        finally:
            self._looks = False
        self._is_up = True
        if self._said_down:
            self._said_down = False
            _LOG.info("the Redis at %s answers again", self._place)

    async def _answers(self) -> bool:
        """Open the connections, and see whether it then answers in time."""
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(_CONNECT_S):
                await asyncio.gather(*(client.ping() for client in (self._reader, self._writer) for _ in range(_CONNECTIONS)))
                begin_s = time.perf_counter()
                await self._reader.ping()
        except (RedisError, OSError, TimeoutError) as error:
            if not self._said_down:
                self._said_down = True
                _LOG.warning("the Redis at %s can't be used (%s): serving without it", self._place, _reason(error))
            return False
        return time.perf_counter() - begin_s <= self._limit_s

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _client(url: str) -> Redis:
    try:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise UserError("a response cache in a Redis needs the redis package: pip install llmos[redis]") from None
    limits: dict[str, Any] = {"socket_connect_timeout": _CONNECT_S, "socket_timeout": _CONNECT_S, "retry": Retry(NoBackoff(), 0)}
    try:
        return Redis(connection_pool=BlockingConnectionPool.from_url(url, max_connections=_CONNECTIONS, timeout=_CONNECT_S, **limits))
    except ValueError as error:
        raise UserError(f"the URL of the response cache can't be used ({error}): give one such as redis://127.0.0.1:6379/0") from None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
