"""Running an app: the socket, uvicorn, and a shutdown that finishes running requests."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import uvicorn

from llmos.runtime.errors import UserError
from llmos.runtime.server.app import create_app
from llmos.runtime.server.core.connection import Connection, ConnectionTable
from llmos.runtime.server.core.gateway import ACCESS_LOG
from llmos.runtime.server.core.settings import ConnectionLimits, ServerSettings
from llmos.runtime.server.core.state import AnyModel, ServerState

_LOG = logging.getLogger("llmos.server")
_CLOSE_S = 5  # for connections to close after the drain
_SWEEP_TICKS = 3  # of uvicorn's, 0.1 s each
_OTHER_DESCRIPTORS = 40  # than those of connections: artifacts, pipes of child processes, logs, the event loop's own
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# The model's thread needs the GIL when it returns from C; with the default of 5 ms the event loop could delay it that long.
_SWITCH_INTERVAL_S = 0.0005


class DrainingServer(uvicorn.Server):
    """uvicorn that drains on the first signal and quits on the second. exit_code: 0 after a complete drain, else 1."""

    def __init__(self, config: uvicorn.Config, state: ServerState, table: ConnectionTable, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._state = state
        self._table = table
        self._on_started = on_started
        self._drain: asyncio.Task[None] | None = None
        self.exit_code = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    async def on_tick(self, counter: int) -> bool:
        """Do what uvicorn does ten times a second, and look for connections that have taken too long."""
        if counter % _SWEEP_TICKS == 0:
            self._table.sweep()
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._drain is None:
            self._drain = asyncio.get_running_loop().create_task(self._shut_down())
            return
        self.exit_code = 1
        self.force_exit = self.should_exit = True

    async def _shut_down(self) -> None:
        """Drain with the socket open, so that probes see `ready` return 503 and new requests get a clear error."""
        grace_s = self._state.settings.grace_s
        _LOG.info("draining: waiting up to %g s for running requests", grace_s)
        self._state.begin_drain()
        if not await self._state.drained(grace_s):
            self.exit_code = 1
            _LOG.warning("the grace period of %g s is over: giving up on running requests", grace_s)
            await self._state.abort()
            self.force_exit = True
        self.should_exit = True


def serve(models: Sequence[AnyModel], settings: ServerSettings, *, host: str, port: int, started_s: float | None = None) -> int:
    """Serve until a signal; return the exit code. port 0: any free one. started_s: time.monotonic() at process start, for the log.

    Raises UserError if the address can't be used.
    """
    listener = _listen(host, port)
    _configure_logging()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    app = create_app(models, settings)
    state: ServerState = app.state.server
    table = ConnectionTable(_within_descriptors(settings.connections), lambda status: state.metrics.http.labels("none", str(status)).inc())
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(Connection, table=table),  # type: ignore[arg-type]
        timeout_keep_alive=settings.connections.keep_alive_s,  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_CLOSE_S,
    )
    server = DrainingServer(config, state, table, lambda: _announce(listener, [model.name for model in models], started_s))
    server.run(sockets=[listener])
    if server.exit_code:
        os._exit(server.exit_code)  # a running model call can't be interrupted and must not keep the process alive
    return server.exit_code


def _within_descriptors(limits: ConnectionLimits) -> ConnectionLimits:
    """Return the limits with no more connections than the process may open, of which it takes as many as it is allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.max_connections + _OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        most = max(1, soft - _OTHER_DESCRIPTORS)
        if most < limits.max_connections:
            _LOG.warning("at most %d connections are served, since the process may open %d files (ulimit -n)", most, soft)
            return replace(limits, max_connections=most)
    return limits


def _listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; clients that connect before the app is up wait."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        raise UserError(f"can't listen on {host}:{port} ({error.strerror or error}): choose another --host or --port") from error
    return listener


def _configure_logging() -> None:
    """Log access lines as JSON to stdout, everything else to stderr."""
    access = logging.getLogger(ACCESS_LOG)
    access.addHandler(logging.StreamHandler(sys.stdout))
    access.setLevel(logging.INFO)
    access.propagate = False
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def _announce(listener: socket.socket, names: Sequence[str], started_s: float | None) -> None:
    host, port = listener.getsockname()[:2]
    took = "" if started_s is None else f" after {time.monotonic() - started_s:.2f} s"
    _LOG.info("serving %s on http://%s:%d%s", ", ".join(names), f"[{host}]" if ":" in host else host, port, took)
