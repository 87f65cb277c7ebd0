"""Running an app: the socket, uvicorn, and a shutdown that finishes running requests."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import uvicorn

from llmos.runtime.errors import UserError
from llmos.runtime.server.app import create_app
from llmos.runtime.server.core.connection import Connection, ConnectionTable
from llmos.runtime.server.core.gateway import ACCESS_LOG
from llmos.runtime.server.core.logs import PipeHandler
from llmos.runtime.server.core.settings import ConnectionLimits, ServerSettings
from llmos.runtime.server.core.state import AnyModel, ServerState

_LOG = logging.getLogger("llmos.server")
_ABORT_S = 1.0  # that clients have to read the errors of an end without grace
_FLUSH_S = 0.5  # that the last log lines have to be taken
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
        self._hurry = asyncio.Event()
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
        else:
            self._hurry.set()

    async def _shut_down(self) -> None:
        """Drain with the socket open, so that probes see `ready` return 503 and new requests get a clear error.

        An answer that is still being read is waited for like one that is still computed. A second signal ends the grace.
        """
        settings = self._state.settings
        self._state.ready = False
        if settings.drain_delay_s:
            _LOG.info("not ready: serving on for %g s", settings.drain_delay_s)
            await self._hurried(settings.drain_delay_s)
        _LOG.info("draining: waiting up to %g s for running requests", settings.grace_s)
        self._state.begin_drain()
        if not await self._drained(settings.grace_s):
            self.exit_code = 1
            _LOG.warning("giving up on running requests, after a second signal or the grace period of %g s", settings.grace_s)
            self._state.abort()
            self._hurry.clear()
            await self._drained(_ABORT_S)
            self.force_exit = True
        self.should_exit = True

    async def _hurried(self, timeout_s: float) -> bool:
        """Wait for a second signal. Return False on timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._hurry.wait()
        except TimeoutError:
            return False

    async def _drained(self, timeout_s: float) -> bool:
        """Wait until all requests have been answered, and the answers read. Return False on timeout, or at a second signal."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        while not (self._state.is_idle() and self._table.num_unsent_bytes == 0):
            if loop.time() >= end_s or self._hurry.is_set():
                return False
            await asyncio.sleep(0.01)
        return True


def serve(models: Sequence[AnyModel], settings: ServerSettings, *, host: str, port: int, started_s: float | None = None) -> int:
    """Serve until a signal; return the exit code. port 0: any free one. started_s: time.monotonic() at process start, for the log.

    Raises UserError if the address can't be used.
    """
    ssl_files = _tls_options(settings)
    listener = _listen(host, port)
    handlers = _configure_logging()
    _warn_if_open(host, settings)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    app = create_app(models, settings)
    state: ServerState = app.state.server
    for handler in handlers:
        handler.on_drop = state.metrics.dropped_lines.inc
    table = ConnectionTable(_within_descriptors(settings.connections), lambda status: state.metrics.count_http("none", status))
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(Connection, table=table),  # type: ignore[arg-type]
        timeout_keep_alive=settings.connections.keep_alive_s,  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        **ssl_files,
        timeout_graceful_shutdown=1,  # all that matters was waited for before
    )
    scheme, names = "https" if ssl_files else "http", [model.name for model in models]
    server = DrainingServer(config, state, table, lambda: _announce(listener, scheme, names, started_s))
    server.run(sockets=[listener])
    for handler in handlers:
        handler.finish(_FLUSH_S)
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


def _tls_options(settings: ServerSettings) -> dict[str, Any]:
    """Return uvicorn's options for TLS, none without a certificate. Raises UserError for one that can't be used."""
    if not settings.tls_cert:
        return {}
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key or None, _no_password)
    except (OSError, UserError) as error:  # an SSLError is one
        raise UserError(f"can't use the certificate {settings.tls_cert} ({getattr(error, 'strerror', None) or error})") from error
    return {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key or None}


def _no_password() -> str:
    raise UserError("its key needs a password")


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


def _configure_logging() -> list[PipeHandler]:
    """Log access lines as JSON to stdout, everything else to stderr."""
    lines, messages = PipeHandler(sys.stdout.fileno()), PipeHandler(sys.stderr.fileno())
    access = logging.getLogger(ACCESS_LOG)
    access.addHandler(lines)
    access.setLevel(logging.INFO)
    access.propagate = False
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", handlers=[messages])
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return [lines, messages]


def _warn_if_open(host: str, settings: ServerSettings) -> None:
    with contextlib.suppress(ValueError):  # a name
        if settings.api_keys or ipaddress.ip_address(host).is_loopback:
            return
    if not settings.api_keys and host != "localhost":
        _LOG.warning("anyone who reaches %s may use this server: set keys with --api-keys-file or LLMOS_API_KEYS", host)


def _announce(listener: socket.socket, scheme: str, names: Sequence[str], started_s: float | None) -> None:
    host, port = listener.getsockname()[:2]
    took = "" if started_s is None else f" after {time.monotonic() - started_s:.2f} s"
    _LOG.info("serving %s on %s://%s:%d%s", ", ".join(names), scheme, f"[{host}]" if ":" in host else host, port, took)
