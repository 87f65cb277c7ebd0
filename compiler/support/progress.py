"""Progress of long work: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO


class Progress:
    """Shows nothing; the base of those that do. Work is a row of named phases, each with a number of steps where that is known."""

    def phase(self, name: str) -> None:
        """Ends the phase before and begins one."""

    def update(self, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` steps of the phase."""

    def close(self) -> None:
        """Ends the last phase."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class LineProgress(Progress):
    """One line a phase, when it ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._name = ""
        self._start = 0.0

    def phase(self, name: str) -> None:
        self.close()
        self._name, self._start = name, time.perf_counter()

    def close(self) -> None:
        if self._name:
            self._stream.write(f"{self._name}: {time.perf_counter() - self._start:.2f} s\n")
            self._stream.flush()
        self._name = ""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self.close()


class BarProgress(Progress):
    """A bar for the phase at work, and a line for each that has ended."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description:<22}"), BarColumn(30), TimeElapsedColumn(), TextColumn("{task.fields[detail]}"))
        self._bars = RichProgress(*columns, console=Console(stderr=True), transient=False)
        self._bars.start()
        self._task: Any = None

    def phase(self, name: str) -> None:
        self._finish()
        self._task = self._bars.add_task(name, total=None, detail="")

    def update(self, done: int, total: int, detail: str = "") -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total, detail=detail)

    def close(self) -> None:
        self._finish()
        self._bars.stop()

    def _finish(self) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=1, total=1, detail="")
        self._task = None


def progress_for_terminal(quiet: bool = False) -> Progress:
    """What fits standard error: a bar, lines, or nothing where `quiet` asks for it."""
    if quiet:
        return Progress()
    return BarProgress() if sys.stderr.isatty() else LineProgress(sys.stderr)
