"""Tokens per second of language models beside other engines: `python benchmarks/llm.py A.llmos [B.llmos ...] --llama-cpp M.gguf`.

    CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAMA_BUILD_TOOLS=OFF -DLLAVA_BUILD=OFF" pip install llama-cpp-python==0.3.36    # 5 to 20 minutes
    pip install openvino-genai==2026.4.1.0 onnxruntime-genai==0.18.0

Each engine loads its model in a process of its own and waits; then all run each point in turns, several times, and medians are printed.
Prompts are random tokens. A prefill is the time to the first token, a decode the tokens after it, of all requests together. The limit of a
prefill is its products at the machine's peak, that of a step of decodes the weights, read once, at the bandwidth of memory.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

import llmos
from llmos.compiler.bench.peak import Limits, measure_limits
from llmos.compiler.bench.work import arithmetic_s

PEERS = {"llama.cpp": "llm_peer_llama_cpp.py", "OpenVINO": "llm_peer_openvino.py", "ONNX Runtime": "llm_peer_onnxruntime.py"}
QUICK_S = 4.0  # a point that takes longer runs fewer times


@dataclass(frozen=True)
class Point:
    """Requests of one length that start together, and how many tokens each generates."""

    prompt: int
    generated: int
    batch: int = 1

    @property
    def name(self) -> str:
        if self.generated == 1:
            return f"prefill {self.prompt}"
        return f"decode behind {self.prompt}" + (f", batch {self.batch}" if self.batch > 1 else "")

    @property
    def tokens(self) -> int:
        """Of a request, those that the rate counts."""
        return self.prompt if self.generated == 1 else self.generated - 1

    def per_second(self, times: Mapping[str, float]) -> float:
        """times: seconds from the start to the first token of the last request, and to the last token."""
        seconds = times["first_s"] if self.generated == 1 else times["last_s"] - times["first_s"]
        return self.batch * self.tokens / seconds


POINTS = (Point(256, 1), Point(1024, 1), Point(16, 65), Point(1000, 33), Point(16, 33, 8), Point(16, 17, 32))


class Engine:
    """A child process that answers one line with one line of JSON."""

    def __init__(self, name: str, command: Sequence[str], artifact: Path | None = None) -> None:
        self.name, self.artifact = name, artifact
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, request: Mapping[str, Any]) -> dict[str, float]:
        """The answer. Raises ClickException where the process ended."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self.name} ended at {request}")
        found: dict[str, float] = json.loads(line)
        return found

    def least_s(self, point: Point, limits: Limits) -> float | None:
        """Seconds of a point at the machine's limits; None for a peer."""
        if self.artifact is None:
            return None
        if point.generated > 1:
            return (point.generated - 1) * weight_bytes(self.artifact) / limits.bytes_per_s
        blocks = -(-point.prompt // 16)
        sizes = {"tokens": point.prompt, "requests": 1, "rows": 1, "max_blocks": blocks, "blocks": blocks}
        return arithmetic_s(llmos.Artifact.open(self.artifact).manifest, sizes, limits)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def engines(artifacts: Sequence[Path], peers: Mapping[str, Path], threads: int) -> Iterator[list[Engine]]:
    """Start the engines. peers: a model for each, by the names of PEERS."""
    with ExitStack() as stack:
        found = []
        for path in artifacts:
            command = [sys.executable, __file__, "--serve", str(path), "--threads", str(threads)]
            found.append(Engine(path.stem, command, path))
        for name, path in peers.items():
            script = Path(__file__).with_name(PEERS[name])
            found.append(Engine(f"{name} {path.stem}", [sys.executable, str(script), str(path), str(threads)]))
        for engine in found:
            stack.callback(engine.close)
        yield found


def weight_bytes(path: Path) -> int:
    """Bytes of the weights that a step of one token reads: all but tables of embeddings, of which it reads a row."""
    weights = llmos.Artifact.open(path).weights
    return sum(array.nbytes for name, array in weights.items() if "embed" not in name or "#packed" in name)


def serve(path: Path, threads: int) -> None:
    """Answer points on standard input by generating with an artifact."""
    from llmos.runtime.engine.generate import GenerationEngine, GenerationOptions, SamplingParams
    from llmos.runtime.engine.generate.model import ProgramStepModel

    llmos.set_num_threads(threads)
    engine = GenerationEngine(ProgramStepModel(llmos.load(path)), GenerationOptions(cache_bytes=2 << 30, prefix_cache=False))
    rng = np.random.default_rng(0)
    for line in sys.stdin:
        request = json.loads(line)
        prompts = rng.integers(10, engine.model.spec.vocab_size, (request["batch"], request["prompt"]))
        params = SamplingParams(temperature=0, max_tokens=request["generated"], ignore_eos=True)
        start = time.perf_counter()
        submitted = [engine.submit(prompt, params) for prompt in prompts]
        with ThreadPoolExecutor(len(submitted)) as pool:  # a reader for each, which sees its tokens when they come
            times = list(pool.map(partial(token_times, start), submitted))
        print(json.dumps({"first_s": max(each[0] for each in times), "last_s": max(each[-1] for each in times)}), flush=True)


def token_times(start: float, request: Iterable[Any]) -> list[float]:
    """Seconds from `start` to each token of a request."""
    return [time.perf_counter() - start for event in request if hasattr(event, "token")]


def measured(found: Sequence[Engine], point: Point, rounds: int) -> dict[str, float]:
    """Median tokens per second by engine."""
    request = {"prompt": point.prompt, "generated": point.generated, "batch": point.batch}
    rates: dict[str, list[float]] = {engine.name: [] for engine in found}
    for round_number in range(rounds):
        begin = time.perf_counter()
        for engine in found:
            rates[engine.name].append(point.per_second(engine.ask(request)))
        if time.perf_counter() - begin > QUICK_S * len(found) and round_number >= 2:
            break
    return {name: statistics.median(each) for name, each in rates.items()}


@click.command(help=__doc__)
@click.argument("artifacts", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--llama-cpp", type=click.Path(exists=True, path_type=Path), help="The same model for llama.cpp: a GGUF file.")
@click.option("--openvino", type=click.Path(exists=True, path_type=Path), help="For OpenVINO GenAI: a GGUF file or a directory.")
@click.option("--onnxruntime", type=click.Path(exists=True, path_type=Path), help="For ONNX Runtime GenAI: a directory.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Of each point; three where one takes long.")
@click.option("--longest", default=1024, show_default=True, help="Leave out points of longer prompts.")
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Also write the figures there.")
@click.option("--serve", "served", type=click.Path(path_type=Path), hidden=True)
def main(
    artifacts: tuple[Path, ...],
    llama_cpp: Path | None,
    openvino: Path | None,
    onnxruntime: Path | None,
    threads: int,
    rounds: int,
    longest: int,
    as_json: Path | None,
    served: Path | None,
) -> None:
    if served is not None:
        serve(served, threads)
        return
    limits = measure_limits(threads)
    print(f"{threads} threads read {limits.bytes_per_s / 1e9:.1f} GB/s and make {limits.int8_ops_per_s / 1e9:.0f} GOP/s of int8")
    results: dict[str, dict[str, float]] = {}
    peers = {name: path for name, path in zip(PEERS, (llama_cpp, openvino, onnxruntime), strict=True) if path is not None}
    with engines(artifacts, peers, threads) as found:
        for engine in found:
            engine.ask({"prompt": 16, "generated": 4, "batch": 1})  # loaded and warm
        for point in [each for each in POINTS if each.prompt <= longest]:
            results[point.name] = rates = measured(found, point, rounds)
            best_peer = max((rates[engine.name] for engine in found if engine.artifact is None), default=None)
            for engine in found:
                rate = rates[engine.name]
                least_s = engine.least_s(point, limits)
                share = f"{least_s * rate / (point.batch * point.tokens):6.0%} of the limit" if least_s else ""
                ratio = f"{rate / best_peer:5.2f}x the best peer" if best_peer and engine.artifact else ""
                print(f"{point.name:28} {engine.name:32} {rate:9.1f} tokens/s {ratio} {share}", flush=True)
    if as_json is not None:
        as_json.write_text(json.dumps({"limits": asdict(limits), "tokens_per_s": results}, indent=1))


if __name__ == "__main__":
    main()
