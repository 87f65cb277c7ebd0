"""`llmos bench serve`: its arithmetic, and what it says of real servers."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from llmos.runtime.bench.client import Address, HttpClient
from llmos.runtime.bench.load import ClosedLoop, OpenLoop
from llmos.runtime.bench.report import Slo, spread_ms, summary
from llmos.runtime.bench.samples import Sample
from llmos.runtime.bench.workload import FileWorkload, Length, TextWorkload
from llmos.runtime.cli.bench_serve import command, run_loop
from llmos.runtime.errors import UserError

from .harness import Server, affine_body, numpy_server, wait_for
from .language_model import FAILS_AT


def bench(server: Server, *options: str) -> dict[str, Any]:
    environment = {"LLMOS_API_KEY": server.key}
    done = CliRunner().invoke(command, [f"http://{server.address}", "--json", *options], env=environment, catch_exceptions=False)
    found: dict[str, Any] = json.loads(done.output)
    return found


def infer_file(folder: Path, *values: float) -> Path:
    path = folder / "requests.jsonl"
    path.write_text("".join(json.dumps(affine_body([value] * 3)) + "\n" for value in values))
    return path


def test_arrivals_are_poisson() -> None:
    offsets = OpenLoop(200, 50).arrivals(Random(3))
    gaps = np.diff(offsets)
    assert 9_000 < len(offsets) < 11_000
    assert all(0 <= at_s < 50 for at_s in offsets)
    assert math.isclose(gaps.mean(), gaps.std(), rel_tol=0.1)  # of an exponential distribution
    assert offsets == OpenLoop(200, 50).arrivals(Random(3)) != OpenLoop(200, 50).arrivals(Random(4))


@pytest.mark.parametrize(("text", "least", "most"), [("7", 7, 7), ("3:9", 3, 9), ("lognormal:100,0.5", 1, 2000)])
def test_lengths_follow_their_distribution(text: str, least: int, most: int) -> None:
    random = Random(0)
    drawn = [Length.parse(text).draw(random) for _ in range(2000)]
    assert all(least <= each <= most for each in drawn)
    middle = 100 if text.startswith("log") else (least + most) / 2
    assert abs(statistics.median(drawn) - middle) < 0.1 * middle + 1


@pytest.mark.parametrize("text", ["", "0", "9:3", "a", "lognormal:5", "lognormal:0,1", "1:2:3", "-4", "1e3", "99999999"])
def test_a_wrong_distribution_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="no distribution"):
        Length.parse(text)


@pytest.mark.parametrize("text", ["", "ttft", "ttft=", "ttft=-1", "ttft=nan", "speed=3", "ttft=1,,"])
def test_a_wrong_objective_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="ttft=2000"):
        Slo.parse(text)


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://x:99999", "http://[", "http://ü:1", "http://a..b", "a..b:8000", "http://.x", "http://" + "a" * 64]
)
def test_a_wrong_url_is_one_line(url: str) -> None:
    with pytest.raises(UserError, match="no URL"):
        Address.parse(url)


def test_percentiles_are_numpys() -> None:
    values = list(np.random.default_rng(0).random(97))
    found = spread_ms(values)
    assert found is not None
    for percent in (50, 95, 99):
        assert math.isclose(found[f"p{percent}"], np.percentile(values, percent) * 1e3, abs_tol=1e-3)


def test_goodput_counts_what_keeps_every_limit() -> None:
    def sample(ttft_s: float, tpot_s: float, status: int = 200) -> Sample:
        return Sample(0.0, 0.1, ttft_s + 9 * tpot_s, status, first_s=ttft_s, num_output_tokens=10)

    samples = [sample(0.4, 0.02), sample(0.6, 0.02), sample(0.4, 0.05), sample(2.5, 0.2), sample(0.1, 0.01, status=429)]
    interactive, conversational = (summary(samples, Slo.parse(name), 10.0) for name in ("interactive", "conversational"))
    assert interactive["goodput_per_s"] == pytest.approx(0.1)
    assert conversational["goodput_per_s"] == pytest.approx(0.3)
    assert (conversational["num_ok"], conversational["num_rejected"], conversational["num_errors"]) == (4, 1, 0)
    assert conversational["requests_per_s"] == pytest.approx(0.4)
    assert conversational["ttft_ms"]["max"] == pytest.approx(2500)
    assert conversational["tpot_ms"]["max"] == pytest.approx(200)


def test_a_server_that_stands_still_hides_no_latency(tmp_path: Path) -> None:
    """What arrives while the server is stopped counts from its arrival, although one call runs at a time."""
    with numpy_server(hold=True, limits={"max_rows": 1}) as server:
        released_s = 0.0

        def release() -> None:
            nonlocal released_s
            wait_for(lambda: server.metric('llmos_num_requests_waiting{model_name="affine"}') >= 15)
            released_s = time.perf_counter()
            server.release()

        thread = threading.Thread(target=release)
        thread.start()
        workload = FileWorkload.read(infer_file(tmp_path, 1.0), "infer", "affine", stream=False)

        async def run() -> dict[str, Any]:
            client = HttpClient(Address.parse(server.address))
            samples = await OpenLoop(100, 0.3).run(client, workload, 1)
            client.close()
            return {"samples": samples}

        samples: list[Sample] = run_loop(run())["samples"]
        thread.join()
    assert len(samples) >= 16
    assert all(sample.ok for sample in samples)
    held = [sample for sample in samples if sample.due_s < released_s]
    assert len(held) >= 16
    assert all(sample.end_s >= released_s for sample in held)
    assert all(sample.e2e_s >= released_s - sample.due_s for sample in held)


def test_tensors_of_a_models_metadata(server: Server) -> None:
    found = bench(server, "--api", "infer", "--model", "affine", "--concurrency", "2", "--num-requests", "20")
    (run,) = found["runs"]
    assert (run["num_ok"], run["num_errors"]) == (20, 0), run
    assert run["ttft_ms"] is None


def test_embeddings_by_rate_and_seed(server: Server) -> None:
    options = ("--api", "embeddings", "--rate", "100", "--duration-s", "0.2", "--seed", "1", "--seed", "2", "--slo", "e2e=10000")
    found = bench(server, *options)
    assert found["model"] == "encoder"
    assert [run["seed"] for run in found["runs"]] == [1, 2]
    for run in found["runs"]:
        assert run["num_ok"] == run["num_requests"] > 3
        assert run["slo_met"] == 1
        assert run["prompt_tokens_per_s"] > 0


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_streams_have_tokens_and_times(served: Server, api: str) -> None:
    options = ("--api", api, "--concurrency", "2", "--num-requests", "4", "--prompt-tokens", "4", "--output-tokens", "6")
    options += ("--extra-body", json.dumps({"logit_bias": {str(FAILS_AT): -100}}))
    found = bench(served, *options)
    (run,) = found["runs"]
    assert found["model"] == "null"
    assert (run["num_ok"], run["num_errors"]) == (4, 0), run
    assert run["num_output_tokens"] == 4 * 6
    assert 0 < run["ttft_ms"]["p50"] <= run["e2e_ms"]["p50"]
    assert run["tpot_ms"]["p50"] >= 0


def test_refusals_are_counted_apart() -> None:
    with numpy_server(hold=True, max_queue=2) as server:
        threading.Timer(0.5, server.release).start()
        found = bench(server, "--api", "infer", "--model", "affine", "--rate", "100", "--duration-s", "0.2")
    (run,) = found["runs"]
    assert run["num_rejected"] > 2
    assert run["num_errors"] == 0
    assert run["num_ok"] + run["num_rejected"] == run["num_requests"]
    assert run["rejected_ms"]["p50"] < run["e2e_ms"]["p50"]


def test_servers_that_break_off_are_errors() -> None:
    answers = [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
    ]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers.pop(0))
        writer.close()

    async def run() -> dict[str, Any]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        client = HttpClient(Address("127.0.0.1", server.sockets[0].getsockname()[1]))
        workload = TextWorkload("chat", "m", Length.parse("3"), Length.parse("2"))
        samples = await ClosedLoop(1, 60, 4).run(client, workload, 0)
        server.close()
        return summary(samples, None)

    found = run_loop(run())
    assert (found["num_ok"], found["num_errors"]) == (0, 4)
    assert found["errors"]["status 503"] == 1
    assert sum(count for error, count in found["errors"].items() if error.startswith("connection: ")) == 3


def test_no_server_and_no_load_are_one_line(server: Server) -> None:
    from llmos.runtime.cli.command import run

    assert run(["bench", "serve", "127.0.0.1:1", "--rate", "1"]) == 2
    assert run(["bench", "serve", server.address]) == 2
    assert run(["bench", "serve", server.address, "--rate", "1e9"]) == 2
    assert run(["bench", "serve", server.address, "--rate", "1", "--extra-body", "[]"]) == 2
    assert run(["bench", "serve", server.address, "--rate", "1", "--extra-body", "{"]) == 2
    assert run(["bench", "serve", server.address, "--api", "infer", "--model", "none", "--rate", "1"]) == 2
