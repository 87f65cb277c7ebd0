"""Python modules that answer requests in processes of their own: what may end its process, or never end, can't take this one with it.

A process starts when there is a request and none is idle, answers one request at a time, and ends when nothing came for a while: many
small compiles pay once for the start of an interpreter and its imports.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from llmos.runtime.errors import LlmosError

LIMIT_S = 900  # of processor time: a hundred times what the largest kernels take
IDLE_S = 30.0
MAX_REQUESTS = 100  # of one process: what native code leaks doesn't add up

_REQUEST = struct.Struct("<QQ")  # bytes that follow, seconds of processor time
_ANSWER = struct.Struct("<BQ")  # whether it is the reason of a failure, bytes that follow


@dataclass(frozen=True)
class Answer:
    """What a child gave: output. failed: `said` is why there is none. fault: what ended the child, such as "SIGSEGV"; "" otherwise."""

    output: bytes
    said: str = ""
    failed: bool = False
    fault: str = ""


class Children:
    """Processes of `python -m module`, which calls `serve`. Threads may ask at the same time; each gets a process."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._idle: list[_Child] = []
        # A forked process shares these pipes: it forgets them, and starts children of its own.
        os.register_at_fork(after_in_child=self._idle.clear)
        atexit.register(self.close)

    def ask(self, request: bytes | Sequence[bytes], limit_s: int = LIMIT_S) -> Answer:
        """The module's answer to a request, whole or in pieces.

        The limit is one of processor time, so that a busy machine doesn't make a difference.
        """
        while True:
            child = self._take()
            answer = child.ask([request] if isinstance(request, bytes) else request, limit_s)
            if answer is None:
                continue
            if child.serves_on:
                self._idle.append(child)
            else:
                child.close()
            return answer

    def close(self) -> None:
        """Ends the idle ones."""
        with contextlib.suppress(IndexError):  # of another thread that was faster
            while self._idle:
                self._idle.pop().close()

    def _take(self) -> _Child:
        with contextlib.suppress(IndexError):  # of another thread that was faster
            while True:
                child = self._idle.pop()
                if child.serves_on:
                    return child
                child.close()  # it was ended while it was idle, which no request is to blame for
        return _Child(self._module)


class _Child:
    """One process, between requests or at one."""

    def __init__(self, module: str) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115, closed with the process
        command = [sys.executable, "-m", module]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
        self._num_requests = 0

    @property
    def serves_on(self) -> bool:
        return self._process.poll() is None and self._num_requests < MAX_REQUESTS

    def ask(self, request: Sequence[bytes], limit_s: int) -> Answer | None:
        """The answer; None from a process that had ended before the request, having been idle."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._num_requests += 1
        said_before = os.fstat(self._errors.fileno()).st_size
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(_REQUEST.pack(sum(map(len, request)), limit_s))
                for piece in request:
                    self._process.stdin.write(piece)
                self._process.stdin.flush()
            head = self._process.stdout.read(_ANSWER.size)
            if len(head) == _ANSWER.size:
                failed, size = _ANSWER.unpack(head)
                output = self._process.stdout.read(size)
                if len(output) == size:
                    return Answer(b"", output.decode(), failed=True) if failed else Answer(output)
        except BaseException:
            self._process.kill()
            self.close()
            raise
        return self._ended(limit_s, said_before)

    def _ended(self, limit_s: int, said_before: int) -> Answer | None:
        code = self._process.wait()
        self._errors.seek(said_before)  # what earlier requests said is no reason for this end
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        if code == 0 and self._num_requests > 1:
            return None
        fault = f"more than {limit_s} s of processor time" if code == -signal.SIGXCPU else _name(code)
        return Answer(b"", lines[-1] if lines else "", fault=fault)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # of a request that was never read
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()


def serve(answer: Callable[[bytes], bytes]) -> None:
    """A child's life: answers requests until its parent ends or nothing comes for a while. A LlmosError says why there is no answer."""
    requests, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints is no answer
    while select.select([requests], [], [], IDLE_S)[0]:
        head = _read(requests, _REQUEST.size)
        if len(head) < _REQUEST.size:
            return
        size, limit_s = _REQUEST.unpack(head)
        request = _read(requests, size)
        used_s = int(time.process_time()) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (used_s + limit_s, resource.RLIM_INFINITY))
        try:
            failed, output = False, answer(request)
        except LlmosError as error:
            failed, output = True, " ".join(str(error).split()).encode()
        answers.write(_ANSWER.pack(failed, len(output)) + output)
        answers.flush()


def _read(file: IO[bytes], size: int) -> bytes:
    """`size` bytes, or fewer at the end of the file. Nothing is read ahead, since `select` would not see it."""
    parts = bytearray()
    while len(parts) < size and (part := file.read(size - len(parts))):
        parts += part
    return bytes(parts)


def _name(code: int) -> str:
    """Of an exit code, as subprocess gives it."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
