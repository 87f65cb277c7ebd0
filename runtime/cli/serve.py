"""`llmos serve`"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmos.runtime.cli.generate import device_option
from llmos.runtime.cli.numbers import FiniteRange
from llmos.runtime.errors import UserError

if TYPE_CHECKING:
    from llmos.runtime.server.core.language import AnyModel
    from llmos.runtime.server.core.quotas import Quota
    from llmos.runtime.server.core.repository import Repository

_STARTED_S = time.monotonic()
_of_models = partial(click.option, multiple=True, show_default=True)  # what holds for all models, or for one


@click.command(name="serve")
@click.argument("artifacts", nargs=-1, metavar="[ARTIFACT...]")
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path),
    help="Folder of models to serve, as MODEL/VERSION/model.llmos; VERSION is a number.",
)
@_of_models(
    "--version-policy",
    default=["latest"],
    help="Versions to serve: latest[:N], specific:1,3 or all; MODEL=... for one model. May be repeated.",
)
@click.option(
    "--model-control",
    default="none",
    show_default=True,
    help="none: load all at the start. explicit: load only on request. poll[:SECONDS]: follow the folder.",
)
@_of_models(
    "--resource-policy",
    default=["static"],
    help="static; dynamic: in memory when requests need it; isolated: in a process of its own. MODEL=... for one. May be repeated.",
)
@click.option(
    "--memory-budget-mib", type=click.IntRange(1), help="Memory of all models; dynamic ones make room, least recently used first."
)
@click.option(
    "--load-model", multiple=True, metavar="MODEL", help="Load this model of the folder at the start, and no other. May be repeated."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on; 0 for any free one.")
@click.option("--max-batch-size", default=32, show_default=True, type=click.IntRange(1), help="Rows of one batch.")
@click.option("--max-batch-tokens", default=2048, show_default=True, type=click.IntRange(1), help="Padded tokens of one batch.")
@click.option("--max-queue", default=256, show_default=True, type=click.IntRange(1), help="Requests of a model before clients get 429.")
@click.option("--max-wait-ms", type=FiniteRange(0, min_open=True), help="Wait for a model of tensors beyond which clients get 429.")
@click.option("--max-delay-ms", default=0.0, show_default=True, type=FiniteRange(0), help="How long a batch waits to grow.")
@click.option("--timeout-s", default=60.0, show_default=True, type=FiniteRange(0, min_open=True), help="Of one request.")
@click.option(
    "--generation-timeout-s", default=600.0, show_default=True, type=FiniteRange(0, min_open=True), help="Of one text generation."
)
@click.option("--cache-mib", type=click.IntRange(1), help="Cache of each language model; default as requests need, to half of memory.")
@click.option("--prefix-cache/--no-prefix-cache", default=True, show_default=True, help="Whether prompts of a key share cached beginnings.")
@click.option("--max-running", default=64, show_default=True, type=click.IntRange(1), help="Sequences of text generated at a time.")
@click.option("--max-step-tokens", default=256, show_default=True, type=click.IntRange(2), help="Tokens of a step of a language model.")
@click.option("--grace-s", default=30.0, show_default=True, type=FiniteRange(0), help="How long a shutdown waits for requests.")
@click.option(
    "--drain-delay-s",
    default=0.0,
    show_default=True,
    type=FiniteRange(0),
    help="How long it serves on before that, not ready any more.",
)
@click.option("--max-body-mib", default=64, show_default=True, type=click.IntRange(1), help="Largest request body.")
@click.option(
    "--max-inflight-mib", default=256, show_default=True, type=click.IntRange(1), help="Bodies of all requests together; more get 503."
)
@click.option("--max-connections", default=1024, show_default=True, type=click.IntRange(1), help="Connections; more get 503.")
@click.option("--header-timeout-s", default=10.0, show_default=True, type=FiniteRange(0, min_open=True), help="For the head of a request.")
@click.option(
    "--write-timeout-s", default=30.0, show_default=True, type=FiniteRange(0, min_open=True), help="For 4 KiB of an answer to be read."
)
@click.option(
    "--keep-alive-s", default=30.0, show_default=True, type=FiniteRange(0, min_open=True), help="For an idle connection to stay open."
)
@click.option("--health-rules", type=click.Path(path_type=Path, dir_okay=False), help="YAML file of rules: when to degrade, filter, ban.")
@click.option("--otlp-endpoint", default="", help="Where to send traces and metrics, such as http://127.0.0.1:4317.")
@click.option("--root-path", default="", help="Path under which a proxy has the server, such as /models.")
@click.option(
    "--api-keys-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of keys that clients must send, one a line, with their quotas. [env: LLMOS_API_KEYS, the keys, comma-separated]",
)
@click.option("--grpc-port", type=click.IntRange(0, 65535), help="Port for gRPC, at the same address; 0 for any free one; default none.")
@click.option("--admin-port", type=click.IntRange(0, 65535), help="Port to load, unload and drain at; 0 for any free one; default none.")
@click.option("--admin-host", default="127.0.0.1", show_default=True, help="Address of the admin port.")
@click.option(
    "--admin-keys-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of keys that the admin API requires, one a line; default those of clients.",
)
@click.option(
    "--repository-api/--no-repository-api",
    default=False,
    show_default=True,
    help="Let clients load and unload models at the main port, too.",
)
@click.option("--response-cache-mib", default=0, show_default=True, type=click.IntRange(0), help="Kept answers; 0 keeps none.")
@click.option(
    "--response-cache-ttl-s", default=300.0, show_default=True, type=FiniteRange(0, min_open=True), help="How long they are kept."
)
@click.option(
    "--response-cache",
    "response_cache_url",
    default="",
    metavar="URL",
    envvar="LLMOS_RESPONSE_CACHE",
    help="Redis that keeps answers too, such as redis://127.0.0.1:6379/0. [env: LLMOS_RESPONSE_CACHE]",
)
@click.option("--tls-cert", default="", help="Certificate in PEM, to serve over TLS.")
@click.option("--tls-key", default="", help="Its key, if it is in another file.")
@click.option(
    "--tool-parser", default="", metavar="FORMAT", help="How models call tools: hermes, llama3 or mistral; default as their templates."
)
@click.option("--entry", default="", help="Entry of each artifact to serve; default main, or the first.")
@device_option
@click.option("--access-log/--no-access-log", default=True, show_default=True, help="One JSON line per request on stdout.")
def command(
    artifacts: tuple[str, ...],
    model_repository: Path | None,
    version_policy: tuple[str, ...],
    model_control: str,
    resource_policy: tuple[str, ...],
    memory_budget_mib: int | None,
    load_model: tuple[str, ...],
    host: str,
    port: int,
    max_batch_size: int,
    max_batch_tokens: int,
    max_queue: int,
    max_wait_ms: float | None,
    max_delay_ms: float,
    timeout_s: float,
    generation_timeout_s: float,
    cache_mib: int | None,
    prefix_cache: bool,
    max_running: int,
    max_step_tokens: int,
    grace_s: float,
    drain_delay_s: float,
    max_body_mib: int,
    max_inflight_mib: int,
    max_connections: int,
    header_timeout_s: float,
    write_timeout_s: float,
    keep_alive_s: float,
    health_rules: Path | None,
    otlp_endpoint: str,
    root_path: str,
    api_keys_file: Path | None,
    grpc_port: int | None,
    admin_port: int | None,
    admin_host: str,
    admin_keys_file: Path | None,
    repository_api: bool,
    response_cache_mib: int,
    response_cache_ttl_s: float,
    response_cache_url: str,
    tls_cert: str,
    tls_key: str,
    tool_parser: str,
    entry: str,
    device: str,
    access_log: bool,
) -> int:
    """Serve artifacts over HTTP: the Open Inference Protocol v2, and OpenAI's embeddings, completions and chat completions.

    ARTIFACT is a path, or name=path to serve it under another name.
    """
    from llmos.runtime.engine import Limits, generate
    from llmos.runtime.server.core.health.rules import HealthRules
    from llmos.runtime.server.core.quotas import Quota
    from llmos.runtime.server.core.settings import MIB, ConnectionLimits, ServerSettings
    from llmos.runtime.server.serve import serve

    if max_step_tokens <= max_running:
        raise UserError(f"--max-step-tokens must be more than --max-running ({max_running}), so that prompts advance")
    quotas = _quotas_of_file(api_keys_file) if api_keys_file is not None else dict.fromkeys(_keys_of_environment(), Quota())
    settings = ServerSettings(
        limits=Limits(max_rows=max_batch_size, max_padded_tokens=max_batch_tokens, max_delay_s=max_delay_ms / 1e3),
        max_queue=max_queue,
        max_wait_s=math.inf if max_wait_ms is None else max_wait_ms / 1e3,
        timeout_s=timeout_s,
        generation_timeout_s=generation_timeout_s,
        generation=generate.GenerationOptions(
            generate.Limits(max_step_tokens, max_running, max_rows=2 * max_running),
            cache_bytes=None if cache_mib is None else cache_mib * MIB,
            prefix_cache=prefix_cache,
        ),
        max_body_bytes=max_body_mib * MIB,
        max_inflight_bytes=max(max_inflight_mib, max_body_mib) * MIB,
        grace_s=grace_s,
        drain_delay_s=drain_delay_s,
        api_keys=frozenset(quotas),
        quotas=quotas,
        memory_budget_bytes=(memory_budget_mib or 0) * MIB,
        repository_api=repository_api,
        admin_keys=frozenset(_quotas_of_file(admin_keys_file)) if admin_keys_file is not None else frozenset(),
        response_cache_bytes=response_cache_mib * MIB,
        response_cache_ttl_s=response_cache_ttl_s,
        response_cache_url=response_cache_url,
        access_log=access_log,
        connections=ConnectionLimits(
            max_connections, header_timeout_s=header_timeout_s, write_timeout_s=write_timeout_s, keep_alive_s=keep_alive_s
        ),
        health=None if health_rules is None else HealthRules.read(health_rules),
        otlp_endpoint=otlp_endpoint,
        root_path=root_path,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tool_parser=tool_parser,
    )
    if not artifacts and model_repository is None:
        raise UserError("Missing argument 'ARTIFACT...', or --model-repository")
    paths = [_parse_artifact(artifact) for artifact in artifacts]
    load = _loader(entry, device, resource_policy)
    models = [load(path, name) for name, path in paths]
    listed = {model.name: path for model, (_, path) in zip(models, paths, strict=True)}
    repository = _repository(listed, model_repository, version_policy, model_control, resource_policy, load_model)
    return serve(
        models,
        settings,
        host=host,
        port=port,
        repository=repository,
        load_model=load,
        admin=(admin_host, admin_port) if admin_port is not None else None,
        grpc_port=grpc_port,
        started_s=_STARTED_S,
    )


def _repository(
    listed: dict[str, Path],
    folder: Path | None,
    policies: tuple[str, ...],
    control: str,
    resources: tuple[str, ...],
    start: tuple[str, ...],
) -> Repository:
    from llmos.runtime.server.core.repository import ModelControl, Repository, VersionPolicy
    from llmos.runtime.server.core.residency import check_resource

    policy, of_models = _by_model("--version-policy", policies)
    resource, resource_of_models = _by_model("--resource-policy", resources)
    return Repository(
        listed,
        folder,
        ModelControl.parse(control),
        VersionPolicy.parse(policy or "latest"),
        {name: VersionPolicy.parse(text) for name, text in of_models.items()},
        start or None,
        check_resource(resource or "static"),
        {name: check_resource(text) for name, text in resource_of_models.items()},
    )


def _loader(entry: str, device: str, resources: tuple[str, ...]) -> Callable[[Path, str | None], AnyModel]:
    """Return what loads an artifact as a model, by default of its own name, in a process of its own where the resource policy says so."""
    from llmos.runtime.artifact.reader import Artifact
    from llmos.runtime.server.core.isolated import load_isolated
    from llmos.runtime.server.core.language import load_served
    from llmos.runtime.server.core.residency import ISOLATED

    common, named = _by_model("--resource-policy", resources)

    def load(path: Path, name: str | None) -> AnyModel:
        if ISOLATED not in (common, *named.values()):
            return load_served(path, name, entry, device=device)
        known = name or Artifact.open(path).manifest.name
        return (load_isolated if named.get(known, common) == ISOLATED else load_served)(path, name, entry, device=device)

    return load


def _by_model(option: str, given: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Return what an option says for all models, and for those that it names as MODEL=..."""
    named = dict(each.split("=", 1) for each in given if "=" in each)
    common = [each for each in given if "=" not in each]
    if len(common) > 1:
        raise UserError(f"{option}: '{common[0]}' and '{common[1]}' are both for all models; give MODEL=... for one")
    return common[0] if common else "", named


