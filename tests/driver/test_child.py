"""What ends a child process, and what it says, is seen by its parent."""

from __future__ import annotations

import pytest

from llmos.compiler.child import run_child


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("while True: pass", "more than 1 s of processor time"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("import os; os._exit(7)", "exit code 7"),
        ("pass", ""),
    ],
)
def test_how_a_child_ended(statement: str, fault: str) -> None:
    found = run_child("timeit", ["-n", "1", "-r", "1", statement], limit_s=1)
    assert found.fault == fault and not found.failed
    assert (found.output != b"") == (fault == "")


def test_a_child_gets_its_input_and_says_why_it_fails() -> None:
    assert run_child("base64", ["-e", "-"], given=b"llmos").output.strip() == b"bGxtb3M="
    found = run_child(
        "timeit", ["-n", "1", "import sys; sys.stderr.write('working\\nno such thing\\n'); sys.stderr.flush(); import os; os._exit(3)"]
    )
    assert found.failed and found.said == "no such thing" and not found.fault
