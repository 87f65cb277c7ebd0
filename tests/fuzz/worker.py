"""Checks graphs in processes of their own, so that a crash or a hang is a verdict like any other."""

from __future__ import annotations

import multiprocessing as mp
import os
import re
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

from .plan import Plan

PASSED, REFUSED, UNTRACED = "passed", "refused", "not traced by torch"
# glibc's allocator with checks: a kernel that writes past its output ends the worker when the array is freed.
MALLOC_CHECKS = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
TIMEOUT_S, START_S = 60, 300  # for one graph, and for a worker's imports


@dataclass(frozen=True)
class Verdict:
    """What became of a graph: "passed", "refused", "not traced by torch", "crash", "timeout" or the name of an exception."""

    kind: str
    message: str = ""

    @property
    def failed(self) -> bool:
        return self.kind not in (PASSED, REFUSED, UNTRACED)

    @property
    def reason(self) -> str:
        """The same for failures of one cause, most of the time: numbers and names left out."""
        return re.sub(r"[-+]?[0-9][0-9.e+-]*|%\w+|\[.*?\]|\bv\b", "#", self.message.split("\n")[0])[:110]


def judge(plan: Plan, backend: str = "") -> Verdict:
    """Build the graph, compile it and compare it, in this process. backend: what compiles it; "" is the CPU backend."""
    from llmos.runtime.errors import InputError, UnsupportedError

    from .check import check

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of eager torch on few elements
            check(plan.graph(), backend)
    except UnsupportedError as error:
        return Verdict(UNTRACED if "can't trace" in str(error) else REFUSED, str(error))
    except InputError as error:
        is_guard = "the model needs" in str(error)  # export takes some sizes of its range to be others
        return Verdict(REFUSED if is_guard else type(error).__name__, str(error))
    except Exception as error:
        return Verdict(type(error).__name__, str(error))
    return Verdict(PASSED)


def _serve(pipe: Connection, backend: str) -> None:
    import torch

    torch.set_num_threads(1)
    pipe.send("ready")
    while (plan := pipe.recv()) is not None:
        pipe.send(judge(plan, backend))


class Worker:
    """One process, started anew after a crash or a timeout."""

    def __init__(self, timeout_s: float = TIMEOUT_S, backend: str = "") -> None:
        self.timeout_s = timeout_s
        self.backend = backend
        self._process: Any = None
        self._pipe: Connection | None = None

    def judge(self, plan: Plan) -> Verdict:
        pipe = self._pipe or self._start()
        try:
            pipe.send(plan)
            if pipe.poll(self.timeout_s):
                verdict: Verdict = pipe.recv()
                return verdict
            self.stop()
            return Verdict("timeout", f"more than {self.timeout_s:.0f} s")
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            self.stop()
            return Verdict("crash", f"exit code {code}")

    def _start(self) -> Connection:
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.backend), daemon=True)
        with patch.dict(os.environ, MALLOC_CHECKS):
            self._process.start()
        theirs.close()
        if not self._pipe.poll(START_S) or self._pipe.recv() != "ready":
            raise RuntimeError("a worker did not start")
        return self._pipe

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None
