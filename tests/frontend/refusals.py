"""What a model that can't be compiled gets: one line, exit code 2, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos.runtime.cli.command import run


def assert_refused(path: Path, message: str, folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> None:
    """`llmos compile` on `path` in this process; `folder` is empty, and is so afterwards."""
    code = run(["compile", str(path), "-o", str(folder / "m.llmos"), "-q", "--no-cache", "--target", "native", *options])
    printed = capsys.readouterr()
    assert code == 2 and not printed.out, (code, printed)
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and len(printed.err) < 600, printed.err
    assert message in printed.err, printed.err
    assert list(folder.iterdir()) == []
