"""Random graphs by the thousand: `python -m tests.fuzz --graphs 2000`; one again, by its number: `--first 1234 --graphs 1`.

Prints a line for each graph that fails, then the smallest program found for each different failure, then a table.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial

from .graph import Graph
from .plan import LARGER, MAX_OPS, Plan, random_plan, shrink
from .worker import REFUSED, TIMEOUT_S, UNTRACED, Verdict, Worker

MAX_SHRUNK = 3  # of one failure
PROGRESS = 50  # graphs between two lines that say how far the run is


@dataclass
class Report:
    kinds: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    num_ops: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, seed: int, verdict: Verdict, graph: Graph) -> bool:
        """Whether the failure should be shrunk."""
        with self.lock:
            self.kinds[verdict.kind] += 1
            self.num_ops += len(graph.body)
            total = sum(self.kinds.values())
            if total % PROGRESS == 0:
                print(f"# {total} graphs, {sum(self.failures.values())} failed", file=sys.stderr, flush=True)
            if verdict.kind in (REFUSED, UNTRACED):
                self.refusals[verdict.reason] += 1
            if verdict.failed:
                self.failures[f"{verdict.kind}: {verdict.reason}"] += 1
                print(f"{seed}: {verdict.kind}: {verdict.message[:300]}", flush=True)
            return verdict.failed and self.failures[f"{verdict.kind}: {verdict.reason}"] <= MAX_SHRUNK

    def show(self, seconds: float) -> None:
        total = sum(self.kinds.values())
        print(f"\n{total} graphs of {self.num_ops / max(1, total):.1f} ops in {seconds:.0f} s")
        for title, counts in (("verdict", self.kinds), ("refused because", self.refusals), ("failed because", self.failures)):
            rows = counts.most_common()
            if rows:
                print(f"\n{title}")
            for text, count in rows:
                print(f"{count:6d}  {text}")


def one(worker: Worker, seed: int, max_ops: int) -> tuple[Plan, Verdict]:
    plan = random_plan(seed, max_ops)
    verdict = worker.judge(plan)
    if verdict.kind == UNTRACED and plan.sizes != LARGER:
        plan = replace(plan, sizes=LARGER)
        verdict = worker.judge(plan)
    return plan, verdict


def work(seeds: list[int], report: Report, max_ops: int, timeout_s: float, backend: str) -> None:
    worker = Worker(timeout_s, backend)
    while True:
        with report.lock:
            if not seeds:
                break
            seed = seeds.pop()
        plan, verdict = one(worker, seed, max_ops)
        if report.add(seed, verdict, plan.graph()):
            small = shrink(plan, partial(_fails_alike, worker, verdict), limit=15 if verdict.kind == "timeout" else 150)
            found = worker.judge(small)
            with report.lock:
                print(f"\n# graph {seed}: {found.kind}: {found.message[:600]}{small.graph()!r}", flush=True)
    worker.stop()


def _fails_alike(worker: Worker, verdict: Verdict, plan: Plan) -> bool:
    found = worker.judge(plan)
    return found.kind == verdict.kind and (found.kind in ("WrongResult", "crash", "timeout") or found.reason == verdict.reason)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first graph")
    parser.add_argument("--max-ops", type=int, default=MAX_OPS)
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds for one graph")
    parser.add_argument("--backend", default="", help="what compiles the graphs: cpu, or tvm where it is installed")
    options = parser.parse_args()
    report, begin = Report(), time.monotonic()
    seeds = list(reversed(range(options.first, options.first + options.graphs)))
    arguments = (seeds, report, options.max_ops, options.timeout, options.backend)
    threads = [threading.Thread(target=work, args=arguments) for _ in range(options.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report.show(time.monotonic() - begin)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
