"""Options of a server."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmos.runtime.engine import Limits
from llmos.runtime.engine.generate import GenerationOptions
from llmos.runtime.errors import UserError
from llmos.runtime.server.core.health.rules import HealthRules
from llmos.runtime.server.core.quotas import Quota
from llmos.runtime.server.core.redis_store import LIMIT_S
from llmos.runtime.text.tools import PARSERS

MIB = 1 << 20


@dataclass(frozen=True)
class ConnectionLimits:
    """max_connections: more get 503, after those that wait for a request were closed. max_head_bytes: of URL and headers. header_timeout_s:
    for a head, and for the rest of a body that is no longer read. write_timeout_s: for 4 KiB of an answer to be read. keep_alive_s: that a
    connection stays open without a request.
    """

    max_connections: int = 1024
    max_head_bytes: int = 64 << 10
    header_timeout_s: float = 10.0
    write_timeout_s: float = 30.0
    keep_alive_s: float = 30.0

    def __post_init__(self) -> None:
        if self.max_connections < 1 or self.max_head_bytes < 1024:
            raise UserError("connection limits: max_connections must be 1 or more, and max_head_bytes 1024 or more")
        if not all(each > 0 for each in (self.header_timeout_s, self.write_timeout_s, self.keep_alive_s)):
            raise UserError("connection limits: times must be above 0")


@dataclass(frozen=True)
class ServerSettings:
    """limits: of one batch. max_queue: most waiting or running requests of a model; more get 429. max_wait_s: so does what would wait
    longer for a model of tensors. timeout_s: seconds for a request,
    upload included; a client may only shorten it. generation_timeout_s: the same for text generation. generation: limits and cache of each
    language model; its max_queue and timeout_s are replaced by those here. max_inflight_bytes: of the bodies of all requests, as far as
    each is larger than 64 KiB. grace_s: seconds that a shutdown waits for running requests. drain_delay_s: that the server is not ready and
    still serves before that, for balancers to see it. api_keys: if not empty, every route but health requires one. quotas: of keys, by key.
    root_path: under which a proxy has the server, such as "/models"; requests may begin with it or not. response_cache_bytes: of kept
    answers, 0 to keep none; response_cache_ttl_s: how long; response_cache_url: of a Redis that keeps them
    too, whose values are waited for response_cache_wait_s. health: rules of the
    health matrix. otlp_endpoint: where traces and metrics are sent, such as "http://127.0.0.1:4317"; "" for nowhere. tls_cert,
    tls_key: files in PEM; the key may be in the file of the certificate. tool_parser: how models write calls of tools, "" for as
    their chat templates show. memory_budget_bytes: of the files and caches of all models; 0: any. repository_api: whether clients may
    load and unload models, too, not only who reaches the admin port. admin_keys: those that loading, unloading and the admin port
    require; if empty, those of api_keys.
    """

    limits: Limits = field(default_factory=Limits)
    max_queue: int = 256
    max_wait_s: float = math.inf
    timeout_s: float = 60.0
    generation_timeout_s: float = 600.0
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    max_body_bytes: int = 64 * MIB
    max_inflight_bytes: int = 256 * MIB
    grace_s: float = 30.0
    drain_delay_s: float = 0.0
    api_keys: frozenset[str] = field(default=frozenset(), repr=False)
    quotas: Mapping[str, Quota] = field(default_factory=dict, repr=False)
    response_cache_bytes: int = 0
    response_cache_ttl_s: float = 300.0
    response_cache_url: str = field(default="", repr=False)
    response_cache_wait_s: float = LIMIT_S
    memory_budget_bytes: int = 0
    repository_api: bool = False
    admin_keys: frozenset[str] = field(default=frozenset(), repr=False)
    access_log: bool = True
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    root_path: str = ""
    health: HealthRules | None = None
    otlp_endpoint: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tool_parser: str = ""

    def __post_init__(self) -> None:
        if self.max_queue < 1 or self.max_body_bytes < 1:
            raise UserError("server settings: max_queue and max_body_bytes must be 1 or more")
        if not self.max_wait_s > 0:
            raise UserError("server settings: max_wait_s must be above 0")
        if self.max_inflight_bytes < self.max_body_bytes:
            raise UserError("server settings: max_inflight_bytes must not be less than max_body_bytes")
        if not (self.timeout_s > 0 and self.generation_timeout_s > 0 and self.grace_s >= 0 and self.drain_delay_s >= 0):
            raise UserError("server settings: timeout_s and generation_timeout_s must be above 0, and no time negative")
        if self.response_cache_bytes < 0 or not self.response_cache_ttl_s > 0:
            raise UserError("server settings: response_cache_bytes can't be negative, and response_cache_ttl_s must be above 0")
        if self.tool_parser not in ("", *PARSERS):
            raise UserError(f"server settings: tool_parser must be one of {', '.join(PARSERS)}, not '{self.tool_parser}'")
        if self.otlp_endpoint and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise UserError("server settings: otlp_endpoint must be a URL such as http://127.0.0.1:4317")
        if self.memory_budget_bytes < 0:
            raise UserError("server settings: memory_budget_bytes can't be negative")
        if self.tls_key and not self.tls_cert:
            raise UserError("server settings: a key of TLS needs its certificate")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise UserError("server settings: root_path must begin with '/' and not end with it")
        if any(not key or not key.isascii() or not key.isprintable() for key in self.api_keys | self.admin_keys):
            raise UserError("server settings: an API key must be printable ASCII and can't be empty")
