"""Runs cases in forked worker processes: an abort, an exit or a hang of one is the outcome of the case it was at, and the rest goes on."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from tests.conformance.outcome import Outcome, Suite, one_line

# What every case imports sooner or later; loaded before workers are forked, so that none of them has to.
SHARED_MODULES = (
    "llmos.compiler.backends.cpu.pipeline",
    "llmos.compiler.driver.compile",
    "llmos.compiler.frontend.torch",
    "llmos.runtime.program",
)

# Fork: a worker starts in milliseconds with everything imported. The parent must have started no threads.
_FORK = multiprocessing.get_context("fork")

# A worker keeps what compilers cache; after so many cases a fresh one takes over.
MAX_CASES_PER_WORKER = 200


@dataclass
class _Worker:
    """One process, and the case it is at."""

    process: BaseProcess
    pipe: Connection
    case: str = ""
    started_s: float = 0.0
    num_cases: int = 0

    def give(self, case: str) -> None:
        self.case, self.started_s = case, time.monotonic()
        self.num_cases += 1
        self.pipe.send(case)

    def stop(self) -> None:
        self.kill()
        self.pipe.close()

    def kill(self) -> None:
        """The process and the compilers that it has started, which are of its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()


def run_cases(suite: Suite, cases: Sequence[str], jobs: int = 2, timeout_s: float = 60.0) -> Iterator[Outcome]:
    """The outcomes of `cases`, as they come. `suite.cases()` must have been called: its data is shared with the workers."""
    for module in SHARED_MODULES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # else each worker's first collection copies every page that it shares with this process
    pool = _Pool(suite, deque(cases), timeout_s)
    try:
        yield from pool.run(jobs)
    finally:
        for worker in pool.workers:
            worker.stop()


@dataclass
class _Pool:
    suite: Suite
    queue: deque[str]
    timeout_s: float
    workers: list[_Worker] = field(default_factory=list)

    def run(self, jobs: int) -> Iterator[Outcome]:
        for _ in range(min(jobs, len(self.queue))):
            self._start()
        while self.workers:
            ready = wait([worker.pipe for worker in self.workers], timeout=0.5)
            for worker in list(self.workers):
                outcome = self._received(worker) if worker.pipe in ready else self._overdue(worker)
                if outcome is not None:
                    yield replace(outcome, seconds=time.monotonic() - worker.started_s)
                    self._next(worker)

    def _start(self) -> None:
        ours, theirs = _FORK.Pipe()
        process = _FORK.Process(target=_serve, args=(self.suite, theirs), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self.workers.append(worker)
        worker.give(self.queue.popleft())

    def _next(self, worker: _Worker) -> None:
        """Another case for the worker, or a fresh worker in its place where it has ended or served long enough."""
        if self.queue and worker.process.is_alive() and worker.num_cases < MAX_CASES_PER_WORKER:
            worker.give(self.queue.popleft())
            return
        worker.stop()
        self.workers.remove(worker)
        if self.queue:
            self._start()

    def _received(self, worker: _Worker) -> Outcome:
        try:
            answer: Outcome = worker.pipe.recv()
            return answer
        except (EOFError, ConnectionResetError):
            worker.process.join()
            return Outcome(worker.case, "crashed", f"the process ended with {_exit_name(worker.process.exitcode)}")

    def _overdue(self, worker: _Worker) -> Outcome | None:
        if time.monotonic() - worker.started_s < self.timeout_s:
            return None
        worker.kill()
        return Outcome(worker.case, "crashed", f"no answer in {self.timeout_s:.0f} s")


def _exit_name(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _serve(suite: Suite, pipe: Connection) -> None:
    """A worker's life: cases in, outcomes out, until the pipe closes. What native code writes to the terminal is dropped."""
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    warnings.simplefilter("ignore")
    while True:
        try:
            case = pipe.recv()
        except EOFError:
            return
        try:
            outcome = suite.run(case)
        except BaseException as error:
            outcome = Outcome(case, "crashed", one_line(f"{type(error).__name__}: {error}"))
        pipe.send(outcome)