def _quotas_of_file(path: Path) -> dict[str, Quota]:
    """Return the keys of a file with their quotas: a key in each line, and behind it what it may use, such as `weight=2`."""
    from llmos.runtime.server.core.quotas import Quota

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read keys from {path} ({getattr(error, 'strerror', None) or error})") from error
    quotas = {}
    for number, line in enumerate(lines, 1):
        key, *given = line.split() or ["#"]
        if key.startswith("#"):
            continue
        try:
            quotas[key] = Quota(**{name: float(value) for name, _, value in (each.partition("=") for each in given)})
        except (TypeError, ValueError):
            raise UserError(
                f"{path}, line {number}: behind a key stand weight=, requests_per_min= or tokens_per_min= with numbers"
            ) from None
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    if not quotas:
        raise UserError(f"{path} holds no key: leave --api-keys-file out to serve everyone")
    return quotas


def _keys_of_environment() -> frozenset[str]:
    """Return the keys of LLMOS_API_KEYS, none where it is not set. One that is empty is a mistake, not a server for everyone."""
    import os

    value = os.environ.get("LLMOS_API_KEYS")
    if value is None:
        return frozenset()
    keys = frozenset(key.strip() for key in value.split(",") if key.strip())
    if not keys:
        raise UserError("LLMOS_API_KEYS is set and holds no key: unset it to serve everyone")
    return keys


def _parse_artifact(text: str) -> tuple[str | None, Path]:
    """ "name=path" or "path"; a path that exists is never taken for the first form."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return None, Path(text)
    if not name or not path:
        raise UserError(f"'{text}' is neither a path nor name=path")
    return name, Path(path)
