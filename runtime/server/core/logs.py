"""Log lines that never hold the server up: a pipe that nobody reads fills, and a write to it waits for good."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable

_MAX_LINES = 10_000
_MAX_LINE_BYTES = 16 << 10  # with a traceback


class PipeHandler(logging.Handler):
    """Writes lines, long ones cut, to a file descriptor from a thread of its own. on_drop: called for each line that finds no room."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.on_drop: Callable[[], object] = lambda: None
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(_MAX_LINES)
        threading.Thread(target=self._write, name="llmos-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record).encode(errors="replace")[:_MAX_LINE_BYTES] + b"\n")
        except queue.Full:
            self.on_drop()
        except Exception:
            self.handleError(record)

    def finish(self, timeout_s: float) -> None:
        """Wait for what is left to be written, if it is taken."""
        end_s = time.monotonic() + timeout_s
        while self._lines.unfinished_tasks and time.monotonic() < end_s:
            time.sleep(0.002)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            with contextlib.suppress(OSError):  # nobody reads any more
                while line:
                    line = line[os.write(self._descriptor, line) :]
            self._lines.task_done()
