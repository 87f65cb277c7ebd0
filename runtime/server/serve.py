"""Running an app: the socket, uvicorn, and a shutdown that finishes running requests."""

from __future__ import annotations

import asyncio
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
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI

from llmos.runtime.errors import UserError
from llmos.runtime.server.admin import create_admin_app
from llmos.runtime.server.app import create_app
from llmos.runtime.server.core.connection import Connection, ConnectionTable
from llmos.runtime.server.core.gateway import ACCESS_LOG
from llmos.runtime.server.core.language import AnyModel, load_served
from llmos.runtime.server.core.loader import LoadModel
from llmos.runtime.server.core.logs import PipeHandler
from llmos.runtime.server.core.repository import Repository
from llmos.runtime.server.core.settings import ConnectionLimits, ServerSettings
from llmos.runtime.server.core.state import ServerState

_LOG = logging.getLogger("llmos.server")
_ABORT_S = 1.0  # that clients have to read the errors of an end without grace
_FLUSH_S = 0.5  # that the last log lines have to be taken
_SWEEP_TICKS = 3  # of uvicorn's, 0.1 s each
_ADMIN_CONNECTIONS = 16
_OTHER_DESCRIPTORS = 40 + _ADMIN_CONNECTIONS  # than those of connections: artifacts, pipes of child processes, logs, the event loop's own
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# The model's thread needs the GIL when it returns from C; with the default of 5 ms the event loop could delay it that long.
_SWITCH_INTERVAL_S = 0.0005


class Beside(Protocol):
    """What serves beside the main port, in the same event loop. str() says what it is and where, once it has started."""

    async def start(self) -> None:
        """Begin to serve."""
        ...

    async def stop(self) -> None:
        """End; what its clients wait for has ended before."""
        ...


class SweepingServer(uvicorn.Server):
    """uvicorn that closes connections which have taken too long, and leaves signals alone."""

    def __init__(self, config: uvicorn.Config, table: ConnectionTable) -> None:
        super().__init__(config)
        self._table = table

    async def on_tick(self, counter: int) -> bool:
        """Do what uvicorn does ten times a second, and look for connections that have taken too long."""
        if counter % _SWEEP_TICKS == 0:
            self._table.sweep()
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AdminServer(SweepingServer):
    """The admin port."""

    def __init__(self, config: uvicorn.Config, table: ConnectionTable, listener: socket.socket) -> None:
        super().__init__(config, table)
        self._listener = listener
        self._serving: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"admin on {'https' if self.config.is_ssl else 'http'}://{_address(self._listener)}"

    async def start(self) -> None:
        self._serving = asyncio.create_task(self.serve([self._listener]))
        while not (self.started or self._serving.done()):
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        self.should_exit = self.force_exit = True
        if self._serving is not None:
            await self._serving


class DrainingServer(SweepingServer):
    """uvicorn that drains on the first signal and quits on the second. exit_code: 0 after a complete drain, else 1.

    beside: what starts and stops with it.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState, table: ConnectionTable, on_started: Callable[[], None]) -> None:
        super().__init__(config, table)
        self._state = state
        self._on_started = on_started
        self._drain: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self.beside: list[Beside] = []
        self.exit_code = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in self.beside:
            await each.start()
            _LOG.info("%s", each)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for each in self.beside:
            await each.stop()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.end)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def end(self) -> None:
        """Begin to drain; at the second call, give up on what still runs."""
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


def serve(
    models: Sequence[AnyModel],
    settings: ServerSettings,
    *,
    host: str,
    port: int,
    repository: Repository | None = None,
    load_model: LoadModel = load_served,
    admin: tuple[str, int] | None = None,
    grpc_port: int | None = None,
    started_s: float | None = None,
) -> int:
    """Serve until a signal; return the exit code. port 0: any free one. started_s: time.monotonic() at process start, for the log.

    repository, load_model: see `create_app`. admin: host and port of the admin API; None: none. grpc_port: at the same
    host; None: no gRPC.

    Raises UserError if the address can't be used.
    """
    ssl_files = _tls_options(settings)
    if settings.repository_api:
        _require_admin_keys(host, settings)
    listener, admin_listener = _listen(host, port, "--host or --port"), _listen_admin(admin, settings)
    if grpc_port is not None:
        _listen(host, grpc_port, "--grpc-port").close()  # gRPC opens it later, and says less of what is wrong
    handlers = _configure_logging()
    _warn_if_open(host, settings)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    app = create_app(models, settings, repository, load_model)
    state: ServerState = app.state.server
    for handler in handlers:
        handler.on_drop = state.metrics.dropped_lines.inc
    limits = _within_descriptors(settings.connections)
    table = _table(state, limits)
    scheme = "https" if ssl_files else "http"
    server = DrainingServer(
        _config(app, table, settings, ssl_files),
        state,
        table,
        lambda: _announce(listener, scheme, state.registry.names(), started_s),
    )
    if admin_listener is not None:
        admin_table = _table(state, replace(limits, max_connections=_ADMIN_CONNECTIONS), admin=True)
        admin_config = _config(create_admin_app(state, server.end), admin_table, settings, ssl_files)
        server.beside.append(AdminServer(admin_config, admin_table, admin_listener))
    if grpc_port is not None:
        from llmos.runtime.server.rpc.server import GrpcServer  # takes 0.1 s to import

        server.beside.append(GrpcServer(state, host, grpc_port))
    server.run(sockets=[listener])
    for handler in handlers:
        handler.finish(_FLUSH_S)
    if server.exit_code:
        os._exit(server.exit_code)  # a running model call can't be interrupted and must not keep the process alive
    return server.exit_code


def _table(state: ServerState, limits: ConnectionLimits, *, admin: bool = False) -> ConnectionTable:
    """Return the table of a port. admin: whether it is the operator's, who is never banned."""

    def refused(status: int, client: str | None) -> None:
        state.metrics.count_http("none", status)
        if state.health is not None and not admin:
            state.health.observe_answer(status, client)

    return ConnectionTable(limits, refused)


def _config(app: FastAPI, table: ConnectionTable, settings: ServerSettings, ssl_files: dict[str, Any]) -> uvicorn.Config:
    return uvicorn.Config(
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


def _listen_admin(admin: tuple[str, int] | None, settings: ServerSettings) -> socket.socket | None:
    """Open the admin port. Raises UserError for an address that others reach where there is no key."""
    if admin is None:
        return None
    _require_admin_keys(admin[0], settings)
    return _listen(*admin, "--admin-host or --admin-port")


def _require_admin_keys(host: str, settings: ServerSettings) -> None:
    """Raise UserError for an address that others reach, where models can be changed without a key."""
    if not (settings.admin_keys or settings.api_keys or _is_loopback(host)):
        raise UserError(f"anyone who reaches {host} could change the models: set keys with --admin-keys-file")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _listen(host: str, port: int, options: str) -> socket.socket:
    """Open a listening socket; clients that connect before the app is up wait."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except (OSError, UnicodeError) as error:  # a UnicodeError is a name that can't be one of a host
        raise UserError(f"can't listen on {host}:{port} ({getattr(error, 'strerror', None) or error}): choose another {options}") from error
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
    if not settings.api_keys and not _is_loopback(host):
        _LOG.warning("anyone who reaches %s may use this server: set keys with --api-keys-file or LLMOS_API_KEYS", host)


def _announce(listener: socket.socket, scheme: str, names: Sequence[str], started_s: float | None) -> None:
    took = "" if started_s is None else f" after {time.monotonic() - started_s:.2f} s"
    _LOG.info("serving %s on %s://%s%s", ", ".join(names) or "no model yet", scheme, _address(listener), took)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
