"""`llmos bench serve`"""

from __future__ import annotations

import asyncio
import json
import os
import resource
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from llmos.runtime.bench.client import Address, HttpClient
from llmos.runtime.bench.load import ClosedLoop, OpenLoop, Workload
from llmos.runtime.bench.report import Slo, summary
from llmos.runtime.bench.target import first_model, model_inputs
from llmos.runtime.bench.workload import APIS, FileWorkload, InferWorkload, Length, TextWorkload
from llmos.runtime.cli.numbers import FiniteRange
from llmos.runtime.cli.tables import table
from llmos.runtime.errors import UserError

_KEY = "LLMOS_API_KEY"
_LATE_MS = 5.0  # of the client itself, from which on its figures are doubtful
_POSITIVE = FiniteRange(0, min_open=True)


@click.command(name="bench serve")
@click.argument("url")
@click.option("--api", type=click.Choice(APIS), default="chat", show_default=True, help="Route to load.")
@click.option("--model", default="", help="Model to ask; default the server's first one that fits.")
@click.option("--rate", "rates", multiple=True, type=_POSITIVE, help="Open loop: requests a second, Poisson arrivals; repeatable.")
@click.option("--concurrency", "clients", multiple=True, type=click.IntRange(1), help="Closed loop: clients at a time; repeatable.")
@click.option("--duration-s", default=30.0, show_default=True, type=_POSITIVE, help="Of each load.")
@click.option("--num-requests", type=click.IntRange(1), help="Closed loop: end after so many.")
@click.option("--warmup-s", default=0.0, show_default=True, type=FiniteRange(0), help="At the beginning of each load, not counted.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0,), show_default=True, help="Of arrivals and prompts; repeatable.")
@click.option("--prompt-tokens", default="128", show_default=True, help="Words of prompts: 128, 16:256 (uniform), lognormal:128,0.7.")
@click.option("--output-tokens", default="64", show_default=True, help="max_tokens, in the same forms.")
@click.option("--shared-prefix", default=0, show_default=True, type=click.IntRange(0), help="Words that all prompts begin with.")
@click.option("--requests", type=click.Path(path_type=Path), help="File of request bodies to send instead, a JSON object a line.")
@click.option("--stream/--no-stream", default=True, show_default=True, help="Stream text; whole answers have no TTFT.")
@click.option("--ignore-eos/--no-ignore-eos", default=True, show_default=True, help="Generate all of max_tokens (llmos, vLLM).")
@click.option("--extra-body", default="{}", help='More parameters of each request, such as {"temperature": 0}.')
@click.option("--slo", default="", help="For goodput: ttft=2000,tpot=100 in ms (also itl, e2e), conversational or interactive.")
@click.option("--timeout-s", default=600.0, show_default=True, type=_POSITIVE, help="Of each request.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    url: str, api: str, model: str, rates: Sequence[float], clients: Sequence[int], duration_s: float, num_requests: int | None,
    warmup_s: float, seeds: Sequence[int], prompt_tokens: str, output_tokens: str, shared_prefix: int, requests: Path | None,
    stream: bool, ignore_eos: bool, extra_body: str, slo: str, timeout_s: float, as_json: bool,
) -> int:  # fmt: skip
    """Put load on the server at URL, and measure what its clients see.

    Latencies count from when a request was due. A key for the server is read from the environment's LLMOS_API_KEY. Exit code 1 if no
    request was answered.
    """
    if not rates and not clients:
        raise UserError("give a load: --rate 10 for requests that arrive, or --concurrency 8 for clients that wait for their answers")
    if num_requests is not None and rates:
        raise UserError("--num-requests is for --concurrency: the length of an open loop is --duration-s")
    objective = Slo.parse(slo) if slo else None
    lengths = Length.parse(prompt_tokens), Length.parse(output_tokens)
    address, more = Address.parse(url), _object(extra_body)
    _allow_connections()

    async def measured() -> dict[str, Any]:
        client = HttpClient(address, os.environ.get(_KEY, ""))
        name = model or await first_model(client, api)
        workload: Workload
        if requests is not None:
            workload = FileWorkload.read(requests, api, name, stream)
        elif api == "infer":
            workload = InferWorkload(name, await model_inputs(client, name), lengths[0])
        else:
            workload = TextWorkload(api, name, *lengths, shared_prefix, stream, ignore_eos, more)
        loads: list[tuple[dict[str, Any], OpenLoop | ClosedLoop]] = [
            ({"load": "open", "rate": rate}, OpenLoop(rate, duration_s, timeout_s)) for rate in rates
        ]
        loads += [({"load": "closed", "concurrency": each}, ClosedLoop(each, duration_s, num_requests, timeout_s)) for each in clients]
        runs = []
        for told, load in loads:
            for seed in seeds:
                samples = await load.run(client, workload, seed)
                window_s = duration_s if isinstance(load, OpenLoop) else 0.0
                runs.append({**told, "seed": seed, **summary(samples, objective, window_s, warmup_s)})
        client.close()
        return {"url": url, "api": api, "model": name, "runs": runs}

    found = run_loop(measured())
    click.echo(json.dumps(found, indent=1) if as_json else _text(found))
    return 0 if any(run["num_ok"] for run in found["runs"]) else 1


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"--extra-body must be a JSON object, not {text:.60}")
    return found


def run_loop(measured: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Run a coroutine on an event loop of little overhead."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measured)


def _allow_connections() -> None:
    """Let the process open as many connections as it is allowed to."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


_COLUMNS = ("load", "ok", "429", "errors", "req/s", "tok/s", "goodput/s", "ms:", "p50", "p95", "p99", "max")


def _text(found: Mapping[str, Any]) -> str:
    rows: list[tuple[object, ...]] = []
    notes = []
    for run in found["runs"]:
        load = f"{run['rate']:g}/s" if run["load"] == "open" else f"{run['concurrency']} clients"
        counts = (load, run["num_ok"], run["num_rejected"], run["num_errors"], f"{run['requests_per_s']:.4g}")
        head: tuple[object, ...] = (
            *counts,
            f"{run['output_tokens_per_s']:.0f}",
            f"{run['goodput_per_s']:.4g}" if "goodput_per_s" in run else "",
        )
        for name in ("ttft", "itl", "tpot", "e2e", "rejected"):
            if (spread := run[f"{name}_ms"]) is not None:
                rows.append((*head, name, *(f"{spread[column]:.2f}" for column in ("p50", "p95", "p99", "max"))))
                head = ("",) * len(head)
        if head[0]:
            rows.append((*head, "", "", "", "", ""))
        notes += [f"{load}: {count} x {error}" for error, count in run["errors"].items()]
        if run["client_lag_ms"]["p99"] > _LATE_MS:
            notes.append(f"{load}: this client was late itself, {run['client_lag_ms']['p99']:.1f} ms at the 99th percentile")
    return "\n".join([f"{found['api']} of {found['model']} at {found['url']}", table(rows, header=_COLUMNS), *notes])
