"""Python modules run as processes of their own: what may end its process, or never end, can't take this one with it."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

FAILED = 3  # exit code of a child that says on standard error, in its last line, why it gives no result
LIMIT_S = 900  # of processor time: a hundred times what the largest kernels take


@dataclass(frozen=True)
class Finished:
    """How a child ended.

    output: its standard output. said: the last line of its standard error. failed: it gives no result and `said` is why. fault: what ended
    it, such as "SIGSEGV", where it did not end by itself; "" otherwise.
    """

    output: bytes
    said: str = ""
    failed: bool = False
    fault: str = ""


def run_child(
    module: str, arguments: Sequence[str] = (), given: bytes = b"", files: Sequence[int] = (), limit_s: int = LIMIT_S
) -> Finished:
    """Runs `python -m module arguments` with `given` as its standard input and the open `files` under the same numbers, to its end.

    The limit is one of processor time, so that a busy machine doesn't make a difference.
    """
    command = [sys.executable, "-m", module, *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, pass_fds=tuple(files), **pipes) as child:  # type: ignore[call-overload]
        try:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(child.pid, resource.RLIMIT_CPU, (limit_s, limit_s + 5))
            output, errors = child.communicate(given)
        except BaseException:
            child.kill()
            raise
    lines = errors.decode(errors="replace").strip().splitlines()
    said = lines[-1] if lines else ""
    code = child.returncode
    if code in (0, FAILED):
        return Finished(output, said, failed=code == FAILED)
    return Finished(output, said, fault=f"more than {limit_s} s of processor time" if code == -signal.SIGXCPU else _name(code))


def _name(code: int) -> str:
    """Of an exit code, as subprocess gives it."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
