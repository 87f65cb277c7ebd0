"""The gRPC port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc

from llmos.runtime.errors import UserError
from llmos.runtime.server.core.settings import ServerSettings
from llmos.runtime.server.core.state import ServerState
from llmos.runtime.server.rpc.service import Service

_FLUSH_S = 5.0  # that answers have to be read
_METADATA_BYTES = 16 << 10
_STREAMS = 128  # of a connection
_PING_S = 30.0  # after which a client that is silent is asked whether it lives


class GrpcServer:
    """See serve.Beside. port: once it has started."""

    def __init__(self, state: ServerState, host: str, port: int) -> None:
        self._state = state
        self._host = f"[{host}]" if ":" in host else host
        self._port = port
        self._server: Any = None
        self.port = 0

    def __str__(self) -> str:
        return f"gRPC on {self._host}:{self.port}"

    async def start(self) -> None:
        """Begin to serve. Raises UserError if the address can't be used."""
        settings = self._state.settings
        self._server = grpc.aio.server(options=_options(settings), maximum_concurrent_rpcs=settings.connections.max_connections)
        self._server.add_generic_rpc_handlers(Service(self._state).handlers())
        address, credentials = f"{self._host}:{self._port}", _credentials(settings)
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise UserError(f"can't listen on {address} for gRPC: choose another --grpc-port") from error
        await self._server.start()

    async def stop(self) -> None:
        """End, once answers are read."""
        if self._server is not None:
            await self._server.stop(_FLUSH_S)


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    limits = settings.connections
    return [
        ("grpc.so_reuseport", 0),  # else a second server would share the port in silence
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.server_handshake_timeout_ms", int(limits.header_timeout_s * 1e3)),
        ("grpc.max_connection_idle_ms", int(limits.keep_alive_s * 1e3)),
        ("grpc.keepalive_time_ms", int(_PING_S * 1e3)),
        ("grpc.keepalive_timeout_ms", int(limits.write_timeout_s * 1e3)),
    ]


def _credentials(settings: ServerSettings) -> Any:
    """Return the certificate of the server, None where it has none."""
    if not settings.tls_cert:
        return None
    chain = Path(settings.tls_cert).read_bytes()
    key = Path(settings.tls_key).read_bytes() if settings.tls_key else chain
    return grpc.ssl_server_credentials([(key, chain)])
